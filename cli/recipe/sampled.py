"""What a policy writes: its replies to held-out prompts, beside those of the model that a loop began with, measured and graded."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from mmpo.cli.commands.generate import run_generate
from mmpo.cli.recipe.feedback import grades, manifest_text
from mmpo.cli.recipe.model import Recipe
from mmpo.cli.recipe.stages import Stages, weights_of, without_place
from mmpo.pipeline.api import load_feedback
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.metrics import mean_interval
from mmpo.pipeline.pairs import split_of_prompts
from mmpo.pipeline.sources import outside_function
from mmpo.pipeline.storage import RowAccounting, describe, read_parquet, replacing, write_feedback
from mmpo.pipeline.tables import SPLITS

Row = Mapping[str, Any]


def held_out(recipe: Recipe, stages: Stages, candidates: Path) -> Path:
    """The folder of the prompts that the build holds out for `evaluate`, without their candidates."""
    assert recipe.build is not None
    shares, by, wanted = recipe.build.split, recipe.build.split_by, SPLITS.index(recipe.measures.split)
    out = stages.out / "held-out"

    def work() -> dict[str, Any]:
        table = load_feedback(candidates)
        table = table.filter(pa.array(split_of_prompts(table, shares, by) == wanted))
        rows = [{**row, "completions": [], "ratings": [], "comparisons": []} for row in table.to_pylist()]
        return _write(rows, table.schema, out, {"held-out": {"split": list(shares), "split_by": by}})

    return Path(stages.do("held-out", {"candidates": manifest_text(candidates), "split": [shares, by, wanted]}, work, out)["out"])


@dataclass(frozen=True)
class Replies:
    """What a model of that name wrote into a FEEDBACK folder, beside whatever else is there."""

    folder: Path
    model: str

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Its completions by prompt id, of prompts that have any; read once."""
        found = {
            row["prompt_id"]: [one for one in row["completions"] or () if one["model"] == self.model]
            for row in load_feedback(self.folder).to_pylist()
        }
        return {one: written for one, written in found.items() if written}


def sampled(recipe: Recipe, stages: Stages, prompts: Path, start: Replies, began: Mapping[str, float]) -> dict[str, Any]:
    """Have `recipe.local`'s last model, a policy, answer the held-out prompts, and measure it against the start model's candidates, whose
    `values_of` are `began`.

    Returns {"measure", "measure_95", "measure_prompts", "measure_gain", "measure_gain_95", "measure_gain_prompts", "replies":
    `counted_replies`, "graders": {rater: {"gain", "gain_95", "prompts"}}}: means over prompts with 95% intervals, gains over the start
    model; of graders in their own units, one reply a prompt on either side. None where there is nothing of the kind.
    """
    out, generate, policy = stages.out, recipe.generate, recipe.local[-1]
    assert generate is not None
    key = {"options": without_place(generate), "policy": {**policy, "model": weights_of(policy["model"])}}
    key["prompts"] = manifest_text(prompts)
    replies = out / "replies"
    stages.do("generate", key, lambda: run_generate([prompts], replies, generate, [], [policy]), replies)
    ours = Replies(replies, policy["called"])
    beside, key = out / "beside", {"start": manifest_text(start.folder), "replies": manifest_text(replies)}
    both = stages.do("beside", key, lambda: _beside(start, ours, beside), beside)["pairs"]
    said: dict[str, Any] = {}
    judged = grades(recipe, stages, beside, said) if both else beside
    measures = recipe.measures
    draws = {"draws": measures.bootstrap, "seed": measures.seed}
    found: dict[str, Any] = {"said": said, "graders": {}}
    for rater, values in _gains(load_feedback(judged).to_pylist(), _firsts(start), _firsts(ours)).items():
        found["graders"][rater] = {
            "gain": float(np.mean(values)),
            "gain_95": mean_interval(values, **draws),
            "prompts": len(values),
        }
    return (
        found | measured(recipe, values_of(recipe, ours, prompts), began) | {"replies": counted_replies(ours, prompts, generate.n)}
    )


def counted_replies(replies: Replies, prompts: Path, n: int) -> dict[str, Any]:
    """What became of a model's requests for the prompts of a folder, `n` for each that was asked.

    Returns {"prompts", "requests", "kept": different replies, "repeated": replies that say the same as one that is kept, "left_out": counts
    by reason of those that are no candidates (cut, empty, refused, ...), "without_reply": prompts of which nothing is kept}.
    """
    names = set(load_feedback(prompts)["prompt_id"].to_pylist())
    kept = {one: len(written) for one, written in replies.rows.items() if one in names}
    rejects = read_parquet(replies.folder / "rejects.parquet").to_pylist()
    lost = [
        (row["prompt_id"], row["reason"])
        for row in rejects
        if row["stage"] == "generate" and row["prompt_id"] in names and orjson.loads(row["evidence"])["model"] == replies.model
    ]
    requests, reasons = n * len(kept.keys() | {prompt for prompt, _ in lost}), Counter(reason for _, reason in lost)
    return {
        "prompts": len(names), "requests": requests, "kept": sum(kept.values()),
        "repeated": requests - sum(kept.values()) - reasons.total(), "left_out": dict(sorted(reasons.items())),
        "without_reply": len(names) - len(kept),
    }  # fmt: skip


