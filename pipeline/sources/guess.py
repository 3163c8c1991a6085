"""How a file of grades is to be read, guessed from the names of its columns and from what stands in them, as options of a build."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.cells import reader
from mmpo.pipeline.sources.collect import columns_of
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.sources.names import (
    LESS,
    LOSER,
    NAMES,
    REMARK,
    SCORE,
    WINNER,
    fields_by_name,
    graded_replies,
    names_sides,
    others,
    plain,
    speaks_of_a_side,
    two_sides,
    wide_fields,
    worths,
)
from mmpo.pipeline.storage.inputs import resolve_inputs
from mmpo.pipeline.storage.rows import plan, rows

LOOKED_AT = 2000
"""Rows whose cells are looked at."""
GRADES = ("score", "scores", "score_chosen", "score_rejected", "score_first", "score_second", "margin", "gap")
"""Fields of grades; the last two lie between replies."""
MOST_GAPS, MOST_WORDS = 0.5, 8
"""Share of a column's cells that may be no grade, and how many different texts may stand for none or for a winner."""
GAP = "labels?|overall|votes|annotat(?:ors?|ions?)|judge?ments?|results?|outcome|decision|human(?:_\\w+)?"
"""What the column that says which of two replies is better may be called as well, where none is called as `gap` is."""
ASPECTS = re.compile(
    "helpful|honest|truth|correct|coheren|complex|verbos|accura|clar|fluen|relevan|safe|harm|style|factual|concis|complete|depth|follow"
)
NO_GRADE = re.compile(
    "(^|_)(id|idx|index|row|nr|no|num|number|n|date|year|time|timestamp|length|len|tokens|chars|words|seed|turn|count|seconds|age"
    "|seg|segment|doc|line|page|batch|fold|confidence|confident|certainty|certain|sure|sureness|difficulty|difficult|duration|effort"
    "|familiarity|familiar|expertise|minutes|hours|sicherheit|sicher|schwierigkeit|schwierig|dauer|zeit|confiance|confianza|version"
    "|attempt|iteration|trial|round|epoch|temperature|temp|top_p|top_k|priority|position|order|session)($|_)"
)
MOMENT = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}[ T]")
"""How a date with its time begins, which is no prose."""
NOTE, GERMAN = re.compile("(^|_)noten?($|_)"), re.compile("frage|antwort|bewert|prüf|pruef|gutacht|aufgabe|eingabe|ausgabe|modell")
"""What grades are called in German, where 1 is the best one, and in French, where it is not; and what else German columns are called."""
TOTAL = re.compile(
    "(^|_)(total|totals|sum|mean|average|avg|median|overall|gesamt|gesamtnote|gesamtpunkte|summe|mittel|mittelwert|schnitt|durchschnitt)($|_)"
)
"""Columns that sum up others."""
UNLIKE, MOST_STEPS, MOST_PLACES = 1.8, 12, 9
"""How many times the highest grade of another column's a column's is where they can't be of one scale; steps of a scale that are listed;
places of a list that may be raters."""
SCALES, GAPS = (1, 3, 4, 5, 7, 10, 100), (1, 2, 3, 4, 5, 6, 9, 10, 100)
"""Where scales of grades end, and those of gaps."""
MOST_PROMPTS = 0.6
"""Different texts, as a share of the rows, of a column of any name that is taken for the prompts: replies to compare share one."""
Rows = list[Mapping[str, Any]]


