"""What a model gives every completion of many prompts, without gradients; and of one fixed model, the reference, the
log-probabilities: each computed once, and kept in a cache.

`cached_logprobs` is the entry of a run. It asks the store for what is known, computes what is missing, longest completions
first, and saves as it goes. Several processes share the work; the first alone reads and writes the store.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import ProgressReporter, duration, per_second, say
from mmpo.train.batches import group_prompts
from mmpo.train.data import PromptPairs, Rendered
from mmpo.train.distributed import agreed, from_all, from_first, rank_and_world
from mmpo.train.inference.reference_store import ReferenceStore
from mmpo.train.messages import some_ids
from mmpo.train.model import (
    ExecutionPlan,
    Fingerprint,
    bfloat16_on_cpu,
    choose_plan,
    completion_values,
    fingerprint_of,
    states_of_others,
)

BATCHES_PER_CHUNK = 8
"""Micro-batches' worth of tokens computed between two saves: few to lose, enough to fill micro-batches."""
CHUNKS_PER_ACTOR = 4
"""Where several processes compute: at least so many for each, if they hold a micro-batch."""

Work = tuple[PromptPairs, np.ndarray]
"""A prompt with only those of its completions that are missing (its pairs mean nothing); their places among all keys."""

Item = TypeVar("Item")
_VALUES = {"policy": "log-probability", "reward": "score"}


@torch.no_grad()
def predict_values(
    model: nn.Module,
    kind: str,
    prompts: Sequence[PromptPairs],
    *,
    tokens: int,
    pad_token: int,
    device: torch.device | str,
    bf16: bool = False,
    plan: ExecutionPlan | None = None,
) -> list[np.ndarray]:
    """The value of every completion, each computed once: one array (completions,), float64, per prompt.

    kind: "policy" (summed log-probability, in nats) or "reward" (score). tokens: computed in one pass at most. plan: how the
    model is run (default: what `choose_plan` finds for the longest row).
    """
    was_training = model.training
    model.eval().to(device)
    if plan is None:
        plan = choose_plan(model, kind, max((prompt.length for prompt in prompts), default=1))
    found: dict[int, list[np.ndarray]] = {id(prompt): [] for prompt in prompts}
    with states_of_others(model, bf16), bfloat16_on_cpu(model, bf16):
        for passes in group_prompts(prompts, tokens, plan.batches):
            for parts in passes:
                batch = plan.batches.build([completions for _, completions in parts], pad_token).to(device)
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                    values = completion_values(model, kind, batch, plan).cpu().double().numpy()
                bounds = np.cumsum([len(completions) for _, completions in parts])[:-1]
                for (prompt, _), part in zip(parts, np.split(values, bounds), strict=True):
                    found[id(prompt)].append(part)
    model.train(was_training)
    return [np.concatenate(found[id(prompt)]) for prompt in prompts]


@dataclass
class Predictor:
    """Computes what a model gives completions, all finite, some prompts at a time. called: what messages call it; longest: tokens of the
    longest row of all; plan: None: as `choose_plan` finds it at the first call, by the layout; options: of `predict_values`.
    """

    model: nn.Module
    kind: str
    called: str
    longest: int
    layout: str = "auto"
    plan: ExecutionPlan | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[PromptPairs]) -> np.ndarray:
        """The values of the prompts' completions in their order, float64. Raises UserError."""
        if not prompts:
            return np.zeros(0)
        try:
            if self.plan is None:  # one serves for all, and is looked for only when it is needed
                self.model.to(self.options["device"])
                self.plan = choose_plan(self.model, self.kind, self.longest, self.layout)
            values = predict_values(self.model, self.kind, prompts, plan=self.plan, **self.options)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory ran out while the {self.called}'s {_VALUES[self.kind]}s were computed: set tokens_per_batch lower "
                "(--tokens-per-batch)"
            ) from error
        bad = [prompt.prompt_id for prompt, found in zip(prompts, values, strict=True) if not np.isfinite(found).all()]
        if bad:
            raise UserError(
                f"the {self.called} gives completions of {len(bad)} prompts no finite {_VALUES[self.kind]} (prompt_id "
                f"{some_ids(bad, 3)}): check the model's weights, and try it without bf16"
            )
        return np.concatenate(values)


