"""Files of any columns (jsonl, csv, parquet, trl): one row per rating, per prompt, per pair or per comparison.

Which one a file holds follows from its columns, once per file; `--columns field=column` names columns that are called otherwise. Another
layout of rows is a function that makes its parser and one line in LAYOUTS.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.base import FormatSample, RowParser, RowReader, SourceOptions, missing_columns
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.cells import (
    CONTEXT,
    GRADE,
    OBJECTS,
    Row,
    RowFields,
    Score,
    below_other,
    factors,
    is_empty,
    terms,
    top_column,
)
from mmpo.pipeline.sources.messages import read_reply, reply_of, split_pair
from mmpo.pipeline.sources.names import told_wide

LISTED_IDS = ("prompt_id", "first_id", "second_id")
"""What a list of pairs to grade says of their ids, which are those of the texts."""
Scores = list[tuple[Score, str | None]]
"""How each grade of a row is read, and its rater where its column names one."""


def _rating_parser(fields: RowFields) -> RowParser:
    first = {name: terms(fields.column[name], fields.present)[0][0] for name in ("prompt", "completion")}
    prompt_column, completion_column = (top_column(first[name], fields.present) for name in first)
    prompt_of, completion_of = fields.read["prompt"], fields.read["completion"]
    model_of = fields.read.get("model")
    scores, framed, name_in = fields.scores("score"), fields.framed, fields.cells.name
    low, high = fields.low, fields.high

    def parse(row: Row, out: FeedbackBuilder) -> None:
        if prompt_column not in row or completion_column not in row:
            raise BadRow("missing_column", {"missing": completion_column if prompt_column in row else prompt_column})
        out.prompt(*framed(row, prompt_of(row), out))
        index = out.completion(_reply(completion_of(row), out), model_of and name_in(model_of(row)))
        for read, rater in scores:
            try:
                score = read(row, out)
                if type(score) is list:
                    for one, by in fields.each(row, score, rater, out):
                        out.rating(index, one, **by, low=low, high=high)
                elif score is not None:
                    out.rating(index, score, **fields.grade(row, rater), low=low, high=high)
            except BadRow as error:
                _lost(error, scores, out)

    return parse


def _lost(error: BadRow, scores: Scores, out: FeedbackBuilder) -> None:
    """Count a grade that can't be used; where it is the only one, the row can't be used either."""
    if len(scores) == 1:
        raise error
    out.reject(error.reason, unit="grade", limited=error.limited, evidence=error.evidence)


def _add_gaps(
    row: Row, out: FeedbackBuilder, fields: RowFields, gaps: Scores, first: int, second: int, limit: float | None, below: str = ""
) -> None:
    """The row's gaps between two completions, by whoever gave them. below: what is counted where a number is below 0."""
    spread = fields.spread(row) if len(gaps) == 1 else None
    for read, rater in gaps:
        try:
            gap = read(row, out)
            if below and type(gap) in (int, float) and gap < 0:
                out.count(below)
            if type(gap) is list:
                for one, by in fields.each(row, gap, rater, out):
                    out.comparison(first, second, one, **by, limit=limit)
            elif gap is not None:
                out.comparison(first, second, gap, **fields.grade(row, rater), limit=limit, spread=spread)
        except BadRow as error:
            _lost(error, gaps, out)


def _prompt_parser(fields: RowFields) -> RowParser:
    columns = fields.scores("scores")
    objects = fields.column.get("completions") == OBJECTS["completions"]

    def parse(row: Row, out: FeedbackBuilder) -> None:
        texts = fields.cells.listed(given := fields.get(row, "completions"))
        if not isinstance(texts, list):
            raise BadRow("not_a_list", {"completions": repr(given)[:80], "hint": "a list of replies, or JSON of one in a text"})
        scores = [(_as_long(read(row, out), texts, "scores"), rater) for read, rater in columns] or [([None] * len(texts), None)]
        models = _as_long(fields.cells.listed(fields.get(row, "models")), texts, "models")
        out.prompt(*fields.framed(row, fields.get(row, "prompt"), out))
        whole = fields.cells.listed(row["completions"]) if objects else texts
        ungraded = shifted = 0
        graded = [fields.grade(row, rater) for _, rater in scores]
        nulls = [False] * len(scores)
        for place, (text, model) in enumerate(zip(texts, models)):
            if fields.wide and is_empty(text) and not _graded([values[place] for values, _ in scores]):
                continue  # a row of fewer replies than there are columns
            try:
                index = out.completion(_candidate(text, whole[place], out), fields.cells.name(model))
            except BadRow as error:
                out.reject(error.reason, unit="completion", limited=error.limited, evidence=error.evidence)
                continue
            for rater, (values, _) in enumerate(scores):
                try:
                    score = values[place] and values[place]()
                    if score is None:
                        ungraded += 1
                        nulls[rater] = True
                    else:
                        out.rating(index, score, **graded[rater], low=fields.low, high=fields.high)
                        shifted += nulls[rater]
                except BadRow as error:
                    out.reject(error.reason, unit="grade", limited=error.limited, evidence=error.evidence)
        for _ in range(ungraded if fields.need_scores else 0):
            out.reject("no_grade", unit="grade", limited=False)
        if shifted and not fields.tool:
            out.count("null_before_scores")

    return parse


