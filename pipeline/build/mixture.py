"""Several sources in one build: prompts drawn, pairs that an earlier source has, raters kept apart, figures by source."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, lists, offsets_of, to_numpy, with_fields
from mmpo.pipeline.build.resolve import ResolvedBuild
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.margins import MEAN_TARGET, gamma_for_mean_target, target_probability
from mmpo.pipeline.pairs.table import ChosenPairs
from mmpo.pipeline.storage.accounting import RowAccounting

SCALES_APART = 3.0
"""Sources whose own γ auto differ so many times are taken to have margins on different scales."""
Batches = Sequence[tuple[ResolvedBuild, pa.Table]]
"""Merged FEEDBACK of the same range of prompts by source, and what is done with it."""


def draw_position(seed: int, prompt: str) -> float:
    """Where a prompt falls in [0, 1) when a share of the prompts is drawn: those below the share are."""
    return int.from_bytes(blake2b(f"{seed}\0{prompt}".encode(), digest_size=8).digest(), "big") / 2**64


def drawn(merged: pa.Table, build: ResolvedBuild, accounting: RowAccounting) -> pa.Table:
    """Of the prompts of a source, one row each, those that its share draws; the others are counted."""
    keep = np.ones(merged.num_rows, dtype=bool)
    if build.mixed is not None and (share := build.mixed.share) < 1:
        ids = flat(merged["prompt_id"]).to_pylist()
        keep = np.fromiter((draw_position(build.options.seed, one) < share for one in ids), dtype=bool, count=len(ids))
    table = merged.filter(pa.array(keep)).combine_chunks()
    graded = ("ratings", "comparisons") if build.options.feedback_only else (build.rules.evidence,)
    for unit, names, reason in (
        ("prompt", None, "not_drawn"),
        ("completion", ("completions",), "completion_of_undrawn_prompt"),
        ("grade", graded, "grade_of_undrawn_prompt"),
    ):
        before, after = (
            one.num_rows if names is None else sum(len(flat(one[name]).flatten()) for name in names) for one in (merged, table)
        )
        accounting.count("share", unit, into=before, out=after, dropped={reason: before - after} if before > after else {})
    return table


@dataclass
class Shared:
    """What sources of a build share: prompts; pairs, which are those of the source that was named first; and how many of these a later
    source has the other way round."""

    prompts: int = 0
    pairs: int = 0
    opposed: int = 0

    def add(self, other: "Shared") -> None:
        """Take in those of another part."""
        self.prompts, self.pairs, self.opposed = (
            self.prompts + other.prompts, self.pairs + other.pairs, self.opposed + other.opposed,
        )  # fmt: skip


class EarlierSources:
    """The pairs that the sources before have, of prompts that several have."""

    def __init__(self, batches: Batches, shared: Shared) -> None:
        self.seen: dict[tuple[str, str], tuple[str, bool]] = {}
        self.shared = shared
        self.prompts = pa.array([], pa.large_string())
        if len(batches) > 1:
            counts = pc.value_counts(pa.concat_arrays([flat(batch["prompt_id"]).cast(pa.large_string()) for _, batch in batches]))
            self.prompts = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
            shared.prompts += len(self.prompts)

    def has(self, batch: pa.Table, pairs: ChosenPairs) -> np.ndarray:
        """Which pairs of the next source an earlier one has, shape (pairs,)."""
        found = np.zeros(len(pairs.prompt), dtype=bool)
        if not len(self.prompts):
            return found
        several = np.asarray(pc.is_in(flat(batch["prompt_id"]).cast(pa.large_string()), value_set=self.prompts))
        rows = np.flatnonzero(several[pairs.prompt])
        ids = flat(batch["completions"]).flatten().field("id")
        chosen, rejected = (ids.take(pa.array(side[rows])).to_pylist() for side in (pairs.chosen, pairs.rejected))
        untied = (pairs.quality_margin[rows] > 0).tolist()
        # A Python loop: over the pairs of prompts that sources share, and those alone.
        for row, better, worse, decided in zip(rows.tolist(), chosen, rejected, untied, strict=True):
            key = (min(better, worse), max(better, worse))
            if key not in self.seen:
                self.seen[key] = better, decided
                continue
            first, was_decided = self.seen[key]
            found[row] = True
            self.shared.opposed += first != better and decided and was_decided
        self.shared.pairs += int(found.sum())
        return found


def as_first_written(batches: Batches) -> Batches:
    """The same with every prompt and reply as the source named first writes it: their ids are of what is said, and the ids of calls and the
    order of keys are not (`tables.as_said`)."""
    if len(batches) == 1 or not batches[0][0].keys:
        return batches
    tables = [batch for _, batch in batches]
    prompts, replies = ([flat(table[name]) for table in tables] for name in ("prompt", "completions"))
    first = _first_places([flat(table["prompt_id"]) for table in tables])
    of_replies = _first_places([one.flatten().field("id") for one in replies])
    columns = {
        "prompt": (pa.concat_arrays(prompts), first),
        "tools": (pa.concat_arrays([flat(table["tools"]) for table in tables]), first),
        "completions": (pa.concat_arrays([one.flatten() for one in replies]), of_replies),
    }
    found = []
    for place, (build, table) in enumerate(batches):
        for name, (every, places) in columns.items():
            column = every.take(pa.array(places[place]))
            if name == "completions":
                column = lists(offsets_of(replies[place])[:-1], column)
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), column)
        found.append((build, table))
    return found


def _first_places(ids: Sequence[pa.Array]) -> list[np.ndarray]:
    """For every id of several arrays, by array, where it stands first in all of them together."""
    _, first, number = np.unique(codes(pa.concat_arrays(ids))[0], return_index=True, return_inverse=True)
    return np.split(first[number], np.cumsum([len(one) for one in ids])[:-1])


def in_one_table(tables: Sequence[pa.Table]) -> pa.Table:
    """PAIRS of several sources as one table, in which the rows of a prompt stand together, those of the source named first coming first."""
    table = pa.concat_tables(tables).combine_chunks()
    return table.take(pa.array(np.argsort(codes(flat(table["prompt_id"]))[0], kind="stable")))


def named(table: pa.Table, build: ResolvedBuild) -> pa.Table:
    """PAIRS or FEEDBACK with the source's name in the column `source`."""
    index = table.schema.get_field_index("source")
    column = table.schema.field(index)
    return table.set_column(index, column, pa.repeat(pa.scalar(build.name, column.type), table.num_rows))


