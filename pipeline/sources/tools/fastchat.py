"""FastChat's judgments (MT-bench): pairs judged in both orders, and single answers graded 1 to 10.

The texts stand only in the judge's prompts. The winners of both games are named by model, though the second game showed the answers the
other way round. A reply that FastChat could not read is the score -1 or the winner "error": counted, never a grade.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import FeedbackBuilder
from mmpo.pipeline.sources.literals import spelled
from mmpo.pipeline.sources.tools.answers import as_note

LOW, HIGH = 1.0, 10.0
_ANSWER = r"\[The Start of Assistant{0}'s Answer\]\n(.*)\n\[The End of Assistant{0}'s Answer\]"
_REFERENCE = r"(?:\[The Start of Reference Answer\]\n.*\n\[The End of Reference Answer\]\n\n)?"
PAIR = re.compile(rf"\[User Question\]\n(.*?)\n\n{_REFERENCE}{_ANSWER.format(' A')}\n\n{_ANSWER.format(' B')}\s*", re.DOTALL)
SINGLE = re.compile(rf"(?:\[Instruction\]\n.*?\n\n)?\[Question\]\n(.*?)\n\n{_REFERENCE}{_ANSWER.format('')}\s*", re.DOTALL)
TURNS = re.compile(
    r"(?:.*<\|The End of Reference Answer\|>\s*)?<\|The Start of Assistant A's Conversation with User\|>\n\n### User:\n(.*?)\n\n"
    r"### Assistant A:\n(.*)\n\n### User:\n(.*?)\n\n### Assistant A:\n(.*)\n\n<\|The End of Assistant A's Conversation with User\|>\s*",
    re.DOTALL,
)
MARKS = ("[The Start of Assistant", "[The End of Assistant", "### User:\n", "### Assistant A:\n")
GAMES = (("g1", "model_1", "model_2"), ("g2", "model_2", "model_1"))
"""Each game, the model shown first and the one shown second."""


def parse_fastchat(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add the two games of a pair as a comparison each, in the order in which the judge saw it; or a single answer's grade.

    Raises BadRow: no_texts, second_turn, texts_not_found, marks_in_texts, unread_judgment.
    """
    judge = spelled(row.get("judge"))
    by = {
        "rater": options.rater or str(judge[0] if isinstance(judge, list) and judge else judge or "judge"),
        "kind": options.kind or "ai",
    }
    if row.get("answer1_id") is not None:
        hint = (
            "reviews hold no texts: join them with question.jsonl and the answers, and read the table with --format jsonl --columns"
        )
        raise BadRow("no_texts", {"question_id": row.get("question_id"), "hint": hint})
    if row.get("g1_winner") is not None or row.get("model_1") is not None:
        _pair(row, out, by)
    else:
        _single(row, out, by)
    out.extra({name: row.get(name) for name in ("question_id", "turn")})


def _is_first(turn: Any) -> bool:
    """Whether a judgment is of a first turn, as those without a turn are taken to be."""
    return turn is None or str(turn).strip() in ("1", "1.0")


def _pair(row: Mapping[str, Any], out: FeedbackBuilder, by: dict[str, str]) -> None:
    where = {"question_id": row.get("question_id"), "turn": row.get("turn")}
    if not _is_first(row.get("turn")):
        hint = "in a second turn each model answers after its own first answer, so that the two have no common prompt"
        raise BadRow("second_turn", {**where, "hint": hint}, limited=False)
    prompt, first, second = _texts(PAIR, row.get("g1_user_prompt"), where)
    out.prompt(prompt)
    places = {name: out.completion(text, row.get(name)) for name, text in (("model_1", first), ("model_2", second))}
    if places["model_1"] == places["model_2"]:
        raise BadRow("identical_texts", where, limited=False)
    gaps = {"tie": 0.0, "model_1": 1.0, "model_2": -1.0}
    for game, shown, other in GAMES:
        winner, note = row.get(f"{game}_winner"), row.get(f"{game}_judgment")
        if not isinstance(winner, str) or winner not in gaps:
            out.reject("unread_judgment", unit="grade", limited=False, evidence={**where, f"{game}_winner": str(winner)[:80]})
            continue
        gap = gaps[winner] if shown == "model_1" else -gaps[winner] or 0.0  # of a tie no negative zero
        out.comparison(places[shown], places[other], gap, **by, limit=1.0, note=as_note(note))


