"""The files of MT-bench in FastChat's layouts: questions, answers (of models, and references), judgments."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpo.annotate.client import Choice
from mmpo.annotate.judge.reading import Reader
from mmpo.annotate.mt_bench.options import REFERENCE_CATEGORIES
from mmpo.annotate.scales import numbers
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import check_columns, file_rows
from mmpo.pipeline.storage import resolve_inputs

TURNS = 2
UNREADABLE = -1
"""The score of a judgment in which none can be read; it is left out of every mean."""
GRADES = numbers(1, 10, decimals=True)
READER = Reader("double-bracket", GRADES, ("grade",), direct=False, min_label_probability=0.0)
"""How a judge's score is read: the last [[8]] of the reply, from 1 to 10, with decimals."""
NO_REFERENCES = "none"


@dataclass(frozen=True)
class BenchQuestion:
    """A question of two turns. id: as the file has it; references: one per turn, () for none; temperature: one that the file insists on."""

    id: int | str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    temperature: float | None = None


@dataclass(frozen=True)
class Scored:
    """One judgment. score: None where none can be read, for a reason; turn: None where the file does not say."""

    judge: str
    model: str
    question: str
    turn: int | None
    score: float | None
    reason: str = ""


@dataclass
class Judgments:
    """What files of judgments hold. outside: scores beyond 1 to 10, which count as they are; repeated: further judgments of an answer
    that was judged already, which count too; readable: judgments without a score in which one stands."""

    rows: list[Scored] = field(default_factory=list)
    outside: int = 0
    repeated: int = 0
    readable: int = 0


def _rows(path: str | Path, needed: Sequence[str], what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file, the first one looked at for its columns. Raises UserError: no file, no rows, another layout."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}: name a file of {what} in FastChat's layout")
    [file] = resolve_inputs([path], "mt-bench")
    number = 0
    for number, row in file_rows(file):
        check_columns(f"{path}, row {number}", row, needed, what)
        yield number, row
    if not number:
        raise UserError(f"{path} holds no rows: {what} have the columns {', '.join(needed)}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _id(path: str | Path, number: int, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{path}, row {number}: question_id {value!r} is no whole number and no text")
    return value


def read_questions(path: str | Path) -> list[BenchQuestion]:
    """The questions of a file, in its order. Raises UserError: another layout, an id twice, not two turns."""
    found: dict[str, BenchQuestion] = {}
    for number, row in _rows(path, ("question_id", "category", "turns"), "questions"):
        one, turns = _id(path, number, row["question_id"]), row["turns"]
        if str(one) in found:
            raise UserError(f"{path}, row {number}: question_id {one!r} stands in an earlier row too: keep one of them")
        if not isinstance(turns, list) or len(turns) != TURNS or not all(map(_text, turns)):
            given = f"{len(turns)} turns" if isinstance(turns, list) and len(turns) != TURNS else f"turns {turns!r:.80}"
            raise UserError(f"{path}, row {number}: question {one} has {given}; MT-bench asks two: a list of two texts, none empty")
        if not _text(row["category"]):
            raise UserError(f"{path}, row {number}: category {row['category']!r} is no text")
        wanted = row.get("required_temperature")
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 <= wanted <= 2):
            raise UserError(f"{path}, row {number}: required_temperature {wanted!r} is no number from 0 to 2")
        found[str(one)] = BenchQuestion(one, row["category"], tuple(turns), (), None if wanted is None else float(wanted))
    return list(found.values())


