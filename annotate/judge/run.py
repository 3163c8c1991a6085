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
from pathlib import Path
from typing import Any

import orjson

from mmpo.annotate.client.cost import Budget, Prices, load_prices
from mmpo.annotate.client.endpoint import Endpoint, api_key
from mmpo.annotate.client.journal import Journal, spent_by
from mmpo.annotate.client.request import Answer, Failure
from mmpo.annotate.client.scheduler import Stop
from mmpo.annotate.judge.capabilities import PLAIN, Abilities, Probe, probe, schema_of
from mmpo.annotate.judge.modes import Row, messages_of, names_of
from mmpo.annotate.judge.one_judge import Counts, Running
from mmpo.annotate.judge.options import Judge, JudgeOptions, check_judge_options, judges_of, public_url
from mmpo.annotate.judge.questions import Questions
from mmpo.annotate.judge.summary import finish, nothing_to_ask
from mmpo.annotate.rows import Feedback
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.storage import check_out

__all__ = ["Prepared", "Progress", "abilities_key", "journal_path", "judge", "prepared"]

TICK = 0.5
INTERRUPTED = "interrupted; what was in flight has been finished"

Progress = Callable[[dict[str, Counts], str], None]
"""Called about twice a second with each judge's counts, and once with what happens outside of them ("stopping", "writing")."""


@dataclass(frozen=True)
class Prepared:
    """What a run has before the first request: everything that can be wrong has been looked at."""

    options: JudgeOptions
    judges: list[Judge]
    feedback: Feedback
    prices: Prices
    journal: Path


def journal_path(out: str | Path, options: JudgeOptions) -> Path:
    """The journal's file: as the options name it, else beside the output folder."""
    return Path(options.journal) if options.journal else Path(f"{str(out).rstrip('/')}.judge.sqlite")


def prepared(feedback: str | Path, out: str | Path, options: JudgeOptions, judges: Sequence[Any] = ()) -> Prepared:
    """Check options, judges, prices, input and output. Raises UserError."""
    check_judge_options(options)
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
    return Prepared(options, chosen, opened, prices, journal_path(out, options))


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
    import_module("openai")  # where the extra is missing, that is said before a journal is made
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


async def _ask_all(plan: Prepared, journal: Journal, progress: Progress | None, stop: Stop) -> list[Running]:
    budget = Budget(plan.options.max_cost, spent=sum(row["cost"] for row in journal.spent().values()))
    sizes = plan.feedback.sizes()
    async with AsyncExitStack() as stack:
        runs = []
        for one in plan.judges:
            endpoint = await stack.enter_async_context(Endpoint(one, plan.options.timeout))
            paid: list[Answer] = []
            questions = Questions(one, plan.options, await _abilities(plan, one, endpoint, journal, paid))
            total = questions.count(sizes)
            price = plan.prices.of(one.model, batch=plan.options.batch)
            for answer in paid:
                cost = price.of(answer.prompt_tokens, answer.reply_tokens) if price else 0.0
                journal.write([spent_by(one.name, answer, cost, probe=True)])
                budget.spent += cost
            runs.append(Running(questions, endpoint, plan.feedback, journal, budget, price, stop, total))
        if not sum(run.counts.total for run in runs):
            raise UserError(f"{plan.feedback.folder}: {nothing_to_ask(plan.options)}")
        ticker = asyncio.create_task(_tick(runs, progress))
        with _interrupts(stop, runs, progress):
            try:
                await asyncio.gather(*(run.run() for run in runs))
            finally:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
        if progress:
            progress({run.judge.name: run.counts for run in runs}, "")
    return runs


async def _tick(runs: list[Running], progress: Progress | None) -> None:
    while progress:
        progress({run.judge.name: run.counts for run in runs}, "")
        await asyncio.sleep(TICK)


@contextmanager
def _interrupts(stop: Stop, runs: list[Running], progress: Progress | None) -> Iterator[None]:
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
        for run in runs:
            run.engine.wake()
        if progress:
            progress({run.judge.name: run.counts for run in runs}, "stopping")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def abilities_key(judge: Judge, options: JudgeOptions) -> str:
    """Under what name the journal keeps what a probe found."""
    asked = [public_url(judge.base_url), judge.model, options.logprobs != "off", _wants_schema(options), dict(judge.extra_body)]
    return "abilities:" + orjson.dumps(asked).decode()


def _wants_schema(options: JudgeOptions) -> bool:
    own = options.reply not in (None, "labelled") or options.template is not None
    return options.mode == "listwise" and options.structured == "auto" and not options.reasoning and not own


async def _abilities(plan: Prepared, judge: Judge, endpoint: Endpoint, journal: Journal, paid: list[Answer]) -> Abilities:
    """What the endpoint can do: as the journal knows it, else by a probe. A resumed run must ask in the same way.

    paid: takes what the probe was answered.
    """
    key, options = abilities_key(judge, plan.options), plan.options
    known = journal.meta(key)
    found = Abilities(**known) if known else None
    if found is None:
        found = await _probed(endpoint, judge, options, paid)
        journal.set_meta(key, dataclasses.asdict(found))
    if options.logprobs == "need" and not found.logprobs:
        raise UserError(
            f"judge {judge.name}: its endpoint returns no log-probabilities, and --logprobs need insists on them; with auto each "
            f"question is asked for {options.samples} replies instead"
        )
    return found


async def _probed(endpoint: Endpoint, judge: Judge, options: JudgeOptions, paid: list[Answer]) -> Abilities:
    async def ask(body: Mapping[str, Any]) -> Answer | Failure:
        outcome = await endpoint.ask(body)
        answer = outcome if isinstance(outcome, Answer) else outcome.answer
        paid.extend([answer] if answer else [])
        return outcome

    question, replies = PLAIN
    row = Row("probe", [{"role": "user", "content": question}], ["a", "b"], replies, [None, None])
    asker = Questions(judge, options, Abilities())
    asked = next(asker.mode.asks(row, dataclasses.replace(options, pairs="all"), asker.rubrics))
    messages = messages_of(row, asked, asker.template, asker.mode, reasoning=options.reasoning, form=asker.form)
    this = Probe(ask, judge.name, judge.model, messages, judge.extra_body)
    schema = schema_of(list(names_of(asked, options.mode, asker.form)), list(asker.rubrics[0].scale.labels))
    for wait in (0.5, 1.0, 2.0, 4.0, None):
        try:
            return await probe(this, logprobs=options.logprobs != "off", schema=schema if _wants_schema(options) else None)
        except PartialResult:
            if wait is None:
                raise
            await asyncio.sleep(wait)
    raise AssertionError("the last try raises or returns")
