"""What the tests of candidates by models of this machine share."""

from pathlib import Path

import pytest

from mmpo.train.model import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's."""
    out = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = tiny_tokenizer([f"Question {i}? Answer number {i}, in words." for i in range(40)])
    tiny_model("policy", tokenizer).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