@dataclass
class Guess:
    """Options of a build, by name; and why, for those where it may be wrong: option → a sentence."""

    options: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What else whoever wrote the file should know."""
    graded: bool = False
    """Whether a column of grades was found that holds something."""


def guesses(inputs: Sequence[str], fitting: Callable[[Collection[str]], list[str]]) -> Iterator[Guess]:
    """How a build might read these files, the likeliest first, by the first rows of the first of them.

    fitting: which formats a file's columns could be in. Raises UserError where they can't be read.
    """
    first: UserError | None = None
    for encoding in (None, "cp1252"):
        try:
            found, unreadable = _head(inputs, encoding)
        except UserError as error:
            if encoding:
                raise (first or error) from None
            first = error
            continue
        if encoding is None and unreadable > 0.01 * len(found):
            continue
        kind = _kind(inputs)
        named = [one for one in fitting(columns_of(found)) if one not in ("jsonl", "csv", "parquet")]
        for name in dict.fromkeys([*named, kind]):
            made = _options(name, found, list(columns_of(found)), inputs) if name in (kind, "trl") else Guess({"format": name})
            if others := [one for one in named if one != name]:
                made.why["format"] = f"the columns fit {', '.join(others)} as well"
            if encoding:
                made.options["encoding"], made.why["encoding"] = (
                    encoding,
                    "it is not UTF-8; name another one where letters look wrong",
                )
            yield made
        return


def _kind(inputs: Sequence[str]) -> str:
    return {"json": "jsonl", "arrow": "parquet"}.get(kind := resolve_inputs(inputs, "")[0].kind, kind)


def _head(inputs: Sequence[str], encoding: str | None) -> tuple[Rows, int]:
    """The first rows of the first file, and how many of them are no UTF-8."""
    files = resolve_inputs(inputs, "", encoding=encoding)
    bad: list[str] = []
    found: Rows = []
    for chunk in plan(files[:1])[:1]:
        found = [row for _, row in islice(rows(chunk, lambda _, reason, __: bad.append(reason)), LOOKED_AT)]
    return found, bad.count("invalid_utf8")


def _options(format: str, found: Rows, columns: list[str], inputs: Sequence[str]) -> Guess:
    """Raises UserError where which end of the grades is the better one can't be known, or they are words."""
    columns = [name for name in columns if "[]." not in name]
    by_name = fields_by_name(columns)
    if "model" not in by_name and "system" in columns and not any(re.search(r"\s", str(one)) for one in _values("system", found)):
        by_name["model"] = "system"  # instructions are sentences
    called = {plain(name): name for name in columns}
    if {"instruction", "input"} <= called.keys() and any(isinstance(one, str) for one in _values(called["input"], found)):
        by_name["prompt"] = f"{called['instruction']}+{called['input']}"  # as Alpaca has them
    asks = [called[name] for name in ("prompt", "question", "instruction", "query", "frage") if name in called]
    if asks and plain(by_name["prompt"]) == "context":
        by_name["prompt"] += f"+{asks[0]}"  # one context is asked several questions
    numbers = [name for name in columns if name not in by_name.values() and _is_graded(name, found)]
    made = Guess({"format": format})
    fields = _layout(by_name, columns, numbers, found, made)
    scored = [name for name in GRADES[:-2] if name in fields]
    turned = [_turn(name, fields, columns, found, made) for name in scored]
    if "rater" not in fields:
        _places(fields, found, made)
    own = {name: column for name, column in fields.items() if name != column}
    if own:
        made.options["columns"] = own
    graded = [part for name in GRADES for part in fields.get(name, "").split("+") if part]
    graded = [part[1:] if part[0] == "-" and part not in columns else part for part in graded]
    made.graded = any(_values(name, found) for name in graded)
    gap = "gap" in fields or "margin" in fields
    if "gap" in fields:
        _which(made, fields, found, inputs)
        _refuse_winners(made, fields, found, inputs)
        if LOSER.search(plain(fields["gap"])) and not WINNER.search(plain(fields["gap"])):
            own["gap"] = "+".join(f"-{part}" for part in fields["gap"].split("+"))
            made.notes.append(f"{fields['gap']!r} names the worse reply, by its name, so the sign is turned; else take the - away")
    elif not gap:
        _refuse_words(graded, found, inputs)
    _cells(made, graded, found, format == "csv", gap, any(turned))
    how, only = by_name.get("margin"), set(made.options.get("gap_of", {}).values())
    if how and "gap" in fields and only and only <= {-1.0, 0.0, 1.0} and "+" not in fields["gap"] and _is_amount(how, found):
        made.options.setdefault("columns", own)["gap"] = f"{own.get('gap', fields['gap'])}*{how}"
        made.notes.append(f"{how!r}: read as how much better the winner is, by its name")
    if "score" in fields:
        _ranges(graded, found, made)
    return made


def _turn(name: str, fields: dict[str, str], columns: list[str], found: Rows, made: Guess) -> bool:
    """Whether less is better by the names of a field's columns, which then have their sign turned. Those beside others are left out."""
    parts = fields[name].split("+")
    german = any(GERMAN.search(plain(column)) for column in columns)
    less = []
    for part in parts:
        named = plain(part.rpartition(".")[2])
        marks = [one for value in _values(part, found) if (one := _number(value)) is not None] if NOTE.search(named) else []
        if LESS.search(named) or (german and marks and min(marks) >= 1 and max(marks) <= 6):
            less.append(part)
        elif marks:
            made.notes.append(
                f"{part!r}: more is taken for better; where 1 is the best grade: {name}: -{part}, and scale: [-6, -1]"
            )
    if less and len(less) < len(parts):
        fields[name] = "+".join(part for part in parts if part not in less)
        made.notes.append(f"{_listed(less)}: less is better, by the name: not read together with the others")
        if "+" not in fields[name]:
            made.why.pop("columns", None)
    elif less:
        fields[name] = "+".join(f"-{part}" for part in less)
        made.notes.append(
            f"{_listed(less)}: less is better, by the name, so the sign is turned; else take the - and those of the scale away"
        )
        return True
    return False


