"""`mmpo init FILE...`: a recipe for one's own file, with a comment wherever something was guessed; tried out before it is written."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from mmpo.cli.installed import requirements, version_of
from mmpo.cli.output import AsJson, print_json, say
from mmpo.cli.recipe.model import load_recipe
from mmpo.pipeline.build import BuildOptions, build, peek
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.progress import ProgressReporter
from mmpo.pipeline.sources import Guess, fitting, guesses
from mmpo.pipeline.storage import MANIFEST, atomic_file, input_bytes, read_manifest, resolve_inputs

TRIED_BYTES = 16 << 20
"""Larger inputs are looked at, and not built for trial."""
REJECTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FEW_PROMPTS = 200
UNGRADED = (
    "Where nobody has graded yet: `mmpo build FILE ... --feedback-only --out candidates`, and `mmpo judge` or `mmpo argilla push` to have "
    "them graded."
)
NOT_HERE = re.compile(r"--(scale|max-rejects|columns|na|gap-of|decimal|encoding|sep|sheet|clip)\b")
"""Options that errors speak of, and that init has not."""


def init(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, folders, globs or Hub datasets of one layout; or a dataset folder."),
    ],
    out: Annotated[Path | None, typer.Option(help="The recipe to write; it must not be there yet. [default: NAME.yaml]")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a file of grades and write a recipe that builds pairs of it, trains on them and measures; nothing is asked.

    What was guessed has a comment that says why. Up to 16 MB the build is tried before the recipe is written; `mmpo run NAME.yaml` does it
    all. Example: mmpo init ratings.csv
    """
    name = re.sub(r"\W+", "-", Path(inputs[0].rstrip("/")).name.split(".")[0]).strip("-") or "recipe"
    target = out or Path(f"{name}.yaml")
    if target.exists():
        raise UserError(f"{target} exists already; name another recipe by --out, or remove it first")
    if (folder := _dataset(inputs)) is not None:
        summary: dict[str, Any] = {"pairs": read_manifest(folder)["rows"], "options": {}}
        text = _text(
            name,
            target,
            [f"data: {json.dumps(str(folder), ensure_ascii=False)}"],
            summary["pairs"],
            f"{folder}, a dataset of pairs",
        )
    else:
        made, found, summary = _tried(inputs)
        text = _text(name, target, _build(inputs, made, found), summary.get("pairs"), _seen(found, summary))
        summary["options"] = made.options
        say(_seen(found, summary))
    with atomic_file(target, stood=None) as temporary:
        temporary.write_text(text, encoding="utf-8")
    load_recipe(target)  # what can't be read is a bug, and is seen here
    say(f"recipe: {target}    (mmpo run {shlex.quote(str(target))})")
    print_json({"recipe": str(target), **summary}, as_json)


def _dataset(inputs: Sequence[str]) -> Path | None:
    """The folder, where a finished dataset of pairs is named."""
    folder = Path(inputs[0])
    there = len(inputs) == 1 and (folder / MANIFEST).is_file()
    return folder if there and read_manifest(folder).get("kind") == "pairs" else None


def _tried(inputs: Sequence[str]) -> tuple[Guess, dict[str, Any], dict[str, Any]]:
    """The first guess that finds grades and, of files that are not large, pairs; what a look and a build found. Raises UserError."""
    errors: list[str] = []
    graded = False
    for made in several_scores(guesses(inputs, fitting)):
        graded |= made.graded
        try:
            found = peek(inputs, BuildOptions(**made.options, max_rejects=1.0))
            if not found["raters"]:
                bad = [f"{reason}: {value}" for reason, values in found["bad_values"].items() for value in values]
                why = f": {printable(bad[0], 300)}" if bad and made.graded else ""
                raise UserError(f"{found['file']}: read as {found['layout']}, no row has a grade that can be used{why}")
            if input_bytes(resolve_inputs(inputs, made.options["format"])) > TRIED_BYTES:
                made.options.pop("scale", None)  # what other rows hold is not known
                return made, found, {}
            return made, found, _built(inputs, made)
        except UserError as error:
            message = str(error)
            message += "" if message.endswith(".") else "."
            if NOT_HERE.search(message):
                message += f" These are options of `mmpo build`; what it reads with them is shown by `{_peeking(inputs, made)}`."
            errors.append(message)
    raise UserError(errors[0] if graded else f"{errors[0]} {UNGRADED}") if errors else UserError(f"{inputs[0]}: holds no rows")


def _peeking(inputs: Sequence[str], made: Guess) -> str:
    """The command that shows what a build reads as it was guessed."""
    columns = ",".join(f"{name}={column}" for name, column in made.options.get("columns", {}).items())
    named = ["--columns", columns] if columns else []
    return shlex.join(["mmpo", "build", *inputs, "--format", made.options["format"], *named, "--peek"])


def several_scores(found: Iterable[Guess]) -> Iterator[Guess]:
    """Each guess, and once more with the mean of all aspects, for sources whose aspects have names of the user's own."""
    for made in found:
        yield made
        why = {**made.why, "score": "the mean of all aspects; one's name takes it alone"}
        yield replace(made, options={**made.options, "score": "mean"}, why=why)