def _single(row: Mapping[str, Any], out: FeedbackBuilder, by: dict[str, str]) -> None:
    where = {"question_id": row.get("question_id"), "model": row.get("model")}
    score = row.get("score")
    if score == -1 or score is None:
        hint = "FastChat's parser found no grade in the judgment; `mmpo evaluate mt-bench` asks and reads anew"
        raise BadRow("unread_judgment", {**where, "judgment": str(row.get("judgment"))[-200:], "hint": hint}, limited=False)
    if _is_first(row.get("turn")):
        prompt, answer = _texts(SINGLE, row.get("user_prompt"), where)
        out.prompt(prompt)
    else:
        asked, said, prompt, answer = _texts(TURNS, row.get("user_prompt"), where)
        turns = (("user", asked), ("assistant", said), ("user", prompt))
        out.prompt([{"role": role, "content": text} for role, text in turns])
    note = row.get("judgment")
    index = out.completion(answer, row.get("model"))
    out.rating(index, score, **by, low=LOW, high=HIGH, note=as_note(note))


def _texts(template: re.Pattern[str], asked: Any, where: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that a judge's prompt was made of. Raises BadRow: texts_not_found; marks_in_texts, where they could be cut in two ways."""
    found = template.fullmatch(asked) if isinstance(asked, str) else None
    if found is None:
        hint = "the judge's prompt is in none of FastChat's layouts; give the texts in columns of their own to --format jsonl"
        raise BadRow("texts_not_found", {**where, "user_prompt": repr(asked)[:200], "hint": hint})
    if any(mark in text for mark in MARKS for text in found.groups()):
        raise BadRow(
            "marks_in_texts", {**where, "hint": "a text holds the marks that stand between texts, so that its end is not known"}
        )
    return found.groups()


_ASKED = (
    "[User Question]\nName a planet.\n\n[The Start of Assistant A's Answer]\n{}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n{}\n[The End of Assistant B's Answer]"
)
_GOOD, _BAD = "Mars, the red one.", "The moon."
_GAMES = {
    "question_id": 1, "model_1": "small", "model_2": "large", "g1_winner": "model_2", "g2_winner": "model_2", "judge": ["gpt-4", "pair-v2"],
    "g1_user_prompt": _ASKED.format(_BAD, _GOOD), "g2_user_prompt": _ASKED.format(_GOOD, _BAD), "turn": 1,
}  # fmt: skip


def _graded(model: str, answer: str, score: int) -> dict[str, Any]:
    shown = f"[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
    asked = f"[Instruction]\n...\n\n[Question]\nName a planet.\n\n{shown}"
    return {"question_id": 1, "model": model, "judge": ["gpt-4", "single-v1"], "user_prompt": asked, "score": score, "turn": 1}


FASTCHAT = Source(
    "fastchat",
    "FastChat's judgments of MT-bench: pairs judged in both orders (win, loss, tie), single answers graded 1-10",
    parse=parse_fastchat,
    export="Read are the files of model_judgment; those of model_answer hold no grades.",
    requires=column_sets(
        "model_1 model_2 g1_winner g2_winner g1_user_prompt",
        "model judge user_prompt score",
        "question_id answer1_id answer2_id score",
    ),
    samples=(
        FormatSample("a pair, judged in both orders", (_GAMES,)),
        FormatSample("single answers", (_graded("large", _GOOD, 9), _graded("small", _BAD, 2))),
    ),
    range="-1, 0, 1 for a game; 1 to 10 for a single answer",
    direction="the winner is named by model; higher grades are better",
    traps={
        "second game": "the second game shows the answers the other way round, and its winner is named by model all the same",
        "minus one": "a judgment that could not be read is the score -1, below every grade",
        "second turn": "in a second turn each model answers after its own first answer: the two have no common prompt",
    },
)