def _places(fields: dict[str, str], found: Rows, made: Guess) -> None:
    """Of cells that hold lists, beside which nothing says whose grades they are: each place is a rater, or, where columns are aspects,
    all are one's repeats."""
    for name in [one for one in GRADES if one in fields]:
        parts = fields[name].split("+")
        cells = [cell if isinstance(cell, list) else structure(cell) for part in parts for cell in _cells_of(part.lstrip("-"), found)
                 if isinstance(cell, list | str)]  # fmt: skip
        longest = max((len(cell) for cell in cells if isinstance(cell, list)), default=0)
        if not 1 < longest <= MOST_PLACES:
            continue
        if len(parts) == 1 and name in ("score", "gap", "margin"):
            fields[name] = "+".join(f"{parts[0]}.{place}" for place in range(longest))
            made.why["columns"] = "each place in the lists is read as a rater"
        else:
            made.options["rater"], made.why["rater"] = "annotators", "all grades in a list are read as repeats of one rater's"
            made.why.pop("columns", None)  # which are aspects then


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _ranges(graded: list[str], found: Rows, made: Guess) -> None:
    """Note columns whose grades can't be of one scale."""
    ends = {name: [one for value in _values(name, found) if (one := _number(value)) is not None] for name in graded}
    tops = {name: max(map(abs, held)) for name, held in ends.items() if held}
    if tops and max(tops.values()) >= UNLIKE * min(tops.values()):
        seen = ", ".join(f"{name} {min(ends[name]):g} to {max(ends[name]):g}" for name in tops)
        made.notes.append(f"the columns seem to have different scales ({seen}), and are merged as they are; proposed:")
        made.notes.append("normalise: zscore           each rater and aspect by its own mean and spread; minmax: by its own ends")


def _which(made: Guess, fields: Mapping[str, str], found: Rows, inputs: Sequence[str]) -> None:
    """Of numbers that are never below 0 beside two replies: which reply each names, where the names of the replies say so.

    Raises UserError where they do not.
    """
    column, first, second = (fields[name] for name in ("gap", "first", "second"))
    values = [value for part in column.split("+") for value in _values(part, found)]
    spelled = {number: str(value) if isinstance(value, str) else f"{number:g}"
               for value in values if (number := _number(value)) is not None}  # fmt: skip
    texts = {str(value).casefold() for value in values}
    truths = bool(texts) and texts <= {"true", "false"}
    if truths:
        spelled = {0.0: "false", 1.0: "true"}
    numbers = sorted(spelled)
    if not numbers or numbers[0] < 0 or len(numbers) < len({str(one) for one in values}) / 2:
        return
    ends = [re.search(r"\d$", name) for name in (first, second)]
    sides = [float(end[0]) for end in ends if end and not truths]
    if len(sides) < 2 and numbers == [1, 2]:
        sides = [1.0, 2.0]
    if len(sides) == 2 and set(numbers) <= set(sides):
        made.options["gap_of"] = {spelled.get(side, f"{side:g}"): worth for side, worth in zip(sides, (1.0, -1.0))}
        made.why["gap_of"] = "read as which of the two is better"
        return
    low, high = min(numbers[0], 1.0), numbers[-1] if numbers[-1] > 0 else 1.0
    if set(numbers) <= {0.0, 1.0}:
        low, high = 0.0, 1.0
    elif 20 < high < 100:
        high = 100.0
    middle = (low + high) / 2
    whole = all(one.is_integer() for one in numbers)
    steps = [float(one) for one in range(int(low), int(high) + 1)] if whole else numbers
    size = 2 if high - low == 1 else 1
    lines = [f"where {spelled.get(low, format(low, 'g'))} says that {name!r} is better" for name in (first, second)]
    worths = [[size * (middle - one) for one in steps], [size * (one - middle) for one in steps]]
    if whole and (low, high) == (0, 2):
        lines.append("where 0 is a tie, 1 the first and 2 the second")
        worths.append([0, 1, -1])
    base = ["mmpo", "build", *inputs, "--format", made.options["format"], "--columns"]
    base.append(",".join(f"{name}={column}" for name, column in fields.items()))
    told = []
    for line, worth in zip(lines, worths):
        gaps = ",".join(f"{spelled.get(step, format(step, 'g'))}={gap or 0:g}" for step, gap in zip(steps, worth))
        told.append(f"  {line}: {shlex.join([*base, '--gap-of', gaps, '--out', 'pairs'])}")
    if len(steps) > MOST_STEPS:
        told = [
            f"  {line}: write {what} into the column, and init again"
            for line, what in zip(lines, (f"{middle:g} minus the grade", f"the grade minus {middle:g}"))
        ]
    what = f"{column!r} ({numbers[0]:g} to {numbers[-1]:g}) lies between the two replies, and nothing says which end is which. On a scale "
    what += f"from {low:g} to {high:g} the middle, {middle:g}, is a tie; with other ends, shift what is below"
    if size == 2 and whole:
        what = f"{column!r} is {'false or true' if truths else '0 or 1'}, and nothing says which of the two replies each stands for"
    raise UserError("\n".join([f"{inputs[0]}: {what}", *told]))


