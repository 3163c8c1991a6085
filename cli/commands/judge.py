"""`mmpo judge`: LLM judges that grade how much better; `mmpo replies`, `mmpo rubrics`: what they are offered and how they are read."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from mmpo.annotate.judge import JudgeOptions
from mmpo.cli.flags import options_from, with_flags
from mmpo.cli.output import LINE_EVERY_SECONDS, console, print_json, print_table, say, shown

__all__ = ["judge", "judge_progress", "say_judged"]


@with_flags(JudgeOptions)
def judge(
    feedback: Annotated[Path, typer.Argument(metavar="FEEDBACK", help="A FEEDBACK folder (`mmpo build ... --feedback-only`).")],
    *,
    out: Annotated[Path, typer.Option(help="The folder to write: the same FEEDBACK with the grades added.")],
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", metavar="MODEL[,KEY=VALUE...]", help="One judge of several; keys: base_url, api_key_env, rater, ..."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests, tokens, cost and time, and ask nothing.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Print what the journal has of this run, and ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
    given: dict[str, Any],
) -> int:
    """Ask LLM judges how much better one reply is than another, through any OpenAI-compatible endpoint.

    Every answer is safe in a journal before it counts: the same command again asks only for what is missing. Then
    `mmpo build OUT --format feedback --out pairs` makes pairs of the grades. Example:
    mmpo judge candidates --model gpt-4o-mini --out judged --dry-run
    """
    options = options_from(JudgeOptions, given, flags=True)
    if dry_run or status:
        from mmpo.annotate.judge import look, prepared

        summary = look(prepared(feedback, out, options, judges or []), whole=status)
        _say_look(summary, status)
    else:
        from mmpo.annotate.judge.run import judge as ask

        with judge_progress() as progress:
            summary = ask(feedback, out, options=options, judges=judges or [], progress=progress)
        say_judged(summary)
    if as_json:
        print_json(summary)
    return 0 if dry_run or status or summary["finished"] else 3


def _say_look(summary: dict[str, Any], status: bool) -> None:
    about = "about " if summary["sampled"] else ""
    say(f"{about}{summary['requests']:,} requests over {summary['prompts']:,} prompts; {summary['left']:,} left to ask")
    columns = ("judge", "requests", "answered", "left", "prompt tokens", "reply tokens", "cost, $", "time")
    rows = [
        (row["rater"], row["requests"], row["answered"], row["left"], row["prompt_tokens"], row["reply_tokens"], row["left_cost"],
         _duration(row["seconds"]))
        for row in summary["judges"]
    ]  # fmt: skip
    print_table("tokens, cost and time are estimates of what is left", columns, rows)
    for row in summary["judges"]:
        if status and row["failed"]:
            say(f"{row['rater']}: failed at the last try: " + _counts(row["failed"]))
        if row["spent_tokens"]:
            cost = "" if row["spent_cost"] is None else f", ${row['spent_cost']:.4f}"
            say(f"{row['rater']}: spent so far: {row['spent_tokens']:,} tokens{cost}")
        if row["batches_open"]:
            say(f"{row['rater']}: {row['batches_open']} batches under way")
        if not row["probed"] and not status:
            say(f"{row['rater']}: not probed yet; an endpoint without log-probabilities takes --samples replies a question")
        if row["left_cost"] is None:
            say(f"{row['rater']}: no price is known for {row['model']}; --prices mine.yaml gives one")


def say_judged(summary: dict[str, Any]) -> None:
    """What a run did, on standard error."""
    columns = (
        "judge",
        "requests",
        "answered",
        "failed",
        "left",
        "grades",
        "tokens",
        "cost, $",
        "mass",
        "position bias",
        "s a request",
    )
    rows = [
        (row["rater"], row["requests"], row["answered"], sum(row["failed"].values()), row["left"], row["grades"],
         row["prompt_tokens"] + row["reply_tokens"], row["cost"], row["mean_mass"], row["position_bias"], row["seconds_a_request"])
        for row in summary["judges"]
    ]  # fmt: skip
    print_table("", columns, rows)
    for row in summary["judges"]:
        if row["failed"]:
            say(f"{row['rater']}: failed for good: {_counts(row['failed'])}; evidence in {summary['out']}/rejects.parquet")
    for row in summary["judges"]:
        if row["one_order_only"]:
            say(f"warning: {row['rater']} answered no pair in both orders: its margins keep its liking for what is shown first")
    if summary["not_asked"]:
        say(f"prompts without a question: {_counts(summary['not_asked'])}")
    if summary["replaced"]:
        say(f"{summary['replaced']:,} earlier grades of these judges were replaced")
    if summary["stopped"]:
        say(f"stopped: {summary['message']}")
    say(f"feedback: {summary['out']}    (mmpo build {summary['out']} --format feedback --out ... makes pairs)")
    if not summary["finished"]:
        say(f"not finished: what was answered is safe in {summary['journal']}; the same command again asks for the rest")


def _counts(failed: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(failed.items(), key=lambda item: -item[1]))


def _duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> _duration(42), _duration(4000), _duration(None)
    ('42 s', '1 h 06 min', '–')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def judge_progress() -> Iterator[Any]:
    """A function of each judge's counts: a live table on a terminal, elsewhere a line every ten seconds."""
    speed = _Speed()
    if sys.stderr.isatty():
        with Live(console=console(), transient=True, refresh_per_second=4) as live:

            def show(counts: dict[str, Any], what: str) -> None:
                if what:
                    say(WORDS[what])
                if counts:
                    live.update(_live(counts, speed))

            yield show
        return
    told = time.monotonic()

    def line(counts: dict[str, Any], what: str) -> None:
        nonlocal told
        if what:
            say(WORDS[what])
        if counts and time.monotonic() - told >= LINE_EVERY_SECONDS:
            told = time.monotonic()
            for name, one in counts.items():
                rate, left = speed.of(name, one)
                cost = f"${one.cost:.4f}, " if one.priced else ""
                say(
                    f"judge {name}: {one.done:,} of {one.total:,} requests, {rate:.1f}/s, {_duration(left)} left, "
                    f"{one.prompt_tokens + one.reply_tokens:,} tokens, {cost}{sum(one.failed.values()):,} failed"
                )

    yield line


