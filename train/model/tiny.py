"""`--model tiny`: a small Llama and a byte-level BPE tokenizer, built from the training text with no download.

It shows the whole road on a laptop and makes tests fast; nobody should expect it to write.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TINY_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(texts: Iterable[str], vocab: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; any text at all can be encoded. The same texts give the same
    one.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=TINY_TEMPLATE,
        model_max_length=4096,
    )


def tiny_model(kind: Literal["policy", "reward"], tokenizer: Any, *, size: int = 64, layers: int = 2, seed: int = 0) -> Any:
    """A random Llama of `size` hidden units (a multiple of 16), for a policy or with one score for a reward model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=size * 3,
        num_hidden_layers=layers,
        num_attention_heads=size // 16,
        num_key_value_heads=size // 16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    config.num_labels = 1
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config) if kind == "policy" else LlamaForSequenceClassification(config)
