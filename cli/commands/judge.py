"""`mmpo judge`: LLM judges that grade how much better; `mmpo replies`, `mmpo rubrics`: what they are offered and how they are read."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mmpo.annotate.judge import JudgeOptions
from mmpo.cli.asking import asking, counted, say_end
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import duration


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
    show: Annotated[
        int | None,
        typer.Option(
            "--show",
            min=1,
            metavar="N",
            help="Print N requests as they would be sent, and replies that are known, and ask nothing.",
        ),
    ] = None,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """Ask LLM judges how much better one reply is than another, through any OpenAI-compatible endpoint.

    Every answer is safe in a journal before it counts: the same command again asks only for what is missing. Then
    `mmpo build OUT --format feedback --out pairs` makes pairs of the grades. Example:
    mmpo judge candidates --model gpt-4o-mini --out judged --dry-run
    """
    options = options_from(JudgeOptions, given, flags=True)
    if dry_run or status or show:
        from mmpo.annotate.judge import estimate, prepared, rendered

        plan, summary = prepared(feedback, out, options, judges or []), {}
        if show:
            summary["shown"] = rendered(plan, show)
            _say_rendered(summary["shown"])
        if dry_run or status:
            summary |= estimate(plan, whole=status)
            _say_estimate(summary, status)
        print_json(summary, as_json)
        return 0
    summary = run_judges(feedback, out, options, judges or [])
    print_json(summary, as_json)
    return 0 if summary["finished"] else 3


def run_judges(feedback: Path, out: Path, options: JudgeOptions, judges: list[Any]) -> dict[str, Any]:
    """Ask the judges, with progress; the summary, which is also said."""
    from mmpo.annotate.judge import judge as ask

    with asking("judge") as progress:
        summary = ask(feedback, out, options=options, judges=judges, progress=progress)
    _say_judged(summary)
    return summary


def _say_estimate(summary: dict[str, Any], status: bool) -> None:
    about = "about " if summary["sampled"] else ""
    say(f"{about}{summary['requests']:,} requests over {summary['prompts']:,} prompts; {summary['left']:,} left to ask")
    columns = {"rater": "judge", "requests": "requests", "answered": "answered", "left": "left", "prompt_tokens": "prompt tokens"}
    columns |= {"reply_tokens": "reply tokens", "left_cost": "cost, $", "time": "time"}
    rows = [{**row, "time": duration(row["seconds"])} for row in summary["judges"]]
    if len(rows) > 1:
        rows.append({**summary, "rater": f"all {len(rows)}", "time": duration(summary["seconds"])})
    print_rows("tokens, cost and time are estimates of what is left", rows, columns)
    for row in summary["judges"]:
        if status and row["failed"]:
            say(f"{row['rater']}: failed at the last try: " + counted(row["failed"]))
        if row["spent_tokens"]:
            cost = "" if row["spent_cost"] is None else f", ${row['spent_cost']:.4f}"
            say(f"{row['rater']}: spent so far: {row['spent_tokens']:,} tokens{cost}")
        if row["batches_open"]:
            say(f"{row['rater']}: {row['batches_open']} batches under way")
        if not row["probed"] and not status:
            say(f"{row['rater']}: not probed yet; an endpoint without log-probabilities takes --samples replies a question")
        if row["thinks"]:
            how = "as it was billed so far" if row["reply_tokens_measured"] else "guessed until some replies are in"
            say(f"{row['rater']} thinks before it answers: reply tokens hold its thinking, {how}")
        elif not row["probed"] and not row["reply_tokens_measured"]:
            say(f"{row['rater']}: should it think unasked, replies take many times the tokens; the probe will tell")
        if row["left_cost"] is None:
            say(f"{row['rater']}: no price is known for {row['model']}; --prices mine.yaml gives one")


def _say_rendered(found: list[dict[str, Any]]) -> None:
    """Requests in the words in which they are sent, and what came back."""
    for number, one in enumerate(found, 1):
        sent = {key: value for key, value in one["body"].items() if key != "messages"}
        say(f"request {number} of {len(found)} to {one['rater']}, {one['aspect']}: {json.dumps(sent, ensure_ascii=False)}")
        for message in one["body"]["messages"]:
            say(f"--- {message['role']} ---\n{message['content']}")
        for reply in one["replies"]:
            read = (
                f"no grade: {reply['reason']}" if "reason" in reply else ", ".join(f"{k} {v:g}" for k, v in reply["grades"].items())
            )
            thinking = f"{reply['thinking']}\n--- reply after thinking ---\n" if reply["thinking"] else ""
            say(f"--- {'thinking' if thinking else 'reply'} ---\n{thinking}{reply['text']}\n--- read as: {read} ---")
        say("")
    if not all(one["probed"] for one in found):
        say("not probed yet: the parameters are those of an endpoint that takes all of them")


def _say_judged(summary: dict[str, Any]) -> None:
    """What a run did, on standard error."""
    columns = {"rater": "judge", **{name: name for name in ("requests", "answered", "failed", "left", "grades", "tokens")}}
    columns |= {"cost": "cost, $", "mean_mass": "mass", "position_bias": "position bias", "seconds_a_request": "s a request"}
    sums = {"failed": lambda row: sum(row["failed"].values()), "tokens": lambda row: row["prompt_tokens"] + row["reply_tokens"]}
    rows = [{**row, **{name: of(row) for name, of in sums.items()}} for row in summary["judges"]]
    if len(rows) > 1:
        totals = {name: sum(row[name] for row in rows) for name in ("requests", "answered", "failed", "left", "grades", "tokens")}
        costs = [row["cost"] for row in rows]
        rows.append({"rater": f"all {len(rows)}", **totals, "cost": None if None in costs else sum(costs)})
    print_rows("", rows, columns)
    for row in summary["judges"]:
        if row["failed"]:
            say(f"{row['rater']}: failed for good: {counted(row['failed'])}; evidence in {summary['out']}/rejects.parquet")
    for row in summary["judges"]:
        if row["one_order_only"]:
            say(f"warning: {row['rater']} answered no pair in both orders: its margins keep its liking for what is shown first")
        if not row["limited"]:
            say(f"warning: {row['rater']}: its endpoint takes no limit on a reply: replies are as long as it likes")
        if row["thinks"] and row["samples"] == 1:
            say(f"{row['rater']} thinks before it answers: its spread is that of one thought; --samples 5 draws several")
        if row["samples"] > 1 and row["mean_mass"] is None:
            say(f"{row['rater']}: without log-probabilities that can be used, each question is asked for {row['samples']} replies")
        if row["samples"] > 1 and row["samples_differ"] is not True:
            told = (
                "so its endpoint does not sample"
                if row["samples_differ"] is False
                else "too few to tell whether its endpoint samples"
            )
            say(
                f"warning: {row['rater']}: the {row['samples']} replies drawn are the same at each of {row['sampled_alike']:,} questions, "
                f"{told}: its spread is {'that of one reply' if row['mean_mass'] is not None else 'unknown (null)'}"
            )
    if summary["not_asked"]:
        say(f"prompts without a question: {counted(summary['not_asked'])}")
    if summary["replaced"]:
        say(f"{summary['replaced']:,} earlier grades of these judges were replaced")
    say_end(summary, f"feedback: {summary['out']}    (mmpo build {quote(summary['out'])} --format feedback --out ... makes pairs)")
