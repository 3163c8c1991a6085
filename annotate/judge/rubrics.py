"""What a judge is asked to look at. Built in: UltraFeedback's four aspects and `overall`; a user's own come from a YAML file.

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

__all__ = ["GRADES", "RUBRICS", "Rubric", "find_rubrics"]

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


def _rubric(name: str, criterion: str, *meanings: str) -> Rubric:
    told = {str(i): meaning for i, meaning in enumerate(meanings, 1)}
    return Rubric(name, criterion, told, Scale({label: float(label) for label in told}), PREFERENCE, GRADES)


RUBRICS: dict[str, Rubric] = {
    rubric.name: rubric
    for rubric in (
        _rubric(
            "overall",
            "Overall quality: how well the reply serves the person who asked. Weigh correctness first, then whether it does what was "
            "asked, then how useful and clear it is. Length by itself is no merit.",
            "wrong, harmful or beside the point",
            "serious errors or gaps; of little use",
            "partly right or partly useful",
            "right and useful, with small flaws",
            "as good as an expert's careful reply",
        ),
        _rubric(
            "instruction_following",
            "Instruction following: does the reply do what was asked, in the form, length, style and language that were asked for, "
            "and nothing that was forbidden?",
            "ignores or misunderstands the request",
            "meets a small part of it",
            "meets the main point and misses stated requirements",
            "meets nearly all requirements",
            "meets every requirement, stated or plainly implied",
        ),
        _rubric(
            "honesty",
            "Honesty: does the reply say how sure it is, and is it as sure as its content deserves? Confident falsehoods count against "
            "it, and so does doubt about what is plain.",
            "confidently wrong",
            "mostly too sure of what is wrong, or evasive",
            "mixed: some claims surer than they deserve",
            "nearly always as sure as the content deserves",
            "sure where it is right, and open about what it does not know",
        ),
        _rubric(
            "truthfulness",
            "Truthfulness: are the statements of the reply true, consistent with the conversation and free of inventions?",
            "false or invented throughout",
            "several false or invented statements",
            "some errors beside much that is true",
            "true but for small slips",
            "true throughout",
        ),
        _rubric(
            "helpfulness",
            "Helpfulness: how much closer does the reply bring the person to what they want? Relevant, complete, clear information "
            "counts; padding does not.",
            "of no use",
            "little that helps",
            "helps in part",
            "helps well, with something missing",
            "leaves nothing to wish for",
        ),
    )
}
"""The built-in rubrics; `mmpo judge --rubric` takes these names or the path of a YAML file."""


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
    except OSError as error:
        raise UserError(f"--rubric {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {path}: no valid YAML: {error}") from None
    rows = values if isinstance(values, list) else [values]
    return [_checked(path, row) for row in rows]


def _checked(path: Path, row: Any) -> Rubric:
    keys = ("name", "criterion", "scale", "grades")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in keys[:2]):
        raise UserError(f"--rubric {path}: a rubric needs the keys name and criterion (texts); optional: scale, grades")
    unknown = sorted(set(map(str, row)) - set(keys))
    if unknown:
        raise UserError(f"--rubric {path}: {row['name']}: unknown key {unknown[0]!r}. Known: {', '.join(keys)}")
    overall = RUBRICS["overall"]
    scale, meanings = _scale(path, row["scale"]) if row.get("scale") else (overall.scale, overall.meanings)
    grades, told = _scale(path, row["grades"]) if row.get("grades") else (PREFERENCE, GRADES)
    if grades.low >= 0 or grades.high <= 0:
        raise UserError(f"--rubric {path}: grades need values above 0 (first better) and below 0 (second better)")
    return Rubric(row["name"], row["criterion"], meanings, scale, grades, told)


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
