"""Chats that people steer by what they prefer: PRISM (Kirk et al. 2024, arXiv 2404.16019) and Community Alignment (Zhang et al. 2025).

Every turn is a prompt of its own: all that was said before it, along the replies that were preferred.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmpo.pipeline.sources.base import PLACE, FormatSample, NumberedRow, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.literals import spelled

TURNS, LETTERS = ("first", "second", "third", "fourth"), "abcd"
END_MARK = "<|end_of_text|>"
_UTTERANCE = (
    "conversation_id",
    "user_id",
    "turn",
    "within_turn_id",
    "model_name",
    "user_prompt",
    "model_response",
    "score",
    "if_chosen",
)


def parse_prism(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add every turn of a conversation with its replies, each graded 1-100 by the one person who had it."""
    history = spelled(row.get("conversation_history"))
    if not isinstance(history, list) or not all(isinstance(one, Mapping) for one in history):
        raise BadRow("not_a_list", {"conversation_history": repr(history)[:80]})
    if row.get("user_id") is None:
        raise BadRow("no_rater", {"column": "user_id"})
    if not history or not all(_is_number(one.get("turn")) for one in history):
        raise BadRow("malformed_turn", {"turns": repr([one.get("turn") for one in history])[:80]})
    before: list[dict[str, Any]] = []
    turns: dict[float, list[Mapping[str, Any]]] = {}
    for one in history:
        turns.setdefault(one["turn"], []).append(one)
    unknown: dict[str, Any] | None = None
    for place, number in enumerate(sorted(turns)):
        asked = [one for one in turns[number] if one.get("role") == "user"]
        replies = [one for one in turns[number] if one.get("role") != "user"]
        if unknown is None and number != place:
            unknown = {"missing_turn": place, "hint": "a conversation stands whole in one file, from turn 0 on"}
        if unknown is not None:
            _lost(number, [one.get(PLACE) for one in replies if one.get("score") is not None], unknown, out)
            continue
        if len(asked) != 1 or not replies:
            raise BadRow("malformed_turn", {"turn": number, "user": len(asked), "model": len(replies)})
        before = [*before, {"role": "user", "content": asked[0].get("content")}]
        _add_scored(replies, before, out, str(row.get("user_id")))
        out.extra({name: row.get(name) for name in ("conversation_id", "conversation_type")} | {"turn": number})
        chosen = {str(one.get("content")) for one in replies if one.get("if_chosen")}
        if len(chosen) != 1:
            unknown = {"turn_before": number, "chosen_there": len(chosen)}
        else:
            before = [*before, {"role": "assistant", "content": chosen.pop()}]


def _lost(turn: float | str, grades: list[int | None], why: Mapping[str, Any], out: FeedbackBuilder) -> None:
    """Count a turn before which it is not known what was said, and its grades. grades: the number of each one's row; why: a first turn
    that is not there is a fault of the file."""
    limited, evidence = why.get("missing_turn") == 0, {"turn": turn, "grades": len(grades), **why}
    out.reject("history_unknown", unit="prompt", limited=limited, evidence=evidence, row=next(iter(grades), None))
    for row in grades:
        out.reject("grade_of_unknown_history", unit="grade", limited=False, evidence={"turn": turn}, row=row)


def _is_number(turn: Any) -> bool:
    return isinstance(turn, (int, float)) and not isinstance(turn, bool) and turn == turn


def _add_scored(replies: Iterable[Mapping[str, Any]], before: list[dict[str, Any]], out: FeedbackBuilder, rater: str) -> None:
    out.prompt(before)
    for one in replies:
        try:
            index = out.completion(one.get("content"), one.get("model_name"))
        except BadRow as error:
            out.reject(error.reason, unit="completion", limited=error.limited, evidence=error.evidence, row=one.get(PLACE))
            continue
        if one.get("score") is None:
            out.reject("no_grade", unit="grade", limited=False, row=one.get(PLACE))
        else:
            out.rating(index, one["score"], rater=rater, kind="human", low=1.0, high=100.0)


def join_utterances(found: Iterable[NumberedRow]) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """Rows of one reply each as rows of one conversation each, under the number of its first reply; conversations as they are."""
    conversations: dict[Any, tuple[int, list[dict[str, Any]]]] = {}
    for number, row in found:
        if row.get("conversation_history") is not None or "user_prompt" not in row:
            yield number, row
        else:
            told = {name: row.get(name) for name in _UTTERANCE} | {PLACE: number}
            if None in (told["conversation_id"], told["turn"], told["user_prompt"]):
                yield number, BadRow("malformed_turn", {name: told[name] for name in ("conversation_id", "turn")})
                continue
            conversations.setdefault(str(told["conversation_id"]), (number, []))[1].append(told)
    for number, told in conversations.values():
        history: list[dict[str, Any]] = []
        for one in told:
            asked = {"turn": one["turn"], "role": "user", "content": one["user_prompt"]}
            history += [asked] * (asked not in history)
            history.append({**one, "role": "model", "content": one["model_response"]})
        yield number, {name: told[0][name] for name in ("conversation_id", "user_id")} | {"conversation_history": history}


