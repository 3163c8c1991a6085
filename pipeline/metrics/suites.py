"""The benchmarks of reward models, all in SUITES: published arithmetic on scores that a model has already given, with intervals.

RewardBench 1 and 2 (`rewardbench.py` has their sources), and RM-Bench (Liu et al. 2024, arXiv 2410.16184; THU-KEG/RM-Bench, README): three
chosen and three rejected replies of rising style, so that "easy" is a chosen reply of more style than the rejected one, "hard" of less.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
import orjson

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics.intervals import DRAWS, FEWEST_CLUSTERS, mean_draws, share_interval
from mmpo.pipeline.metrics.rewardbench import (
    REWARDBENCH_SECTIONS,
    rewardbench2_best_of,
    rewardbench2_tie_values,
    rewardbench_average,
    rewardbench_sections,
    rewardbench_subsets,
)
from mmpo.pipeline.storage import InputFile, plan, resolve_inputs, rows

Scores = tuple[float, ...]


class ScoredRow(NamedTuple):
    """A row of a suite: its subset, its id, and the scores of its correct and of its incorrect completions, in the row's own order."""

    subset: str
    id: str
    correct: Scores
    incorrect: Scores


RowValues = Callable[[str, Sequence[ScoredRow]], np.ndarray]
"""From a subset's name and rows to what its figure is the mean of: shape (rows,), or one value per prompt where several rows make one."""


@dataclass(frozen=True)
class Suite:
    """A benchmark. columns: of a file of scores; group: the one of them, and of the benchmark's own rows, that names the subset.

    values: a subset's figure is their mean. sections, average: from subsets' figures, and sections', to sections' and to one.
    sides: how many correct and incorrect completions a row has; 0: as it says itself, `num_correct` and the length of `scores`.
    """

    summary: str
    columns: tuple[str, ...]
    group: str
    subsets: tuple[str, ...]
    values: RowValues
    sections: Callable[[Mapping[str, Any]], dict[str, Any]]
    average: Callable[[Mapping[str, Any]], Any]
    sides: int = 1

    def subset(self, name: str) -> str:
        """The subset that a row's name of it means: RM-Bench has safety in two."""
        return next((known for known in self.subsets if self.group == "domain" and name.startswith(known)), name)


