"""Stanford Human Preferences (stanfordnlp/SHP, SHP-2): two comments under a Reddit post and the votes that each got.

Votes are ratings of each comment by one rater, `votes`; a comment that occurs in several rows repeats the same
rating, which averages away.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder

RATER = "votes"
DELETED = {"[deleted]", "[removed]"}


def parse_shp(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a post with two comments. Known defects: deleted bodies; a label that contradicts the
    votes (kept as the votes say under fix_known_defects)."""
    post = row.get("history")
    if _deleted(post):
        raise BadRow("deleted_text", {"where": "history"}, limited=False)
    out.prompt(post)  # type: ignore[arg-type]  # what is no text, the builder refuses
    for side in ("A", "B"):
        text = row.get(f"human_ref_{side}")
        if _deleted(text):
            out.reject("deleted_text", unit="completion", limited=False, evidence={"where": f"human_ref_{side}"})
            continue
        out.rating(out.completion(text), row.get(f"score_{side}"), rater=options.rater or RATER, kind=options.kind or "human")
    _check_label(row, out, options)
    out.extra({name: row.get(name) for name in ("domain", "post_id")})


def _check_label(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """labels = 1 says that comment A is preferred; equal votes fit both."""
    label, a, b = row.get("labels"), row.get("score_A"), row.get("score_B")
    if label is not None and label not in (0, 1):
        raise BadRow("unknown_winner", {"labels": repr(label)[:80], "known": [0, 1]})
    numbers = all(isinstance(score, (int, float, Decimal)) for score in (a, b))
    if label is None or not numbers or a == b or (a > b) == (label == 1):  # type: ignore[operator]
        return
    evidence = {"labels": label, "score_A": a, "score_B": b}
    if not options.fix_known_defects:
        raise BadRow("label_disagrees", evidence, limited=False)
    out.repair("label_disagrees_repaired", evidence=evidence)


def _deleted(text: Any) -> bool:
    return isinstance(text, str) and text.strip() in DELETED


SHP_SAMPLE = FormatSample(
    "two comments under a post, and their votes",
    (
        {
            "post_id": "p1",
            "domain": "askscience_train",
            "history": "Name a planet.",
            "human_ref_A": "The moon.",
            "human_ref_B": "Mars, the red one.",
            "score_A": 4,
            "score_B": 31,
            "labels": 0,
        },
    ),
)

SHP = Source(
    "shp",
    "Stanford Human Preferences: two Reddit comments and their votes (heavy tails: normalise with log or rank)",
    parse=parse_shp,
    requires=column_sets("history human_ref_A human_ref_B score_A score_B"),
    samples=(SHP_SAMPLE,),
    range="votes, without bounds (heavy tails: --normalise log or rank)",
    direction="more votes are better",
    licence="none stated; Reddit's terms",
    traps={
        "label": "labels is 1 where comment A is preferred, and may disagree with the votes: left out, by --fix-known-defects kept",
        "deleted": "[deleted] and [removed] are no texts",
    },
)
