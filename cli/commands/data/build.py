"""`mmpo build`: feedback files into a dataset of pairs; one flag for every field of BuildOptions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table, say, shown
from mmpo.pipeline.build import BuildOptions, check_format, peek, sources_of
from mmpo.pipeline.build import build as build_dataset
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import BYTES, ProgressReporter

EXAMPLE_WIDTH = 70
BY_SOURCE = {
    "source": "source", "weight": "weight", "share": "share", "prompts": "prompts", "pairs": "pairs", "ties": "ties",
    "mean_margin": "mean margin", "gamma_auto": "γ auto", "mean_target": "mean target",
}  # fmt: skip
"""What is said of each source of several: the mean target is that at the γ auto of all pairs."""


@with_flags(BuildOptions)
def build(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE...]",
            help="Files, folders, globs, Hub datasets (hub:OWNER/NAME@REVISION:SPLIT) or objects (s3://BUCKET/KEY); none beside --sources.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help="The dataset folder to write, here or at s3://BUCKET/KEY; whole or not at all.")
    ] = None,
    look: Annotated[bool, typer.Option("--peek", help="Show what is recognised of the first file, and write nothing.")] = False,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Build a dataset: feedback in a named format into pairs with quality margins, split into train, validation, test.

    Example: mmpo build ratings.jsonl --format jsonl --columns prompt=question,completion=answer,score=grade --out pairs
    """
    named = inputs or []
    if not named and "sources" not in given:
        raise UserError(
            "nothing is named to build from: give files, folders, globs or Hub datasets, or --sources FILE with several sources"
        )
    if "sources" not in given:
        reading = {
            "encoding": given.get("encoding"),
            "sep": given.get("sep"),
            "sheet": given.get("sheet"),
            "columns": "columns" in given,
        }
        found = check_format(named, given.get("format"), **reading)
        if "format" not in given:
            say(f"--format {found}: by {'the kind of file' if reading['columns'] else 'its columns'}")
            given["format"] = found
    options = options_from(BuildOptions, given, flags=True)
    if look:
        print_json(_peeked(named, options), as_json)
        return
    if out is None:
        raise UserError("--out is missing: it names the dataset folder to write; --peek looks at the input and writes nothing")
    print_json(run_build("build", named, out, options), as_json)


def run_build(title: str, sources: list[str], out: Path, options: BuildOptions) -> dict[str, Any]:
    """Build a dataset with progress under the title; the summary, which is also said."""
    with ProgressReporter(title, BYTES) as progress:
        summary = build_dataset(sources, out, options=options, progress=progress, say=say)
    _say_built(summary)
    return summary


def _peeked(inputs: list[str], options: BuildOptions) -> dict[str, Any]:
    """What a look finds, which is also said; of several sources by their names."""
    if not options.sources:
        found = peek(inputs, options)
        _say_peeked(found)
        return found
    by_source = {}
    for source, own in sources_of(options):
        by_source[source.name] = peek(source.inputs, own)
        say(f"source {source.name}:")
        _say_peeked(by_source[source.name])
    return {"sources": by_source}


def _say_peeked(found: dict[str, Any]) -> None:
    """What a look found, on standard error."""
    say(f"{found['file']}: {found['layout']}; {found['lines']:,} lines read")
    print_table("columns", ("column", "read as"), [(column, field or "(not read)") for column, field in found["columns"].items()])
    for row in found["rows"]:
        say(f"prompt: {_short(' / '.join(message['role'] + ': ' + message['content'] for message in row['prompt']))}")
        texts = [one["text"] for one in row["completions"]]
        for place, text in enumerate(texts):
            given = ", ".join(f"{one['rater']} {one['score']:g}" for one in row["ratings"] if one["completion"] == place)
            say(f"  {_short(text)}{': ' + given if given else ''}")
        for one in row["comparisons"]:
            better, worse = (one["first"], one["second"]) if one["gap"] >= 0 else (one["second"], one["first"])
            verb, by = ("is better than", f" by {abs(one['gap']):g}") if one["gap"] else ("ties with", "")
            say(f"  {one['rater']}: {_short(texts[better])} {verb} {_short(texts[worse])}{by}")
    print_table("grades", ("rater", "grades"), list(found["raters"].items())[:20])
    bad = [(reason, value, count) for reason, values in found["bad_values"].items() for value, count in values.items()]
    if bad:
        print_table("left out", ("reason", "value", "count"), bad)
    for line in found["warnings"]:
        say(f"warning: {line}")


