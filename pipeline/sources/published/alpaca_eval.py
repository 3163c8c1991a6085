"""AlpacaEval annotations: every model's output against one reference, with a judge's probability that it is better.

`preference` is 1 + P(output_2 better). Read as ratings by the judge: the output's is the log-odds, clipped at ±16 (--clip),
the reference's 0; so all models' outputs to a prompt compare with each other. Grades hold for one reference: do not
mix several. Half of real log-odds lie below -9.6, so that a clip at ±6 made ties of two thirds of all pairs.
`raw_completion`, where it is kept, gives the judge's explanation, the log-odds of a preference that was rounded to 1 or 2, and who was
ranked first: a row whose raw reply ranks the other output first is left out.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets, stem
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number
from mmpo.pipeline.sources.literals import structure


def parse_alpaca_eval(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add an instruction with reference and output. Not annotated (0 or null) or identical: counted."""
    preference = row.get("preference")
    if preference is None or (preference == 0 and not isinstance(preference, bool)):
        raw: Any = row.get("raw_completion")
        raise BadRow("not_annotated", None if raw is None else {"raw_completion": str(raw)[:200]}, limited=False)
    preference = as_number(preference, "preference")
    if not 1 <= preference <= 2:
        raise BadRow("score_out_of_scale", {"preference": preference, "low": 1, "high": 2})
    raw = _read_raw(row) if row.get("raw_completion") is not None else NOTHING
    if raw.first is not None and preference != 1.5 and raw.first != ("output_2" if preference > 1.5 else "output_1"):
        raise BadRow("raw_disagrees", {"preference": preference, "ranked_first": raw.first}, limited=False)
    out.prompt(row.get("instruction"))  # type: ignore[arg-type]  # what is no text, the builder refuses
    reference = out.completion(row.get("output_1"), row.get("generator_1"))
    output = out.completion(row.get("output_2"), row.get("generator_2"))
    if reference == output:
        raise BadRow("identical_texts", {"generator_2": row.get("generator_2")}, limited=False)
    judge = str(options.rater or row.get("annotator") or stem(out.file))
    kind, odds, high = options.kind or "ai", log_odds(preference), options.clip
    if math.isinf(odds) and raw.gap is not None:
        odds = math.copysign(raw.gap, odds)
    if high is None and math.isinf(odds):
        raise BadRow("infinite_log_odds", {"preference": preference, "hint": "--clip X keeps it as X or -X"}, limited=False)
    low, odds = (None, odds) if high is None else (-high, max(-high, min(high, odds)))
    out.rating(reference, 0.0, rater=judge, kind=kind, low=low, high=high)
    out.rating(output, odds, rater=judge, kind=kind, low=low, high=high, note=raw.explanation)
    out.extra({name: row.get(name) for name in ("dataset", "generator_1")})


class _Raw(NamedTuple):
    """What a judge's raw reply says: the output ranked first, how far apart the log-probabilities of both verdicts are, and why."""

    first: str | None = None
    gap: float | None = None
    explanation: str | None = None


NOTHING = _Raw()


def _read_raw(row: Mapping[str, Any]) -> _Raw:
    given = (row.get("raw_completion"), row.get("referenced_models"))
    raw, names = (structure(one) if isinstance(one, str) and one[:1] == "{" else one for one in given)
    if not isinstance(raw, Mapping):
        return _Raw()
    explained = raw.get("concise_explanation") or raw.get("explanation")
    first = gap = None
    if isinstance(names, Mapping):
        with suppress(KeyError, TypeError, ValueError):
            ranks = {names[one["model"]]: one["rank"] for one in raw["ordered_models"]}
            best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
            first = best[0] if len(best) == 1 else None
    with suppress(KeyError, IndexError, TypeError):
        chances = {one["token"]: one["logprob"] for one in raw["logprobs"]["content"][0]["top_logprobs"]}
        gap = abs(chances["M"] - chances["m"])
    return _Raw(first, gap, explained if isinstance(explained, str) else None)


def log_odds(preference: float) -> float:
    """log(P/(1−P)) of P = preference − 1 in [0, 1]; infinite at both ends.

    >>> log_odds(1.5), log_odds(1.0), log_odds(2), round(log_odds(1.75), 6)
    (0.0, -inf, inf, 1.098612)
    """
    p = preference - 1
    if p <= 0 or p >= 1:
        return math.inf if p > 0.5 else -math.inf
    return math.log(p / (1 - p))


_PLAIN = {
    "instruction": "Name a planet.",
    "output_1": "The moon.",
    "generator_1": "reference",
    "output_2": "Mars, the red one.",
    "generator_2": "large",
    "annotator": "a-judge",
    "preference": 1.98,
}
ALPACA_EVAL_SAMPLE = FormatSample("a model's output against the reference; `preference` is 1 + P(output_2 is better)", (_PLAIN,))
_RANKED = FormatSample(
    "with the judge's raw reply, which must rank the same output first",
    (
        {
            **_PLAIN,
            "preference": 2,
            "raw_completion": {
                "concise_explanation": "The moon is no planet.",
                "ordered_models": [{"model": "m", "rank": 1}, {"model": "M", "rank": 2}],
            },
            "referenced_models": {"M": "output_1", "m": "output_2"},
        },
    ),
)

ALPACA_EVAL = Source(
    "alpaca-eval",
    "AlpacaEval annotations: a judge's preference over one reference as a log-odds, the reference 0",
    parse=parse_alpaca_eval,
    requires=column_sets("instruction output_1 output_2 preference"),
    clipped=True,
    export="Read are a run's annotations.json; model_outputs.json holds no grades.",
    samples=(ALPACA_EVAL_SAMPLE, _RANKED),
    range="log-odds, cut at -16 and 16 (--clip)",
    direction="preference above 1.5: output_2 is better than the reference",
    licence="CC BY-NC 4.0",
    traps={
        "not annotated": "0 and null are no preference: as numbers they would be the surest ones",
        "certainty": "1 and 2 are infinite log-odds: cut off, counted",
        "one reference": "all outputs meet one reference: they are graded against it, so that they compare with each other",
    },
)
