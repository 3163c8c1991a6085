"""`mmpo score`: FEEDBACK in, the same FEEDBACK with models' grades added out; killed at any moment and resumed by the same call."""

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, offsets_of, parents, structs, with_added
from mmpo.pipeline.engines import ENGINES
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import ENGINE_OPTIONS, options_from
from mmpo.pipeline.storage import RowAccounting, check_out, describe, made_of, name_of, replacing, write_feedback
from mmpo.pipeline.tables import FEEDBACK, RATING
from mmpo.train.scoring.actors import ScoringActors
from mmpo.train.scoring.candidates import ASPECT, KIND, StoredCompletions
from mmpo.train.scoring.models import Scores, described, scores_of
from mmpo.train.scoring.options import ScoreOptions, scorers_of

NOT_OF_THE_RECIPE = ("tokens_per_batch", "cache", "trust_remote_code", *ENGINE_OPTIONS)
"""Options that change how fast or where, never what comes out."""


def score(
    feedback: str | Path, model: str | Path | Mapping[str, Any] | Sequence[Any], out: str | Path, **options: Any
) -> dict[str, Any]:
    """Grade every completion of a FEEDBACK folder by one or several models, and write it to `out` with these grades added.

    model: a folder or Hugging Face name, "MODEL,rater=NAME,reference=...", a mapping with these keys, or a list of such: a reward model
    (a sequence classifier with one label), whose grade is its score (the logit), or a policy, whose grade is its implicit reward
    β·(log π(y|x) − log π_ref(y|x)), in nats times β (Rafailov et al. 2023, eq. 5, but for what depends on the prompt alone). Each is a
    rater of kind reward_model and aspect overall, without bounds. options: the fields of ScoreOptions.

    Grades that are there stay, and those of the same rater are not computed again. Every value is in a cache as soon as its batch is
    computed: after a kill the same call computes only what was under way.

    Returns {"out", "prompts", "completions", "counts" (grades that are missing, by reason, of all raters), "seconds", "raters": [{"rater",
    "model", "kind", "grades", "already", "left_out" (by reason), "truncated", "seconds"}]}. Raises UserError with nothing written.

    >>> import json, tempfile
    >>> from mmpo.pipeline import BuildOptions, build, build_pairs, load_feedback, write_dataset
    >>> from mmpo.train import TrainOptions, train_reward
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "grades.jsonl").write_text("\\n".join(map(json.dumps, rows)))
    ...     _ = build(f"{folder}/grades.jsonl", f"{folder}/graded", options=BuildOptions(format="jsonl", scale="1:5", feedback_only=True))
    ...     _ = write_dataset(build_pairs(load_feedback(f"{folder}/graded")), f"{folder}/pairs", split=(1, 0, 0))
    ...     small = {"tiny_size": 16, "tiny_layers": 1, "eval_split": None, "max_steps": 1}
    ...     _ = train_reward(TrainOptions("reward", data=f"{folder}/pairs", out=f"{folder}/model", **small))
    ...     score(f"{folder}/graded", f"{folder}/model", f"{folder}/scored")["completions"]
    2
    """
    began = time.monotonic()
    chosen, scorers = options_from(ScoreOptions, options), scorers_of(model)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("mmpo score runs in one process, and a launcher has started several: call `mmpo score` by itself")
    check_out(Path(out), [feedback])
    candidates = StoredCompletions.open(feedback)
    with ENGINES[chosen.engine](None, chosen.ray_address) as engine:
        with engine.actors(chosen.workers) as actors, ScoringActors(actors) if actors else nullcontext() as elsewhere:
            found = [scores_of(candidates, one, chosen, elsewhere) for one in scorers]
        _write(candidates, found, chosen, Path(out), engine.about() | (actors.about() if actors else {}))
    rows = [_summary(one) for one in found]
    sizes = {"prompts": candidates.prompts, "completions": candidates.completions}
    counts = dict(sum((Counter(row["left_out"]) for row in rows), Counter[str]()))
    return {"out": name_of(out), **sizes, "counts": counts, "seconds": time.monotonic() - began, "raters": rows}


def _summary(scores: Scores) -> dict[str, Any]:
    return {
        "rater": scores.scorer.name, "model": scores.scorer.model, "kind": scores.kind, "grades": int(np.isfinite(scores.values).sum()),
        "already": scores.already, "left_out": dict(Counter(scores.left_out.values())), "truncated": scores.truncated,
        "seconds": scores.seconds,
    }  # fmt: skip


def _write(
    candidates: StoredCompletions, found: Sequence[Scores], options: ScoreOptions, out: Path, engine: Mapping[str, Any]
) -> None:
    recipe = {
        "score": {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_OF_THE_RECIPE},
        "scorers": [described(one) for one in found],
        "feedback": candidates.manifest.get("recipe"),
    }
    inputs = made_of(candidates.folder, candidates.files)
    metadata = {"recipe": recipe, "inputs": inputs}
    accounting = RowAccounting()
    for one in found:
        counts = _summary(one)
        created = candidates.completions - one.already
        accounting.count("score", "grade", created=created, out=counts["grades"], dropped=counts["left_out"])
    with replacing(out) as folder:
        parts = ((_graded(first, table, found), _rejected(first, table, found)) for first, table in candidates.tables())
        digests = write_feedback(folder, metadata, parts)
        describe(folder, metadata, candidates.prompts, accounting, digests, engine=engine)


def _graded(first: int, table: pa.Table, found: Sequence[Scores]) -> pa.Table:
    """The table with the new grades behind those that its rows have."""
    offsets = offsets_of(flat(table["completions"]))
    row_of, rows, grades = parents(offsets), [], []
    for one in found:
        values = one.values[first : first + offsets[-1]]
        places = np.flatnonzero(np.isfinite(values))
        rows.append(row_of[places])
        numbers = zip((places - offsets[row_of[places]]).tolist(), values[places].tolist(), strict=True)
        grades += [(number, one.scorer.name, KIND, ASPECT, value) for number, value in numbers]
    if not grades:
        return table
    index, kind = table.schema.get_field_index("ratings"), FEEDBACK.field("ratings").type
    added = with_added(flat(table["ratings"]), structs(grades, RATING).cast(RATING), np.concatenate(rows))
    return table.set_column(index, pa.field("ratings", kind), added.cast(kind))


def _rejected(first: int, table: pa.Table, found: Sequence[Scores]) -> list[dict[str, Any]]:
    """A row for every completion that a model could not grade."""
    column = flat(table["completions"])
    row_of, names = parents(offsets_of(column)), table["prompt_id"].to_pylist()
    ids = column.flatten().field("id")
    said = []
    for one in found:
        for place in range(len(row_of)) if one.left_out else ():
            if reason := one.left_out.get(first + place):
                evidence = json.dumps({"rater": one.scorer.name, "completion_id": ids[place].as_py()}, ensure_ascii=False)
                about = {"unit": "grade", "stage": "score", "reason": reason, "file": None, "row": None}
                said.append({**about, "prompt_id": names[row_of[place]], "evidence": evidence})
    return said