def namesakes(builds: Sequence[ResolvedBuild]) -> set[str]:
    """The raters' names that stand in more than one source; nobody says that they are the same rater."""
    raters = ({group.rater for group in build.statistics.groups} for build in builds)
    counts = Counter(name for one in raters for name in one)
    return {name for name, count in counts.items() if count > 1}


def joined_feedback(batches: Batches, alike: set[str], accounting: RowAccounting) -> pa.Table:
    """The FEEDBACK of several sources, one row per prompt; raters of the same name in different sources become NAME@SOURCE."""
    rows = pa.concat_tables([named(_apart(batch, build, alike), build) for build, batch in batches]).combine_chunks()
    merged, counts = merge_prompts(rows)
    completions = len(flat(merged["completions"]).flatten())
    accounting.count("mix", "prompt", into=rows.num_rows, out=merged.num_rows, merged=counts["prompt"])
    accounting.count("mix", "completion", into=completions + counts["completion"], out=completions, merged=counts["completion"])
    return merged


def _apart(table: pa.Table, build: ResolvedBuild, alike: set[str]) -> pa.Table:
    for name in ("ratings", "comparisons"):
        column = flat(table[name])
        grades = column.flatten()
        raters = grades.field("rater")
        mine = pc.is_in(raters, value_set=pa.array(sorted(alike), raters.type))
        if not pc.any(mine).as_py():
            continue
        renamed = pc.if_else(mine, pc.binary_join_element_wise(raters, pa.scalar(build.name, raters.type), "@"), raters)
        index = table.schema.get_field_index(name)
        table = table.set_column(
            index, table.schema.field(index), lists(offsets_of(column)[:-1], with_fields(grades, {"rater": renamed}))
        )
    return table


@dataclass
class SourceMargins:
    """The pairs that a source gave: their margins by split, each a list of arrays, and how many prompts they are of."""

    margins: dict[str, list[np.ndarray]] = field(default_factory=dict)
    prompts: int = 0

    def count(self, split: str, table: pa.Table) -> None:
        """Enter PAIRS of whole prompts."""
        self.margins.setdefault(split, []).append(to_numpy(flat(table["quality_margin"])).copy())
        self.prompts += len(pc.unique(flat(table["prompt_id"])))

    def add(self, other: "SourceMargins") -> None:
        """Take in those of another part."""
        self.prompts += other.prompts
        for split, found in other.margins.items():
            self.margins.setdefault(split, []).extend(found)

    def all(self) -> np.ndarray:
        """The margins of all splits, shape (pairs,)."""
        return np.concatenate([np.zeros(0), *(one for found in self.margins.values() for one in found)])

    def decided(self) -> np.ndarray:
        """The margins above 0 that γ auto goes by: those of the train split; of all splits where that has none."""
        train = np.concatenate([np.zeros(0), *self.margins.get("train", [])])
        return train[train > 0] if (train > 0).any() else self.all()[self.all() > 0]