def _refuse_winners(made: Guess, fields: Mapping[str, str], found: Rows, inputs: Sequence[str]) -> None:
    """Raises UserError where texts speak of which reply is better and it is not known what they say."""
    texts = {
        one for part in fields["gap"].split("+") for one in _values(part, found) if isinstance(one, str) and _number(one) is None
    }
    for ends, what in ((("first_model", "second_model"), "its model's name"), (("first", "second"), "its text")):
        named = [str(row.get(fields["gap"])) in {str(row.get(fields[end])) for end in ends if end in fields} for row in found]
        if texts and sum(named) > len(found) / 2 and not names_sides(texts):
            raise UserError(
                f"{inputs[0]}: {fields['gap']!r} names the better reply by {what}, which no option reads: write left into it where that is "
                f"{fields['first']!r}, right where it is {fields['second']!r} and tie where it is neither, and init again"
            )
    known = worths(sorted(texts))
    if unclear := sorted(one for one in texts - known.keys() if speaks_of_a_side(one)):
        gaps = ",".join([*[f"{word}={worth:g}" for word, worth in known.items()], *[f"{word}=..." for word in unclear]])
        columns = ",".join(f"{name}={column}" for name, column in fields.items())
        command = shlex.join(["mmpo", "build", *inputs, "--format", made.options["format"], "--columns", columns, "--gap-of", gaps])
        raise UserError(
            f"{inputs[0]}: {fields['gap']!r} says which reply is better in words, and what {_listed(unclear)} is worth is not known: "
            f"above 0 where the first one is better, below 0 where the second one is, in {command}"
        )


def _refuse_words(graded: Sequence[str], found: Rows, inputs: Sequence[str]) -> None:
    """Raises UserError where grades are words or stars."""
    values = [value for name in graded for value in _values(name, found)]
    words = Counter(
        value for value in values if isinstance(value, str) and _number(value) is None and not value.startswith(("[", "{"))
    )
    if (
        words
        and words.total() > MOST_GAPS * len(values)
        and len(words) <= MOST_WORDS
        and not any(re.search(r"\d", one) for one in words)
    ):
        raise UserError(
            f"{inputs[0]}: the grades in {_listed(graded)} are words or stars ({_listed(sorted(words))}), and only numbers are grades: "
            "write a number for each into the file, the best one the highest. No option does that: --gap-of is for the winner of "
            "two replies, and --na for what stands for no grade"
        )