class Elsewhere(Protocol):
    """Other processes that hold the same model. tokens: that they compute at once; count: how many they are."""

    tokens: int
    count: int

    def __call__(self, chunks: Sequence[Sequence[PromptPairs]], longest: int) -> Generator[tuple[int, np.ndarray]]:
        """The number of each chunk and the values of its completions, as they come. longest: tokens of the longest row of all."""
        ...


def token_runs(items: Iterable[Item], size: Callable[[Item], int], least: int) -> Iterator[list[Item]]:
    """The items in their order, in runs that end where they have `least` tokens or more. size: an item's tokens.

    >>> list(token_runs([3, 1, 2, 5, 1], size=int, least=4))
    [[3, 1], [2, 5], [1]]
    """
    run: list[Item] = []
    held = 0
    for item in items:
        run.append(item)
        held += size(item)
        if held >= least:
            yield run
            run, held = [], 0
    if run:
        yield run


# --- the reference ----------------------------------------------------------------------------------------------------------


def with_reference(prompts: Sequence[PromptPairs], values: Sequence[np.ndarray]) -> list[PromptPairs]:
    """The prompts with their completions' reference log-probabilities, each (completions,)."""
    return [replace(prompt, reference=value) for prompt, value in zip(prompts, values, strict=True)]


def cached_logprobs(
    model: nn.Module, prompts: Sequence[PromptPairs], cache: str | Path | Literal[False] | None, **options: Any
) -> list[PromptPairs]:
    """The prompts with `reference` filled in: `cached_values` of a policy. Of a peft model the reference is the base model, its adapter
    switched off.
    """
    with adapter_off(model):
        return with_reference(prompts, cached_values(model, "policy", prompts, cache, **options))


