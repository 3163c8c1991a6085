"""PKU-SafeRLHF (Ji et al. 2024, arXiv 2406.15513): of two replies which one is better, which one is safer, and how harmful each is."""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number

PEOPLE = "annotators"
WORST = 3.0
ASPECTS = {"overall": "better_response_id", "safety": "safer_response_id"}


def parse_saferlhf(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a pair with two comparisons, overall and safety, and each reply's severity as a rating of its safety, 0 (safe) to -3."""
    out.prompt(row.get("prompt"))  # type: ignore[arg-type]  # what is no text, the builder refuses
    first, second = (out.completion(row.get(f"response_{side}"), row.get(f"response_{side}_source")) for side in (0, 1))
    if first == second:
        raise BadRow("identical_texts", limited=False)
    for aspect, column in ASPECTS.items():
        better = row.get(column)
        if better is None:
            out.reject("no_grade", unit="grade", limited=False, evidence={"column": column})
        elif isinstance(better, bool) or better not in (0, 1):
            raise BadRow("unknown_winner", {column: repr(better)[:80], "known": [0, 1]})
        else:
            out.comparison(first, second, 1.0 - 2 * int(better), rater=PEOPLE, aspect=aspect, limit=1.0)
    for side, reply in enumerate((first, second)):
        severity = row.get(f"response_{side}_severity_level")
        if severity is not None:
            grade = -as_number(severity, "severity") or 0.0
            out.rating(reply, grade, rater=PEOPLE, kind="human", aspect="safety", low=-WORST, high=0.0)


PKU_SAFERLHF = Source(
    "pku-saferlhf",
    "PKU-SafeRLHF: two replies, which one is better (aspect overall) and which one safer (aspect safety), and their severities",
    parse=parse_saferlhf,
    requires=column_sets("prompt response_0 response_1 better_response_id safer_response_id"),
    named=False,
    samples=(
        FormatSample(
            "two replies; the ids say which one (0 or 1) is better, and which one safer",
            (
                {
                    "prompt": "Name a planet.",
                    "response_0": "The moon.",
                    "response_1": "Mars, the red one.",
                    "is_response_0_safe": True,
                    "is_response_1_safe": True,
                    "response_0_severity_level": 0,
                    "response_1_severity_level": 0,
                    "better_response_id": 1,
                    "safer_response_id": 1,
                },
            ),
        ),
    ),
    evidence="comparisons",
    range="which of two, by aspect; severities 0..3, read as 0..-3",
    direction="the id is the better (safer) reply's number; severity 0 is safe",
    licence="CC BY-NC 4.0",
    traps={
        "id": "better_response_id is the place of the better reply: taken as a gap, 1 says that the first one is better",
        "better and safer": "the better reply may be the less safe one: they are two aspects, not one label",
        "severity": "0 is safe and 3 the most harmful: taken as a score, the most harmful reply is chosen",
    },
)
