"""`mmpo evaluate policy|reward|scores`: a trained model's accuracy and calibration; benchmarks, from a model or from scores."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table, say, shown
from mmpo.pipeline.errors import unknown_name
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, METRICS, SUITES, suite_scores, suite_warnings
from mmpo.pipeline.options import NUMBER, Gamma, OneOf, TextOrPath, in_words, options, options_from

COMMANDS: dict[str, tuple[str, str]] = {
    "policy": ("mmpo.cli.commands.evaluate:policy", "Measure a policy on held-out pairs, or on a benchmark's rows."),
    "reward": ("mmpo.cli.commands.evaluate:reward", "Measure a reward model on held-out pairs, or on a benchmark's rows."),
    "scores": ("mmpo.cli.commands.evaluate:scores", "A benchmark's figures from scores in a file; no model needed."),
}
"""The commands of the group, as `mmpo.cli.main.COMMANDS` has them."""

Model = Annotated[str, typer.Option(help="The trained model: a folder or a Hugging Face name.")]
Data = Annotated[Path, typer.Option(help="A dataset folder, a Parquet file of pairs, or a file of a benchmark's rows.")]


@options
class EvaluateOptions:
    """What a model is measured on, and by what; `mmpo.train.evaluate` takes the same by name."""

    split: str = "test"
    """train, validation or test."""
    suite: Annotated[str | None, OneOf(SUITES)] = None
    """The benchmark whose own rows the data are: {names}; default: what they look like."""
    gamma: Gamma | None = None
    """γ of the targets, or auto, auto:.9, of the training pairs; the one saved beside the model."""
    target: str | None = None
    """plain, noise-aware or measured; as the model was trained."""
    beta: Annotated[float | None, NUMBER] = None
    """β of a policy's logit; as the model was trained."""
    reference: str | None = None
    """Reference model of a policy; as it was trained."""
    reference_cache: str | None = None
    """Folder or .sqlite file of the reference's log-probabilities, as for training."""
    votes: TextOrPath | None = None
    """Parquet with chosen_id, rejected_id, preferring, raters of raters outside the margins."""
    per_pair: TextOrPath | None = None
    """Parquet file to write every pair's values to."""
    against: TextOrPath | None = None
    """Another model, or a folder that --out wrote of it: differences on the same pairs, with 95% intervals."""
    out: TextOrPath | None = None
    """Folder to write evaluation.json, pairs.parquet and page.html to."""
    bootstrap: Annotated[int, NUMBER] = 1000
    """Samples of prompts behind each 95% interval; 0 for none."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of these samples."""
    max_length: Annotated[int | None, NUMBER] = None
    """Longest prompt and completion, in tokens."""
    max_prompt_length: Annotated[int | None, NUMBER] = None
    """Longest prompt, in tokens."""
    thinking: Literal["keep", "drop"] | None = None
    """Thinking in replies, keep or drop; as the model was trained."""
    graded_part: Literal["answer", "all"] | None = None
    """What the grades are of, answer or all; as the model was trained."""
    tokens_per_batch: Annotated[int | None, NUMBER] = None
    """Tokens that go through the model at once."""
    chat_template: str = "tokenizer"
    """tokenizer (the model's own), plain, or a file with a Jinja template."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


@with_flags(EvaluateOptions)
def policy(model: Model, data: Data, *, as_json: AsJson = False, given: dict[str, Any]) -> None:
    """Measure a policy on held-out pairs: accuracy (ties left out), calibration of three kinds, by margin bin; or on a benchmark.

    Example: mmpo evaluate policy --model models/policy --data pairs
    """
    _measure("policy", model, data, as_json, given)


@with_flags(EvaluateOptions)
def reward(model: Model, data: Data, *, as_json: AsJson = False, given: dict[str, Any]) -> None:
    """Measure a reward model on held-out pairs: accuracy (ties left out), calibration of three kinds, by margin bin; or on a benchmark.

    Example: mmpo evaluate reward --model models/reward --data pairs
    """
    _measure("reward", model, data, as_json, given)


def _measure(kind: Literal["policy", "reward"], model: str, data: Path, as_json: bool, given: dict[str, Any]) -> None:
    from mmpo.train import evaluate

    summary: dict[str, Any] = evaluate(kind, model, data, **vars(options_from(EvaluateOptions, given, flags=True)))
    if "suite" in summary:
        _print_suite(summary)
    _print_measures(summary)
    print_json(summary, as_json)


def _print_measures(found: dict[str, Any]) -> None:
    """The model raw and at its temperature, beside the longest and a coin; by margin; against another model."""
    named = [name for name in METRICS if found.get(name) is not None]
    few = f"fewer than {FEWEST_CLUSTERS} prompts: no intervals" if found["prompts"] < FEWEST_CLUSTERS else "95% intervals by prompt"
    say(f"{found['pairs']:,} pairs of {found['prompts']:,} prompts, {found['ties']:,} ties; {few}")
    from mmpo.pipeline.report import trained_words

    words = trained_words(found["trained_on"])
    if words:
        say(f"trained on: {words}")
    control = (found["trained_on"] or {}).get("control")
    rows = [{"": f"this model (control {control})" if control else "this model", **found}]
    if found["temperature"] is not None:
        rows.append({"": f"at temperature {shown(found['temperature'])}", **found["scaled"]})
    rows += [{"": row["name"], **row} for row in found["baselines"]]
    for part in (named[:4], named[4:]):
        print_rows("", rows, {"": "", **{name: name for name in part}})
    of_validation = found["temperature_from"] == "validation"
    say(f"temperature: {'fitted on the validation split' if of_validation else found['temperature_from']}")
    length = found["length"]
    print_rows("", [length], {"spearman": "rank correlation with length", "longest_wins": "the better is the longer"})
    columns = {name: name for name in ("low", "high", "pairs", "accuracy", "mean_q", "mean_p", "longest_wins")}
    print_rows("by quality margin (a coin: accuracy .5)", found.get("by_margin") or [], columns)
    if len(found["by_source"]) > 1 and "suite" not in found:
        columns = {name: name for name in ("source", "pairs", *named[:2], "longest_wins")}
        print_rows("by source (a coin: accuracy .5)", found["by_source"], columns)
    if "against" in found:
        against = found["against"]
        words = trained_words(against["other_trained_on"])
        other = f"{against['other']} ({words})" if words else against["other"]
        columns = {name: name for name in ("measure", "this", "other", "difference")}
        for name in ("raw", "scaled"):
            at = "" if name == "raw" else ", each at its temperature"
            print_rows(f"against {other}, {against['pairs']:,} pairs{at}", against.get(name) or [], columns)


def scores(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scores of a benchmark's rows: JSON lines, CSV or Parquet.")],
    suite: Annotated[str, typer.Option(help=f"{in_words(SUITES)}; `mmpo list suites NAME` says which columns it needs.")],
    as_json: AsJson = False,
) -> None:
    """A benchmark's figures, by its published arithmetic, from scores that a model has already given.

    rewardbench: subset, score_chosen, score_rejected. rewardbench2: id, subset, num_correct, scores (a list, the correct completions
    first). rm-bench: domain, score_chosen and score_rejected (lists of three, by rising style).
    Example: mmpo evaluate scores scores.jsonl --suite rewardbench
    """
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    summary = suite_scores(file, suite)
    _print_suite(summary)
    for line in suite_warnings(summary):
        say(f"warning: {line}")
    print_json(summary, as_json)


def _print_suite(found: dict[str, Any]) -> None:
    """A suite's subsets, sections and average, each with its interval, beside what the longest replies and random scores reach."""
    print_rows(found["suite"], found["subsets"], {name: name for name in ("subset", "section", "rows", "accuracy", "chance")})
    longest = found.get("longest_wins", {"sections": {}, "average": None})
    rows = [
        {"section": name, "accuracy": value, "accuracy_95": found["sections_95"][name], "longest": longest["sections"].get(name)}
        for name, value in found["sections"].items()
    ]
    rows.append(
        {"section": "average", "accuracy": found["average"], "accuracy_95": found["average_95"], "longest": longest["average"]}
    )
    columns = {"section": "section", "accuracy": "accuracy", **({"longest": "longest wins"} if "longest_wins" in found else {})}
    print_rows("", rows, columns)
    if any(row["accuracy_95"] is None for row in found["subsets"]):
        say(f"a subset of fewer than {FEWEST_CLUSTERS} rows has no 95% interval, nor has what it is part of")
    if "matrix" in found:
        print_table("style", ("", *found["styles"]), [("accuracy", *found["styles"].values())])
        names = ("concise", "detailed", "markdown")
        matrix = [(f"chosen {name}", *row) for name, row in zip(names, found["matrix"], strict=True)]
        print_table("chosen above rejected", ("", *(f"rejected {name}" for name in names)), matrix)
