"""What frozen layers give, computed once: hidden states of every token at the lowest layer that trains, kept in a file; of completions'
last tokens alone where only a score layer trains.

A token's state depends on the tokens that it sees: in a tree those before it on its path, in a row of its own all of the row (an
encoder looks ahead). A number of 64 bits made of them is the key of its state, whatever batch, layout or epoch it comes in. A pass
whose states are all known goes past the frozen layers; another one runs them, and keeps what they give.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpo.train.batches import Batch
from mmpo.train.model.attach import plain_model
from mmpo.train.model.fingerprint import config_digest
from mmpo.train.model.forward import body_of
from mmpo.train.model.layers import layers_of, states_in

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class StateFile(AbstractContextManager["StateFile"]):
    """Hidden states by their keys, float32, in a file without a name, which is gone with the context or the process. folder: where;
    default: the system's folder for such files. Several runs over the same frozen layers may share one.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._file = TemporaryFile(dir=folder, prefix="mmpo-states-")  # noqa: SIM115 - open as long as this is
        self._keys, self._rows = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        self._width = 0

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def bytes(self) -> int:
        """The file's size."""
        return 4 * len(self._keys) * self._width

    def read(self, keys: np.ndarray) -> np.ndarray | None:
        """The states of these keys, (keys, width); None unless all are known."""
        if not len(self._keys):
            return None
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if not np.array_equal(self._keys[places], keys):
            return None
        whole = np.memmap(self._file, dtype=np.float32, mode="r", shape=(len(self._keys), self._width))
        return whole[self._rows[places]]

    def add(self, keys: np.ndarray, states: np.ndarray) -> None:
        """Keeps the states (keys, width) of those keys that are new. Raises OSError where the disk is full."""
        new, first = np.unique(keys, return_index=True)
        fresh = ~np.isin(new, self._keys, assume_unique=True)
        new, first = new[fresh], first[fresh]
        self._width = states.shape[1]
        self._file.seek(len(self._keys) * self._width * 4)  # behind what is whole: a write may have failed
        self._file.write(np.ascontiguousarray(states[first], dtype=np.float32).data)
        self._file.flush()
        keys, rows = np.append(self._keys, new), np.append(self._rows, len(self._rows) + np.arange(len(new)))
        order = np.argsort(keys, kind="stable")
        self._keys, self._rows = keys[order], rows[order]


@dataclass(frozen=True)
class _Shared:
    """Layers below number `cut` that several models have in common. names: the weights that their states depend on; digest: of those, and
    of all else that they depend on besides the tokens and bf16; folder: where the file lies."""

    cut: int
    names: tuple[str, ...]
    digest: str
    bf16: bool
    folder: str | Path | None
    states: StateFile


_shared: list[_Shared] | None = None


@contextmanager
def sharing_states() -> Iterator[None]:
    """Within, runs of this process that train above the same frozen layers, and evaluations of what they trained, compute those once
    for all of them. Their file lies in the folder of the first run.
    """
    global _shared
    before, own = _shared, list[_Shared]()
    _shared = own
    try:
        yield
    finally:
        _shared = before
        for one in own:
            one.states.__exit__()


@contextmanager
def states_below(model: nn.Module, cut: int, folder: str | Path | None, bf16: bool = False) -> Iterator[StateFile]:
    """`kept_states` in a file of this run, in `folder`, or in one that others share (`sharing_states`). Frozen are the weights that get
    no gradient. bf16: whether passes compute in it.
    """
    if _shared is None:
        with StateFile(folder) as file, kept_states(model, cut, file):
            yield file
        return
    names = tuple(name for name, value in plain_model(model).named_parameters() if not value.requires_grad)
    with kept_states(model, cut, _file_of(_shared, cut, names, _digest(model, cut, names), bf16, folder)) as file:
        yield file


@contextmanager
def states_of_others(model: nn.Module, bf16: bool = False) -> Iterator[None]:
    """Within, a model whose lower layers are those of runs that share their states goes past them; any other one runs as it is."""
    for one in _shared or ():
        if _digest(model, one.cut, one.names) == one.digest:
            with kept_states(model, one.cut, _file_of(_shared or [], one.cut, one.names, one.digest, bf16, one.folder)):
                yield
            return
    yield


def _file_of(
    shared: list[_Shared], cut: int, names: tuple[str, ...], digest: str, bf16: bool, folder: str | Path | None
) -> StateFile:
    """The file that these layers share, a new one where they have none in this precision."""
    found = next((one for one in shared if (one.digest, one.bf16) == (digest, bf16)), None)
    if found is None:
        found = _Shared(cut, names, digest, bf16, folder, StateFile(folder))
        shared.append(found)
    return found.states


