"""`judge`: FEEDBACK in, the same FEEDBACK with judges' grades added out; stopped at any moment and resumed by the same call."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import orjson

from mmpo.annotate.asking import Ask, Endpointlike, Progress, ask_all, check_prices, journal_of, patient, to_its_end
from mmpo.annotate.client import Answer, Budget, Endpoint, Journal, Price, Prices, Stop, api_key, load_prices
from mmpo.annotate.judge.capabilities import PLAIN, Capabilities, Probe, probe
from mmpo.annotate.judge.one_judge import JudgeRun
from mmpo.annotate.judge.options import Judge, JudgeOptions, judges_of
from mmpo.annotate.judge.output import finish, nothing_to_ask
from mmpo.annotate.judge.questions import SAMPLES, Questions, usable
from mmpo.annotate.rows import Feedback, FeedbackRow
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import check_class
from mmpo.pipeline.storage import check_out


@dataclass(frozen=True)
class JudgePlan:
    """What a run has before the first request: everything that can be wrong has been looked at."""

    options: JudgeOptions
    judges: list[Judge]
    feedback: Feedback
    prices: Prices
    journal: Path


def prepared(feedback: str | Path, out: str | Path, options: JudgeOptions, judges: Sequence[Any] = ()) -> JudgePlan:
    """Check options, judges, prices, input and output. Raises UserError."""
    check_class(options, JudgeOptions)
    chosen = judges_of(options, list(judges))
    prices = load_prices(options.prices)
    check_prices(options, chosen, prices)
    check_out(Path(out), [feedback])
    opened = Feedback.open(feedback, options.limit, options.seed)
    if options.reference is not None:
        opened.check_reference(options.reference)
    return JudgePlan(options, chosen, opened, prices, journal_of(out, options, "judge"))


def judge(
    feedback: str | Path,
    out: str | Path,
    *,
    options: JudgeOptions,
    judges: Sequence[Any] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask judges about the candidates of a FEEDBACK folder and write it to `out` with their grades added.

    judges: "MODEL" or "MODEL,base_url=...,rater=..." or mappings, instead of `options.model`. Keys come from the environment.
    Returns {"out", "prompts", "finished", "stopped", "cost", "judges": [...]}; `finished` is False where some requests failed for
    good or were not sent: what succeeded is written, and the same call again goes on.
    Raises UserError (options, key, model, endpoint) with nothing written, PartialResult where nothing could be written yet.

    >>> options = JudgeOptions(model="my-judge", base_url="http://127.0.0.1:8000/v1")
    >>> judge("candidates", "judged", options=options)["finished"]  # doctest: +SKIP
    True
    """
    plan = prepared(feedback, out, options, judges)
    for one in plan.judges:
        api_key(one)
    import_module("openai")  # where the extra is missing, the run ends before a journal is made
    with Journal(plan.journal) as journal:
        stop = Stop()
        runs = to_its_end(_ask_all(plan, journal, progress, stop), stop)
        if progress:
            progress({}, "writing")
        return finish(plan.feedback, Path(out), options, runs, journal, stop)


async def _ask_all(plan: JudgePlan, journal: Journal, progress: Progress | None, stop: Stop) -> list[JudgeRun]:
    options, sizes = plan.options, plan.feedback.sizes()

    async def start(endpoint: Endpointlike, budget: Budget, price: Price | None, paid: list[Answer]) -> JudgeRun:
        one = cast(Judge, endpoint.judge)
        ask = patient(endpoint, "judge", options, paid, stop, progress)
        questions = Questions(one, options, await _capabilities(plan, one, ask, journal))
        count = questions.count(sizes)
        return JudgeRun(endpoint, options, journal, budget, price, stop, count, questions=questions, feedback=plan.feedback)

    endpoints = [Endpoint(one, options.timeout) for one in plan.judges]
    nothing = f"{plan.feedback.folder}: {nothing_to_ask(options)}"
    return await ask_all(endpoints, options, journal, plan.prices, progress, stop, start, nothing)


def capabilities_key(judge: Judge, options: JudgeOptions) -> str:
    """The name under which the journal keeps what a probe found."""
    by_schema = Questions(judge, options, Capabilities()).by_schema
    asked = [judge.public, judge.model, options.logprobs != "off", by_schema, dict(judge.extra_body)]
    return "abilities:" + orjson.dumps(asked).decode()


async def _capabilities(plan: JudgePlan, judge: Judge, ask: Ask, journal: Journal) -> Capabilities:
    """What the endpoint can do: as the journal knows it, else by a probe. A resumed run must ask in the same way."""
    key, options = capabilities_key(judge, plan.options), plan.options
    known = journal.meta(key)
    found = Capabilities(**known) if known else None
    if found is None:
        found = await _probed(judge, options, ask)
        journal.set_meta(key, dataclasses.asdict(found))
    if options.logprobs == "need" and not found.logprobs:
        raise UserError(
            f"judge {judge.name}: its endpoint returns no log-probabilities that can be used (alternatives at the tokens that spell the "
            "reply), and --logprobs need insists on them; with auto each question is asked for "
            f"{options.samples or SAMPLES} replies instead"
        )
    return found


async def _probed(judge: Judge, options: JudgeOptions, ask: Ask) -> Capabilities:
    prompt, replies = PLAIN
    row = FeedbackRow("probe", [{"role": "user", "content": prompt}], ["a", "b"], replies, [None, None])
    asker = Questions(judge, dataclasses.replace(options, pairs="all"), Capabilities())
    question = next(asker.mode.questions(row, asker.options, asker.rubrics))
    this = Probe(
        ask, judge.name, judge.model, asker.messages(row, question), asker.length(question), judge.extra_body,
        lambda choice: usable(asker.reader(question).each([choice])),
    )  # fmt: skip
    schema = asker.schema(question) if asker.by_schema else None
    logprobs, draws = options.logprobs != "off", options.reasoning and bool(options.samples)
    return await probe(this, logprobs=logprobs, draws=draws, schema=schema)
