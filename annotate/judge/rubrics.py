"""What a judge is asked to look at. Built in (rubrics.yaml): UltraFeedback's four aspects and `overall`; a user's own come from a file.

A file holds one rubric or a list of them:

    name: brevity                       # the aspect in FEEDBACK
    criterion: How much is said in how few words.
    scale:                              # optional, for pointwise and listwise: label → meaning (numbers are their own value)
      1: padded throughout
      5: nothing could be left out
    grades:                             # optional, for pairwise: seven letters unless given
      - {label: A, value: 1, meaning: the first is better}
      - {label: B, value: -1, meaning: the second is better}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmpo.annotate.scales import PREFERENCE, Scale
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import unwritable

GRADES: dict[str, str] = {
    "A": "the first reply is much better",
    "B": "the first reply is better",
    "C": "the first reply is slightly better",
    "D": "the two are about the same",
    "E": "the second reply is slightly better",
    "F": "the second reply is better",
    "G": "the second reply is much better",
}
"""What the seven letters of `scales.PREFERENCE` say to a judge."""


@dataclass(frozen=True)
class Rubric:
    """name: the aspect. criterion: what is looked at. meanings: label → what it stands for, on the pointwise scale.

    grades, grade_meanings: the pairwise scale, values from the first reply's point of view.
    """

    name: str
    criterion: str
    meanings: Mapping[str, str]
    scale: Scale
    grades: Scale
    grade_meanings: Mapping[str, str]


def find_rubrics(names: Sequence[str]) -> list[Rubric]:
    """The rubrics behind names and paths of YAML files, in order. Raises UserError: unknown, unreadable, twice the same aspect."""
    found: list[Rubric] = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            found += _from_file(Path(name))
        elif name in RUBRICS:
            found.append(RUBRICS[name])
        else:
            raise unknown_name("rubric (--rubric; or the path of a .yaml file)", name, RUBRICS)
    twice = {rubric.name for rubric in found if sum(other.name == rubric.name for other in found) > 1}
    if twice or not found:
        raise UserError(f"--rubric: {', '.join(sorted(twice))} is given twice" if twice else "--rubric: name at least one")
    return found


def _from_file(path: Path) -> list[Rubric]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        text = unwritable(values)
    except OSError as error:
        raise UserError(f"--rubric {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--rubric {path}: no valid YAML: {error}") from None
    if text is not None:
        raise UserError(f"--rubric {path}: {text!a} holds half a character (a lone surrogate), which can't be sent; write it anew")
    rows = values if isinstance(values, list) else [values]
    return [_checked(path, row) for row in rows]


def _checked(path: Path, row: Any) -> Rubric:
    keys = ("name", "criterion", "scale", "grades")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in keys[:2]):
        raise UserError(f"--rubric {path}: a rubric needs the keys name and criterion (texts); optional: scale, grades")
    unknown = sorted(set(map(str, row)) - set(keys))
    if unknown:
        raise UserError(f"--rubric {path}: {row['name']}: unknown key {unknown[0]!r}. Known: {', '.join(keys)}")
    if row.get("scale"):
        scale, meanings = _scale(path, row["scale"])
    else:
        scale, meanings = RUBRICS["overall"].scale, RUBRICS["overall"].meanings
    grades, grade_meanings = _scale(path, row["grades"]) if row.get("grades") else (PREFERENCE, GRADES)
    if grades.low >= 0 or grades.high <= 0:
        raise UserError(f"--rubric {path}: grades need values above 0 (first better) and below 0 (second better)")
    return Rubric(row["name"], row["criterion"], meanings, scale, grades, grade_meanings)


def _scale(path: Path, rows: Any) -> tuple[Scale, dict[str, str]]:
    """A scale written as {label: meaning} with numbers for labels, or as a list of {label, value, meaning}."""
    if isinstance(rows, Mapping):
        rows = [{"label": str(label), "value": label, "meaning": meaning} for label, meaning in rows.items()]
    try:
        values = {str(row["label"]): float(row.get("value", row["label"])) for row in rows}
        meanings = {str(row["label"]): str(row.get("meaning") or "") for row in rows}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(
            f"--rubric {path}: a scale is label: meaning with numbers for labels, or a list of {{label, value, meaning}}; "
            f"given: {rows!r}"
        ) from None
    if len(values) != len(rows):
        raise UserError(f"--rubric {path}: a label stands twice in a scale")
    return Scale(values), meanings


RUBRICS: dict[str, Rubric] = {rubric.name: rubric for rubric in _from_file(Path(__file__).parent / "rubrics.yaml")}
"""The built-in rubrics; the first one's scale is that of rubrics without one of their own."""
