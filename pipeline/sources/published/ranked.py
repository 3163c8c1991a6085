"""Replies in an order: Nectar (ranks 1 to 7 by GPT-4; Zhu et al. 2023) and OpenAssistant's trees (Köpf et al. 2023, arXiv 2304.07327).

The best reply has the lowest rank; read as grades, ranks are turned round, and a margin is the difference of two ranks.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmpo.pipeline.sources.base import PLACE, FormatSample, NumberedRow, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number
from mmpo.pipeline.sources.literals import spelled
from mmpo.pipeline.sources.messages import read_conversation

WORST = 7
JUDGE, PEOPLE = "gpt-4", "people"
_NEXT_TURN = re.compile(r"\n\n(?:Human|Assistant):")


def parse_nectar(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a prompt with its answers, each graded 8 - rank. Known defect: answers that go on with a turn of the user (cut off there under
    fix_known_defects)."""
    answers = spelled(row.get("answers"))
    if not isinstance(answers, list):
        raise BadRow("not_a_list", {"answers": repr(answers)[:80]})
    out.prompt(read_conversation(row.get("prompt")))
    for one in answers:
        try:
            _add_answer(one, out, options)
        except BadRow as error:
            out.reject(error.reason, unit="completion", limited=error.limited, evidence=error.evidence)
    source = row.get("source")
    out.extra({"source": source, "contaminates": "ultrafeedback" if "ultrafeedback" in str(source).lower() else None})


def _add_answer(one: Any, out: FeedbackBuilder, options: SourceOptions) -> None:
    if not isinstance(one, Mapping):
        raise BadRow("not_an_object", {"answer": type(one).__name__})
    text = one.get("answer")
    if isinstance(text, str) and (found := _NEXT_TURN.search(text)):
        evidence = {"model": one.get("model"), "answer": text[found.start() : found.start() + 80]}
        if not options.fix_known_defects:
            raise BadRow("turns_in_reply", evidence, limited=False)
        out.repair("turns_in_reply_cut", unit="completion", evidence=evidence)
        text = text[: found.start()]
    grade = WORST + 1 - as_number(one.get("rank"), "rank")
    index = out.completion(text, one.get("model"))
    out.rating(index, grade, rater=JUDGE, kind="ai", low=1.0, high=float(WORST))