def parse_community(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add every turn of a conversation: the preferred reply before each of the others."""
    before: list[dict[str, Any]] = []
    unknown: dict[str, Any] | None = None
    rater = str(row.get("annotator_id") or options.rater or "annotators")
    for turn in TURNS:
        asked, preferred = row.get(f"{turn}_turn_prompt"), row.get(f"{turn}_turn_preferred_response")
        unknown = unknown if asked or unknown else {"missing_turn": turn}
        if unknown is not None:
            if asked or preferred:
                _lost(turn, [None] * bool(preferred), unknown, out)
            continue
        texts = {letter: _without_end_mark(row.get(f"{turn}_turn_response_{letter}"), out) for letter in LETTERS}
        texts = {letter: text for letter, text in texts.items() if text}
        before = [*before, {"role": "user", "content": asked}]
        out.prompt(before)
        indices = {letter: out.completion(text) for letter, text in texts.items()}
        if not preferred:
            out.reject("no_grade", unit="grade", limited=False, evidence={"turn": turn})
            unknown = {"turn_before": turn, "chosen_there": 0}
            continue
        best = str(preferred).removeprefix("response_")
        if best not in texts:
            raise BadRow("unknown_winner", {f"{turn}_turn_preferred_response": str(preferred)[:80], "known": list(texts)})
        for index in indices.values():
            if index != indices[best]:
                out.comparison(indices[best], index, 1.0, rater=rater, limit=1.0)
        if len(set(indices.values())) < 2:
            out.reject("single_reply", unit="grade", limited=False, evidence={"turn": turn})
        out.extra({"turn": turn, **{name: row.get(name) for name in ("conversation_id", "assigned_lang", "annotator_country")}})
        before = [*before, {"role": "assistant", "content": texts[best]}]
    if not before:
        raise BadRow("empty_prompt")


def _without_end_mark(text: Any, out: FeedbackBuilder) -> Any:
    if isinstance(text, str) and END_MARK in text:
        out.count("end_mark_cut")
        return text.replace(END_MARK, "").rstrip()
    return text


def _said(turn: int, role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"turn": turn, "role": role, "content": content, **more}


def _utterance(place: int, reply: str, score: int) -> dict[str, Any]:
    told = ("c1", "user1", 0, place, "a-model", "Name a planet.", reply, score, score > 50)
    return {"utterance_id": f"ut{place}", "interaction_id": "int1", **dict(zip(_UTTERANCE, told))}


_LICENCE = "prompts CC BY 4.0, replies CC BY-NC 4.0"
_HISTORY = "a turn belongs to all that was said before it along the preferred replies: alone, every 'and tomorrow?' is one prompt"

PRISM = Source(
    "prism",
    "PRISM: chats whose every reply one person rated 1-100 (--normalise zscore takes each person's own measure)",
    parse=parse_prism,
    joined=join_utterances,
    requires=column_sets(
        "conversation_id user_id conversation_history",
        "utterance_id conversation_id user_id turn within_turn_id user_prompt model_response score if_chosen",
    ),
    named=False,
    samples=(
        FormatSample(
            "conversations.jsonl: a conversation with all replies of every turn",
            (
                {
                    "conversation_id": "c1",
                    "user_id": "user1",
                    "conversation_type": "unguided",
                    "conversation_history": [
                        _said(0, "user", "Name a planet."),
                        _said(0, "model", "The moon.", score=5, if_chosen=False, within_turn_id=0, model_name="small"),
                        _said(0, "model", "Mars, the red one.", score=90, if_chosen=True, within_turn_id=1, model_name="large"),
                    ],
                },
            ),
        ),
        FormatSample(
            "utterances.jsonl: one reply a row, the history is found in the file",
            (_utterance(0, "The moon.", 5), _utterance(1, "Mars, the red one.", 90)),
        ),
    ),
    range="1..100, a slider",
    direction="higher is better, each person by a measure of their own: --normalise zscore",
    licence=_LICENCE,
    traps={
        "history": _HISTORY,
        "one rater a reply": "everybody rates their own chats: the rater is user_id, and raw scores of two people are two measures",
        "null scores": "a score may be null: no grade, and not 0",
    },
)
COMMUNITY_ALIGNMENT = Source(
    "community-alignment",
    "Community Alignment: chats of up to four turns, of four replies each the one that a person preferred",
    parse=parse_community,
    requires=column_sets("first_turn_prompt first_turn_response_a first_turn_response_b first_turn_preferred_response"),
    samples=(
        FormatSample(
            "a wide row: per turn a prompt, four replies and the preferred one",
            (
                {
                    "conversation_id": "1",
                    "annotator_id": "a7",
                    "first_turn_prompt": "Name a planet.",
                    "first_turn_response_a": "The moon.",
                    "first_turn_response_b": "Mars, the red one.",
                    "first_turn_preferred_response": "response_b",
                },
            ),
        ),
    ),
    range="which of four",
    direction="the preferred reply is named",
    licence="CC BY 4.0",
    traps={
        "history": _HISTORY,
        "end mark": "replies may end in `<|end_of_text|>`, which would be trained on: cut off, counted",
        "many annotators": "some prompts were shown to many people: the rater is annotator_id",
        "best of four": "only the preferred reply is known to be better: of the other three nothing is known",
    },
)
