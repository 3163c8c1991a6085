"""NVIDIA's HelpSteer, HelpSteer2 and HelpSteer3: ratings of one reply a row, and how much better people found one of two replies.

All their preferences are above 0 where the second reply is better and are turned round here: a gap above 0 says that the first one is.
Wang et al. 2023, 2024, 2025: arXiv 2311.09528, 2406.08673, 2410.01257, 2505.11475.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number
from mmpo.pipeline.sources.literals import spelled, structure
from mmpo.pipeline.sources.messages import read_conversation, read_reply

ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
WEIGHTS = "helpfulness=0.65,correctness=0.8,coherence=0.45,complexity=0.55,verbosity=-0.4"
"""How NVIDIA's 70B reward model joins its five values."""
LIMIT, NEITHER = 3.0, -100
PEOPLE = "annotators"
TURN = "<extra_id_1>"
_ROLES = {"User": "user", "Assistant": "assistant"}


def parse_helpsteer(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a reply with its five aspects, each a number by all annotators or a list of one a person."""
    out.prompt(read_marked_turns(row.get("prompt")))
    reply = out.completion(row.get("response"))
    for aspect in ASPECTS:
        value = spelled(row.get(aspect))
        graded = numbered(value) if isinstance(value, list) else [(PEOPLE, value)]
        for rater, score in graded:
            if score is None:
                out.reject("no_grade", unit="grade", limited=False, evidence={"aspect": aspect})
            else:
                out.rating(reply, score, rater=rater, kind="human", aspect=aspect, low=0.0, high=4.0)


def parse_helpsteer2(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a row of ratings, or a pair with each person's preference, or, without these, the published mean."""
    if row.get("response_1") is None and row.get("response") is not None:
        parse_helpsteer(row, out, options)
        return
    out.prompt(read_marked_turns(row.get("prompt")))
    told = [(rater, one.get("strength"), one.get("justification")) for rater, one in _people(row, "all_preferences_unprocessed")]
    replies = tuple(out.completion(row.get(name)) for name in ("response_1", "response_2"))
    _compare(out, replies, told or [(PEOPLE, row.get("preference_strength"), row.get("preference_statement"))])
    out.extra({"split": row.get("split")})


def parse_helpsteer3(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a pair with one comparison per person, or, without `individual_preference`, with the overall one.

    People are numbered by their place in a row: "annotator 1" of two rows need not be the same.
    """
    out.prompt(read_conversation(row.get("context")))
    replies = tuple(out.completion(read_reply(row.get(name), out.count)) for name in ("response1", "response2"))
    told = [(rater, one.get("score"), one.get("reasoning")) for rater, one in _people(row, "individual_preference")]
    told = [one for one in told if one[1] is not None]
    _compare(out, replies, told or [(PEOPLE, row.get("overall_preference"), None)])
    out.extra({name: row.get(name) for name in ("domain", "language", "overall_preference")})


def _people(row: Mapping[str, Any], column: str) -> list[tuple[str, Mapping[str, Any]]]:
    """What each person said, as a list of objects or the text of one, JSON's or Python's; nobody where there is none. Raises BadRow
    not_a_list where something else stands there: the published mean alone would be read as if no one else had been asked."""
    given = row.get(column)
    if given is None or given == "":
        return []
    people = structure(given) if isinstance(given, str) else given
    if not isinstance(people, list) or not all(isinstance(one, Mapping) for one in people):
        raise BadRow("not_a_list", {column: repr(given)[:200]})
    return numbered(people)


def numbered(people: Any) -> list[tuple[str, Any]]:
    """Whoever has no name, by place: "annotator 1", ...; nobody where it is no list."""
    return [(f"annotator {place}", one) for place, one in enumerate(people, 1)] if isinstance(people, list) else []


def _compare(out: FeedbackBuilder, replies: tuple[int, ...], told: Iterable[tuple[str, Any, Any]]) -> None:
    """One comparison per rater, from a preference that is below 0 where the first reply is better."""
    first, second = replies
    if first == second:
        raise BadRow("identical_texts", limited=False)
    for rater, value, note in told:
        if value is None or value == NEITHER:
            out.reject("no_grade" if value is None else "neither_reply_fits", unit="grade", limited=False)
            continue
        gap = -as_number(value, "preference") or 0.0  # of 0 no negative zero
        out.comparison(first, second, gap, rater=rater, limit=LIMIT, note=note if isinstance(note, str) and note else None)


def read_marked_turns(prompt: Any) -> Any:
    r"""A prompt whose turns are parted by HelpSteer's mark, as messages; all else as it is.

    >>> read_marked_turns("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nA planet?\n")[1:]
    [{'role': 'assistant', 'content': 'Hello'}, {'role': 'user', 'content': 'A planet?'}]
    """
    if not isinstance(prompt, str) or TURN not in prompt:
        return prompt
    first, *rest = prompt.split(TURN)
    messages = [{"role": "user", "content": first.strip("\n")}] if first.strip() else []
    for turn in rest:
        name, _, said = turn.partition("\n")
        if name.strip() not in _ROLES:
            raise BadRow("unknown_role", {"role": name[:80], "allowed": list(_ROLES)})
        messages.append({"role": _ROLES[name.strip()], "content": said.strip("\n")})
    return messages[:-1] if messages and messages[-1] == {"role": "assistant", "content": ""} else messages


def _rated(response: str, *scores: Any) -> dict[str, Any]:
    return {"prompt": "Name a planet.", "response": response, **dict(zip(ASPECTS, scores))}


_RATED = (_rated("Mars, the red one.", 4, 4, 4, 2, 1), _rated("The moon.", 0, 0, 3, 1, 1))
_PAIR = {"split": "train", "prompt": "Name a planet.", "response_1": "The moon.", "response_2": "Mars, the red one."}
_BOTH = {"score": -3, "reasoning": "The moon is no planet."}, {"score": -2, "reasoning": "Response 1 answers."}
_RATINGS = "a reply and its five ratings, 0 to 4"
_MARKED = {
    "marked turns": "conversations stand in one text whose turns are parted by `<extra_id_1>`: taken whole, it is one user message"
}
_GROUPED = {"scattered rows": "the replies to a prompt need not stand in neighbouring rows: paired by neighbours, prompts mix"}

HELPSTEER = Source(
    "helpsteer",
    "HelpSteer: replies rated on five aspects, 0-4, by people",
    parse=parse_helpsteer,
    requires=column_sets("prompt response helpfulness correctness coherence complexity verbosity"),
    named=False,
    samples=(FormatSample(_RATINGS, _RATED),),
    score=WEIGHTS,
    range="five aspects 0..4",
    direction="higher is better, but of verbosity (weight -0.4)",
    licence="CC BY 4.0",
    traps={**_MARKED, **_GROUPED},
)
HELPSTEER2 = Source(
    "helpsteer2",
    "HelpSteer2: ratings (0-4), single annotators' ratings (disagreements), and preferences of two replies (-3 to 3)",
    parse=parse_helpsteer2,
    requires=column_sets(
        "prompt response helpfulness correctness coherence complexity verbosity",
        "prompt response_1 response_2 preference_strength",
        "prompt response_1 response_2 all_preferences_unprocessed",
    ),
    named=False,
    samples=(
        FormatSample(_RATINGS, _RATED),
        FormatSample(
            "disagreements: of each aspect a list, one rating a person",
            (
                _rated("Mars, the red one.", [4, 3], [4, 4], [4, 4], [2, 2], [1, 1]),
                _rated("The moon.", [0, 1], [0, 0], [3, 3], [1, 1], [1, 2]),
            ),
        ),
        FormatSample("two replies; above 0 the second one is better", ({**_PAIR, "preference_strength": 2},)),
        FormatSample(
            "two replies and each person's own preference, which is then read; -100 says that neither reply fits",
            (
                {
                    **_PAIR,
                    "preference_strength": 2,
                    "all_preferences_unprocessed": [
                        {"strength": 3, "justification": "The moon is no planet."},
                        {"strength": -100, "justification": "Neither."},
                    ],
                },
            ),
        ),
    ),
    score=WEIGHTS,
    range="five aspects 0..4; preferences -3..3",
    direction="ratings: higher is better, but of verbosity; preference_strength above 0: the second reply is better",
    licence="CC BY 4.0",
    traps={
        **_MARKED,
        **_GROUPED,
        "sign": "preference_strength is above 0 where response_2 is better: taken as a gap, every pair is turned round",
        "neither": "a strength of -100 says that neither reply fits: taken as a number, it is the strongest preference of all",
        "preferences as text": "all_preferences_unprocessed may be a list as Python writes it, in a text",
    },
)
HELPSTEER3 = Source(
    "helpsteer3",
    "HelpSteer3's preferences: how much better one of two replies is, -3 to 3, by up to three people each",
    parse=parse_helpsteer3,
    requires=column_sets("context response1 response2 overall_preference"),
    named=False,
    samples=(
        FormatSample(
            "two replies; below 0 the first one is better",
            (
                {
                    "domain": "general",
                    "language": "english",
                    "context": [{"role": "user", "content": "Name a planet."}],
                    "response1": "Mars, the red one.",
                    "response2": "The moon.",
                    "overall_preference": -2,
                    "individual_preference": [*_BOTH],
                },
            ),
        ),
        FormatSample(
            "the same without each person's own preference",
            ({"context": "Name a planet.", "response1": "Mars, the red one.", "response2": "The moon.", "overall_preference": -2},),
        ),
    ),
    range="preferences -3..3",
    direction="below 0 the first reply is better",
    licence="CC BY 4.0",
    traps={
        "sign": "overall_preference is below 0 where response1 is better: taken as a gap, every pair is turned round",
        "ties": "0 is a tie: a reader makes response2 the chosen one of it, another both replies response1",
    },
)
