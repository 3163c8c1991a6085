"""The ways to ask a judge, one line each in MODES: what is shown together, and what grades the answer becomes.

pairwise    two replies, a signed grade               → comparisons, `first` as shown
pointwise   one reply, a grade on the rubric's scale  → ratings
listwise    all replies in a shuffled order           → ratings, each bound to its reply's label
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

from mmpo.annotate.judge.reading import Reading
from mmpo.annotate.judge.rubrics import Rubric
from mmpo.annotate.pairings import Candidates, digest_of, parse_pairing
from mmpo.annotate.replies import REPLIES, ReplyFormat
from mmpo.annotate.rows import FeedbackRow
from mmpo.annotate.scales import RANKS, Scale
from mmpo.pipeline.errors import UserError

if TYPE_CHECKING:
    from mmpo.annotate.judge.options import JudgeOptions

MOST_LISTED = len(ascii_uppercase)

Meanings = Sequence[tuple[str, str]]
"""The labels of a scale and what each stands for."""


@dataclass(frozen=True)
class Question:
    """One question: which completions are shown, in which order, by which rubrics (several where one reply grades several aspects)."""

    shown: tuple[int, ...]
    rubrics: tuple[Rubric, ...]

    @property
    def aspect(self) -> str:
        """The aspect, or the aspects joined by "+"."""
        return "+".join(rubric.name for rubric in self.rubrics)


@dataclass(frozen=True)
class NewGrade:
    """One grade for FEEDBACK: of a completion (second is None) or of two, `first` as shown; value on low..high.

    std, probabilities: the judge's own, None where its distribution is not known.
    """

    first: int
    second: int | None
    aspect: str
    value: float
    low: float
    high: float
    std: float | None
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Mode:
    """All that a way to ask is.

    orders: the completions that each question about a row shows. count: how many those are for n completions. grades: what becomes of a
    reading; gets the question, the reading, its scale and what the reply format grades. signed: grades compare the two that are shown.
    template: the file in templates/. reply: the reply format that the template asks for; takes: what reply formats of a user's own may
    grade (`ReplyFormat.grades`). by_schema: the reply is asked for as JSON by schema where the endpoint honours it. reply_tokens: how
    long a reply without reasoning may be, by the number of completions shown. needs: what a prompt must have to be asked about. most:
    completions that a prompt may have at most.
    """

    orders: Callable[[FeedbackRow, "JudgeOptions"], Iterator[tuple[int, ...]]]
    count: Callable[[int, "JudgeOptions"], int]
    grades: Callable[[Question, Reading, Scale, str], list[NewGrade]]
    template: str
    reply: str
    takes: tuple[str, ...]
    reply_tokens: Callable[[int], int]
    needs: str
    summary: str
    signed: bool = False
    by_schema: bool = False
    most: int | None = None

    @property
    def gives(self) -> Literal["comparisons", "ratings"]:
        """The column of FEEDBACK that takes the grades."""
        return "comparisons" if self.signed else "ratings"

    def questions(self, row: FeedbackRow, options: "JudgeOptions", rubrics: Sequence[Rubric]) -> Iterator[Question]:
        """The questions about one row: each order by each rubric, or by all of them where one reply grades them all."""
        together = reply_format(options).grades == "aspects"
        groups = [tuple(rubrics)] if together else [(rubric,) for rubric in rubrics]
        return (Question(shown, group) for shown in self.orders(row, options) for group in groups)


def reply_format(options: "JudgeOptions") -> ReplyFormat:
    """How replies are read: as the options say, else as the mode's own template asks. Raises UserError: not for this mode."""
    mode = MODES[options.mode]
    name = options.reply or mode.reply
    if REPLIES[name].grades not in mode.takes:
        fitting = [other for other, one in MODES.items() if REPLIES[name].grades in one.takes]
        raise UserError(f"--reply {name} does not fit --mode {options.mode}; it is for {' and '.join(fitting)}")
    return REPLIES[name]


def _pairwise(row: FeedbackRow, options: "JudgeOptions") -> Iterator[tuple[int, ...]]:
    pairing, k = parse_pairing(options.pairs)
    for i, j in pairing.choose(Candidates(row.ids, row.scores, options.seed, k)):
        # The order of a single one, and which of the two comes first: by hash, whatever the row's own order.
        a, b = sorted((i, j), key=lambda place: row.ids[place])
        if digest_of(options.seed, "order", row.ids[a], row.ids[b])[0] % 2:
            a, b = b, a
        yield from ((a, b), (b, a))[: _orders(options, 2)]