def _layout(fields: dict[str, str], columns: list[str], numbers: list[str], found: Rows, made: Guess) -> dict[str, str]:
    """The fields of the one layout that the columns make."""
    take = lambda *names: {name: fields[name] for name in names if name in fields}  # noqa: E731
    if {"chosen", "rejected"} <= fields.keys():
        return take("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin", "rater")
    prose = [name for name in columns if _is_prose(name, found) and not REMARK.search(plain(name))]
    texts = [name for name in prose if name not in fields.values()]
    asked = [name for name in texts if re.search(rf"(^|_)({NAMES['prompt']})($|_)", plain(name))]
    if "prompt" not in fields and len(asked) == 1:
        fields["prompt"] = asked[0]
        made.why["columns"] = "the prompt is the text whose name says so"
        texts.remove(asked[0])
    replies = [name for name in prose if name not in fields.get("prompt", "").split("+")]
    if not {"first", "second"} <= fields.keys() and not {"completion", "completions"} & fields.keys():
        fields |= two_sides(replies)
    if (wide := wide_fields(columns)) and wide["completions"].count("+") > 1:  # of two, what follows knows more
        return {**take("prompt", "rater"), **wide}
    if {"first", "second"} <= fields.keys():
        if {"score_first", "score_second"} <= fields.keys():
            return take("prompt", "first", "second", "score_first", "score_second", "first_model", "second_model", "rater")
        if "gap" not in fields and (each := graded_replies(replies, numbers)):
            return {**take("prompt", "rater"), **each}
        if "gap" not in fields and "chosen" in fields:
            fields["gap"] = fields["chosen"]
        if "gap" not in fields and (able := _winners(fields, columns, found)):
            fields["gap"] = able[0]
            made.why["columns"] = f"{able[0]!r} is taken for what says which reply is better"
            made.why["columns"] += f"; so may {_listed(able[1:])}" if able[1:] else ""
        return take("prompt", "first", "second", "gap", "first_model", "second_model", "rater")
    if each := graded_replies(replies, numbers):
        return {**take("prompt", "rater"), **each}
    if "scores" in fields and any(isinstance(cell, list) for cell in _cells_of(fields.get("completion", ""), found)):
        fields.setdefault("completions", fields["completion"])
    if "completions" in fields and (inside := _inside(fields["completions"], found)):
        return {**take("prompt"), **inside}
    if {"completions", "scores"} <= fields.keys():
        return take("prompt", "completions", "scores", "rater")
    if "scores" in fields:
        fields.setdefault("score", fields["scores"])  # of one reply
    if "prompt" not in fields and texts:
        shared = min(texts, key=lambda name: len({str(row.get(name)) for row in found}))
        if len({str(row.get(shared)) for row in found}) <= MOST_PROMPTS * len(found):
            fields["prompt"] = shared
            made.why["columns"] = "the prompt is the text that most rows share"
            texts.remove(shared)
    if "completion" not in fields and texts:
        fields["completion"] = max(texts, key=lambda name: len({str(row.get(name)) for row in found}))
    totals = [name for name in numbers if TOTAL.search(plain(name))]
    if totals and len(totals) < len(numbers) and "score" not in fields:
        numbers = [name for name in numbers if name not in totals]
        made.notes.append(f"{_listed(totals)}: not read, since they sum up the others by their name")
    called = [name for name in numbers if re.search(rf"(^|_)({SCORE})s?($|_)", plain(name))]
    if called and len(called) < len(numbers) and "score" not in fields:
        made.notes.append(f"{_listed([name for name in numbers if name not in called])}: not read, since others are called scores")
        numbers = called
    if "score" not in fields and numbers:
        fields["score"] = "+".join(numbers)
        if len(numbers) > 1 and "rater" not in fields:
            aspects = all(ASPECTS.search(plain(name)) for name in numbers)
            made.why["columns"] = (
                "each column of grades is read as a rater; if they are aspects of one rater's, name a single one"
                if aspects
                else "each column of grades is a rater"
            )
    if "rater" not in fields and {"prompt", "completion"} <= fields.keys():
        texts = [*fields["prompt"].split("+"), fields["completion"]]
        times = Counter(tuple(str(row.get(name)) for name in texts) for row in found)
        if several := sum(count > 1 for count in times.values()):
            made.notes.append(
                f"WARNING: {several:,} replies stand in several rows, and no column was taken for the rater's: name it under columns "
                "(rater: COLUMN), else all grades count as one rater's"
            )
    return take("prompt", "completion", "score", "rater", "model")


def _winners(fields: Mapping[str, str], columns: Sequence[str], found: Rows) -> list[str]:
    """The columns that seem to say which of two replies is better."""
    texts = [part for name in ("prompt", "first", "second") for part in fields.get(name, "").split("+") if part]
    if any(_is_graded(name, found) for name in texts):
        return []
    used = {*texts, *(fields.get(name) for name in ("first_model", "second_model", "rater"))}
    free = [name for name in columns if name not in used]
    called = [name for name in free if re.fullmatch(GAP, plain(name)) and _is_graded(name, found)]
    words = {name: {one for one in _values(name, found) if isinstance(one, str) and _number(one) is None} for name in free}
    numbered = [name for name in free if re.fullmatch(rf"(?:{GAP})_?\d+", plain(name))]
    for each in ([one for one in numbered if _is_graded(one, found)], [one for one in numbered if names_sides(words[one])]):
        if len(each) > 1:
            return ["+".join(each), *called]
    return sorted({*called, *[name for name in free if words[name] and names_sides(words[name])]}, key=columns.index)


