"""The ways to ask a judge, one line each in MODES: what is shown together, and what grades the answer becomes.

pairwise    two replies, a signed grade               → comparisons, `first` as shown
pointwise   one reply, a grade on the rubric's scale  → ratings
listwise    all replies in a shuffled order           → ratings, each bound to its reply's label
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import hypot
from string import ascii_uppercase

from mmpo.annotate.judge.options import JudgeOptions
from mmpo.annotate.judge.prompts import Shown, Template, conversation_text, harmless, nonce_of
from mmpo.annotate.judge.reading import Grade, Reading
from mmpo.annotate.judge.rubrics import Rubric
from mmpo.annotate.pairings import Candidates, digest_of, parse_pairing
from mmpo.annotate.scales import RANKS, Scale
from mmpo.pipeline.tables import Message

__all__ = ["MODES", "Asked", "Graded", "Mode", "Row", "digest_limit", "messages_of", "names_of", "offered", "scale_of"]

MOST_LISTED = len(ascii_uppercase)


@dataclass(frozen=True)
class Row:
    """One prompt to be judged. scores: the mean grade that a completion already has, None where it has none."""

    prompt_id: str
    prompt: Sequence[Message]
    ids: Sequence[str]
    texts: Sequence[str]
    scores: Sequence[float | None]
    reference: str = ""


@dataclass(frozen=True)
class Asked:
    """One question: which completions are shown, in which order, by which rubrics (several where one reply grades several aspects)."""

    shown: tuple[int, ...]
    rubrics: tuple[Rubric, ...]

    @property
    def aspect(self) -> str:
        """The aspect, or the aspects joined by "+"."""
        return "+".join(rubric.name for rubric in self.rubrics)


@dataclass(frozen=True)
class Graded:
    """One grade for FEEDBACK: of a completion (second is None) or of two, `first` as shown; value on low..high."""

    first: int
    second: int | None
    aspect: str
    value: float
    low: float
    high: float
    spread: float | None


@dataclass(frozen=True)
class Mode:
    """asks: the questions about a row. scale, names: what is offered and graded in one question. grades: what becomes of a reading."""

    asks: Callable[[Row, JudgeOptions, Sequence[Rubric]], Iterator[Asked]]
    count: Callable[[int, JudgeOptions], int]
    scale: Callable[[Rubric], tuple[Scale, Sequence[tuple[str, str]]]]
    reply: str
    grades: Callable[[Asked, Reading, Scale], list[Graded]]
    summary: str


def _each(rubrics: Sequence[Rubric], options: JudgeOptions) -> list[tuple[Rubric, ...]]:
    return [tuple(rubrics)] if options.reply == "aspects-json" else [(rubric,) for rubric in rubrics]


def _both(options: JudgeOptions, default: bool) -> bool:
    return options.orders == "both" or (options.orders == "auto" and default)


def _pairwise(row: Row, options: JudgeOptions, rubrics: Sequence[Rubric]) -> Iterator[Asked]:
    pairing, k = parse_pairing(options.pairs)
    for i, j in pairing.choose(Candidates(row.ids, row.scores, options.seed, k)):
        # The order of a single one, and which of the two comes first: by hash, whatever the row's own order.
        a, b = sorted((i, j), key=lambda place: row.ids[place])
        if digest_of(options.seed, "order", row.ids[a], row.ids[b])[0] % 2:
            a, b = b, a
        for order in ((a, b), (b, a))[: 2 if _both(options, True) else 1]:
            for group in _each(rubrics, options):
                yield Asked(order, group)


def _pointwise(row: Row, options: JudgeOptions, rubrics: Sequence[Rubric]) -> Iterator[Asked]:
    for place in range(len(row.ids)):
        for group in _each(rubrics, options):
            yield Asked((place,), group)


def _listwise(row: Row, options: JudgeOptions, rubrics: Sequence[Rubric]) -> Iterator[Asked]:
    if not 2 <= len(row.ids) <= MOST_LISTED:
        return
    order = tuple(sorted(range(len(row.ids)), key=lambda place: digest_of(options.seed, "shuffle", row.ids[place])))
    for shown in (order, order[::-1])[: 2 if _both(options, False) else 1]:
        for rubric in rubrics:
            yield Asked(shown, (rubric,))


def _signed(rubric: Rubric) -> tuple[Scale, Sequence[tuple[str, str]]]:
    return rubric.grades, list(rubric.grade_meanings.items())


def _absolute(rubric: Rubric) -> tuple[Scale, Sequence[tuple[str, str]]]:
    return rubric.scale, list(rubric.meanings.items())


def _gaps(asked: Asked, reading: Reading, scale: Scale) -> list[Graded]:
    first, second = asked.shown
    two = [reading.grades.get(name) for names in TWO for name in names if names[1] in reading.grades]
    if len(two) == 2 and two[0] is not None and two[1] is not None:
        a, b = two[0], two[1]
        spread = None if a.spread is None or b.spread is None else hypot(a.spread, b.spread)
        gap, limit = Grade(a.value - b.value, spread, None), scale.high - scale.low
        return [Graded(first, second, asked.aspect, gap.value, -limit, limit, gap.spread)]
    limit = max(abs(scale.low), abs(scale.high))
    return [
        Graded(first, second, asked.aspect if name == "grade" else name, grade.value, -limit, limit, grade.spread)
        for name, grade in reading.grades.items()
    ]


def _scores(asked: Asked, reading: Reading, scale: Scale) -> list[Graded]:
    return [
        Graded(asked.shown[0], None, asked.aspect if name == "grade" else name, grade.value, scale.low, scale.high, grade.spread)
        for name, grade in reading.grades.items()
    ]


def _listed(asked: Asked, reading: Reading, scale: Scale) -> list[Graded]:
    place = dict(zip(ascii_uppercase, asked.shown))
    return [
        Graded(place[label], None, asked.aspect, grade.value, scale.low, scale.high, grade.spread)
        for label, grade in reading.grades.items()
    ]


def _pair_count(n: int, options: JudgeOptions) -> int:
    pairing, k = parse_pairing(options.pairs)
    return pairing.count(n, k) * (2 if _both(options, True) else 1)


def _list_count(n: int, options: JudgeOptions) -> int:
    return (2 if _both(options, False) else 1) if 2 <= n <= MOST_LISTED else 0


MODES: dict[str, Mode] = {
    "pairwise": Mode(_pairwise, _pair_count, _signed, "grade", _gaps, "two replies at a time, seven signed grades, both orders"),
    "pointwise": Mode(_pointwise, lambda n, options: n, _absolute, "grade", _scores, "one reply at a time on the rubric's scale"),
    "listwise": Mode(_listwise, _list_count, _absolute, "labelled", _listed, "all replies of a prompt at once, shuffled"),
}
"""The family of `--mode`."""


SCORES_EACH = ("two-scores", "labelled")
TWO = (("first", "second"), ("A", "B"))
"""The names of two scores in one pairwise reply, by the ways to read it."""


def scale_of(mode: Mode, asked: Asked, form: str) -> Scale:
    """The scale that a question's grades are on; ranks become shares from 0 (last) to 1 (first)."""
    return RANKS if form == "ranking" else offered(mode, asked, form)[0]


