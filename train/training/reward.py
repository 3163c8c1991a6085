"""The reward trainer: z = r(x, y_w) − r(x, y_l), and the pad token that makes its saved model readable to others."""

from typing import Any

from torch import Tensor, nn

from mmpo.train.batches import MicroBatch
from mmpo.train.objective import Logits
from mmpo.train.training.trainer import MarginTrainer

_KNOWN_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")


class RewardTrainer(MarginTrainer):
    """Trains a sequence classifier with one label; the arguments are `MarginTrainer`'s.

    A model whose pad token is missing or equals the end-of-text token gets one of its own (`own_pad_token`), so that
    `AutoModelForSequenceClassification` reads the saved folder to the same scores.
    """

    kind = "reward"

    def __init__(self, model: nn.Module, *args: Any, processing_class: Any, **options: Any) -> None:
        own_pad_token(model, processing_class)
        super().__init__(model, *args, processing_class=processing_class, **options)

    def pair_logits(self, values: Tensor, batch: MicroBatch) -> tuple[Logits, dict[str, Tensor]]:
        """z (pairs,), and both completions' scores, each (pairs,)."""
        chosen, rejected = values[batch.chosen], values[batch.rejected]
        return Logits(chosen - rejected), {"rewards/chosen": chosen, "rewards/rejected": rejected}


def own_pad_token(model: Any, tokenizer: Any) -> None:
    """Sees to a pad token that is not the end of text, in tokenizer and model; embeddings grow by a row only if they
    must.

    transformers pools at the last token that is not pad; with pad = eos that is a token early, or before the reply
    where the template ends turns with eos.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in _KNOWN_PADS if name in vocabulary), "<|pad|>")
        if tokenizer.pad_token not in vocabulary:
            tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