def cached_values(
    model: nn.Module,
    kind: str,
    prompts: Sequence[PromptPairs],
    cache: str | Path | Literal[False] | None,
    *,
    tokenizer: Any = None,
    tokens: int,
    bf16: bool = False,
    layout: str = "auto",
    called: str = "reference",
    option: str = "--reference-cache",
    fingerprint: Fingerprint | None = None,
    elsewhere: Elsewhere | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """What `predict_values` gives, from the cache where it has it, else computed and added to it.

    cache: as `ReferenceStore.open` takes it, None for the user's cache folder; False: no file. tokenizer: the
    one that the prompts were rendered with. layout: as `choose_plan` takes it, which is asked where no plan is given and
    something is to be computed. called: what messages call the model; option: the name of the cache's option; fingerprint: the
    model's, where it is known; elsewhere: what computes in the place of this process. tokens, bf16 and the other options are
    `predict_values`'. Every process of a distributed run calls this with the same prompts and holds the whole model.

    Raises UserError for a cache that belongs to another reference, can't be read or can't be written, for a model whose
    values are not finite, and where the memory runs out; what was computed until then is saved.
    """
    longest = max((prompt.length for prompt in prompts), default=1)
    how = {"tokens": tokens, "bf16": bf16, **options}
    compute = Predictor(model, kind, called, longest, layout, how.pop("plan", None), how)
    numbers: dict[bytes, int] = {}
    places = [np.array([numbers.setdefault(_key(item), len(numbers)) for item in prompt.completions]) for prompt in prompts]
    keys, writes = list(numbers), cache is not False and rank_and_world()[0] == 0

    def opened() -> ReferenceStore:
        return ReferenceStore.open(cache, fingerprint or fingerprint_of(model, tokenizer, bf16=bf16), option=option)

    store = agreed(lambda: opened() if writes else None)
    values = from_first(lambda: _known(store, keys, called))
    work = _missing(prompts, places, values)
    least = BATCHES_PER_CHUNK * tokens
    if elsewhere is not None:  # the last ones should come at about the same time
        share = sum(prompt.tokens for prompt, _ in work) // (CHUNKS_PER_ACTOR * elsewhere.count)
        least = min(BATCHES_PER_CHUNK * elsewhere.tokens, max(elsewhere.tokens, share))
    chunks = list(token_runs(work, lambda item: item[0].tokens, least))
    bare = [[prompt for prompt, _ in chunk] for chunk in chunks]
    coming = _by_all(bare, compute) if elsewhere is None or not work else elsewhere(bare, longest)
    with closing(_computed(chunks, coming, called)) as computed:
        for done, found in computed:
            values[done] = found
            from_first(partial(_save, store, keys, done, found))  # the others must hear of a file that can't be written
    if work:  # as the next run will find them: another run may have been first to write
        kept = from_first(lambda: store.lookup(keys)) if cache is not False else values
        values = np.where(np.isnan(kept), values, kept)
    return [values[where] for where in places]


def adapter_off(model: nn.Module) -> AbstractContextManager[Any]:
    """Within, a peft model is its base."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()  # type: ignore[operator]


def _key(item: Rendered) -> bytes:
    return blake2b(np.array([item.start, *item.ids], dtype="<i8").tobytes(), digest_size=16).digest()


def _known(store: ReferenceStore | None, keys: Sequence[bytes], called: str) -> np.ndarray:
    """What the store has of every key, (keys,), NaN where it has none."""
    if store is None:
        return np.full(len(keys), np.nan)
    values = store.lookup(keys)
    missing = int(np.isnan(values).sum())
    say(f"{called}: {len(values) - missing} of {len(values)} completions are in {store.path}, {missing} to compute")
    if missing:
        store.add([], [])  # before hours of work: can it be written?
    return values


def _save(store: ReferenceStore | None, keys: Sequence[bytes], places: np.ndarray, values: np.ndarray) -> None:
    if store is not None:
        store.add([keys[place] for place in places], values)


def _missing(prompts: Sequence[PromptPairs], places: Sequence[np.ndarray], values: np.ndarray) -> list[Work]:
    """What is to be computed, each completion once, longest prompts first, whatever the order of the prompts."""
    taken: set[int] = set()
    work = []
    for prompt, where in zip(prompts, places, strict=True):
        lacking: list[int] = []
        for number, place in enumerate(where.tolist()):
            if np.isnan(values[place]) and place not in taken:
                taken.add(place)
                lacking.append(number)
        if lacking:
            items = [prompt.completions[number] for number in lacking]
            work.append((replace(prompt, completions=items), where[lacking]))
    return sorted(work, key=lambda item: (-item[0].length, item[0].prompt_id))


def _by_all(
    chunks: Sequence[Sequence[PromptPairs]], compute: Callable[[Sequence[PromptPairs]], np.ndarray]
) -> Generator[tuple[int, np.ndarray]]:
    """The number and the values of each chunk, of which every process computes one at a time; all get all."""
    rank, world = rank_and_world()
    for start in range(0, len(chunks), world):
        mine = chunks[start + rank] if start + rank < len(chunks) else []
        found = from_all(partial(compute, mine))
        yield from zip(range(start, len(chunks)), found)


def _computed(
    chunks: Sequence[Sequence[Work]], coming: Generator[tuple[int, np.ndarray]], called: str
) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Places and values of the missing completions as they come, by the numbers of their chunks."""
    rank, _ = rank_and_world()
    completions = sum(len(places) for chunk in chunks for _, places in chunk)
    tokens = sum(prompt.tokens for chunk in chunks for prompt, _ in chunk)
    done = tokens_done = 0
    began = time.monotonic()
    with ProgressReporter(called, "tokens") if rank == 0 else nullcontext() as report, closing(coming):
        for number, values in coming:
            if report is not None:
                report("", tokens_done, tokens, f"{done} of {completions} completions")
            places = np.concatenate([where for _, where in chunks[number]])
            done, tokens_done = done + len(places), tokens_done + sum(prompt.tokens for prompt, _ in chunks[number])
            yield places, values
    if rank == 0 and completions:
        seconds = max(time.monotonic() - began, 1e-9)
        say(
            f"{called}: computed {done} of {completions} completions in {duration(seconds)}, {per_second(tokens_done / seconds)} tokens/s"
        )