def _pair_count(n: int, options: "JudgeOptions") -> int:
    pairing, k = parse_pairing(options.pairs)
    return pairing.count(n, k) * _orders(options, 2)


def _pointwise(row: FeedbackRow, options: "JudgeOptions") -> Iterator[tuple[int, ...]]:
    return ((place,) for place in range(len(row.ids)))


def _listwise(row: FeedbackRow, options: "JudgeOptions") -> Iterator[tuple[int, ...]]:
    order = tuple(sorted(range(len(row.ids)), key=lambda place: digest_of(options.seed, "shuffle", row.ids[place])))
    yield from (order, order[::-1])[: _list_count(len(row.ids), options)]


def _list_count(n: int, options: "JudgeOptions") -> int:
    return _orders(options, 1) if 2 <= n <= MOST_LISTED else 0


def _orders(options: "JudgeOptions", auto: int) -> int:
    return {"both": 2, "one": 1, "auto": auto}[options.orders]


def _gaps(question: Question, reading: Reading, scale: Scale, graded: str) -> list[NewGrade]:
    first, second = question.shown
    if graded in ("two", "labels", "ranks"):
        a, b = reading.grades.values()
        std = None if a.std is None or b.std is None else hypot(a.std, b.std)
        limit = scale.high - scale.low
        return [NewGrade(first, second, question.aspect, a.value - b.value, -limit, limit, std)]
    limit = max(abs(scale.low), abs(scale.high))
    return [
        NewGrade(
            first,
            second,
            name if graded == "aspects" else question.aspect,
            grade.value,
            -limit,
            limit,
            grade.std,
            grade.probabilities,
        )
        for name, grade in reading.grades.items()
    ]


def _scores(question: Question, reading: Reading, scale: Scale, graded: str) -> list[NewGrade]:
    place = dict(zip(ascii_uppercase, question.shown)) if graded in ("labels", "ranks") else {}
    return [
        NewGrade(
            place.get(name, question.shown[0]), None, name if graded == "aspects" else question.aspect,
            grade.value, scale.low, scale.high, grade.std, grade.probabilities,
        )
        for name, grade in reading.grades.items()
    ]  # fmt: skip


MODES: dict[str, Mode] = {
    "pairwise": Mode(
        _pairwise,
        _pair_count,
        _gaps,
        template="pairwise",
        reply="grade",
        takes=("one", "choice", "two", "aspects", "labels", "ranks"),
        reply_tokens=lambda shown: 8,
        needs="prompts with at least two completions",
        summary="two replies at a time, seven signed grades, both orders",
        signed=True,
    ),
    "pointwise": Mode(
        _pointwise,
        lambda n, options: n,
        _scores,
        template="pointwise",
        reply="grade",
        takes=("one", "aspects"),
        reply_tokens=lambda shown: 8,
        needs="prompts with a completion",
        summary="one reply at a time on the rubric's scale",
    ),
    "listwise": Mode(
        _listwise,
        _list_count,
        _scores,
        template="listwise",
        reply="labelled",
        takes=("labels", "ranks"),
        reply_tokens=lambda shown: 16 * shown,
        needs=f"prompts with at least two completions and at most {MOST_LISTED}",
        summary="all replies of a prompt at once, shuffled",
        by_schema=True,
        most=MOST_LISTED,
    ),
}
"""The family of `--mode`."""


def offered(mode: Mode, question: Question, form: ReplyFormat) -> tuple[Scale, Meanings]:
    """The scale that the template shows, with its meanings: of two that are scored each by itself, the rubric's absolute one."""
    rubric = question.rubrics[0]
    if mode.signed and form.grades not in ("two", "labels"):
        return rubric.grades, list(rubric.grade_meanings.items())
    return rubric.scale, list(rubric.meanings.items())


def scale_of(mode: Mode, question: Question, form: ReplyFormat) -> Scale:
    """The scale that a question's grades are on; ranks become shares from 0 (last) to 1 (first)."""
    return RANKS if form.grades == "ranks" else offered(mode, question, form)[0]


def names_of(question: Question, form: ReplyFormat) -> Sequence[str]:
    """What one reply grades: the names that its reader looks for."""
    match form.grades:
        case "aspects":
            return [rubric.name for rubric in question.rubrics]
        case "two":
            return ("first", "second")
        case "labels" | "ranks":
            return ascii_uppercase[: len(question.shown)]
    return ("grade",)
