"""Log-probabilities of completions under one fixed model, computed once and kept in a Parquet file.

The file's metadata holds the digest of the model's weights; a row's key is the digest of a completion's token ids and
start. Neither the learning rate nor the objective is part of the key: another run on the same texts finds its values
there.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from mmpo.pipeline.tables import metadata, with_metadata
from mmpo.train.batches import BATCHES, BatchKind, micro_batches
from mmpo.train.data import PromptPairs
from mmpo.train.render import Rendered

__all__ = ["cached_logprobs", "completion_logprobs", "weights_digest", "with_reference"]

_SCHEMA = pa.schema([pa.field("key", pa.binary(16)), pa.field("logprob", pa.float64())])


@torch.no_grad()
def completion_logprobs(
    model: nn.Module,
    prompts: Sequence[PromptPairs],
    *,
    tokens: int,
    pad_token: int,
    device: torch.device | str,
    bf16: bool = False,
    layout: BatchKind = BATCHES["rows"],
) -> list[np.ndarray]:
    """Summed log-probability of every completion, each computed once: one array (completions,), float64, a prompt."""
    was_training = model.training
    model.eval().to(device)
    found: dict[int, np.ndarray] = {}
    for group in micro_batches(prompts, tokens):
        batch = layout.build(group, pad_token).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            values = layout.logprobs(model, batch).cpu().double().numpy()
        bounds = np.cumsum([len(prompt.completions) for prompt in group])[:-1]
        found.update({id(prompt): part for prompt, part in zip(group, np.split(values, bounds), strict=True)})
    model.train(was_training)
    return [found[id(prompt)] for prompt in prompts]


def cached_logprobs(model: nn.Module, prompts: Sequence[PromptPairs], path: Path, **options: Any) -> list[PromptPairs]:
    """The prompts with `reference` filled in, from the file where it has them, else computed and added to it."""
    digest = weights_digest(model, bf16=bool(options.get("bf16")))
    known = _read(path, digest)
    missing = [prompt for prompt in prompts if any(_key(item) not in known for item in prompt.completions)]
    for prompt, values in zip(missing, completion_logprobs(model, missing, **options), strict=True):
        known.update({_key(item): float(value) for item, value in zip(prompt.completions, values, strict=True)})
    if missing:
        _write(path, digest, known)
    return with_reference(prompts, [np.array([known[_key(item)] for item in p.completions]) for p in prompts])


def with_reference(prompts: Sequence[PromptPairs], values: Sequence[np.ndarray]) -> list[PromptPairs]:
    """The prompts with their completions' reference log-probabilities, each (completions,)."""
    return [replace(prompt, reference=value) for prompt, value in zip(prompts, values, strict=True)]


@torch.no_grad()
def weights_digest(model: nn.Module, *, bf16: bool = False) -> str:
    """blake2b-128 of all parameters' names and bytes and of the precision they are used in, in hexadecimal."""
    digest = blake2b(b"bf16" if bf16 else b"full", digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(item: Rendered) -> bytes:
    return blake2b(np.array((item.start, *item.ids), dtype=np.int64).tobytes(), digest_size=16).digest()


def _read(path: Path, digest: str) -> dict[bytes, float]:
    if not path.is_file():
        return {}
    table = pq.ParquetFile(path).read()
    if metadata(table.schema).get("weights") != digest:
        return {}
    return dict(zip(table["key"].to_pylist(), table["logprob"].to_pylist(), strict=True))


def _write(path: Path, digest: str, known: dict[bytes, float]) -> None:
    """Whole or not at all: into a sibling, then renamed."""
    rows = {"key": list(known), "logprob": list(known.values())}
    sibling = path.with_suffix(".part")
    pq.write_table(pa.table(rows, schema=with_metadata(_SCHEMA, {"weights": digest})), sibling, compression="zstd")
    sibling.replace(path)