def parse_oasst(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add, of a tree of messages, every message that has ranked replies by an assistant, with all that was said before it."""
    root = spelled(row.get("prompt"))
    if not isinstance(root, Mapping):
        raise BadRow("not_an_object", {"prompt": type(root).__name__})
    if root.get("parent_id") is not None:
        raise BadRow("parent_missing", {"parent_id": root.get("parent_id")})
    prompts = 0
    todo: list[tuple[Mapping[str, Any], list[dict[str, Any]]]] = [(root, [])]
    while todo:
        message, before = todo.pop()
        said = [*before, {"role": message.get("role"), "content": message.get("text")}]
        replies = _replies(message, out)
        todo += [(one, said) for one in reversed(replies)]
        for one in replies:
            if one.get("role") not in ("assistant", "prompter"):
                _reject(one, BadRow("unknown_role", {"role": one.get("role")}), out)
        prompts += _add_ranked([one for one in replies if one.get("role") == "assistant"], said, out, row)
    if not prompts:
        raise BadRow("no_ranked_replies", limited=False)


def _replies(message: Mapping[str, Any], out: FeedbackBuilder) -> list[Mapping[str, Any]]:
    """The replies that are messages; others are counted."""
    given = message.get("replies")
    if given is not None and not isinstance(given, list):
        _reject(message, BadRow("not_a_list", {"replies": repr(given)[:80]}), out)
        return []
    for one in given or ():
        if not isinstance(one, Mapping):
            _reject(message, BadRow("not_an_object", {"reply": repr(one)[:80]}), out)
    return [one for one in given or () if isinstance(one, Mapping)]


def _add_ranked(replies: list[Mapping[str, Any]], said: list[dict[str, Any]], out: FeedbackBuilder, row: Mapping[str, Any]) -> bool:
    """The replies to one message; whether any has a rank."""
    kept = []
    for one in replies:
        if one.get("deleted") or one.get("rank") is None:
            _reject(one, BadRow("deleted" if one.get("deleted") else "unranked", limited=False), out)
        else:
            kept.append((one, as_number(one["rank"], "rank")))
    if kept:
        out.prompt(said)
        for one, rank in kept:
            try:
                index = out.completion(one.get("text"), one.get("model_name"))
                out.rating(index, -rank or 0.0, rater=PEOPLE, kind="human", high=0.0)
            except BadRow as error:
                _reject(one, error, out)
        out.extra({"message_tree_id": row.get("message_tree_id"), "lang": kept[0][0].get("lang")})
    return bool(kept)


def _reject(message: Mapping[str, Any], error: BadRow, out: FeedbackBuilder) -> None:
    """Count a message as left out, under its own number in the file."""
    evidence = {"message_id": message.get("message_id"), **(error.evidence or {})}
    out.reject(error.reason, unit="completion", limited=error.limited, evidence=evidence, row=message.get(PLACE))


def join_messages(found: Iterable[NumberedRow]) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """Rows of one message each as rows of one tree each, under the number of its first message; trees as they are."""
    messages: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in found:
        name = str(row.get("message_id"))
        if name in messages:
            yield number, BadRow("message_twice", {"message_id": name}, limited=False)
        elif row.get("message_id") is None:
            yield number, row
        else:
            names = ("message_id", "message_tree_id", "parent_id", "role", "text", "rank", "deleted", "model_name", "lang")
            messages[name] = number, {key: row.get(key) for key in names} | {"replies": [], PLACE: number}
    roots = []
    for number, message in messages.values():
        _, parent = messages.get(str(message["parent_id"]), (0, None))
        if parent is None:
            roots.append((number, message))
        else:
            parent["replies"].append(message)
    reached, todo = set(), [message for _, message in roots]
    while todo:
        reached.add(id(message := todo.pop()))
        todo += message["replies"]
    yield from ((number, {"message_tree_id": one["message_tree_id"], "prompt": one}) for number, one in roots)
    yield from ((number, BadRow("parents_in_a_circle")) for number, one in messages.values() if id(one) not in reached)


def _message(name: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "message_tree_id": "t", "role": role, "text": text, "rank": rank}


_FLAT = (
    _message("t", None, "prompter", "Name a planet."),
    _message("a", "t", "assistant", "The moon.", 1),
    _message("b", "t", "assistant", "Mars, the red one.", 0),
)

NECTAR = Source(
    "nectar",
    "Nectar: seven replies to a prompt, ranked by GPT-4",
    parse=parse_nectar,
    requires=column_sets("prompt answers"),
    named=False,
    samples=(
        FormatSample(
            "a prompt with its answers; rank 1 is the best one",
            (
                {
                    "prompt": "\n\nHuman: Name a planet.\n\nAssistant: ",
                    "answers": [
                        {"answer": "The moon.", "model": "small", "rank": 2.0},
                        {"answer": "Mars, the red one.", "model": "large", "rank": 1.0},
                    ],
                    "turns": 1,
                    "num_responses": 2,
                    "source": ["sharegpt"],
                    "good_natured": True,
                },
            ),
        ),
    ),
    range="ranks 1..7, read as 8 - rank",
    direction="rank 1 is the best",
    licence="Apache-2.0; not for models that compete with OpenAI's",
    traps={
        "rank": "1 is the best rank: taken as a score, the worst answer is chosen",
        "turns in a reply": "an answer may go on with a turn of the user: left out, cut off there by --fix-known-defects",
        "turns in the prompt": "the prompt is a text with the turns Human and Assistant: taken whole, it is one user message",
    },
)
OASST = Source(
    "oasst",
    "OpenAssistant (oasst1, oasst2): trees of messages, or one message a row, replies ranked by people",
    parse=parse_oasst,
    joined=join_messages,
    typed={"deleted": bool},
    requires=column_sets("message_tree_id prompt", "message_id parent_id role text rank"),
    named=False,
    samples=(
        FormatSample(
            "a tree: a message with its replies; rank 0 is the best one",
            ({"message_tree_id": "t", "prompt": {**_FLAT[0], "replies": [{**one, "replies": []} for one in _FLAT[1:]]}},),
        ),
        FormatSample("one message a row", _FLAT),
    ),
    range="ranks from 0, read as minus the rank",
    direction="rank 0 is the best",
    licence="Apache-2.0",
    traps={
        "rank": "0 is the best rank: taken as a score, the worst reply is chosen",
        "history": "a reply belongs to all that was said before it: a row alone holds one message",
        "ranked prompts": "what users say next is ranked as well: these are no replies of an assistant",
        "deleted and unranked": "deleted replies and those without a rank are no candidates",
    },
)