def _built(inputs: Sequence[str], made: Guess) -> dict[str, Any]:
    """What a build of all of it gives; `max_rejects` is raised where rows can't be read. Raises UserError."""
    for limit in REJECTS:
        options = {**made.options, **({"max_rejects": limit} if limit > REJECTS[0] else {})}
        with TemporaryDirectory(prefix="mmpo-init-") as folder, ProgressReporter("trying", "parts") as progress:
            try:
                summary = build(inputs, Path(folder) / "pairs", options=BuildOptions(**options), progress=progress)
            except UserError as error:
                if "--max-rejects" not in str(error) or limit == REJECTS[-1]:
                    raise
                made.why["max_rejects"] = printable(str(error).partition(", more than")[0], 200)
                continue
        if summary["prompts"] < FEW_PROMPTS:
            options["split"] = [0.7, 0, 0.3]
            made.why["split"] = f"train, validation, test: with {summary['prompts']:,} prompts a small test set says nothing"
        made.options.update(options)
        if "split" in options:  # who falls where has changed
            with TemporaryDirectory(prefix="mmpo-init-") as folder:
                summary = build(inputs, Path(folder) / "pairs", options=BuildOptions(**options))
        return {key: summary[key] for key in ("prompts", "pairs", "rejected", "warnings") if key in summary}
    raise AssertionError("unreachable")


def _seen(found: dict[str, Any], summary: dict[str, Any]) -> str:
    """What was looked at, in a sentence."""
    pairs = sum((summary.get("pairs") or {}).values())
    made = f", {summary['prompts']:,} prompts and {pairs:,} pairs in all" if pairs else ""
    return f"{found['file']}: {found['layout']}; {found['lines']:,} rows were looked at{made}"


def _build(inputs: Sequence[str], made: Guess, found: dict[str, Any]) -> list[str]:
    """The section `build`."""
    lines = ["build:", f"  inputs: {json.dumps(list(inputs), ensure_ascii=False)}"]
    for key, value in made.options.items():
        why = f"    # {made.why[key]}" if key in made.why else ""
        lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}{why}")
    lines += [f"  # {note}" for note in made.notes]
    unread = [column for column, read in found["columns"].items() if read is None and "[]." not in column]
    lines += [f"  # columns that are not read: {', '.join(map(repr, unread))}"] * bool(unread)
    lines += ["  # scale: [1, 5]             the scale that was asked for, lowest and highest grade"] * (
        "scale" not in made.options
    )
    return [
        *lines,
        f"  # grades seen: {_counted(found['raters'])}; some raters' alone: raters: [NAME, NAME]",
        "  # merge_raters: median       how several raters make one grade: mean, median, rater-effects",
        "  # ties: drop                 pairs of margin 0 are kept, with a target of .5",
        "  # min_margin: 0.5            smaller margins are left out",
        "  # strategy: best-worst       all pairs of a prompt, or some of them: mmpo list strategies",
    ]


def _counted(raters: dict[str, int]) -> str:
    shown = [f"{printable(rater, 60)} {count:,}" for rater, count in list(raters.items())[:5]]
    return ", ".join([*shown, *([f"and {len(raters) - 5:,} raters more"] if len(raters) > 5 else [])])


def _text(name: str, target: Path, data: list[str], pairs: dict[str, int] | None, seen: str) -> str:
    missing = [one for one in requirements()["train"] if version_of(one) is None]
    few = pairs is not None and not (pairs.get("train") and pairs.get("test"))
    off = "# " if missing or few else ""
    why = (
        "# Training is left out: it needs pip install 'mmpo[train]'; then take the # away."
        if missing
        else "# Training is left out: there are too few prompts for a train and a test split."
        if few
        else "# Two models, which differ in their targets alone: σ(γ·margin), and 1 whatever the margin."
    )
    parts = [
        f"# mmpo run {shlex.quote(str(target))}        does what is here, and the same command again only what has changed.",
        f"# Written after a look at {printable(seen, 300)}.",
        "# Every key is an option of `mmpo build`, `mmpo train` or `mmpo evaluate` (--help-all); `mmpo run --schema` is for editors.",
        f"title: {json.dumps(name, ensure_ascii=False)}",
        f"out: {json.dumps(f'out/{name}', ensure_ascii=False)}    # folder of everything that is written: dataset, models, page",
        "",
        *data,
        "",
        why,
        f"{off}training:",
        f"{off}  kind: reward                # or policy",
        f"{off}  model: tiny                 # learns little, in seconds, anywhere: name a folder or a Hugging Face model",
        f"{off}  max_steps: 50               # take it away with a real model",
        f"{off}  # lora: 16                  # an adapter, for models that are too large to train whole",
        f"{off}runs:",
        f"{off}  mmpo: {{loss: mmpo}}",
        f"{off}  dpo: {{loss: dpo}}",
        f"{off}evaluate: {{split: test, against: mmpo}}",
    ]
    return "\n".join(parts) + "\n"