def _say_built(summary: dict[str, Any]) -> None:
    """What a build made, on standard error: pairs a split, rejects a reason, what it found of raters."""
    pairs = summary.get("pairs") or {}
    if pairs:
        counts = ", ".join(f"{count:,} {split}" for split, count in pairs.items())
        say(f"{_counted(summary['prompts'], 'prompt')}, {_counted(sum(pairs.values()), 'pair')} ({counts})")
    else:
        say(_counted(summary["prompts"], "prompt"))
    rejected = sorted(summary["rejected"].items(), key=lambda item: -item[1])
    if rejected:
        print_table("left out", ("reason", "count"), rejected)
    if summary.get("repaired"):
        print_table("repaired and kept", ("reason", "count"), list(summary["repaired"].items()))
    sources = [{"source": name, **one} for name, one in summary.get("by_source", {}).items()]
    if sources:
        print_rows("sources", sources, BY_SOURCE)
        say(f"γ auto of all pairs: {shown(summary['gamma_auto'])}")
    _say_raters(summary)
    _say_saturated(summary)
    for warning in summary.get("warnings", []):
        say(f"warning: {warning}")
    for example in summary.get("examples", []):
        better, worse = _told_apart(example["better"], example["worse"])
        by = f"is better than {worse} by {example['margin']:.4g}" if example["margin"] else f"is as good as {worse}"
        say(f"{better} {by}")
    say(f"dataset: {summary['out']}")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _told_apart(better: str, worse: str) -> tuple[str, str]:
    """Two texts in short: where that makes them the same, with their white space to be seen, from a little before they part.

    >>> _told_apart("apple", " apple\\n"), _told_apart("a pear", "a plum")
    (("'apple'", "' apple\\\\n'"), ("'a pear'", "'a plum'"))
    """
    if _short(better) != _short(worse):
        return _short(better), _short(worse)
    same = next((at for at, (a, b) in enumerate(zip(better, worse)) if a != b), min(len(better), len(worse)))
    if same == max(len(better), len(worse)):  # they are cut short in the summary
        return _short(better), "another that begins alike"
    start = max(0, same - 10) if same > EXAMPLE_WIDTH // 2 else 0
    first, second = (repr(text[start : start + EXAMPLE_WIDTH])[1:-1] for text in (better, worse))
    return (
        f"'{'…' if start else ''}{printable(first, EXAMPLE_WIDTH)}'",
        f"'{'…' if start else ''}{printable(second, EXAMPLE_WIDTH)}'",
    )


def _short(text: str) -> str:
    return f"'{printable(' '.join(text.split()), EXAMPLE_WIDTH)}'"


def _say_saturated(summary: dict[str, Any]) -> None:
    """How many grades stand at an end of their scale, by source, and what comes of it."""
    ends = [
        f"{source} {one['at_ends'] / one['grades']:.1%} of {one['grades']:,}{' (clipped)' if one['transform'] else ''}"
        for source, one in summary["saturated"].items()
        if one["at_ends"] and (one["transform"] or one["at_ends"] < one["grades"])  # all are where grades only say which is better
    ]
    if ends:
        pairs = summary.get("ties_at_ends")
        told = f"; {_counted(pairs, 'pair')} {'is a tie' if pairs == 1 else 'are ties'} there" if pairs else ""
        say(f"grades at an end of their scale: {', '.join(ends)}{told}")


def _say_raters(summary: dict[str, Any]) -> None:
    """Position biases of judges, and raters' own biases and scales, where the build found any."""
    orders = [{"name": name, **found} for name, found in summary.get("position_bias", {}).items()]
    columns = {"name": "rater/aspect", "bias": "towards the first", "order_sd": "order noise", "pairs": "pairs"}
    print_rows("position bias", orders, columns)
    notes = {(False, True): "no signal", (True, False): "shares no item", (True, True): ""}
    effects = [
        {"name": name, **e, "note": notes[e["signal"], e["connected"]]} for name, e in summary.get("rater_effects", {}).items()
    ]
    columns = {"name": "rater", **{name: name for name in ("bias", "scale", "noise", "weight", "items")}, "note": ""}
    print_rows("raters", effects, columns)