def _first_wins(_: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    """RewardBench 1: right where the chosen score is above the rejected one; equal scores are wrong."""
    return np.array([row.correct[0] > row.incorrect[0] for row in rows], dtype=np.float64)


def _best_of(subset: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    """RewardBench 2: the best of four; and Ties, by its own arithmetic."""
    if subset != "Ties":
        return np.array([rewardbench2_best_of([*row.correct, *row.incorrect]) for row in rows])
    scores = {row.id: [*row.correct, *row.incorrect] for row in rows}
    return rewardbench2_tie_values(scores, {row.id: len(row.correct) for row in rows})


def style_matrix(rows: Sequence[ScoredRow]) -> np.ndarray:
    """RM-Bench: [i, j] is the share of rows whose chosen reply of style i scores above the rejected one of style j; shape (3, 3)."""
    return _style_wins(rows).mean(axis=0)


def _style_wins(rows: Sequence[ScoredRow]) -> np.ndarray:
    chosen, rejected = (np.array([getattr(row, side) for row in rows]) for side in ("correct", "incorrect"))
    return (chosen[:, :, None] > rejected[:, None, :]).astype(np.float64)


def easy_normal_hard(matrix: np.ndarray) -> np.ndarray:
    """The means of the lower triangle (chosen of more style), of the diagonal and of the upper triangle, of matrices (..., 3, 3)."""
    low, high = np.tril_indices(3, -1), np.triu_indices(3, 1)
    return np.stack(
        [matrix[..., *low].mean(axis=-1), np.diagonal(matrix, axis1=-2, axis2=-1).mean(axis=-1), matrix[..., *high].mean(axis=-1)],
        axis=-1,
    )


def _style_mean(_: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    """RM-Bench: the mean of easy, normal and hard of each row."""
    return easy_normal_hard(_style_wins(rows)).mean(axis=-1)


def _mean(sections: Mapping[str, Any]) -> Any:
    return sum(sections.values()) / len(sections)


SUITES: dict[str, Suite] = {
    "rewardbench": Suite(
        "RewardBench: 23 subsets of pairs in four sections, and four prior sets (2403.13787)",
        ("subset", "score_chosen", "score_rejected"), "subset", tuple(rewardbench_subsets()),
        _first_wins, rewardbench_sections, rewardbench_average,
    ),
    "rewardbench2": Suite(
        "RewardBench 2: six sections, best of four; Ties, where many completions are correct (2506.01937)",
        ("id", "subset", "num_correct", "scores"), "subset", ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"),
        _best_of, dict, _mean, sides=0,
    ),
    "rm-bench": Suite(
        "RM-Bench: three chosen against three rejected replies of rising style, easy, normal and hard (2410.16184)",
        ("domain", "score_chosen", "score_rejected"), "domain", ("chat", "math", "code", "safety"),
        _style_mean, dict, _mean, sides=3,
    ),
}  # fmt: skip
"""Every benchmark, by the name that `--suite` takes."""


def suite_measures(name: str, rows: Sequence[ScoredRow], draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """A suite's figures from scored rows: {"suite", "rows", "subsets", "sections", "sections_95", "average", "average_95",
    "unknown_subsets", "missing_subsets"}, of rm-bench "styles" (easy, normal, hard) and "matrix" (the mean of the domains' 3 × 3) as well.

    subsets: a row each, subset, rows, pairs (of a correct and an incorrect completion), section, accuracy, accuracy_95 and chance, what
    random scores reach. A subset that nobody published is listed there and in unknown_subsets with how many rows it has, and is no part
    of any section; one that was published and is not there stands in missing_subsets, and sections and average are of the others.
    Intervals are of 95%, by resampling the rows (of Ties the prompts) of each subset, and None where a subset
    has fewer than FEWEST_CLUSTERS of them, as that of all that it is part of is; a section that is not there is left out, and average is
    None without any.
    Raises UserError for rows that the arithmetic has no place for.
    """
    suite = SUITES[name]
    grouped: dict[str, list[ScoredRow]] = {}
    for row in rows:
        grouped.setdefault(suite.subset(row.subset), []).append(row)
    order = [*(subset for subset in suite.subsets if subset in grouped), *sorted(set(grouped) - set(suite.subsets))]
    values = {subset: suite.values(subset, grouped[subset]) for subset in order}
    known = {subset: value for subset, value in values.items() if subset in suite.subsets}
    rng = np.random.default_rng(seed)
    resampled = {subset: mean_draws(value, draws, rng) for subset, value in values.items()}
    sections = suite.sections({subset: float(value.mean()) for subset, value in known.items()})
    section_draws = suite.sections({subset: resampled[subset] for subset in known})
    counts = {subset: len(value) for subset, value in known.items()}
    each = {one: suite.sections({subset: float(subset == one) for subset in known}) for one in known}
    weights = {section: {subset: each[subset][section] for subset in known} for section in sections}
    average = float(suite.average(sections)) if sections else None
    of_average = {subset: suite.average(each[subset]) for subset in known}
    found: dict[str, Any] = {
        "suite": name,
        "rows": len(rows),
        "subsets": [
            {
                "subset": subset,
                "rows": len(grouped[subset]),
                "pairs": sum(len(row.correct) * len(row.incorrect) for row in grouped[subset]),
                "section": _section(suite, subset) if subset in known else None,
                "accuracy": float(values[subset].mean()),
                "accuracy_95": share_interval(resampled[subset], float(values[subset].mean()), len(values[subset])),
                "chance": _chance(suite, subset, grouped[subset]),
            }
            for subset in order
        ],
        "sections": sections,
        "sections_95": {
            section: share_interval(drawn, sections[section], _alike(weights[section], counts))
            for section, drawn in section_draws.items()
        },
        "average": average,
        "average_95": share_interval(suite.average(section_draws), average, _alike(of_average, counts)) if sections else None,
        "unknown_subsets": {subset: len(grouped[subset]) for subset in order if subset not in known},
        "missing_subsets": [subset for subset in suite.subsets if subset not in known],
    }
    if suite.sides == 3 and known:
        matrix = np.mean([style_matrix(grouped[subset]) for subset in known], axis=0)
        found |= {"styles": dict(zip(("easy", "normal", "hard"), easy_normal_hard(matrix).tolist(), strict=True))}
        found |= {"matrix": matrix.tolist()}
    return found


def suite_warnings(found: Mapping[str, Any]) -> list[str]:
    """What a reader of a suite's figures must know: subsets that are no part of them, and those that are not there."""
    told, missing = [], found["missing_subsets"]
    if found["unknown_subsets"]:
        named = ", ".join(f"{name!r} ({count:,} rows)" for name, count in found["unknown_subsets"].items())
        told.append(f"subsets that {found['suite']} does not have are part of no section: {named}")
    if missing and found["sections"]:
        some = ", ".join(missing[:6]) + (f" and {len(missing) - 6} others" if len(missing) > 6 else "")
        told.append(
            f"{len(missing)} of the {len(SUITES[found['suite']].subsets)} subsets of {found['suite']} have no rows here ({some}): sections "
            "and average are of the others, and compare only with figures of the same subsets"
        )
    return told


def _alike(weights: Mapping[str, float], rows: Mapping[str, int]) -> float:
    """How many rows of one weight a mean of subsets is worth, 1/Σ(weight²/rows) (Kish 1965); 0 where one of them has too few rows."""
    held = {subset: weight for subset, weight in weights.items() if weight > 0}
    if min((rows[subset] for subset in held), default=0) < FEWEST_CLUSTERS:
        return 0.0
    return 1 / sum(weight**2 / rows[subset] for subset, weight in held.items())


def _section(suite: Suite, subset: str) -> str:
    if suite.sections is not rewardbench_sections:
        return subset
    return next((section for section, subsets in REWARDBENCH_SECTIONS.items() if subset in subsets), "Prior Sets")


def _chance(suite: Suite, subset: str, rows: Sequence[ScoredRow]) -> float | None:
    if suite.sides:
        return 0.5
    return (
        None if subset == "Ties" else float(np.mean([len(row.correct) / (len(row.correct) + len(row.incorrect)) for row in rows]))
    )


# --- a file of scores ---------------------------------------------------------------------------------------------------------


def suite_scores(path: str | Path, suite: str, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """`suite_measures` of a file of scores, JSON lines, CSV or Parquet, with the suite's columns.

    Raises UserError for a file without them, or without rows, for a row whose scores are no finite numbers, or too few, and for an id that
    stands in two rows.
    """
    known = SUITES[suite]
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}: name a file of scores, .jsonl, .csv or .parquet")
    [file] = resolve_inputs([path], suite)
    found: list[ScoredRow] = []
    ids: set[str] = set()
    for number, row in file_rows(file):
        if not found:
            check_columns(path, row, known.columns, f"scores of {suite}", rows_of=suite)
        try:
            found.append(_scored(known, row))
            if "id" in known.columns:
                _check_id(found[-1], ids)
        except ValueError as error:
            raise UserError(f"{path}, row {number}: {error}") from None
    if not found:
        raise UserError(f"{path} holds no rows: {suite} needs the columns {', '.join(known.columns)}")
    return suite_measures(suite, found, draws, seed)


def file_rows(file: InputFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with their numbers; UserError for one that can't be read."""

    def refuse(number: int, reason: str, _: Any) -> None:
        raise UserError(f"{file.path}, row {number}: can't be read ({reason})")

    for chunk in plan([file]):
        yield from rows(chunk, refuse)


def check_columns(path: str | Path, row: Mapping[str, Any], needed: Sequence[str], what: str, rows_of: str | None = None) -> None:
    """UserError where a row lacks columns, with those that it needs and has; rows_of: the suite whose own rows they may be instead."""
    missing = [name for name in needed if name not in row]
    if not missing:
        return
    own = rows_of and {"chosen", "rejected"} <= row.keys()
    hint = f". These look like the benchmark's own rows, {_measured_on(path, rows_of)}" if own else ""
    raise UserError(
        f"{path}: {what} have the columns {', '.join(needed)}; missing here: {', '.join(missing)}; those here: "
        f"{', '.join(map(repr, row)) or 'none'}{hint}"
    )


def suite_like(row: Mapping[str, Any]) -> str | None:
    """The suite whose own rows look like this one, or None."""
    lists = listed_texts(row.get("chosen")) and listed_texts(row.get("rejected"))
    if "domain" in row and lists:
        return "rm-bench"
    if not row.keys() >= {"subset", "chosen", "rejected"}:
        return None
    return "rewardbench2" if lists else "rewardbench"


def listed_texts(replies: Any) -> bool:
    """Whether these are several replies as texts, and no messages."""
    return isinstance(replies, list) and bool(replies) and all(isinstance(reply, str) for reply in replies)


def no_suite(path: str | Path, row: Mapping[str, Any], error: UserError) -> UserError:
    """The error for a file that can't be built: where it is a benchmark's, one that says what to do with that instead."""
    suite = suite_like(row)
    if suite is None:
        return error
    pairs = f". As pairs to train on: {error}" if SUITES[suite].sides == 1 else ""
    return UserError(f"{path}: these look like rows of {suite}, {_measured_on(path, suite)}{pairs}")


def _measured_on(path: str | Path, suite: str) -> str:
    return f"which a model scores: `mmpo evaluate reward --model MODEL --data {quote(str(path))} --suite {suite}`"


def _check_id(row: ScoredRow, ids: set[str]) -> None:
    """ValueError for an id that stands in an earlier row, which would count twice, and for one that is none of its subset."""
    kind, _, number = row.id.partition(":")
    if row.subset == "Ties" and (kind not in ("ref", "tied") or not number):
        raise ValueError(f"id {row.id!r}: those of the subset Ties are ref:N (one correct completion) and tied:N (many)")
    if row.id in ids:
        raise ValueError(f"id {row.id!r} stands in an earlier row too: keep one of them")
    ids.add(row.id)


def _scored(suite: Suite, row: Mapping[str, Any]) -> ScoredRow:
    name = row[suite.group]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{suite.group} {name!r} is no text")
    if suite.sides:
        sides = [_numbers(row[key], key, suite.sides) for key in ("score_chosen", "score_rejected")]
        return ScoredRow(name, str(row.get("id", "")), *sides)
    scores = _numbers(row["scores"], "scores", None)
    try:
        correct = int(str(row["num_correct"]))
    except ValueError:
        correct = 0
    if not 1 <= correct < len(scores):
        raise ValueError(f"num_correct {row['num_correct']!r} must be 1 or more and below the number of scores, {len(scores)}")
    return ScoredRow(name, str(row["id"]), scores[:correct], scores[correct:])


def _numbers(value: Any, name: str, size: int | None) -> Scores:
    """Finite numbers: one, or a list of them (in CSV as JSON), of the size that is wanted; ValueError names what is given."""
    given = value
    if isinstance(value, str):
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(value)
    listed = value if isinstance(value, list) else [value] if size == 1 else None
    plain = listed is not None and all(isinstance(one, int | float) and not isinstance(one, bool) for one in listed)
    if listed is None or not plain or not np.isfinite(listed).all() or (len(listed) != size if size else len(listed) < 2):
        wanted = "a finite number" if size == 1 else f"a list of {size or 'two or more'} finite numbers"
        raise ValueError(f"{name} {given!r} is not {wanted}")
    return tuple(map(float, listed))
