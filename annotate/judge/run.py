"""`judge`: FEEDBACK in, the same FEEDBACK with judges' grades added out; stopped at any moment and resumed by the same call."""

import asyncio
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from mmpo.annotate.client import (
    Answer,
    Budget,
    Endpoint,
    Failure,
    Journal,
    Prices,
    Stop,
    api_key,
    backoff,
    load_prices,
    named_parameter,
    spent_by,
)
from mmpo.annotate.judge.capabilities import PLAIN, Capabilities, Probe, probe
from mmpo.annotate.judge.one_judge import Counts, JudgeRun
from mmpo.annotate.judge.options import Judge, JudgeOptions, judges_of
from mmpo.annotate.judge.output import finish, nothing_to_ask
from mmpo.annotate.judge.questions import SAMPLES, Questions, usable
from mmpo.annotate.rows import Feedback, FeedbackRow
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.progress import waiting
from mmpo.pipeline.storage import check_out

PROGRESS_SECONDS = 0.5
PROBE_RETRIES = 4
"""How often the first requests are asked again at most: what fails from the start seldom passes."""
PASSING = ("rate_limit", "transient", "unreachable")
TRIED = frozenset(("n", "seed", "response_format"))
"""What the first requests try for; some servers refuse them by status 500, which is asked once more and then believed."""
LONG_WAIT = 2.0
"""Seconds of a wait before the run begins that are worth a line."""
INTERRUPTED = "interrupted; what was in flight has been finished"

Progress = Callable[[dict[str, Counts], str], None]
"""Called about twice a second with each judge's counts, and once with what happens outside of them ("stopping", "writing", or a text)."""


@dataclass(frozen=True)
class JudgePlan:
    """What a run has before the first request: everything that can be wrong has been looked at."""

    options: JudgeOptions
    judges: list[Judge]
    feedback: Feedback
    prices: Prices
    journal: Path


def journal_path(out: str | Path, options: JudgeOptions) -> Path:
    """The journal's file: as the options name it, else beside the output folder."""
    return Path(options.journal) if options.journal else Path(f"{str(out).rstrip('/')}.judge.sqlite")


def prepared(feedback: str | Path, out: str | Path, options: JudgeOptions, judges: Sequence[Any] = ()) -> JudgePlan:
    """Check options, judges, prices, input and output. Raises UserError."""
    chosen = judges_of(options, list(judges))
    prices = load_prices(options.prices)
    if options.max_cost is not None:
        for one in chosen:
            if prices.of(one.model) is None:
                raise UserError(
                    f"--max-cost needs the price of {one.model!r}, which the table does not have; give it by --prices mine.yaml "
                    f"(models: {{{one.model}: [dollars a million prompt tokens, dollars a million reply tokens]}})"
                )
    check_out(Path(out))
    opened = Feedback.open(feedback, options.limit, options.seed)
    if options.reference is not None:
        opened.check_reference(options.reference)
    if Path(feedback).resolve() == Path(out).resolve():
        raise UserError(f"--out {out} is the input itself; name another folder, so that a stopped run leaves the input whole")
    return JudgePlan(options, chosen, opened, prices, journal_path(out, options))


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
    """
    plan = prepared(feedback, out, options, judges)
    for one in plan.judges:
        api_key(one)
    import_module("openai")  # where the extra is missing, the run ends before a journal is made
    with Journal(plan.journal) as journal:
        stop = Stop()
        runs = _run(_ask_all(plan, journal, progress, stop), stop)
        if progress:
            progress({}, "writing")
        return finish(plan.feedback, Path(out), options, runs, journal, stop)


def _run(work: Any, stop: Stop) -> Any:
    """Run a coroutine to its end, also where an event loop is running already (a notebook); there, an interrupt stops it gently."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, work)
        try:
            return future.result()
        except KeyboardInterrupt:
            stop.override("interrupted", INTERRUPTED)
            return future.result()


async def _ask_all(plan: JudgePlan, journal: Journal, progress: Progress | None, stop: Stop) -> list[JudgeRun]:
    budget = Budget(plan.options.max_cost, spent=sum(row["cost"] for row in journal.spent().values()))
    sizes = plan.feedback.sizes()
    async with AsyncExitStack() as stack:
        endpoints = [await stack.enter_async_context(Endpoint(one, plan.options.timeout)) for one in plan.judges]
        # All at once: what is wrong with one judge is said while another one is told to wait.
        ready = [asyncio.create_task(_ready(plan, sizes, one, journal, budget, stop, progress)) for one in endpoints]
        try:
            runs = await asyncio.gather(*ready)
        finally:
            for task in ready:
                task.cancel()
            await asyncio.gather(*ready, return_exceptions=True)
        if not sum(run.counts.total for run in runs):
            raise UserError(f"{plan.feedback.folder}: {nothing_to_ask(plan.options)}")

        def tell(event: str = "") -> None:
            if progress:
                progress({run.judge.name: run.counts for run in runs}, event)

        ticker = asyncio.create_task(_often(tell))
        with _interrupts(stop, tell):
            try:
                await asyncio.gather(*(run.run() for run in runs))
            finally:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
        tell()
    return runs


