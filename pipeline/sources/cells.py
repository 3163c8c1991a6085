"""The fields of a file's rows, read by the names of its columns; and what stands in a cell: numbers as spreadsheets and people write them,
names, lists, a winner in words, columns inside columns."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any

from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.sources.base import SourceOptions, stem
from mmpo.pipeline.sources.builder import KINDS, LARGEST, FeedbackBuilder, as_number
from mmpo.pipeline.sources.literals import DECIMAL_COMMA, NUMPYS_PRINT, comma_hint, is_numpys_print, plain_number, structure
from mmpo.pipeline.sources.messages import TEMPLATE_MARKS, read_conversation, read_tools, with_system
from mmpo.pipeline.storage.text_files import NumberCell

Row = Mapping[str, Any]
Score = Callable[[Row, FeedbackBuilder], Any]

GRADE = ("rater", "aspect", "kind")
MIXED = "mixed"
"""What PAIRS say of a margin that people and models gave together. Read again it is no people's, unless --kind says so."""
MEDIA = ("images", "image", "videos", "video", "audio", "audios", "documents", "functions")
"""Columns of what graders saw beside the prompt and what no message here can hold: rows that have any are refused."""
CONTEXT = ("system", "tools", *MEDIA)
OBJECTS = {"completions": "completions[].text", "scores": "completions[].score", "models": "completions[].model"}
"""Where the fields of one row per prompt are found in candidates that are objects."""
OURS = {"margin": "quality_margin", "spread": "margin_se"}
"""What our own exports call a column, which is read where there is none of the field's name."""
PLURAL = {"completion": "completions", "score": "scores", "model": "models"}
SUMMED = ("score", "gap", "margin", "completions", "models", "prompt")
"""How fields begin that may be read from several columns: of grades one a rater, of a prompt's replies one a reply; prompts are joined."""
MOST_GRADES_SEEN = 4096
_NAMES = frozenset((str, type(None)))
_FRACTION = re.compile(r"(.*\S)\s*(?:/\s*(\S+)|(%))")
NONE = frozenset(("n/a", "n.a.", "na", "nan", "none", "null", "nil", "-", "--", "–", "?", ".", "x", "/", "missing", "skip", "skipped",
                  "k.a.", "k. a.", "keine angabe", "unknown", "not graded"))  # fmt: skip
"""What people mostly write where there is no grade, in small letters."""
ONE_GRADE = (
    "a list of grades, and nothing says whose: name the column of the list's raters (--columns rater=COLUMN), take each place of the list "
    "for a rater (--columns score=COLUMN.0+COLUMN.1), or the whole for one grader's repeats (--rater-name NAME)"
)

ONE_NAME = "a rater, a kind, an aspect and a model is named by one text: write one row for each"


