"""`generate`: prompts in, FEEDBACK with candidates out; stopped at any moment and resumed by the same call."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import orjson

from mmpo.annotate.asking import Ask, Asker, Endpointlike, Progress, ask_all, check_prices, journal_of, patient, to_its_end
from mmpo.annotate.client import Answer, Budget, Failure, Journal, Price, Prices, Request, Stop, api_key, load_prices
from mmpo.annotate.generate.local import LocalEngine, check_local, endpoints_of, settings_of
from mmpo.annotate.generate.options import GenerateOptions, SampledModel, check_names, sampled_models
from mmpo.annotate.generate.output import check_folder, finish, holds_key, unanswered
from mmpo.annotate.generate.prompts import opened
from mmpo.annotate.generate.requests import Sampling, Takes, kept, probe, written_of
from mmpo.annotate.rows import Feedback
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import check_class
from mmpo.pipeline.storage import check_out

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class GeneratePlan:
    """What a run has before the first request: everything that can be wrong has been looked at. local: engines, by their names."""

    options: GenerateOptions
    models: list[SampledModel]
    local: Mapping[str, LocalEngine]
    feedback: Feedback
    prices: Prices
    journal: Path


@contextmanager
def prepared(
    prompts: str | Path | Sequence[str | Path],
    out: str | Path,
    options: GenerateOptions,
    models: Sequence[Any] = (),
    local: Sequence[LocalEngine] = (),
) -> Iterator[GeneratePlan]:
    """Check options, models, prices, input and output; the prompts are there as long as the block is. Raises UserError."""
    check_class(options, GenerateOptions)
    asked = sampled_models(options, models) if models else []
    asked += [settings_of(one) for one in local]
    check_names([one.name for one in asked])
    check_local(local, options.max_tokens, batch=options.batch, engine=options.engine)
    prices = load_prices(options.prices)
    check_prices(options, asked[: len(models)], prices)
    sources = [prompts] if isinstance(prompts, str | Path) else list(prompts)
    check_out(Path(out), sources)
    with opened(sources, options) as feedback:
        check_folder(Path(out), feedback, [one.name for one in asked])
        journal = journal_of(out, options, "generate")
        yield GeneratePlan(options, asked, {one.name: one for one in local}, feedback, prices, journal)


def generate(
    prompts: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    options: GenerateOptions | None = None,
    models: Sequence[Any] = (),
    local: Sequence[LocalEngine] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask models for candidates and write FEEDBACK with them to `out`; candidates and grades that PROMPTS hold stay.

    prompts: files, folders or globs in `options.format`, or a FEEDBACK folder. models: "MODEL" or "MODEL,base_url=...,called=..." or
    mappings; keys come from the environment. local: models on this machine, such as `mmpo.train.LocalModel`.
    Returns {"out", "prompts", "candidates", "finished", "stopped", "message", "counts" (by reason), "unanswerable", "cost" (US dollars,
    None where a price is unknown), "seconds" (that this run asked), "journal", "models": [...]}. `finished` is False where requests failed
    for good or were not sent: what succeeded is written, and the same call again goes on. More models, or a larger
    `n`, add what is missing.
    Raises UserError with nothing written, PartialResult where nothing could be written yet.

    >>> options = GenerateOptions(format="jsonl", n=2, base_url="http://127.0.0.1:8000/v1")
    >>> generate("prompts.jsonl", "candidates", options=options, models=["my-model"])["candidates"]  # doctest: +SKIP
    366
    """
    chosen = options or GenerateOptions()
    with prepared(prompts, out, chosen, models, local) as plan:
        totals = {one.name: count_of(Sampling(one, chosen, Takes()), plan.feedback) for one in plan.models}
        if not any(totals.values()):
            raise UserError(unanswered(plan.feedback, chosen))
        remote = [one for one in plan.models if one.name not in plan.local]
        for one in remote:
            api_key(one)
        if remote:
            import_module("openai")  # where the extra is missing, the run ends before a journal is made
        with Journal(plan.journal) as journal:
            stop = Stop()
            began = time.monotonic()
            runs = to_its_end(_ask_all(plan, totals, journal, progress, stop), stop)
            asked = time.monotonic() - began
            if progress:
                progress({}, "writing")
            machines = next((one.machines for one in local if hasattr(one, "machines")), {"name": chosen.engine})
            summary = finish(plan.feedback, Path(out), chosen, runs, journal, stop, machines)
            return {**summary, "seconds": asked}


@dataclass(eq=False, kw_only=True)
class GenerateRun(Asker):
    """Asks one model for the candidates that the journal does not have."""

    sampling: Sampling
    feedback: Feedback

    def __post_init__(self) -> None:
        super().__post_init__()
        self._holds: set[str] = set(self.journal.meta(holds_key(self.judge.name)) or ())

    def chunks(self) -> Iterator[tuple[list[Request], int]]:
        """Rows are read and rendered in the order of the input."""
        for rows in self.feedback.rows(ROWS_AT_ONCE, scores=False, reference=None):
            requests = [request for row in rows for request in self.sampling.of(row)]
            known = self.journal.readings([request.key for request in requests]) if self.options.cache else {}
            left = [request for request in requests if request.key not in known]
            yield left, len(requests) - len(left)

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """The outcome as it is kept; what completions hold beside their text is noted before, so that the output has fields for it."""
        found = kept(outcome)
        if isinstance(found, Answer) and not (keys := written_of(found).keys.keys()) <= self._holds:
            self._holds |= keys
            self.journal.set_meta(holds_key(self.judge.name), sorted(self._holds))
        return found


def takes_key(model: SampledModel, options: GenerateOptions) -> str:
    """The name under which the journal keeps what a probe found."""
    asked = [model.public, model.model, Sampling(model, options, Takes()).sent, bool(options.system)]
    return "takes:" + orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()


async def what_it_takes(
    model: SampledModel, options: GenerateOptions, ask: Ask, journal: Journal, instead: Mapping[str, str] | None = None
) -> Takes:
    """What a model's endpoint takes: as the journal knows it, else by a probe; instead: as for `probe`."""
    key = takes_key(model, options)
    if (known := journal.meta(key)) is not None:
        return Takes(**known)
    found = await probe(ask, model, options, instead)
    journal.set_meta(key, dataclasses.asdict(found))
    return found


def count_of(sampling: Sampling, feedback: Feedback) -> int:
    """How many requests a run makes of one model."""
    return sum(len(sampling.numbers(row)) for rows in feedback.rows(scores=False, reference=None) for row in rows)


async def _ask_all(
    plan: GeneratePlan, totals: Mapping[str, int], journal: Journal, progress: Progress | None, stop: Stop
) -> list[GenerateRun]:
    options = plan.options

    async def start(endpoint: Endpointlike, budget: Budget, price: Price | None, paid: list[Answer]) -> GenerateRun:
        model = cast(SampledModel, endpoint.judge)
        takes = Takes()
        if model.name not in plan.local:
            takes = await what_it_takes(model, options, patient(endpoint, "model", options, paid, stop, progress), journal)
        sampling = Sampling(model, options, takes)
        shared = (endpoint, options, journal, budget, price, stop, totals[model.name], "model")
        return GenerateRun(*shared, sampling=sampling, feedback=plan.feedback)

    endpoints = endpoints_of(plan.models, plan.local, options.timeout, stop)
    return await ask_all(endpoints, options, journal, plan.prices, progress, stop, start, "there is nothing to ask")
