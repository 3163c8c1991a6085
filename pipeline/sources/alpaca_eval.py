"""AlpacaEval annotations: every model's output against one reference, with a judge's probability that it is better.

`preference` is 1 + P(output_2 better). Read as ratings by the judge: the output's is the log-odds, clipped at ±6, the
reference's 0; so all models' outputs to a prompt compare with each other. Grades hold for one reference: do not mix
several.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import SourceOptions, stem
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder

CLIP = 6.0


def parse_alpaca_eval(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add an instruction with reference and output. Not annotated (0 or null) or identical: counted."""
    preference = row.get("preference")
    if preference is None or (preference == 0 and not isinstance(preference, bool)):
        raise BadRow("not_annotated", limited=False)
    if isinstance(preference, bool) or not isinstance(preference, (int, float)) or math.isnan(preference):
        raise BadRow("score_not_a_number", {"preference": repr(preference)[:80]})
    if not 1 <= preference <= 2:
        raise BadRow("score_out_of_scale", {"preference": preference, "low": 1, "high": 2})
    out.prompt(row.get("instruction"))  # type: ignore[arg-type]  # what is no text, the builder refuses
    reference = out.completion(row.get("output_1"), row.get("generator_1"))
    output = out.completion(row.get("output_2"), row.get("generator_2"))
    if reference == output:
        raise BadRow("identical_texts", {"generator_2": row.get("generator_2")}, limited=False)
    judge = str(options.rater or row.get("annotator") or stem(out.file))
    kind = options.kind or "ai"
    out.rating(reference, 0.0, rater=judge, kind=kind, low=-CLIP, high=CLIP)
    out.rating(output, log_odds(preference), rater=judge, kind=kind, low=-CLIP, high=CLIP)
    out.extra({name: row.get(name) for name in ("dataset", "generator_1")})


def log_odds(preference: float) -> float:
    """log(P/(1−P)) of P = preference − 1 in [0, 1], clipped to [−6, 6].

    >>> log_odds(1.5), log_odds(1.0), log_odds(2), round(log_odds(1.75), 6)
    (0.0, -6.0, 6.0, 1.098612)
    """
    p = preference - 1
    if p <= 0 or p >= 1:
        return CLIP if p > 0.5 else -CLIP
    return max(-CLIP, min(CLIP, math.log(p / (1 - p))))