def _graded(cells: list[Any]) -> bool:
    """Whether one of a reply's cells holds a grade, or what is none."""
    try:
        return any(cell() is not None for cell in cells if cell)
    except BadRow:
        return True


def _candidate(text: Any, whole: Any, out: FeedbackBuilder) -> Any:
    if whole is not text and isinstance(whole, Mapping):
        return reply_of(whole, text, out.count)
    if isinstance(text, Mapping) and not text.keys() & {"role", "from"}:
        told = {
            "completion": "object",
            "keys": list(text)[:8],
            "hint": "--columns completions=completions[].KEY names the text's key",
        }
        raise BadRow("not_text", told)
    return _reply(text, out)


def _reply(value: Any, out: FeedbackBuilder) -> Any:
    """A reply's text. Raises BadRow, as read_reply; not_text, where it is a list of something else than one message or parts of text."""
    text = read_reply(value, out.count)
    if not isinstance(text, list):
        return text
    kinds = ", ".join(type(one).__name__ for one in text[:6])
    hint = "a reply is a text, its parts, or a list of one message by the assistant; the messages before it are the prompt's"
    raise BadRow("not_text", {"completion": f"a list of {len(text)}: {kinds}"[:80], "hint": hint})


def _bare_parser(fields: RowFields) -> RowParser:
    def parse(row: Row, out: FeedbackBuilder) -> None:
        out.prompt(*fields.framed(row, fields.get(row, "prompt"), out))

    return parse


def _or_bare(parse: RowParser, fields: RowFields, layout: "RowLayout") -> RowParser:
    """The parser of a layout, and of rows that have nothing of it but their prompt."""
    bare, others = _bare_parser(fields), [name for name in (*layout.texts, *layout.grades) if name != "prompt"]

    def either(row: Row, out: FeedbackBuilder) -> None:
        (parse if any(fields.get(row, name) not in (None, "", []) for name in others) else bare)(row, out)

    return either


def _pair_parser(fields: RowFields, by_margin: bool = False, names: tuple[str, str] = ("chosen", "rejected")) -> RowParser:
    """A pair with two scores becomes two ratings; one with a margin becomes a comparison of that gap, sign and all. by_margin: that alone
    is read; else it is where both scores are empty. names: the fields of the two replies.
    """
    one, other = names
    # Scores low..high can be at most high - low apart.
    limit = None if fields.low is None or fields.high is None else fields.high - fields.low
    margins = fields.scores("margin")
    score_fields = [f"score_{name}" for name in names]
    sides = [] if by_margin else [fields.scores(name) for name in score_fields]
    labelled = one == "chosen"  # what contradicts the label is counted
    below = "margin_below_zero" if labelled and not fields.cells.gap_of else ""
    beside = [name for name in ("margin", "spread") if name in fields.column]

    def parse(row: Row, out: FeedbackBuilder) -> None:
        prompt, chosen, rejected = (fields.get(row, name) for name in ("prompt", *names))
        prompt, chosen, rejected = split_pair(prompt, chosen, rejected, out.count)
        out.prompt(*fields.framed(row, prompt, out))
        first = out.completion(chosen, fields.name(row, f"{one}_model"))
        second = out.completion(rejected, fields.name(row, f"{other}_model"))
        if by_margin or (margins and all(is_empty(fields.get(row, name)) for name in score_fields)):
            _add_gaps(row, out, fields, margins, first, second, limit, below)
            return
        given = []
        for index, scores in zip((first, second), sides):
            for read, _ in scores:
                given.append(score := read(row, out))
                if type(score) is list:
                    for grade, by in fields.each(row, score, None, out):
                        out.rating(index, grade, **by, low=fields.low, high=fields.high)
                elif score is not None:
                    out.rating(index, score, **fields.grade(row), low=fields.low, high=fields.high)
        if labelled and below_other(given):
            out.count("chosen_below_rejected")
        if beside and not all(is_empty(fields.get(row, name)) for name in beside):
            out.count("margins_beside_scores")

    return parse