def _digest(model: nn.Module, cut: int, names: Sequence[str]) -> str:
    """Of all that the states depend on besides the tokens and the precision; of a model without these weights it is no other's."""
    plain = plain_model(model)
    values, whole = dict(plain.named_parameters()), blake2b(digest_size=16)
    whole.update(repr((cut, config_digest(plain))).encode())
    for name in names:
        value = values.get(name)
        whole.update(f"{name}\0{value is None or (value.dtype, tuple(value.shape))}\0".encode())
        if value is not None:
            whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


@contextmanager
def kept_states(model: nn.Module, cut: int, states: StateFile) -> Iterator[StateFile]:
    """Within, passes of the model go past its layers below number `cut` where `states` knows what comes out of them.

    Those layers must be frozen, and without dropout. Where all are, of a reward model, what it reads of each completion is kept: what comes
    out of the body at its last token.
    """
    plain = plain_model(model)
    layers, body = layers_of(plain), body_of(plain)
    if cut == len(layers):
        before = getattr(plain, "mmpo_kept_ends", None)
        plain.mmpo_kept_ends = partial(_kept_ends, states)  # where a pass looks for it
        try:
            yield states
        finally:
            plain.mmpo_kept_ends = before
        return
    known: list[Tensor | None] = [None]
    keys: list[np.ndarray] = []

    def look(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", given[0] if given else None)
        if ids is None:  # a wrapper's call around our own pass
            return
        keys[:] = [_keys(ids, named.get("position_ids"), named.get("attention_mask"))]
        found = states.read(keys[0])
        known[0] = None if found is None else torch.from_numpy(found).to(ids.device).reshape(*ids.shape, -1)

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if known[0] is None:
            there = states_in(given, named).detach()
            states.add(keys[0], there.float().flatten(0, 1).cpu().numpy())
            return None
        return ((known[0], *given[1:]), named) if given else (given, {**named, "hidden_states": known[0]})

    hooks = [body.register_forward_pre_hook(look, with_kwargs=True), layers[cut].register_forward_pre_hook(enter, with_kwargs=True)]
    lower: list[Any] = list(layers[:cut])
    own = [layer.__dict__.get("forward") for layer in lower]
    for layer in lower:
        layer.forward = _passable(layer.forward, known)
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
        for layer, forward in zip(lower, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _kept_ends(states: StateFile, batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
    keys = _keys(batch.input_ids, batch.positions, None)[batch.last.cpu().numpy()]
    if (found := states.read(keys)) is None:
        ends = compute().detach().float()
        states.add(keys, ends.cpu().numpy())
        return ends
    return torch.from_numpy(found).to(batch.input_ids.device)


def _passable(forward: Callable[..., Any], known: list[Tensor | None]) -> Callable[..., Any]:
    """A layer's forward pass, which hands its input on where the states above are known, as whatever the layer gives."""
    others: list[int] = []

    def passing(*given: Any, **named: Any) -> Any:
        if known[0] is None:
            output = forward(*given, **named)
            others[:] = [len(output) - 1] if isinstance(output, tuple) else []
            return output
        states = states_in(given, named)
        return (states, *[None] * others[0]) if others else states

    return passing


def _keys(ids: Tensor, positions: Tensor | None, mask: Tensor | None) -> np.ndarray:
    """A key for every token of ids (rows, length), flat, uint64. positions: given for trees in depth-first order; mask: of rows."""
    tokens = ids.cpu().numpy().astype(np.uint64)
    if positions is None:
        where = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.uint64), tokens.shape)
        own = np.ones(tokens.shape, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
        mixed = _mixed(tokens, where)
        whole = np.where(own, mixed, 0).sum(axis=1, dtype=np.uint64, keepdims=True)
        return np.where(own, _mixed(np.broadcast_to(whole, tokens.shape), where), 0).reshape(-1)  # nobody sees padding: one for all
    depths = positions.expand(ids.shape).cpu().numpy()
    return np.concatenate(
        [_path_keys(_mixed(row, depth.astype(np.uint64)), depth) for row, depth in zip(tokens, depths, strict=True)]
    )


def _path_keys(mixed: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Sums along each token's path from the root. mixed: a number for every token at its depth; depths: (tokens,), from 0."""
    sums, latest = np.zeros(len(mixed), dtype=np.uint64), np.zeros(int(depths.max()) + 1, dtype=np.int64)
    starts = np.flatnonzero(np.append(True, depths[1:] != depths[:-1] + 1))
    for start, stop in zip(starts, np.append(starts[1:], len(mixed))):
        depth = depths[start]
        before = sums[latest[depth - 1]] if depth else np.uint64(0)
        sums[start:stop] = before + mixed[start:stop].cumsum(dtype=np.uint64)
        latest[depth : depth + stop - start] = np.arange(start, stop)
    return sums


def _mixed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits that look random, of (value, place); as in splitmix64."""
    mixed = (values * _ODD[2] ^ (values >> np.uint64(29))) * _ODD[1] + (places + np.uint64(1)) * _ODD[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _ODD[1]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _ODD[2]
    return mixed ^ (mixed >> np.uint64(31))