def figures_of(
    builds: Sequence[ResolvedBuild], found: Mapping[str, SourceMargins]
) -> tuple[dict[str, dict[str, Any]], float | None]:
    """By source what it is told and what it gave, and the γ auto of all pairs, in 1/margin-unit.

    {"weight", "share", "margin_times", "normalisation", "prompts", "pairs", "train" (pairs in that split), "ties", "mean_margin",
    "gamma_auto" (None: no margin above 0), "mean_target" (of its untied pairs at the γ auto of all)}.
    """
    decided = {build.name: found[build.name].decided() for build in builds if build.name in found}
    together = np.concatenate([np.zeros(0), *decided.values()])
    gamma = gamma_for_mean_target(together, MEAN_TARGET) if len(together) else None
    figures: dict[str, dict[str, Any]] = {}
    for build in builds:
        if (source := build.mixed) is None:
            continue
        mine = found.get(source.name, SourceMargins())
        margins, untied = mine.all(), decided.get(source.name, np.zeros(0))
        figures[source.name] = {
            "weight": source.weight,
            "share": source.share,
            "margin_times": source.margin_times,
            "normalisation": build.options.normalise,
            "prompts": mine.prompts,
            "pairs": len(margins),
            "train": sum(map(len, mine.margins.get("train", []))),
            "ties": int((margins == 0).sum()),
            "mean_margin": float(margins.mean()) if len(margins) else None,
            "gamma_auto": gamma_for_mean_target(untied, MEAN_TARGET) if len(untied) else None,
            "mean_target": float(target_probability(untied, gamma).mean()) if len(untied) and gamma is not None else None,
        }
    return figures, gamma


def apart(gammas: Mapping[str, float]) -> bool:
    """Whether margins are on different scales, by the γ auto of each source.

    >>> apart({"a": 0.5, "b": 1.1}), apart({"a": 0.5, "b": 1.6}), apart({})
    (False, True, False)
    """
    return bool(gammas) and max(gammas.values()) >= SCALES_APART * min(gammas.values())


def mixture_warnings(figures: Mapping[str, Mapping[str, Any]], shared: Shared) -> list[str]:
    """What the user should know of sources that are mixed: empty ones, margins on different scales, pairs that several have."""
    said = [f"source {name!r} gave no pair" for name, one in figures.items() if not one["pairs"]]
    gammas = {name: one["gamma_auto"] for name, one in figures.items() if one["gamma_auto"]}
    most, least = (pick(gammas, key=lambda name: gammas[name], default="") for pick in (max, min))
    if apart(gammas):
        largest = max(gammas, key=lambda name: figures[name]["pairs"])
        to = {
            name: figures[name]["margin_times"] * gamma / gammas[largest]
            for name, gamma in gammas.items()
            if apart({"": gamma, largest: gammas[largest]})
        }
        brings = ", ".join(f"{name} {times:.3g}" for name, times in to.items())
        said.append(
            f"margins of different scales: at the γ auto of all pairs the mean target is {figures[least]['mean_target']:.2f} of {least!r} "
            f"and {figures[most]['mean_target']:.2f} of {most!r}, where it would be {MEAN_TARGET:g} of each at its own "
            f"({gammas[least]:.3g} and {gammas[most]:.3g}). Give the sources a normalisation each (normalise: zscore, minmax)"
            + (f", or bring their margins to those of {largest!r} by margin_times: {brings}" if to else "")
        )
    if shared.pairs:
        said.append(
            f"{shared.pairs:,} pairs are in more than one source and are those of the source named first; of {shared.opposed:,} the later "
            "one has the other reply as chosen"
        )
    return said


def mixture_metadata(builds: Sequence[ResolvedBuild]) -> dict[str, Any]:
    """What manifest and Parquet metadata keep of a build: of several sources the same by source under `mixture`, and of all what they have
    in common; raters are called NAME@SOURCE."""
    if builds[0].mixed is None:
        return builds[0].metadata()
    about = {build.name: (build, build.metadata()) for build in builds}
    scales = sorted({tuple(scale) for _, one in about.values() for scale in one["scales"]}, key=str)
    common: dict[str, Any] = {"scales": scales}
    for key in ("normalisation", "evidence", "score"):
        values = [one.get(key) for _, one in about.values()]
        if values[0] is not None:
            common[key] = values[0] if all(value == values[0] for value in values) else "by source"
    grades = {name: one["saturated"] for name, (_, one) in about.items()}
    common["saturated"] = {
        name if len(found) == 1 else f"{name}: {source}": value for name, found in grades.items() for source, value in found.items()
    }
    for key in ("position_bias", "rater_effects"):
        told = {}
        for name, (_, one) in about.items():
            for rater, value in one.get(key, {}).items():
                who, slash, aspect = rater.rpartition("/") if key == "position_bias" else (rater, "", "")
                told[f"{who}@{name}{slash}{aspect}"] = value
        common |= {key: told} if told else {}
    own = ("evidence", "score", "score_range", "scales", "normalisation", "rounding_steps", "grade_ranges")
    common["mixture"] = {
        name: {
            "weight": build.mixed.weight if build.mixed else 1.0,
            "margin_times": build.times,
            "ties": build.options.ties,
            "min_margin": build.options.min_margin,
            **{key: one[key] for key in own if key in one},
        }
        for name, (build, one) in about.items()
    }
    return common