def _comparison_parser(fields: RowFields) -> RowParser:
    low, high = fields.low, fields.high
    if low is not None and high is not None and low != -high:
        raise UserError(f"--scale {low:g}:{high:g}: the scale of a gap must be symmetric, such as -3:3")
    gaps = fields.scores("gap")
    times = any(len(factors(column, fields.present)) > 1 for column, _ in terms(fields.column.get("gap", "gap"), fields.present))
    words = [] if times else fields.cells.gap_of.values()
    limit = high if high is not None or not words else max(map(abs, words))
    listed = set(fields.present) >= set(LISTED_IDS)

    def parse(row: Row, out: FeedbackBuilder) -> None:
        out.prompt(*fields.framed(row, fields.get(row, "prompt"), out))
        first = out.completion(_reply(fields.get(row, "first"), out), fields.name(row, "first_model"))
        second = out.completion(_reply(fields.get(row, "second"), out), fields.name(row, "second_model"))
        if first == second:
            raise BadRow("identical_texts", limited=False)
        if listed and out.ids_of(first, second) != tuple(row.get(name) for name in LISTED_IDS):
            out.count("ids_of_other_texts")
        _add_gaps(row, out, fields, gaps, first, second, limit)

    return parse


@dataclass(frozen=True)
class RowLayout:
    """A way to lay out feedback in rows. texts and grades: the fields that it needs; others: those that it also takes; sample: a few
    rows."""

    name: str
    texts: tuple[str, ...]
    grades: tuple[str, ...]
    others: tuple[str, ...]
    parser: Callable[[RowFields], RowParser]
    sample: tuple[Row, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that it reads."""
        return (*self.texts, *self.grades, *self.others)

    def prepared(self, fields: RowFields) -> RowReader:
        """The parser of a file's rows, and which column each field is read from."""
        present = fields.present
        held = {name: terms(fields.column[name], present) for name in self.fields if name in fields.column}
        columns = {part: name for name, found in held.items() for column, _ in found for part in factors(column, present)}
        read = {top_column(column, fields.present) for column in columns}
        if self.parser is _comparison_parser and set(present) >= set(LISTED_IDS):
            read.update(LISTED_IDS)  # they are compared with those of the texts
        parse = _or_bare(self.parser(fields), fields, self) if fields.bare_prompts else self.parser(fields)
        return RowReader(parse, self.name, columns, tuple(sorted(fields.present - read)))


_PAIR = ("prompt", "chosen", "rejected")
_SCORES = ("score_chosen", "score_rejected")
_MODELS = ("chosen_model", "rejected_model")
_ASKED = {"prompt": "Name a planet."}
_CHOSEN = {**_ASKED, "chosen": "Mars, the red one.", "rejected": "The moon."}
LAYOUTS = (
    RowLayout("one row per rating", ("prompt", "completion"), ("score",), ("model", *GRADE, *CONTEXT), _rating_parser, (
        {**_ASKED, "completion": "Mars, the red one.", "score": 5, "rater": "anna", "model": "large"},
        {**_ASKED, "completion": "The moon.", "score": 2, "rater": "anna", "model": "small"},
    )),
    RowLayout("one row per prompt", ("prompt", "completions"), ("scores",), ("models", *GRADE, *CONTEXT), _prompt_parser, (
        {**_ASKED, "completions": ["Mars, the red one.", "The moon."], "scores": [5, 2], "models": ["large", "small"]},
    )),
    RowLayout("one row per pair", _PAIR, _SCORES, ("margin", "spread", *_MODELS, *GRADE, *CONTEXT), _pair_parser, (
        {**_CHOSEN, "score_chosen": 5, "score_rejected": 2},
    )),
    RowLayout("one row per pair with its margin", _PAIR, ("margin",), ("spread", *_MODELS, *GRADE, *CONTEXT),
              partial(_pair_parser, by_margin=True), ({**_CHOSEN, "margin": 3},)),
    RowLayout("one row per comparison", ("prompt", "first", "second"), ("gap",),
              ("spread", "first_model", "second_model", *GRADE, *CONTEXT),
              _comparison_parser, (
        {**_ASKED, "first": "The moon.", "second": "Mars, the red one.", "gap": -3, "rater": "ben"},
    )),
    RowLayout("one row per two replies, each with its score", ("prompt", "first", "second"), ("score_first", "score_second"),
              ("first_model", "second_model", *GRADE, *CONTEXT), partial(_pair_parser, names=("first", "second")), (
        {**_ASKED, "first": "The moon.", "second": "Mars, the red one.", "score_first": 2, "score_second": 5, "rater": "ben"},
    )),
)  # fmt: skip
BARE = RowLayout("one row per prompt, without replies", ("prompt",), (), CONTEXT, _bare_parser)
"""Read only where `bare_prompts` says that prompts may stand alone: else it would hide that a column of replies is called otherwise."""
FIELDS = tuple(dict.fromkeys(name for layout in LAYOUTS for name in layout.fields))
LISTS = tuple(
    FormatSample(f"{layout.name}: {', '.join(layout.texts + layout.grades)}; also {', '.join(layout.others[:-2])}", layout.sample)
    for layout in LAYOUTS
)
_OBJECTS = FormatSample(
    "candidates that are objects, each with its text and score",
    ({**_ASKED, "completions": [{"text": "Mars, the red one.", "score": 5}, {"text": "The moon.", "score": 2}]},),
)
_INSIDE = FormatSample(
    "candidates inside other columns: `a.b` is inside an object, `a[].b` in each of a list of objects",
    (
        {
            "task": {"question": "Name a planet."},
            "replies": [{"said": "Mars, the red one.", "stars": 5}, {"said": "The moon.", "stars": 2}],
        },
    ),
    "--columns prompt=task.question,completions=replies[].said,scores=replies[].stars --scale 1:5",
)
OBJECT_SAMPLES = (_OBJECTS, _INSIDE)
SHEETS = (
    FormatSample(
        "a spreadsheet with one column a rater, decimal commas and gaps",
        "question;answer;anna;ben\nName a planet.;Mars, the red one.;4,5;5/5\nName a planet.;The moon.;2;N/A\n",
        "--columns prompt=question,completion=answer,score=anna+ben --decimal , --na N/A --scale 1:5",
    ),
    FormatSample(
        "a spreadsheet with a column for each reply of a row",
        'question,reply_a,reply_b,reply_c,rank_a,rank_b,rank_c\nName a planet.,"Mars, the red one.",The moon.,,1,2,\n',
        "--columns prompt=question,completions=reply_a+reply_b+reply_c,scores=-rank_a+-rank_b+-rank_c --scale -3:-1",
    ),
    FormatSample(
        "a winner in words, of a chat that stands in a cell",
        'chat,left,right,winner\n"[{""role"": ""user"", ""content"": ""Name a planet.""}]",The moon.,"Mars, the red one.",right\n',
        "--columns prompt=chat,first=left,second=right,gap=winner --gap-of left=1,right=-1,tie=0",
    ),
    FormatSample(
        "a gap whose sign says the opposite: below 0 the first one is better",
        'prompt,first,second,preference\nName a planet.,The moon.,"Mars, the red one.",2\n',
        "--columns gap=-preference --scale -3:3",
    ),
)


def prepare_generic(
    columns: Collection[str], options: SourceOptions, file: str, *, text: bool = False, tool: str = ""
) -> RowReader:
    """The parser of the rows whose layout the columns make. text: all cells are text (CSV), lists are JSON in a cell; tool: as RowFields.

    Raises UserError where no layout of rows fits the columns.
    """
    fields = RowFields(FIELDS, columns, options, file, text, tool)
    if fields.lacking:
        several = any("+" in one for one in fields.lacking)
        hint = (
            "Only grades, a prompt, and its replies and their models are read from several columns joined by +." if several else ""
        )
        raise missing_columns(file, _by(tool, "what --columns names"), fields.lacking, columns, hint)
    layout = _layout(fields, columns)
    if not all(name in fields.column for name in layout.grades):
        fields.column = {name: column for name, column in fields.column.items() if name not in layout.grades}
    return layout.prepared(fields)


def _layout(fields: RowFields, columns: Collection[str]) -> RowLayout:
    """The layout whose fields are there; of several, the one with most fields named in --columns, then the first."""
    there = fields.column

    def missing(layout: RowLayout) -> list[str]:
        needed = layout.texts + (layout.grades if fields.need_scores else ())
        return [name for name in needed if name not in there]

    def rank(layout: RowLayout) -> tuple[int, int]:
        graded = sum(name not in there for name in layout.grades)
        return -sum(name in fields.named for name in (*layout.texts, *layout.grades)), graded

    fits = [layout for layout in LAYOUTS if not missing(layout)]
    if fits:
        return min(fits, key=rank)
    if fields.bare_prompts and "prompt" in there:
        return BARE
    close = min(LAYOUTS, key=lambda layout: (len(missing(layout)), rank(layout)))
    hint = told_wide(columns) or "Name columns that are called otherwise by --columns field=column,..."
    hint += "".join(f" {name!r} is given to {fields.given[name]}." for name in missing(close) if name in fields.given)
    if set(close.texts) <= set(there):
        hint += " Without grades only --feedback-only reads the file."
    needs = _by(fields.tool, f"{close.name} ({', '.join(close.texts + close.grades)})")
    raise missing_columns(fields.file, needs, missing(close), columns, hint)


def _by(tool: str, needs: str) -> str:
    return f"format {tool!r}, {needs}," if tool else needs


_SCORED = next(layout for layout in LAYOUTS if "score_chosen" in layout.grades)
_MARGIN = next(layout for layout in LAYOUTS if "margin" in layout.grades)
TRL_FIELDS = tuple(name for name in FIELDS if name in (*_SCORED.fields, "margin", "spread"))
TRL_SAMPLES = (
    FormatSample(
        "conversations that hold their prompt, with the scores in columns of any name",
        (
            {
                "chosen": [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "Mars, the red one."}],
                "rejected": [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "The moon."}],
                "grade_a": 5,
                "grade_b": 2,
            },
        ),
        "--columns score_chosen=grade_a,score_rejected=grade_b --scale 1:5",
    ),
    FormatSample(
        "turns in a text, as HH-RLHF has them, and a margin",
        (
            {
                "chosen": "\n\nHuman: Name a planet.\n\nAssistant: Mars, the red one.",
                "rejected": "\n\nHuman: Name a planet.\n\nAssistant: The moon.",
                "margin": 3,
            },
        ),
    ),
)