class Cells:
    """How a file's cells are read. decimal: the decimal mark of numbers written as text (None: text is no number). na: texts that stand
    for no value. high: the scale's upper end, if it is known. gap_of: what a winner in words is worth.
    """

    def __init__(self, decimal: str | None, na: Collection[str], high: float | None, gap_of: Mapping[str, float]) -> None:
        self.decimal, self.na, self.high = decimal, frozenset(na), high
        self.gap_of = {word.strip().casefold(): gap for word, gap in gap_of.items()}

    def number(self, value: Any, field: str) -> Any:
        """The number in a cell, None where there is none; what is neither number nor text is left to the builder to refuse.

        "4/5" is 4 and "80%" is 80 where the scale ends at 5 or 100. Raises BadRow score_not_a_number with the option that would read it.
        """
        if isinstance(value, list):
            raise BadRow("score_not_a_number", {field: repr(value)[:80], "hint": ONE_GRADE})
        if isinstance(value, bool):
            hint = "true and false are no grades: write 1 and 0 into the file in their place"
            raise BadRow("score_not_a_number", {field: str(value), "hint": hint})
        if not isinstance(value, str):
            return value
        if isinstance(value, NumberCell):
            return value.number
        text = value.strip()
        if not text or text in self.na:
            return None
        found = None if self.decimal is None else self._plain(text)
        if found is None and (part := _FRACTION.fullmatch(text)) and self.decimal is not None:
            whole = self._plain(part[2]) if part[2] else 100.0
            if whole is not None and whole == self.high:
                found = self._plain(part[1])
        if found is None:
            raise BadRow("score_not_a_number", {field: repr(value)[:80], "hint": self._hint(text, field)})
        return found

    def _plain(self, text: str) -> float | None:
        return plain_number(text, self.decimal or ".")

    def _hint(self, text: str, field: str) -> str:
        """The option that would read the text."""
        if text.startswith("["):
            return ONE_GRADE
        if self.decimal is None and any(Cells(mark, (), self.high, {})._plain(text) is not None for mark in ".,"):
            return f"--decimal {',' if DECIMAL_COMMA.fullmatch(text) else '.'} reads numbers that are written as text"
        part = _FRACTION.fullmatch(text)
        if part and self._plain(part[1]) is not None:
            return f"{'' if self.decimal else '--decimal . with '}--scale LOW:{part[2] or 100} reads it as {part[1]}"
        if mends := comma_hint(text, self.decimal):
            return mends
        words = f"; --gap-of {text}=1,... gives words a gap" if field in ("gap", "margin") else ""
        if not words and not any(map(str.isdigit, text)) and text.casefold() not in NONE:
            return (
                f"words and stars are no grades: write numbers into the file in their place; where it stands for none, --na {text}"
            )
        return f"--na {text} reads it as no grade{words}"

    def gap(self, value: Any, field: str) -> Any:
        """A gap given by the word for the winner (--gap-of), or as a number. Raises BadRow: unknown_winner, score_not_a_number."""
        if not self.gap_of or value is None:
            return self.number(value, field)
        word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        if not word or word in self.na:
            return None
        if word.casefold() not in self.gap_of:
            raise BadRow("unknown_winner", {field: word[:80], "known": list(self.gap_of), "hint": f"--gap-of {word[:80]}=..."})
        return self.gap_of[word.casefold()]

    def name(self, value: Any) -> str | None:
        """A rater's, an aspect's or a model's name without the white space around it; None where there is none.

        A number that was stored as 7.0 or NaN, since others are missing, is "7" or None. Raises BadRow: name_not_text, of a list or an
        object.
        """
        if value is None or value != value:
            return None
        spelled = structure(value) if isinstance(value, str) and value[:1] in ("[", "{", '"') else value
        if isinstance(spelled, list | Mapping):
            if is_empty(spelled):
                return None
            raise BadRow("name_not_text", {"name": str(value)[:80], "hint": ONE_NAME})
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = value.strip() if type(value) is str else str(value).strip()
        return text if text and text not in self.na else None

    def listed(self, value: Any) -> Any:
        """The list that a text spells, as JSON or as Python writes it: a table's cell often has no other way; else what it is.

        Raises BadRow numpys_print."""
        if not isinstance(value, str):
            return value
        if is_numpys_print(value):
            raise BadRow("numpys_print", {"cell": value[:80], "hint": NUMPYS_PRINT})
        found = structure(value)
        return value if found is None else found


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text, list or object, or one of nothing but those."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "[]", "{}", "null", "none"))


def below_other(scores: Sequence[Any]) -> bool:
    """Whether of two scores, of a pair's chosen and rejected reply, both are one number and the first is the lower one."""
    return len(scores) == 2 and all(isinstance(one, (int, float)) for one in scores) and scores[0] < scores[1]


Read = Callable[[Mapping[str, Any]], Any]


def top_column(column: str, present: Collection[str]) -> str:
    """The column that a path begins with: `completions` of `completions[].text`; a column of that very name is itself.

    >>> top_column("reply.text", ["reply"]), top_column("reply.text", ["reply.text"])
    ('reply', 'reply.text')
    """
    return column if column in present else re.split(r"[.\[]", column, maxsplit=1)[0]


