"""HelpSteer3's preferences (nvidia/HelpSteer3): two replies to a conversation, and how much better people found one of them.

The sign is the opposite of ours, and of HelpSteer2's `preference_strength`: below 0 the first reply is better.
"""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number
from mmpo.pipeline.sources.messages import read_conversation, read_reply

LIMIT = 3.0
OVERALL = "annotators"


def parse_helpsteer3(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a pair with one comparison per person, or, without `individual_preference`, with the overall one.

    People are numbered by their place in a row: "annotator 1" of two rows need not be the same.
    """
    out.prompt(read_conversation(row.get("context")))
    first, second = (out.completion(read_reply(row.get(name), out.count)) for name in ("response1", "response2"))
    if first == second:
        raise BadRow("identical_texts", limited=False)
    individual = row.get("individual_preference")
    told = [(f"annotator {place}", one) for place, one in enumerate(individual, 1)] if isinstance(individual, list) else []
    told = [(rater, one) for rater, one in told if isinstance(one, Mapping) and one.get("score") is not None]
    for rater, one in told or [(OVERALL, {"score": row.get("overall_preference")})]:
        score, note = one.get("score"), one.get("reasoning")
        if score is None:
            out.reject("no_grade", unit="grade", limited=False)
            continue
        gap = -as_number(score, "score") or 0.0  # of 0 no negative zero
        out.comparison(first, second, gap, rater=rater, limit=LIMIT, note=note if isinstance(note, str) and note else None)
    out.extra({name: row.get(name) for name in ("domain", "language", "overall_preference")})


HELPSTEER3_SAMPLE = FormatSample(
    "two replies; below 0 the first one is better",
    (
        {
            "domain": "general",
            "language": "english",
            "context": [{"role": "user", "content": "Name a planet."}],
            "response1": "Mars, the red one.",
            "response2": "The moon.",
            "overall_preference": -2,
            "individual_preference": [
                {"score": -3, "reasoning": "The moon is no planet."},
                {"score": -2, "reasoning": "Response 1 answers."},
            ],
        },
    ),
)

HELPSTEER3 = Source(
    "helpsteer3",
    "HelpSteer3's preferences: how much better one of two replies is, -3 to 3, by up to three people each",
    parse=parse_helpsteer3,
    requires=column_sets("context response1 response2 overall_preference"),
    named=False,
    samples=(HELPSTEER3_SAMPLE,),
)