def offered(mode: Mode, asked: Asked, form: str) -> tuple[Scale, Sequence[tuple[str, str]]]:
    """The scale and its meanings; a reply that scores each of two by itself does so on the rubric's absolute scale."""
    return _absolute(asked.rubrics[0]) if form in SCORES_EACH else mode.scale(asked.rubrics[0])


def names_of(asked: Asked, mode: str, form: str) -> Sequence[str]:
    """What one reply grades: the names that its reader looks for."""
    if form == "aspects-json":
        return [rubric.name for rubric in asked.rubrics]
    if form == "two-scores":
        return ("first", "second")
    return ascii_uppercase[: len(asked.shown)] if mode == "listwise" or form in ("ranking", "labelled") else ("grade",)


def messages_of(
    row: Row, asked: Asked, template: Template, mode: Mode, *, reasoning: bool, form: str | None = None
) -> list[Message]:
    """The messages of one question; candidate texts are between marks that they cannot close, and hold no chat control."""
    conversation, reference = harmless(conversation_text(row.prompt)), harmless(row.reference)
    texts = [harmless(row.texts[place]) for place in asked.shown]
    nonce = nonce_of(row.prompt_id, [conversation, reference, *texts])
    replies = [{"label": label, "text": text} for label, text in zip(ascii_uppercase, texts)]
    shown = Shown(conversation, replies, reference, nonce)
    return template.messages(shown, asked.rubrics, offered(mode, asked, form or mode.reply)[1], reasoning=reasoning)


def digest_limit(seed: int, prompt_id: str) -> bytes:
    """By which `--limit` draws its prompts: the smallest ones."""
    return blake2b(f"{seed}\0limit\0{prompt_id}".encode(), digest_size=16).digest()
