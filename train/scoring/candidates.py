"""The completions of a FEEDBACK folder, in the order in which they stand there, read some rows at a time; and rendered for a model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of, parents, to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import batches, manifest_of, on_disk, split_files
from mmpo.pipeline.tables import FEEDBACK, TOOLS, without_nulls
from mmpo.train.data import PromptPairs, Renderer, messages_at, or_reason

KIND, ASPECT = "reward_model", "overall"
"""Of every grade that a model gives."""
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class StoredCompletions:
    """A FEEDBACK folder. prompts, completions: how many it holds."""

    folder: Path
    files: list[Path]
    manifest: Mapping[str, Any]
    prompts: int
    completions: int

    @classmethod
    def open(cls, folder: str | Path) -> "StoredCompletions":
        """The folder, after one reading of all of it. Raises UserError where there is nothing to grade, and for a folder of pairs."""
        path = on_disk(folder)
        manifest, files = manifest_of(path, "feedback"), split_files(path, "feedback")
        sizes = [
            np.diff(offsets_of(flat(batch.column("completions"))))
            for batch in batches(files, ["completions.list.element.id"], 16_384, FEEDBACK)
        ]
        size = np.concatenate([np.zeros(0, np.int64), *sizes])
        if not size.sum():
            raise UserError(f"{path} holds no completions ({len(size):,} prompts): there is nothing to grade")
        return cls(path, files, manifest, len(size), int(size.sum()))

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """All rows, some at a time, each table behind the number of the first of its completions. Raises UserError for damaged files."""
        first = 0
        for batch in batches(self.files, None, ROWS_AT_ONCE, FEEDBACK):
            yield first, pa.Table.from_batches([batch])
            first += int(offsets_of(batch.column("completions"))[-1])

    def graded(self, rater: str) -> np.ndarray:
        """The scores that a rater of our kind has given already, NaN where none, shape (completions,). Raises UserError where somebody of
        another kind has the name: a build goes by names, and would average the two.
        """
        found = np.full(self.completions, np.nan)
        for first, table in self.tables():
            for grades in (flat(table[kind]).flatten() for kind in ("ratings", "comparisons")):
                others = pc.unique(grades.field("kind").filter(pc.equal(grades.field("rater"), rater))).to_pylist()
                if other := [kind for kind in others if kind != KIND]:
                    raise UserError(
                        f"{self.folder} holds grades by {rater!r} of the kind {', '.join(map(str, other))}, and one rater is one grader: "
                        "give the model another name, --model DIR,rater=NAME"
                    )
            column = flat(table["ratings"])
            grades, row = column.flatten(), parents(offsets_of(column))
            own = np.asarray(pc.and_(pc.equal(grades.field("rater"), rater), pc.equal(grades.field("aspect"), ASPECT)))
            place = first + offsets_of(flat(table["completions"]))[row[own]] + np.asarray(grades.field("completion"))[own]
            found[place] = to_numpy(grades.field("score"))[own]
        return found


@dataclass
class Rendering:
    """The completions that a model can read. prompts: each with its completions; places: their numbers; left_out: the others' reasons."""

    prompts: list[PromptPairs] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)


def rendered(candidates: StoredCompletions, renderer: Renderer, wanted: np.ndarray) -> Rendering:
    """The wanted completions (a mask, (completions,)) behind their prompts; every one is rendered or has a reason."""
    found = Rendering()
    for first, table in candidates.tables():
        offsets = first + offsets_of(flat(table["completions"]))
        rows = np.flatnonzero([wanted[a:b].any() for a, b in zip(offsets, offsets[1:], strict=False)])
        prompts = messages_at(table["prompt"], rows)
        replies = table["completions"].take(pa.array(rows)).to_pylist()
        tools = table[TOOLS].to_pylist() if TOOLS in table.column_names else [None] * table.num_rows
        names = table["prompt_id"].to_pylist()
        for row, prompt, completions in zip(rows, prompts, replies, strict=True):
            offered = None if tools[row] is None else json.loads(tools[row])
            ids, why = or_reason(renderer, lambda: renderer.prompt_ids(prompt, offered))  # noqa: B023 (called at once)
            items, places = [], []
            for place, completion in enumerate(completions, offsets[row]):
                if not wanted[place]:
                    continue
                item = None
                if ids is not None:
                    reply = [_message(completion)]
                    item, why = or_reason(renderer, lambda: renderer.completion(reply))  # noqa: B023
                if item is None:
                    found.left_out[int(place)] = why
                else:
                    items.append(item)
                    places.append(place)
            if items:
                found.prompts.append(PromptPairs.without_pairs(names[row], items))
                found.places.append(np.array(places))
    return found


def _message(completion: Mapping[str, Any]) -> dict[str, Any]:
    """A completion as the message that a chat template takes."""
    carried = {name: value for name, value in completion.items() if name not in ("id", "text", "model")}
    return without_nulls([{"role": "assistant", "content": completion["text"], **carried}])[0]
