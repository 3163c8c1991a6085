"""Judges' replies into grades: one function a format, all of them in `REPLIES`.

A reply is hostile text: it may quote what it judges, and that may hold verdicts of its own. So the last verdict that fits the offered
grades wins, thinking is left out, no reply costs more than time linear in its length, and one without a verdict is `Unparsable`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmpo.annotate.replies.alignment import PlacedToken, placed
from mmpo.annotate.replies.foreign import output_choice, ranking, two_scores
from mmpo.annotate.replies.grade import double_bracket, grade
from mmpo.annotate.replies.labelled import aspects_json, labelled
from mmpo.annotate.replies.text import ParsedReply, Unparsable, plain, readable
from mmpo.annotate.scales import Scale
from mmpo.pipeline.errors import unknown_name


@dataclass(frozen=True)
class ReplyFormat:
    """parse: of a readable reply (`parse_reply` makes it so), the scale and the names of what is graded; raises Unparsable.

    grades: what one reply grades, by which a judge mode takes it or not: "one" thing, a "choice" of two, "two" scores, the "aspects" of
    one thing, every one of several "labels", or their "ranks". short: the grade may be all that is asked for, in a few tokens.
    """

    parse: Callable[[str, Scale, Sequence[str]], ParsedReply]
    summary: str
    grades: Literal["one", "choice", "two", "aspects", "labels", "ranks"]
    short: bool = False


REPLIES: dict[str, ReplyFormat] = {
    "grade": ReplyFormat(
        grade, 'one grade: [[C]], Verdict: C, \\boxed{C}, {"verdict": "C"}, or the label alone', "one", short=True
    ),
    "double-bracket": ReplyFormat(double_bracket, "one grade in double brackets: [[8]], [[rating: 8]]", "one"),
    "output-choice": ReplyFormat(output_choice, "a choice: Output (a) is better", "choice"),
    "two-scores": ReplyFormat(two_scores, "two scores: 8 10 on the first line, or Assistant 1: 8, Assistant 2: 10", "two"),
    "aspects-json": ReplyFormat(
        aspects_json, 'a JSON object of aspects, each a score or {"reason", "score"}; N/A allowed', "aspects"
    ),
    "ranking": ReplyFormat(ranking, 'a list of {"model": label, "rank": n}; 1 is best', "ranks"),
    "labelled": ReplyFormat(labelled, 'a grade a label: {"A": 4, "B": 2}, or lines A: 4', "labels", short=True),
}


def parse_reply(reply: str, format: str, scale: Scale, names: Sequence[str] = ("grade",)) -> ParsedReply:
    """The grades in a reply. names: what is graded ("grade"; "first", "second"; the aspects; the labels), distinct and not empty.

    Raises Unparsable with its reason where the reply holds no usable verdict, UserError for an unknown format.

    >>> from mmpo.annotate.scales import PREFERENCE
    >>> parse_reply("<think>A?</think>The first is clearer.\\n\\nVerdict: **B**", "grade", PREFERENCE)
    ParsedReply(values={'grade': 2.0}, spans={'grade': (51, 52)}, rationale='The first is clearer.')
    """
    if format not in REPLIES:
        raise unknown_name("reply format", format, REPLIES)
    return REPLIES[format].parse(readable(reply), scale, names)