def read_answers(path: str | Path, what: str = "answers") -> dict[str, dict[str, tuple[str, ...]]]:
    """Answers by model and question (as a text): a text per turn. Of several choices the first. Raises UserError."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for number, row in _rows(path, ("question_id", "model_id", "choices"), what):
        one, choices = str(_id(path, number, row["question_id"])), row["choices"]
        turns = choices[0].get("turns") if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else None
        if not isinstance(turns, list) or len(turns) != TURNS or not all(isinstance(turn, str) for turn in turns):
            raise UserError(f"{path}, row {number}: choices[0].turns of question {one} is no list of two texts")
        if not _text(row["model_id"]):
            raise UserError(f"{path}, row {number}: model_id {row['model_id']!r} is no text")
        if one in found.setdefault(row["model_id"], {}):
            raise UserError(
                f"{path}, row {number}: {row['model_id']} answers question {one} in an earlier row too: keep one of them"
            )
        found[row["model_id"]][one] = tuple(turns)
    return found


def references_file(questions: str | Path, given: str | None) -> Path | None:
    """The file of references: as it is named, else the only one that lies in reference_answer beside the questions."""
    if given is not None:
        return None if given == NO_REFERENCES else Path(given)
    beside = sorted(Path(questions).parent.glob("reference_answer/*.jsonl"))
    if len(beside) > 1:
        raise UserError(f"{beside[0].parent} holds {len(beside)} files of references: name one, --references {beside[0]}")
    return beside[0] if beside else None


def with_references(questions: Sequence[BenchQuestion], path: Path | None, given: str | None) -> list[BenchQuestion]:
    """The questions with their references. Raises UserError where a question of a category that needs one has none."""
    known: dict[str, tuple[str, ...]] = {}
    if path is not None:
        models = read_answers(path, "references")
        if len(models) > 1:
            raise UserError(f"--references {path} holds answers of {len(models)} models ({', '.join(models)}): keep those of one")
        [known] = models.values()
        empty = next((one for one, turns in known.items() if not all(map(_text, turns))), None)
        if empty is not None:
            raise UserError(f"{path}: the reference of question {empty} is empty in one of its turns")
    lacking = [str(one.id) for one in questions if one.category in REFERENCE_CATEGORIES and str(one.id) not in known]
    if lacking and given != NO_REFERENCES:
        where = (
            f"{path} has none for" if path else "no file of references is named, nor lies in reference_answer beside the questions:"
        )
        raise UserError(
            f"answers of {', '.join(REFERENCE_CATEGORIES)} are graded against references; {where} {len(lacking)} of them "
            f"({', '.join(lacking[:8])}{', ...' if len(lacking) > 8 else ''}). --references FILE names one, --references "
            f"{NO_REFERENCES} grades all without"
        )
    return [BenchQuestion(one.id, one.category, one.turns, known.get(str(one.id), ()), one.temperature) for one in questions]


# Judgments


def read_judgments(paths: Sequence[str | Path]) -> Judgments:
    """All judgments of the files. Raises UserError: another layout, a score that is none."""
    found, seen = Judgments(), Counter[tuple[Any, ...]]()
    for path in paths:
        for number, row in _judgment_rows(path):
            where = f"{path}, row {number}"
            question, model = str(_id(path, number, row["question_id"])), row["model"]
            if not _text(model):
                raise UserError(f"{where}: model {model!r} is no text")
            turn = row.get("turn")
            if turn is not None and (isinstance(turn, bool) or turn not in (1, 2)):
                raise UserError(f"{where}: turn {turn!r} is neither 1 nor 2")
            score, reason = _score(where, row["score"])
            one = Scored(_judge(path, row.get("judge")), model, question, turn, score, reason)
            found.rows.append(one)
            found.outside += score is not None and not GRADES.low <= score <= GRADES.high
            seen[one.judge, model, question, turn] += 1
            if score is None and isinstance(row.get("judgment"), str):
                found.readable += not isinstance(READER.each([Choice(row["judgment"])])[0], str)
    found.repeated = sum(count - 1 for count in seen.values())
    return found


def _judgment_rows(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        yield from _rows(path, ("question_id", "model", "score"), "single-answer judgments")
    except UserError as error:
        pairwise = "'model_1'" in str(error) or "'g1_winner'" in str(error)
        hint = ". These are pairwise judgments: the single-answer ones stand in FastChat's JUDGE_single.jsonl" if pairwise else ""
        raise UserError(f"{error}{hint}") from None


def _judge(path: str | Path, value: Any) -> str:
    """The judge's name: of a row, else of a file JUDGE_single.jsonl, else ""."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    if isinstance(value, str):
        return value
    stem = Path(path).name.partition(".jsonl")[0]
    return stem.removesuffix("_single") if stem.endswith("_single") else ""


def _score(where: str, value: Any) -> tuple[float | None, str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, "no_score"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: score {value!r} is no number; judgments in which none could be read have {UNREADABLE}")
    return (None, "unreadable") if value == UNREADABLE else (float(value), "")