async def _ready(
    plan: JudgePlan, sizes: np.ndarray, endpoint: Endpoint, journal: Journal, budget: Budget, stop: Stop, progress: Progress | None
) -> JudgeRun:
    """A judge of which is known what its endpoint can do; what finding out cost is kept, whatever came of it."""
    one, paid = cast(Judge, endpoint.judge), list[Answer]()
    price = plan.prices.of(one.model, batch=plan.options.batch)
    try:
        found = await _capabilities(plan, one, endpoint, journal, paid, stop, progress)
    finally:
        for answer in paid:
            cost = price.of(answer.prompt_tokens, answer.reply_tokens) if price else 0.0
            journal.write([spent_by(one.name, answer, cost, probe=True)])
            budget.spent += cost
    questions = Questions(one, plan.options, found)
    return JudgeRun(questions, endpoint, plan.feedback, journal, budget, price, stop, questions.count(sizes))


async def _often(tell: Callable[[], None]) -> None:
    while True:
        tell()
        await asyncio.sleep(PROGRESS_SECONDS)


@contextmanager
def _interrupts(stop: Stop, tell: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C starts nothing more and waits for what is in flight; the second one leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupted() -> None:
        if stop.reason == "interrupted" and task is not None:
            task.cancel()
            return
        stop.override("interrupted", INTERRUPTED)
        tell("stopping")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def capabilities_key(judge: Judge, options: JudgeOptions) -> str:
    """The name under which the journal keeps what a probe found."""
    by_schema = Questions(judge, options, Capabilities()).by_schema
    asked = [judge.public, judge.model, options.logprobs != "off", by_schema, dict(judge.extra_body)]
    return "abilities:" + orjson.dumps(asked).decode()


async def _capabilities(
    plan: JudgePlan, judge: Judge, endpoint: Endpoint, journal: Journal, paid: list[Answer], stop: Stop, progress: Progress | None
) -> Capabilities:
    """What the endpoint can do: as the journal knows it, else by a probe. A resumed run must ask in the same way.

    paid: takes the answers to the probe.
    """
    key, options = capabilities_key(judge, plan.options), plan.options
    known = journal.meta(key)
    found = Capabilities(**known) if known else None
    if found is None:
        found = await _probed(endpoint, judge, options, paid, stop, progress)
        journal.set_meta(key, dataclasses.asdict(found))
    if options.logprobs == "need" and not found.logprobs:
        raise UserError(
            f"judge {judge.name}: its endpoint returns no log-probabilities that can be used (alternatives at the tokens that spell the "
            "reply), and --logprobs need insists on them; with auto each question is asked for "
            f"{options.samples or SAMPLES} replies instead"
        )
    return found


class OutOfPatience(PartialResult):
    """An endpoint asks to wait for longer than --patience allows, before the run has begun."""


async def _probed(
    endpoint: Endpoint, judge: Judge, options: JudgeOptions, paid: list[Answer], stop: Stop, progress: Progress | None
) -> Capabilities:
    async def ask(body: Mapping[str, Any]) -> Answer | Failure:
        """Passing faults are waited out here: taken for refusals, they would stand in the journal as what the endpoint can't do."""
        waited = 0.0
        for tries in count():
            outcome = await endpoint.ask(body)
            answer = outcome if isinstance(outcome, Answer) else outcome.answer
            paid.extend([answer] if answer else [])
            if isinstance(outcome, Answer) or outcome.kind not in PASSING:
                return outcome
            if outcome.reason.startswith(("status_", "error_in")) and named_parameter(
                outcome.message, body.keys() - {"model", "messages"}
            ):
                return outcome
            limited = outcome.kind == "rate_limit"
            most = 1 if outcome.reason == "status_500" and not TRIED.isdisjoint(body) else PROBE_RETRIES
            if not limited and tries >= min(options.retries, most):
                return outcome
            wait = outcome.retry_after or backoff(tries)
            if waited + wait > options.patience:
                raise OutOfPatience(
                    f"judge {judge.name}: the endpoint does not answer: {outcome.message}. The same command again goes on"
                )
            if progress and (wait >= LONG_WAIT or not limited):
                progress({}, f"{judge.name}: {waiting(wait, outcome.message)}")
            await stop.wait(wait)
            if stop.reason:
                raise OutOfPatience("stopped before the run had begun; the same command again goes on")
            waited += wait
        raise AssertionError("the loop returns")

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
