"""The length of texts, in characters or in a tokenizer's tokens."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError

TEXTS_AT_ONCE = 1024


def check_tokenizer(folder: str) -> None:
    """Refuse a folder without a tokenizer that can be read, before anything else is. Raises UserError."""
    _tokenizer(folder)


def tokenizer_file(folder: str) -> Path:
    """The file that a tokenizer is read from: a folder's tokenizer.json, or the one that is named."""
    path = Path(folder)
    return path / "tokenizer.json" if path.is_dir() else path


@cache
def _tokenizer(folder: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"--max-tokens needs the package tokenizers ({error}): pip install 'mmpo[train]'") from error
    path = tokenizer_file(folder)
    if not path.is_file():
        raise UserError(f"--tokenizer {folder}: no such file: {path}; name a model's folder with a tokenizer.json, or that file")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise UserError(f"--tokenizer {path}: can't be read as a tokenizer ({error})") from error
    tokenizer.no_truncation()  # files of trained models may cut at a length, and fill up to one
    tokenizer.no_padding()
    return tokenizer


def token_counts(texts: pa.Array, folder: str) -> np.ndarray:
    """Tokens of each text, special ones not among them, shape (texts,). Null is a text of none."""
    tokenizer, found = _tokenizer(folder), np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = [text or "" for text in texts.slice(start, TEXTS_AT_ONCE).to_pylist()]
        found[start : start + len(some)] = [len(one) for one in tokenizer.encode_batch_fast(some, add_special_tokens=False)]
    return found