def reader(column: str, present: Collection[str]) -> Read:
    """The function that takes a column's value out of a row; `a.b` is inside an object, `a[].b` in each of a list of objects, `a[0].b`
    or `a.0.b` in the first of them. The column may hold objects or lists as JSON in a text.

    >>> reader("a[].b", ["a"])({"a": [{"b": 1}, {"b": 2}, {}]}), reader("a[0].b", ["a"])({"a": '[{"b": 1}]'})
    ([1, 2, None], 1)
    """
    top = top_column(column, present)
    steps = re.findall(r"\[\d*\]|[^.\[\]]+", column[len(top) :])
    if not steps:
        return methodcaller("get", column)
    return lambda row: _follow(row.get(top), steps)


def _follow(value: Any, steps: list[str]) -> Any:
    for place, step in enumerate(steps):
        if isinstance(value, str):
            value = structure(value)
        if isinstance(value, list | tuple) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        elif step == "[]":
            return [_follow(one, steps[place + 1 :]) for one in value] if isinstance(value, list) else value
        elif step[0] == "[":
            value = value[int(step[1:-1])] if isinstance(value, list) and int(step[1:-1]) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def factors(column: str, present: Collection[str]) -> list[str]:
    """The columns of which one grade is the product: `winner*strength` is a winner in words times how much better it is.

    >>> factors("won*by", ["won", "by"]), factors("a*b", ["a*b"])
    (['won', 'by'], ['a*b'])
    """
    return [column] if column in present else [part.strip() for part in column.split("*")]


def terms(column: str, present: Collection[str]) -> list[tuple[str, float]]:
    """The columns that a grade is read from, each with its sign: one a rater where several are joined by +, `-COLUMN` turned round.

    >>> terms("anna+-ben", ["anna", "ben"]), terms("a+b", ["a+b"])
    ([('anna', 1.0), ('ben', -1.0)], [('a+b', 1.0)])
    """
    if column in present:
        return [(column, 1.0)]
    parts = [part.strip() for part in column.split("+")]
    return [(part, 1.0) if part in present or part[:1] != "-" else (part[1:].strip(), -1.0) for part in parts if part]


def given_columns(columns: Mapping[str, str], present: Collection[str]) -> dict[str, str]:
    """Column (or path) → the field to which `--columns` gives it, sums and products taken apart: no other field reads it by its own name.

    >>> given_columns({"score": "anna+-ben", "model": "system"}, ["anna", "ben", "system"])
    {'anna': 'score', 'ben': 'score', 'system': 'model'}
    """
    return {part: name for name, column in columns.items() for one, _ in terms(column, present) for part in factors(one, present)}


def _joined(texts: list[Any]) -> Any:
    """A prompt that stands in several columns, such as an instruction and its input, a line each. Raises BadRow: not_text."""
    found = [text for text in texts if not is_empty(text)]
    if any(not isinstance(text, str) for text in found):
        raise BadRow(
            "not_text", {"prompt": repr(found)[:80], "hint": "only texts are joined to a prompt; messages stand in one column"}
        )
    return "\n".join(found) or None


def _product(winner: Read, sizes: list[Read], cells: Cells, name: str) -> Read:
    """Reads a winner in words times how much better it is; None where either is not said. Of a tie it need not be said by how much."""

    def read(row: Row) -> Any:
        value = cells.gap(winner(row), name)
        for size in sizes:
            factor = cells.number(size(row), name)
            if factor is None and type(value) in (int, float) and value == 0:
                continue
            if value is None or factor is None:
                return None
            if not all(type(one) in (int, float) and abs(one) <= LARGEST for one in (value, factor)):
                raise BadRow("score_not_a_number", {name: repr((value, factor))[:80]})
            value *= factor
        return value

    return read