def values_of(recipe: Recipe, replies: Replies, prompts: Path) -> dict[str, float]:
    """The user's own measure of replies to the prompts of a folder, by prompt id; {} where there is none. Each different reply counts
    once; a prompt of which no reply is kept has no value."""
    if recipe.measures.measure is None:
        return {}
    of: Callable[..., Any] = outside_function("evaluate.measure", recipe.measures.measure)
    asked = {row["prompt_id"]: row["prompt"] for row in load_feedback(prompts).to_pylist()}
    return {
        one: float(np.mean([_number(recipe, of, asked[one], reply["text"]) for reply in written]))
        for one, written in replies.rows.items()
        if one in asked
    }


def measured(recipe: Recipe, ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """The mean of `values_of`, and the gain over the start model's; how many prompts have a value stands beside each mean."""
    if recipe.measures.measure is None:
        return {}
    draws = {"draws": recipe.measures.bootstrap, "seed": recipe.measures.seed}
    both = [ours[one] - theirs[one] for one in ours if one in theirs]
    values = list(ours.values())
    return {
        "measure": float(np.mean(values)) if values else None, "measure_95": mean_interval(values, **draws),
        "measure_prompts": len(values), "measure_gain": float(np.mean(both)) if both else None,
        "measure_gain_95": mean_interval(both, **draws), "measure_gain_prompts": len(both),
    }  # fmt: skip


def _number(recipe: Recipe, of: Callable[..., Any], prompt: Sequence[Row], reply: str) -> float:
    """What the user's function says of a reply. Raises UserError where it fails, or says no number."""
    where, takes = f"evaluate.measure {recipe.measures.measure}", "it takes the prompt's messages and a reply, and returns a number"
    try:
        value = float(of(prompt, reply))
    except Exception as error:
        raise UserError(f"{where}: {type(error).__name__} of the reply {printable(reply, 60)!r}: {error}; {takes}") from error
    if not np.isfinite(value):
        raise UserError(f"{where}: {value} of the reply {printable(reply, 60)!r}; {takes}")
    return value


def _firsts(replies: Replies) -> dict[str, str]:
    """The id of each prompt's first reply."""
    return {one: written[0]["id"] for one, written in replies.rows.items()}


def _beside(start: Replies, replies: Replies, out: Path) -> dict[str, Any]:
    """FEEDBACK with the start model's first candidate and the policy's first; prompts that lack one of them are left out, counted;
    where both are one text there is no pair to grade."""
    theirs, ours, table = start.rows, replies.rows, load_feedback(replies.folder)
    rows = []
    for row in table.to_pylist():
        if row["prompt_id"] in ours and row["prompt_id"] in theirs:
            pair = {one["id"]: one for one in (theirs[row["prompt_id"]][0], ours[row["prompt_id"]][0])}
            rows.append({**row, "completions": list(pair.values())})
    summary = _write(rows, table.schema, out, {"beside": start.model}, table.num_rows - len(rows))
    return {**summary, "pairs": sum(len(row["completions"]) == 2 for row in rows)}


def _write(rows: Sequence[Row], schema: pa.Schema, out: Path, recipe: Row, dropped: int = 0) -> dict[str, Any]:
    accounting = RowAccounting()
    accounting.count(
        "sample", "prompt", created=len(rows) + dropped, out=len(rows), dropped={"no_reply": dropped} if dropped else {}
    )
    metadata = {"recipe": dict(recipe), "inputs": []}
    with replacing(out) as folder:
        digests = write_feedback(folder, metadata, [(pa.Table.from_pylist(list(rows), schema), [])])
        describe(folder, metadata, len(rows), accounting, digests)
    return {"out": str(out), "prompts": len(rows), "left_out": dropped}


def _gains(rows: Iterable[Row], first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, list[float]]:
    """By rater, and aspect where that is not overall: how much better it finds the second completion of each prompt than the first, both
    orders of a comparison averaged; 0 where they are one text."""
    found: dict[str, list[float]] = defaultdict(list)
    same = 0
    for row in rows:
        ids = [one["id"] for one in row["completions"]]
        a, b = first[row["prompt_id"]], second[row["prompt_id"]]
        if a == b:
            same += 1
            continue
        said: dict[str, list[float]] = defaultdict(list)
        for one in row["comparisons"] or ():
            sign = 1 if ids[one["second"]] == b else -1
            said[_name(one)].append(-sign * one["gap"])
        for name, scores in _scores(row, ids).items():
            if a in scores and b in scores:
                said[name].append(scores[b] - scores[a])
        for name, values in said.items():
            found[name].append(float(np.mean(values)))
    return {name: [*values, *[0.0] * same] for name, values in found.items()}


def _scores(row: Row, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for one in row["ratings"] or ():
        found[_name(one)][ids[one["completion"]]] = one["score"]
    return found


def _name(grade: Row) -> str:
    return grade["rater"] if grade["aspect"] == "overall" else f"{grade['rater']}/{grade['aspect']}"
