"""Chatbot Arena's votes, from 33k (Zheng et al. 2023, arXiv 2306.05685) over 55k and 100k to 140k: two models' conversations, a winner."""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.literals import plain_number, structure
from mmpo.pipeline.sources.messages import split_pair

VOTES = "votes"
BOTH_BAD = ("tie (bothbad)", "both_bad", "bothbad")
GAPS = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0, **dict.fromkeys(BOTH_BAD, 0.0)}
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")

NOUGHT, ONE = {"0", "0.0", "false"}, {"1", "1.0", "true"}


def parse_arena(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add two conversations that share all but the last reply, with a vote of 1, -1 or 0. Known limits, counted: later evaluations of one
    chat, images, chats whose models had said different things before the last turn."""
    winner = _winner(row)
    order = row.get("evaluation_order")
    order = plain_number(order, ".") if isinstance(order, str) else order
    if isinstance(order, (int, float)) and order > 1:
        raise BadRow("earlier_turns_missing", {"evaluation_order": order}, limited=False)
    sides = _conversation(row, "a"), _conversation(row, "b")
    try:
        prompt, first, second = split_pair(None, *sides, out.count)
        out.prompt(prompt)
        indices = out.completion(first, row.get("model_a")), out.completion(second, row.get("model_b"))
    except BadRow as error:
        raise BadRow(error.reason, error.evidence, limited=error.limited and error.reason != "images") from None
    rater = str(row.get("judge") or row.get("judge_hash") or options.rater or VOTES)
    out.comparison(*indices, GAPS[winner], rater=rater, kind=options.kind or "human", limit=1.0)
    if winner in BOTH_BAD:
        out.count("both_bad")
    out.extra({"language": row.get("language"), "both_bad": winner in BOTH_BAD or None})


def _winner(row: Mapping[str, Any]) -> str:
    """The word for who won, also of the columns of noughts and ones."""
    winner = row.get("winner")
    if winner is None:
        flags = {name: str(row[name]).strip().lower() for name in WINNERS if row.get(name) is not None}
        won = [name.removeprefix("winner_") for name, flag in flags.items() if flag not in NOUGHT]
        if len(won) > 1 or not set(flags.values()) <= NOUGHT | ONE:
            raise BadRow("unknown_winner", {**flags, "hint": "of the three columns one is 1 and the others are 0"})
        winner = next(iter(won), None)
    if winner is None:
        raise BadRow("no_grade", limited=False)
    word = str(winner).strip().lower()
    if word not in GAPS:
        raise BadRow("unknown_winner", {"winner": word[:80], "known": list(GAPS)})
    return word


def _conversation(row: Mapping[str, Any], side: str) -> Any:
    """One side's messages: as such, as JSON in a text, or from lists of what user and model said."""
    given = row.get(f"conversation_{side}")
    if given is None and row.get("prompt") is not None:
        asked, said = (_listed(row.get(name)) for name in ("prompt", f"response_{side}"))
        if not all(isinstance(text, str) for text in (*asked, *said)):
            raise BadRow("not_text", {"prompt": repr(asked)[:80], f"response_{side}": repr(said)[:80]}, limited=False)
        if len(asked) != len(said):
            raise BadRow("lengths_differ", {"prompt": len(asked), f"response_{side}": len(said)}, limited=False)
        turns = (({"role": "user", "content": one}, {"role": "assistant", "content": other}) for one, other in zip(asked, said))
        return [message for turn in turns for message in turn]
    found = structure(given) if isinstance(given, str) else given
    if not isinstance(found, list):
        raise BadRow("malformed_messages", {f"conversation_{side}": repr(given)[:200]})
    return found


def _listed(given: Any) -> list[Any]:
    found = structure(given) if isinstance(given, str) else given
    return found if isinstance(found, list) else [given]


def _turns(reply: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": reply}]


def _parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


def _voted(winner: str, a: Any, b: Any, **more: Any) -> dict[str, Any]:
    return {"model_a": "small", "model_b": "large", "winner": winner, "conversation_a": a, "conversation_b": b, **more}


_MOON, _MARS = _turns("The moon."), _turns("Mars, the red one.")
ARENA = Source(
    "arena",
    "Chatbot Arena's votes (33k, 55k, 100k, 140k): conversations with two models, and who won",
    parse=parse_arena,
    typed={"evaluation_order": float},
    requires=column_sets(
        "model_a model_b winner conversation_a conversation_b",
        "model_a model_b prompt response_a response_b winner_model_a winner_model_b winner_tie",
    ),
    samples=(
        FormatSample("33k: two conversations", (_voted("model_b", _MOON, _MARS, judge="arena_user_1"),)),
        FormatSample(
            "55k: what user and models said as lists in texts, winners as noughts and ones",
            (
                {
                    "model_a": "large",
                    "model_b": "small",
                    "prompt": '["Name a planet."]',
                    "response_a": '["Mars, the red one."]',
                    "response_b": '["The moon."]',
                    "winner_model_a": 1,
                    "winner_model_b": 0,
                    "winner_tie": 0,
                },
            ),
        ),
        FormatSample(
            "100k: conversations as JSON in texts",
            (
                _voted(
                    "model_b",
                    '[{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "The moon."}]',
                    '[{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "Mars, the red one."}]',
                    judge_hash="f1",
                ),
            ),
        ),
        FormatSample(
            "140k: contents as lists of parts",
            (
                _voted(
                    "model_b",
                    [{"role": "user", "content": _parts("Name a planet.")}, {"role": "assistant", "content": _parts("The moon.")}],
                    [
                        {"role": "user", "content": _parts("Name a planet.")},
                        {"role": "assistant", "content": _parts("Mars, the red one.")},
                    ],
                    evaluation_session_id="s",
                    evaluation_order=1,
                ),
            ),
        ),
    ),
    range="who won: 1, 0 or -1",
    direction="the winner is named",
    licence="33k: prompts CC BY 4.0, replies CC BY-NC 4.0; 140k: CC BY 4.0; the models' own terms",
    traps={
        "both bad": "tie (bothbad) and both_bad are ties at 0, of replies that are both poor: kept as ties, counted, marked in `extra`",
        "later evaluations": "of evaluation_order 2 and more, what was said before with other models is not in the conversations: left out",
        "own histories": "in chats of several turns each model has said things of its own: only pairs that share all but the reply stay",
        "parts": "contents may be lists of parts: read as texts; chats with images are left out, counted",
    },
)
