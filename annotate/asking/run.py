"""Several models asked side by side to the end, or to where the run is stopped: one budget, one journal, progress, Ctrl-C."""

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from itertools import count
from typing import Any, NoReturn, TypeVar

from mmpo.annotate.asking.asker import Asker, Counts, Endpointlike
from mmpo.annotate.asking.options import AskingOptions
from mmpo.annotate.client import (
    ABOUT_LENGTH,
    Answer,
    Budget,
    Failure,
    Journal,
    Price,
    Prices,
    Stop,
    backoff,
    named_parameter,
    spent_by,
)
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.progress import waiting
from mmpo.pipeline.tables import Message

PROGRESS_SECONDS = 0.5
PROBE_RETRIES = 4
"""How often the first requests are asked again at most: what fails from the start seldom passes."""
PASSING = ("rate_limit", "transient", "unreachable")
TRIED = frozenset(("n", "seed", "response_format"))
"""What the first requests try for; some servers refuse them by status 500, which is asked once more and then believed."""
LONG_WAIT = 2.0
"""Seconds of a wait before the run begins that are worth a line."""
MAX_REJECT_REPLY = 2_000
"""Characters of a reply that is of no use that go into rejects.parquet, and the last ones of its thinking; the journal has all of it."""
USER_ERRORS = ("invalid_api_key", "forbidden", "not_found", "model_not_found", "account_deactivated", "proxy", "tls")
"""Reasons to stop that the user can mend."""
INTERRUPTED = "interrupted; what was in flight has been finished"

Progress = Callable[[dict[str, Counts], str], None]
"""Called about twice a second with each model's counts, and once with what happens outside of them ("stopping", "writing", or a text)."""
Ask = Callable[[Mapping[str, Any]], Awaitable[Answer | Failure]]
Started = TypeVar("Started", bound=Asker)
Result = TypeVar("Result")


def to_its_end(work: Coroutine[Any, Any, Result], stop: Stop) -> Result:
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


async def ask_all(
    endpoints: Sequence[AbstractAsyncContextManager[Endpointlike]],
    options: AskingOptions,
    journal: Journal,
    prices: Prices,
    progress: Progress | None,
    stop: Stop,
    start: Callable[[Endpointlike, Budget, Price | None, list[Answer]], Awaitable[Started]],
    nothing: str,
) -> list[Started]:
    """Ask all models everything that the journal has no answer to.

    start(endpoint, budget, price, paid): finds out what an endpoint can do, all of them at once, and gives what asks it; answers that
    were paid for that go into `paid`. nothing: why there is nothing to ask. Raises UserError.
    """
    budget = Budget(options.max_cost, spent=sum(row["cost"] for row in journal.spent().values()))

    async def ready(endpoint: Endpointlike) -> Started:
        paid: list[Answer] = []
        price = prices.of(endpoint.judge.model, batch=options.batch)
        try:
            return await start(endpoint, budget, price, paid)
        finally:  # what finding out cost is kept, whatever came of it
            for answer in paid:
                cost = price.of(answer.prompt_tokens, answer.reply_tokens) if price else 0.0
                journal.write([spent_by(endpoint.judge.name, answer, cost, probe=True)])
                budget.spent += cost

    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(one) for one in endpoints]
        # All at once: what is wrong with one model is said while another one is told to wait.
        starting = [asyncio.create_task(ready(one)) for one in opened]
        try:
            runs = await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
        if not sum(run.counts.total for run in runs):
            raise UserError(nothing)

        def tell(event: str = "") -> None:
            if progress:
                progress({run.judge.name: run.counts for run in runs}, event)

        ticker = asyncio.create_task(_often(tell))
        with interrupts(stop, tell):
            try:
                await asyncio.gather(*(run.run() for run in runs))
            finally:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
        tell()
    return runs


async def _often(tell: Callable[[], None]) -> None:
    while True:
        tell()
        await asyncio.sleep(PROGRESS_SECONDS)


@contextmanager
def interrupts(stop: Stop, tell: Callable[[str], None]) -> Iterator[None]:
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

    before = None
    try:
        loop.add_signal_handler(signal.SIGINT, interrupted)
    except RuntimeError:  # of loops that take no signals, as those of Windows
        before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(interrupted))
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if before is None:
            loop.remove_signal_handler(signal.SIGINT)
        else:
            signal.signal(signal.SIGINT, before)


class OutOfPatience(PartialResult):
    """An endpoint asks to wait for longer than --patience allows, before the run has begun."""


def patient(
    endpoint: Endpointlike, word: str, options: AskingOptions, paid: list[Answer], stop: Stop, progress: Progress | None
) -> Ask:
    """What asks an endpoint before the run has begun and waits passing faults out: taken for refusals, they would stand in the journal as
    what the endpoint can't do. word: what the model is in messages. Raises OutOfPatience."""

    async def ask(body: Mapping[str, Any]) -> Answer | Failure:
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
                    f"{word} {endpoint.judge.name}: the endpoint does not answer: {outcome.message}. The same command again goes on"
                )
            if progress and (wait >= LONG_WAIT or not limited):
                progress({}, f"{endpoint.judge.name}: {waiting(wait, outcome.message)}")
            await stop.wait(wait)
            if stop.reason:
                raise OutOfPatience("stopped before the run had begun; the same command again goes on")
            waited += wait
        raise AssertionError("the loop returns")

    return ask


def folded(messages: Sequence[Message]) -> list[Message]:
    """The messages with a leading system message as the beginning of the user's, for models whose template takes none."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return list(messages)
    return [{"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]


def refuse(stop: Stop, word: str, why: str, journal: Journal, flag: str = "--max-tokens") -> NoReturn:
    """Raise why nothing came of a run. word: what would have come, "answer"; why: what is to be said unless the run was stopped;
    flag: the option with the longest reply."""
    if stop.reason == "interrupted":
        raise PartialResult(f"interrupted before the first {word}; nothing was written, and the same command again starts over")
    if stop.reason in USER_ERRORS:
        raise UserError(f"the endpoint refuses: {stop.message}")
    if ABOUT_LENGTH.search(stop.message):
        raise UserError(
            f"{stop.message}. Prompt and reply have to fit together: a smaller {flag} leaves more room. Nothing was written"
        )
    message = stop.message or f"{why}; the replies are in {journal.path}"
    raise (PartialResult if stop.reason else UserError)(f"{message}. Nothing was written")


def most_common(reasons: Counter[str]) -> str:
    """The four most common reasons, with their counts."""
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(4))
