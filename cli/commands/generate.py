"""`mmpo generate`: prompts into candidates, by models at endpoints and on this machine; one flag for every field of GenerateOptions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mmpo.annotate.generate import GenerateOptions
from mmpo.cli.asking import asking, counted, local_engines, say_end
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import duration


@with_flags(GenerateOptions)
def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPTS...", help="A FEEDBACK folder, or files, folders, globs or Hub datasets of prompts."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The FEEDBACK folder to write, with the candidates added.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL[,KEY=VALUE...]",
            help="A model at an endpoint; may be repeated. Keys: base_url, api_key_env, called, temperature, top_p, max_tokens, ...",
        ),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            "--local",
            metavar="MODEL[,KEY=VALUE...]",
            help="A model on this machine, a folder or a Hugging Face name; may be repeated. Keys: called, batch (replies at a time, 16), "
            "chat_template, trust_remote_code.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests, tokens, cost and time, and ask nothing.")] = False,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """Write candidates: replies of one model or several to every prompt, into FEEDBACK that judges, people and reward models grade.

    Every reply is safe in a journal before it counts: the same command again asks only for what is missing, and so does one with a larger
    --n or more models. Example:
    mmpo generate prompts.jsonl --model gpt-4o-mini --model qwen3,base_url=http://127.0.0.1:8000/v1 --n 4 --out candidates
    """
    options = options_from(GenerateOptions, given, flags=True)
    if dry_run:
        from mmpo.annotate.generate import estimate, prepared

        if local:  # nothing starts elsewhere
            options = replace(options, engine="local", ray_address=None, workers=None)
        with local_engines(local or [], options) as engines, prepared(prompts, out, options, models or [], engines) as plan:
            summary = estimate(plan)
        _say_estimate(summary)
        print_json(summary, as_json)
        return 0
    summary = run_generate(prompts, out, options, models or [], local or [])
    print_json(summary, as_json)
    return 0 if summary["finished"] else 3


def run_generate(
    prompts: Sequence[str | Path], out: Path, options: GenerateOptions, models: Sequence[Any], local: Sequence[Any]
) -> dict[str, Any]:
    """Have the models write candidates, with progress; the summary, which is also said."""
    from mmpo.annotate.generate import generate as write

    with local_engines(local, options) as engines, asking("generate") as progress:
        summary = write(prompts, out, options=options, models=models, local=engines, progress=progress)
    _say_written(summary)
    return summary


def _say_estimate(summary: dict[str, Any]) -> None:
    say(f"{summary['requests']:,} requests over {summary['prompts']:,} prompts; {summary['left']:,} left to ask")
    columns = {"name": "model", "requests": "requests", "answered": "answered", "left": "left", "prompt_tokens": "prompt tokens"}
    columns |= {"reply_tokens_at_most": "reply tokens at most", "cost_at_most": "cost at most, $", "time": "time"}
    rows = [{**row, "time": duration(row["seconds"])} for row in summary["models"]]
    print_rows("tokens, cost and time of what is left; time is known once the journal holds replies", rows, columns)
    _say_unanswerable(summary)
    for row in summary["models"]:
        if row["failed"]:
            say(f"{row['name']}: failed at the last try: {counted(row['failed'])}")
        if row["batches_open"]:
            say(f"{row['name']}: {row['batches_open']} batches under way")


def _say_written(summary: dict[str, Any]) -> None:
    """What a run did, on standard error."""
    columns = {"name": "model", **{name: name for name in ("requests", "candidates", "repeated", "others", "left", "tokens")}}
    columns |= {"cost": "cost, $", "seconds_a_request": "s a request"}
    rows = [
        {
            **row,
            "others": sum(row["reasons"].values()) + sum(row["failed"].values()),
            "tokens": row["prompt_tokens"] + row["reply_tokens"],
        }
        for row in summary["models"]
    ]
    print_rows("", rows, columns)
    for row in summary["models"]:
        for words, name in (("no candidates", "reasons"), ("candidates all the same", "kept"), ("failed", "failed")):
            if row[name]:
                say(f"{row['name']}: {words}: {counted(row[name])}")
        if row["requests"] and not row["candidates"] and not row["repeated"]:
            say(f"warning: {row['name']}: no reply of it became a candidate")
        if not row["seeds"]:
            say(f"{row['name']}: its endpoint takes no seed: another run from the beginning would give other replies")
    _say_unanswerable(summary)
    say_end(summary, f"feedback: {summary['out']}    (mmpo judge {quote(summary['out'])} --model ... --out ... grades it)")


def _say_unanswerable(summary: dict[str, Any]) -> None:
    if summary["unanswerable"]:
        say(f"prompts that are not asked: {counted(summary['unanswerable'])}")