def prepare_trl(columns: Collection[str], options: SourceOptions, file: str) -> RowReader:
    """The parser of a file in TRL's preference format: chosen and rejected as texts or messages, the prompt outside or inside; the
    grades are in columns of the user's own. Raises UserError: no chosen or rejected, no column with grades."""
    fields = RowFields(FIELDS, columns, options, file, text=False)
    absent = fields.lacking + [name for name in ("chosen", "rejected") if name not in fields.column and name not in fields.named]
    if absent:
        raise missing_columns(file, "format 'trl'", absent, columns)
    scored = set(_SCORED.grades) <= set(fields.column)
    if options.need_scores and "margin" not in fields.column and not scored:
        told = ", ".join(map(repr, sorted(columns)))
        raise UserError(
            f"{file}: pairs without grades have no margin. Columns present: {told}. Name those with the scores by "
            "--columns score_chosen=COLUMN,score_rejected=COLUMN, or the one with their difference by --columns "
            "margin=COLUMN; --feedback-only reads the pairs without grades, for a judge or people to grade"
        )
    by_margin = "margin" in fields.column and (not scored or "margin" in options.columns)
    return (_MARGIN if by_margin else _SCORED).prepared(fields)


def _as_long(values: Any, texts: list[Any], name: str) -> list[Any]:
    if values is None:
        return [None] * len(texts)
    if not isinstance(values, list):
        raise BadRow("not_a_list", {name: type(values).__name__})
    if len(values) != len(texts):
        raise BadRow("lengths_differ", {"completions": len(texts), name: len(values)})
    return values
