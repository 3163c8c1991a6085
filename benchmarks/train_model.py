"""The model of `train_speed.py`: a random Llama and a tokenizer of 32,000 words, saved to a folder that both sides load."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

__all__ = ["COMMON_WORDS", "SHAPES", "VOCABULARY", "WORDS", "Shape", "save_models"]

VOCABULARY = 32_000
SPECIAL = ("<|pad|>", "<|end|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>")
WORDS = VOCABULARY - len(SPECIAL)
COMMON_WORDS = 100
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Shape(NamedTuple):
    """hidden: units. inner: of the MLP."""

    hidden: int
    inner: int
    layers: int
    heads: int

    @property
    def body(self) -> int:
        """Weights of all layers' matrices: query, key, value and output, and the MLP's three."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)

    @property
    def body_share(self) -> float:
        """The body's share of a forward pass's floating-point operations, attention itself not counted, in 0..1."""
        return self.body / (self.body + VOCABULARY * self.hidden)


SHAPES = {"cpu": Shape(128, 1024, 14, 2), "cuda": Shape(1024, 4096, 16, 16)}
"""The body is at least 60% of the operations; a smaller one would make the output layer, not the tokens, what is compared."""


def save_models(folder: Path, shape: Shape) -> dict[str, Path]:
    """A policy, and a reward model with its score layer, each with the tokenizer: their folders by kind."""
    tokenizer = _tokenizer()
    made: dict[str, tuple[type, dict[str, Any]]] = {
        "policy": (LlamaForCausalLM, {}),
        "reward": (LlamaForSequenceClassification, {}),
    }
    for kind, (architecture, _) in made.items():
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        config.num_labels = 1
        torch.manual_seed(0)
        architecture(config).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return {kind: folder / kind for kind in made}


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; the marks of the chat template are tokens of their own, pad is none of them."""
    entries = {name: number for number, name in enumerate((*SPECIAL, *(f"w{number}" for number in range(WORDS))))}
    words = Tokenizer(models.WordLevel(entries, unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        chat_template=TEMPLATE,
        model_max_length=4096,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    return tokenizer