def _inside(column: str, found: Rows) -> dict[str, str]:
    """The fields of candidates that are objects in one column's lists."""
    objects = [one for row in found if isinstance(row.get(column), list) for one in row[column] if isinstance(one, Mapping)]
    fields = fields_by_name(list(dict.fromkeys(name for one in objects for name in one)))
    if not {"completion", "score"} <= fields.keys():
        return {}
    return {name: f"{column}[].{fields[one]}" for name, one in (("completions", "completion"), ("scores", "score"))}


def _values(name: str, found: Rows) -> list[Any]:
    """What stands in the cells of a column, and in their lists; name: a column, or a path into it."""
    flat = [one for cell in _cells_of(name, found) for one in (cell if isinstance(cell, list) else [cell])]
    return [one.strip() if isinstance(one, str) else one for one in flat if one is not None and one == one and str(one).strip()]


def _cells_of(name: str, found: Rows) -> list[Any]:
    read = reader(name, [name] if any(name in row for row in found) else ())
    return [read(row) for row in found]


def _number(value: Any) -> float | None:
    """A cell as a number, whatever its decimal mark; "4/5" is 4."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    part = re.fullmatch(r"([+−-]?\d*[.,]?\d+)\s*(?:/\s*\d+|%)?", str(value))
    return float(part[1].replace(",", ".").replace("−", "-")) if part else None


def _is_graded(name: str, found: Rows) -> bool:
    """Whether a column holds mostly numbers, few different ones, and is called neither an id nor a length."""
    values = _values(name, found)
    numbers = [one for value in values if (one := _number(value)) is not None]
    if NO_GRADE.search(plain(name)) or not numbers or len(numbers) < (1 - MOST_GAPS) * len(values):
        return False
    return len(set(numbers)) < max(12, len(numbers) / 2)


def _is_amount(name: str, found: Rows) -> bool:
    return _is_graded(name, found) and all((_number(one) or 0) >= 0 for one in _values(name, found))


def _is_prose(name: str, found: Rows) -> bool:
    values = _values(name, found)
    texts = [one for one in values if isinstance(one, str) and _number(one) is None and " " in one and not MOMENT.match(one)]
    return len(texts) > len(values) / 2


def _cells(made: Guess, columns: Iterable[str], found: Rows, text: bool, gap: bool, turned: bool) -> None:
    """How the cells of the columns with grades are read: decimal mark, what stands for none, words for a winner, the scale. turned:
    whether their sign is."""
    values = [value for name in columns for value in _values(name, found)]
    words = Counter(value for value in values if isinstance(value, str) and _number(value) is None)
    winners = worths(words)
    if gap and words and len(winners) / len(words) > 0.5:
        made.options["gap_of"] = winners | others(winners)
        made.why["gap_of"] = "a winner in words: above 0 the first one is better, below 0 the second"
        words = Counter({word: count for word, count in words.items() if word not in winners})
    if words and len(words) <= MOST_WORDS and words.total() <= MOST_GAPS * len(values):
        made.options["na"] = sorted(words)
        made.why["na"] = f"stand for no grade in {words.total():,} of the {len(values):,} cells looked at"
    spelled = [value for value in values if isinstance(value, str) and _number(value) is not None]
    if any(re.fullmatch(r"[+-]?\d*,\d+(\s*/.*)?", value) for value in spelled):
        made.options["decimal"] = ","
    elif spelled and not text:
        made.options["decimal"] = "."
    numbers = [one for value in values if (one := _number(value)) is not None]
    if gap and numbers and "gap_of" not in made.options:
        made.why["format"] = (
            "above 0 the first reply is taken for the better one; a - before the column of the gap turns that round"
        )
    if numbers and "gap_of" not in made.options:
        ends = {float(part[1] or 100) for value in spelled if (part := re.fullmatch(r".*(?:/\s*(\d+)|%)", value))}
        low, high = min(numbers), max([*numbers, *ends])
        top = next((one for one in (GAPS if gap else SCALES) if max(high, -low if gap else 0) <= one), None)
        if top is not None and (gap or low >= 0):
            bottom = 1 if low >= 1 and top > 1 else 0
            made.options["scale"] = [-top, top] if gap else [-top, -bottom] if turned else [bottom, top]
            made.why["scale"] = f"grades from {low:g} to {high:g} were seen; write the scale that was asked for"
