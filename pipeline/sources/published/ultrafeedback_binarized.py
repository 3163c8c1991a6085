"""UltraFeedback in pairs: HuggingFaceH4/ultrafeedback_binarized, allenai's cleaned copy, and Argilla's."""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.messages import split_pair

RATER = "gpt-4"
# Columns of the two scores and their scale: overall scores 1-10, but Argilla's are means of the aspects, 1-5.
LAYOUTS = (
    ("score_chosen", "score_rejected", 1.0, 10.0),
    ("chosen-rating", "rejected-rating", 1.0, 5.0),
    ("chosen_avg_rating", "rejected_avg_rating", 1.0, 5.0),
)


def parse_ultrafeedback_binarized(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a pair as two ratings. Known defects: chosen scored lower (kept as the scores say under fix_known_defects),
    identical texts, different prompts inside chosen and rejected."""
    layout = next((layout for layout in LAYOUTS if layout[0] in row), None)
    if layout is None:
        raise BadRow("missing_column", {"missing": LAYOUTS[0][0]})
    chosen_column, rejected_column, low, high = layout
    prompt, chosen, rejected = split_pair(row.get("prompt"), row.get("chosen"), row.get("rejected"), out.count)
    scores = row[chosen_column], row.get(rejected_column)
    out.prompt(prompt)
    first = out.completion(chosen, row.get("chosen-model") or row.get("chosen_model"))
    second = out.completion(rejected, row.get("rejected-model") or row.get("rejected_model"))
    for index, score in zip((first, second), scores):
        if score is None:
            out.reject("no_grade", unit="grade", limited=False)
        else:
            out.rating(index, score, rater=RATER, kind="ai", low=low, high=high)
    if None not in scores and scores[0] < scores[1]:  # type: ignore[operator]  # rating() has refused what is no number
        evidence = {chosen_column: scores[0], rejected_column: scores[1]}
        if not options.fix_known_defects:
            raise BadRow("chosen_scored_lower", evidence, limited=False)
        out.reject("chosen_scored_lower_repaired", unit="label", limited=False, evidence=evidence)
    out.extra({"source": row.get("source") or None})


def _sample(reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": reply}]


BINARIZED_SAMPLE = FormatSample(
    "a pair of conversations and their two scores",
    (
        {
            "prompt": "Name a planet.",
            "chosen": _sample("Mars, the red one."),
            "rejected": _sample("The moon."),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
    ),
)

ULTRAFEEDBACK_BINARIZED = Source(
    "ultrafeedback-binarized",
    "UltraFeedback in pairs with two scores: HuggingFaceH4, allenai (1-10) and Argilla (1-5)",
    parse=parse_ultrafeedback_binarized,
    requires=column_sets(
        "chosen rejected score_chosen score_rejected",
        "chosen rejected chosen-rating rejected-rating",
        "chosen rejected chosen_avg_rating rejected_avg_rating",
    ),
    named=False,
    samples=(BINARIZED_SAMPLE,),
    range="1..10; Argilla's 1..5",
    direction="higher is better",
    licence="MIT",
    traps={
        "chosen scored lower": "the chosen reply may have the lower score: left out, kept as the scores say by --fix-known-defects",
        "two scales": "scores are overall scores 1-10, Argilla's means of aspects 1-5: each layout has its own scale",
        "different prompts": "chosen and rejected may answer different prompts",
    },
)