WORDS = {
    "stopping": "stopping: waiting for what is in flight; Ctrl-C again leaves at once",
    "writing": "judge: writing feedback",
}


class _Speed:
    """Requests a second over the last minute, and the time that is left by it."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def of(self, name: str, counts: Any) -> tuple[float, float | None]:
        seen = self._seen.setdefault(name, deque([(counts.started, 0)]))
        now, fresh = time.monotonic(), counts.done - counts.cached
        seen.append((now, fresh))
        while len(seen) > 2 and now - seen[0][0] > 60:
            seen.popleft()
        rate = (fresh - seen[0][1]) / max(now - seen[0][0], 1e-9)
        return rate, (counts.total - counts.done) / rate if rate > 0 else None


def _live(counts: dict[str, Any], speed: _Speed) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in ("judge", "done", "of", "", "requests/s", "time left", "in flight", "retried", "failed", "tokens", "cost, $"):
        table.add_column(column, justify="left" if column in ("judge", "") else "right")
    for name, one in counts.items():
        rate, left = speed.of(name, one)
        share = one.done / max(one.total, 1)
        bar = "█" * round(20 * share) + "░" * (20 - round(20 * share))
        table.add_row(
            name.replace("[", "\\["), f"{one.done:,}", f"{one.total:,}", f"{bar} {share:.0%}", f"{rate:.1f}", _duration(left),
            f"{one.in_flight}", f"{one.retried:,}", f"{sum(one.failed.values()):,}",
            f"{one.prompt_tokens + one.reply_tokens:,}", shown(float(one.cost) if one.priced else None),
        )  # fmt: skip
    return table
