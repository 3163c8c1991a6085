"""`mmpo evaluate policy|reward|scores|mt-bench`: a trained model's accuracy and calibration; benchmarks, from a model or from scores."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmpo.annotate.mt_bench import MtBenchOptions
from mmpo.cli.asking import asking, counted, local_engine, say_end
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table, say, shown
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, METRICS, SUITES, suite_scores, suite_warnings
from mmpo.pipeline.options import NUMBER, Gamma, OneOf, TextOrPath, in_words, options, options_from
from mmpo.pipeline.progress import duration

COMMANDS: dict[str, tuple[str, str]] = {
    "policy": ("mmpo.cli.commands.evaluate:policy", "Measure a policy on held-out pairs, or on a benchmark's rows."),
    "reward": ("mmpo.cli.commands.evaluate:reward", "Measure a reward model on held-out pairs, or on a benchmark's rows."),
    "scores": ("mmpo.cli.commands.evaluate:scores", "A benchmark's figures from scores in a file; no model needed."),
    "mt-bench": (
        "mmpo.cli.commands.evaluate:mt_bench",
        "MT-bench: two turns, every answer graded by a judge; or its judgments read.",
    ),
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
    from mmpo.pipeline.report import temperature_words, trained_words

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
    if words := temperature_words(found):
        say(words)
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


@with_flags(MtBenchOptions)
def mt_bench(
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL|DIR[,KEY=VALUE...]",
            help="A model that answers: at an endpoint, or a folder of one on this machine; may be repeated. Keys: base_url, api_key_env, "
            "called, temperature, max_tokens, ...",
        ),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            "--local", metavar="MODEL[,KEY=VALUE...]", help="A model on this machine, as for `mmpo generate`; may be repeated."
        ),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            "--answers", metavar="FILE", help="Answers that are there, FastChat's model_answer/NAME.jsonl; may be repeated."
        ),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", metavar="MODEL[,KEY=VALUE...]", help="A judge; may be repeated. Keys: base_url, api_key_env, rater, ..."
        ),
    ] = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option(
            "--judgments",
            metavar="FILE",
            help="Judgments that are there, FastChat's JUDGE_single.jsonl: the means of all models in them, and nobody is asked.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write answers, judgments, means and page to; of --judgments a page.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests, tokens, cost and time, and ask nothing.")] = False,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> int:
    """MT-bench: a model answers questions of two turns, a judge grades every answer from 1 to 10; means with 95% intervals.

    Answers and judgments are safe in a journal before they count: the same command again asks only for what is missing. Example:
    mmpo evaluate mt-bench --model models/policy --judge gpt-4o --questions mt_bench/question.jsonl --out mt-bench
    """
    from mmpo.annotate.mt_bench import estimate, mt_bench, mt_bench_judgments, prepared

    chosen = options_from(MtBenchOptions, given, flags=True)
    if judgments:
        if models or local or answers or judges or dry_run:
            raise UserError(
                "--judgments reads what is there and asks nobody: leave --model, --local, --answers, --judge and --dry-run out"
            )
        summary = mt_bench_judgments(judgments, chosen, out)
        _say_means(summary)
        print_json(summary, as_json)
        return 0
    if out is None:
        raise UserError("--out is missing: the folder to write to")
    folders = [one for one in models or () if _is_folder(one)]
    engines = [local_engine(one) for one in (*folders, *(local or ()))]
    named = {
        "models": [one for one in models or () if one not in folders],
        "local": engines,
        "judges": judges or [],
        "answers": answers or [],
    }
    if dry_run:
        summary = estimate(prepared(out, chosen, **named))
        _say_requests(summary)
        print_json(summary, as_json)
        return 0
    with asking("mt-bench") as progress:
        summary = mt_bench(out, options=chosen, progress=progress, **named)
    _say_means(summary)
    for what, reasons in summary["counts"].items():
        if reasons:
            say(f"{what}: {counted(reasons)}")
    say_end(summary, f"answers and judgments in FastChat's layout, means and page: {summary['out']}")
    print_json(summary, as_json)
    return 0 if summary["finished"] else 3


def _is_folder(given: str) -> bool:
    """Whether `--model` names a folder of this machine, and no endpoint. Raises UserError for a path that is none."""
    name, *keys = given.split(",")
    if any(key.strip().startswith("base_url=") for key in keys):
        return False
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise UserError(f"--model {name}: there is no such folder; a model at an endpoint is named as its endpoint calls it")
    return Path(name).is_dir()


def _say_means(summary: dict[str, Any]) -> None:
    """The table of means, by turn and by category, and what a reader must know."""
    from mmpo.annotate.mt_bench import shown_rows

    means, by_category = shown_rows(summary["models"])
    print_rows("scores from 1 to 10, with 95% intervals over questions", means)
    print_rows("by category", by_category)
    for row in summary["models"]:
        if row["unreadable"]:
            say(f"{row['model']}: judgments without a score (−1), in no mean: {counted(row['unreadable'])}")
    for line in summary["warnings"]:
        say(f"warning: {line}")


def _say_requests(summary: dict[str, Any]) -> None:
    say(f"{summary['requests']:,} requests over {summary['questions']:,} questions; {summary['left']:,} left to ask")
    columns = {"name": "", "asked_for": "asked for", "requests": "requests", "answered": "answered", "left": "left"}
    columns |= {
        "prompt_tokens": "prompt tokens at most",
        "reply_tokens_at_most": "reply tokens at most",
        "cost_at_most": "cost at most, $",
    }
    rows = [{**row, "time": duration(row["seconds"])} for row in summary["models"]]
    print_rows(
        "tokens, cost and time of what is left; time is known once the journal holds replies", rows, columns | {"time": "time"}
    )