class RowFields:
    """Reads the fields (by `names`) of one file's rows by the names of its columns. text: all cells are text (CSV).
    tool: the format of a tool whose rows are one person's answers each, so that a row need not have the columns of grades.

    read: field → the function that takes its value out of a row.
    column: field → column, a path (`completions[].text`) or several (`anna+ben`, one a rater), of the fields that the file has.
    """

    def __init__(
        self, names: Collection[str], columns: Collection[str], options: SourceOptions, file: str, text: bool, tool: str = ""
    ) -> None:
        # What is listed of the inside of a column is no column.
        self.inside = {name for name in columns if "[]." in name and name.partition("[].")[0] in columns}
        self.present = set(columns) - self.inside
        reply = options.columns.get("completion", "" if "completions" in options.columns else "completion")
        plural = PLURAL if "[]" in reply or top_column(reply, self.present) not in self.present else {}  # else a row has one reply
        several = PLURAL if len(terms(reply, self.present)) > 1 else {}  # a column for each reply of a row
        plurals = {name: several or (plural if "[]" in column else {}) for name, column in options.columns.items()}
        named = {plurals[name].get(name, name): column for name, column in options.columns.items()}
        replies = [column for column, _ in terms(named.get("completions", ""), self.present)]
        self.wide = replies if len(replies) > 1 else []
        inside = {name: column for name, column in OURS.items() if column in columns and name not in self.present}
        inside |= {
            name: path for name, path in OBJECTS.items() if path in columns and (name not in self.present or name == "completions")
        }
        self.given = given_columns(named, self.present)
        usual = {name: inside.get(name, name) for name in names if inside.get(name, name) not in self.given}
        found = usual | named
        self.column = {name: found[name] for name in names if name in found and not self.absent(found[name], name)}
        self.lacking = [f"{column} (for {name})" for name, given in named.items() for column in self.absent(given, name)]
        self.named, self.file, self.need_scores = named, file, options.need_scores
        self.bare_prompts = options.bare_prompts
        self.low, self.high = options.scale or (None, None)
        self.cells = Cells(options.decimal or ("." if text else None), options.na, self.high, options.gap_of)
        self.read = {name: self._reader(name, column) for name, column in self.column.items()}
        self.grade_columns = [(name, self.read[name]) for name in GRADE if name in self.column]
        self.usual_grade = {"rater": options.rater or stem(file), "kind": options.kind or "human", "aspect": "overall"}
        self.rater_known = options.rater is not None or "rater" in self.column
        self.mixed_kind = options.kind or "ai"
        self.grades_seen: dict[tuple[tuple[str | None, ...], str | None], dict[str, str]] = {}
        self.context = [name for name in CONTEXT if name in self.column]
        self.late = frozenset(CONTEXT) & set(names) - set(self.column) - set(self.given)
        self.plain: str | None = None
        self.tool = tool

    def _reader(self, name: str, column: str) -> Read:
        """Reads a field; a list, where it has a column for each reply; a text, where a prompt stands in several."""
        several = name in ("completions", "models", "prompt")
        parts = [reader(one, self.present) for one, _ in terms(column, self.present)] if several else []
        if len(parts) < 2:
            return reader(column, self.present)
        if name == "prompt":
            return lambda row: _joined([read(row) for read in parts])
        return lambda row: [read(row) for read in parts]

    def absent(self, column: str, field: str) -> list[str]:
        """The columns that a name stands for and that are not there; not every field is read from several."""
        summed = terms(column, self.present) if field.startswith(SUMMED) else ()
        parts = [part for one, _ in summed for part in factors(one, self.present)] or [column]
        return [part for part in parts if not self._there(part)]

    def _there(self, column: str) -> bool:
        top, _, key = column.partition("[].")
        listed = any(name.startswith(f"{top}[].") for name in self.inside)
        if key and listed and column not in self.present:
            return f"{top}[].{key.split('.')[0]}" in self.inside
        return top_column(column, self.present) in self.present

    def get(self, row: Row, name: str) -> Any:
        """The value of a field, None where the file has no such column."""
        read = self.read.get(name)
        return None if read is None else read(row)

    def name(self, row: Row, name: str) -> str | None:
        """A model's name, None where there is none."""
        return self.cells.name(self.get(row, name))

    def spread(self, row: Row) -> float | None:
        """The standard deviation of the row's gap, None where it is not known. Raises BadRow: score_not_a_number, spread_below_zero."""
        value = self.cells.number(self.get(row, "spread"), "spread")
        if value is None:
            return None
        if (found := as_number(value, "spread")) < 0:
            raise BadRow("spread_below_zero", {"spread": found})
        return found

    def grade(self, row: Row, column: str | None = None, listed: tuple[Any, ...] = ()) -> dict[str, str]:
        """Rater, kind and aspect of the row's grade; of several columns with grades, `column` names the rater, or the aspect where raters
        have a column or a name of their own; listed: of a list of raters the one, in place of the row's. Raises BadRow: unknown_kind."""
        cells = tuple([listed[0] if listed and name == "rater" else read(row) for name, read in self.grade_columns])
        texts = _NAMES.issuperset(map(type, cells))  # 1 and True are equal, but other names
        if texts and (cells, column) in self.grades_seen:  # as nearly all are: a file has few raters
            return self.grades_seen[cells, column]
        found = dict(self.usual_grade)
        for (name, _), cell in zip(self.grade_columns, cells, strict=True):
            given = self.cells.name(cell)
            if given is not None:
                found[name] = given
        if column is not None:
            found["aspect" if self.rater_known else "rater"] = column
        if found["kind"] == MIXED:
            found["kind"] = self.mixed_kind
        if found["kind"] not in KINDS:
            raise BadRow("unknown_kind", {"kind": found["kind"][:80], "allowed": list(KINDS)})
        if texts and len(self.grades_seen) < MOST_GRADES_SEEN:
            self.grades_seen[cells, column] = found
        return found

    def each(self, row: Row, values: list[Any], column: str | None, out: FeedbackBuilder) -> Iterator[tuple[Any, dict[str, str]]]:
        """The grades in a list, each with whose it is: of the raters in a list beside it, else all the row's. Nulls are counted.

        Raises BadRow: score_not_a_number, where nobody is named as rater; lengths_differ, unknown_kind.
        """
        if not self.rater_known:
            raise BadRow("score_not_a_number", {"grades": repr(values)[:80], "hint": ONE_GRADE})
        given = self.cells.listed(self.get(row, "rater"))
        raters: list[tuple[Any, ...]] = [(one,) for one in given] if isinstance(given, list) else [()] * len(values)
        if len(raters) != len(values):
            raise BadRow("lengths_differ", {"grades": len(values), "raters": len(raters)})
        for value, rater in zip(values, raters, strict=True):
            if value is not None:
                yield value, self.grade(row, column, rater)
            elif self.need_scores:
                out.reject("no_grade", unit="grade", limited=False)

    def framed(self, row: Row, prompt: Any, out: FeedbackBuilder) -> tuple[Any, str | None]:
        """The prompt, a chat in a text read as messages, behind the row's system text; and the row's tools as they are stored.

        Raises BadRow: one of MEDIA, malformed_tools, as with_system.
        """
        if not row.keys().isdisjoint(self.late):  # a column that the first rows do not have
            self.context = [name for name in CONTEXT if name in self.late or name in self.context]
            self.late, self.plain = frozenset(), None
            self.read = {name: methodcaller("get", name) for name in self.context} | self.read
        if type(prompt) is str and prompt == self.plain:  # rows of one prompt mostly stand together
            return prompt, None
        given, prompt = prompt, read_conversation(prompt)
        if isinstance(prompt, str) and prompt.startswith(TEMPLATE_MARKS):
            out.count("template_marks")
        elif prompt is given and type(prompt) is str and not self.context:
            self.plain = prompt
        tools = None
        for name in self.context:
            given = self.get(row, name)
            if is_empty(given):
                continue
            if name == "tools":
                tools = read_tools(given)
                continue
            if name != "system":
                raise BadRow(
                    name,
                    {
                        name: repr(given)[:200],
                        "hint": f"prompts with {name} can't be kept; leave such rows out, or "
                        "the column, where graders did not see it",
                    },
                )
            if isinstance(given, str) and not re.search(r"\s", given.strip()):
                out.count("system_of_one_word")
            prompt = with_system(prompt, given)
        return prompt, tools

    def scores(self, name: str) -> list[tuple[Score, str | None]]:
        """One for each column that a field of scores is read from: the function that reads it (None for null, counted as no_grade;
        BadRow missing_column), and the column's name where there are several, for `grade`.

        Raises UserError where raters are named twice, or `--gap-of` has nothing to read.
        """
        found = terms(self.column[name], self.present) if name in self.column else []
        if name == "scores" and self.wide and len(found) > 1:
            if len(found) != len(self.wide):
                raise UserError(
                    f"{self.file}: {len(self.wide)} columns of replies ({', '.join(self.wide)}) and {len(found)} of scores "
                    f"({self.column[name]}): name one score for each reply, in the same order; of several raters write one row for each"
                )
            each = [self._score(name, column, sign, alone=True) for column, sign in found]
            return [(lambda row, out: [value for read in each for value in read(row, out)], None)]
        several, both = len(found) > 1, self.rater_known and "aspect" in self.column
        if several and (both or name.startswith("score_")):
            why = "'rater' and 'aspect' are named already" if both else "the other score's columns have other names"
            raise UserError(
                f"{self.file}: {name}={self.column[name]} takes each column's name for its rater or aspect, but {why}; name one column, or "
                "write one row per rating"
            )
        if self.cells.gap_of and name not in ("gap", "margin"):
            raise UserError(f"{self.file}: --gap-of reads the winner of a comparison (gap, or a pair's margin), and here is {name}")
        return [(self._score(name, column, sign), column if several else None) for column, sign in found]

    def _score(self, name: str, column: str, sign: float, alone: bool = False) -> Score:
        need, top = self.need_scores, top_column(column, self.present)
        winner, *sizes = [reader(part, self.present) for part in factors(column, self.present)]
        read = _product(winner, sizes, self.cells, name) if sizes else winner
        number = self.cells.gap if name in ("gap", "margin") and not sizes else self.cells.number
        above = self.low is not None and self.high is not None and self.low >= 0
        ends = (self.low, self.high) if above and name not in ("gap", "margin") else None  # where no turned grade can be
        as_it_is = (int, float) if sign > 0 and (sizes or not self.cells.gap_of) else ()

        def one(value: Any) -> Any:
            if type(value) in as_it_is:
                return value
            value = number(value, name)
            if sign > 0 or value is None or isinstance(value, (bool, str, list, dict)):
                return value
            if ends is not None and value > 0 and ends[0] <= value <= ends[1]:
                hint = f"-{column} turns the sign, and so its scale: --scale -{ends[1]:g}:-{ends[0]:g}"
                raise BadRow("score_out_of_scale", {"score": -value, "low": ends[0], "high": ends[1], "hint": hint})
            return -value or 0.0  # of 0 no negative zero

        def score(row: Row, out: FeedbackBuilder) -> Any:
            value = read(row)
            if type(value) in as_it_is:  # as nearly all are
                return value
            if value is None and need and top not in row and not self.tool and not sizes:
                raise BadRow("missing_column", {"missing": column})
            if isinstance(value, str) and value[:1] == "[":
                value = self.cells.listed(value)
            if isinstance(value, list):
                return [one(inner) for inner in value]
            value = one(value)
            if value is None and need:
                out.reject("no_grade", unit="grade", limited=False)
            return value

        def score_list(row: Row, _: FeedbackBuilder) -> Any:
            values = [read(row)] if alone else self.cells.listed(read(row))
            return [partial(one, value) for value in values] if isinstance(values, list) else values

        return score_list if name == "scores" else score
