"""FEEDBACK of grades written by hand: prompts, their completions, and who said what of them by number."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.sources import FeedbackBuilder

Row = tuple[str, list[str], list[dict[str, Any]]]
"""A prompt, its completions, and grades: {"completion", "score", ...} or {"first", "second", "gap", ...}, by number."""


def table_of(rows: list[Row]) -> pa.Table:
    out = FeedbackBuilder("test")
    for number, (prompt, texts, grades) in enumerate(rows, 1):
        out.at("test.jsonl", number)
        out.prompt(prompt)
        places = [out.completion(text) for text in texts]
        for grade in grades:
            rest = {key: value for key, value in grade.items() if key not in ("completion", "score", "first", "second", "gap")}
            if "score" in grade:
                out.rating(places[grade["completion"]], grade["score"], **rest)
            else:
                out.comparison(places[grade["first"]], places[grade["second"]], grade["gap"], **rest)
    return narrow(out.finish())


def feedback(*grades: list[dict[str, Any]], texts: Sequence[str] = "AB") -> pa.Table:
    """A prompt for each list of grades, all with completions of these texts."""
    return table_of([(f"{texts} {i}", list(texts), one) for i, one in enumerate(grades)])


def said(rater: str, first: int, second: int, gap: float, kind: str = "human", **rest: Any) -> dict[str, Any]:
    return {"first": first, "second": second, "gap": gap, "rater": rater, "kind": kind, "limit": 3.0, **rest}


def rated(rater: str, completion: int, score: float, kind: str = "ai", **rest: Any) -> dict[str, Any]:
    return {"completion": completion, "score": score, "rater": rater, "kind": kind, "low": 1.0, "high": 5.0, **rest}
