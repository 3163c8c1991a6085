"""UltraFeedback (Cui et al. 2023, arXiv 2310.01377) as published, and in pairs: HuggingFaceH4's, allenai's cleaned copy, and Argilla's.

Known defects: an overall score of 10 that was a 1 (UltraFeedback issue 8); overall score and aspects that disagree
(issue 11, left to the user: both are kept as aspects); N/A for aspects; prompts of TruthfulQA, which contaminate that
benchmark.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.literals import spelled
from mmpo.pipeline.sources.messages import split_pair

RATER = "gpt-4"
OVERALL, FINE = (1.0, 10.0), (1.0, 5.0)
BENCHMARK = "truthful_qa"
NOT_APPLICABLE = {"n/a", "na", "none", "not applicable", ""}


def parse_ultrafeedback(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a prompt with its completions: `overall` on 1-10, and each annotated aspect on 1-5."""
    completions = spelled(row.get("completions"))
    if not isinstance(completions, list):
        raise BadRow("malformed_row", {"completions": type(completions).__name__})
    out.prompt(row.get("instruction"))  # type: ignore[arg-type]  # what is no text, the builder refuses
    for completion in completions:
        try:
            _add(completion, out, options)
        except BadRow as error:
            out.reject(error.reason, unit="completion", limited=error.limited, evidence=error.evidence)
    origin = row.get("source") or None
    if origin == BENCHMARK:
        out.count("truthful_qa_prompts")
    out.extra({"source": origin, "contaminates": origin if origin == BENCHMARK else None})


def _add(completion: Any, out: FeedbackBuilder, options: SourceOptions) -> None:
    """One completion with its grades; a grade that can't be used is counted and left out."""
    if not isinstance(completion, Mapping):
        raise BadRow("not_an_object", {"completion": type(completion).__name__})
    index = out.completion(completion.get("response"), completion.get("model"))
    annotations = spelled(completion.get("annotations"))
    fine: list[float] = []
    for aspect, annotated in (annotations if isinstance(annotations, Mapping) else {}).items():
        annotated = spelled(annotated)
        for one in annotated if isinstance(annotated, list) else [annotated]:
            if not isinstance(one, Mapping):
                continue
            value = _grade(one.get("Rating"), FINE, aspect, out)
            if value is not None:
                note = one.get("Rationale For Rating") or one.get("Rationale")
                _rate(out, index, value, aspect, FINE, note)
                fine.append(value)
    overall = _grade(completion.get("overall_score"), OVERALL, "overall", out)
    if overall is None:
        return
    mean = sum(fine) / len(fine) if fine else _plain(completion.get("fine-grained_score"))
    if overall == 10 and mean is not None and mean <= 4:
        evidence = {"overall_score": overall, "mean_of_aspects": mean, "model": completion.get("model")}
        if not options.fix_known_defects:
            out.reject("ten_for_one", unit="grade", limited=False, evidence=evidence)
            return
        # The mean of the aspects, moved from 1-5 to 1-10.
        overall = 1 + (mean - 1) * 9 / 4
        out.repair("ten_for_one_repaired", unit="grade", evidence={**evidence, "repaired": overall})
    _rate(out, index, overall, "overall", OVERALL, completion.get("critique"))


def _rate(out: FeedbackBuilder, index: int, value: float, aspect: str, scale: tuple[float, float], note: Any) -> None:
    text = note if isinstance(note, str) and note else None
    out.rating(index, value, rater=RATER, kind="ai", aspect=aspect, low=scale[0], high=scale[1], note=text)


def _grade(raw: Any, scale: tuple[float, float], aspect: str, out: FeedbackBuilder) -> float | None:
    """The number in a grade, which may be text; None where there is none (N/A is counted, an absent grade is not)."""
    if raw is None:
        return None
    if isinstance(raw, str) and raw.strip().lower() in NOT_APPLICABLE:
        out.reject("not_applicable", unit="grade", limited=False, evidence={"aspect": aspect})
        return None
    value = _plain(raw)
    if value is None:
        out.reject("score_not_a_number", unit="grade", evidence={"aspect": aspect, "score": repr(raw)[:80]})
    elif not scale[0] <= value <= scale[1]:
        out.reject("score_out_of_scale", unit="grade", evidence={"aspect": aspect, "score": value})
        return None
    return value


def _plain(raw: Any) -> float | None:
    """A finite number, given as such or as text; None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str, Decimal)):
        return None
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return None
    return value if value - value == 0 else None


def _sample(response: str, overall: float, helpfulness: str) -> dict[str, Any]:
    annotations = {"helpfulness": {"Rating": helpfulness, "Rationale": "..."}}
    return {"model": "a-model", "response": response, "critique": "...", "overall_score": overall, "annotations": annotations}


ULTRAFEEDBACK_SAMPLE = FormatSample(
    "a prompt with its completions, each with an overall score and aspects",
    (
        {
            "source": "sharegpt",
            "instruction": "Name a planet.",
            "completions": [_sample("Mars, the red one.", 8.5, "5"), _sample("The moon.", 3, "2")],
        },
    ),
)

ULTRAFEEDBACK = Source(
    "ultrafeedback",
    "UltraFeedback as published: four completions per prompt, overall score 1-10 and four aspects 1-5 by GPT-4",
    parse=parse_ultrafeedback,
    requires=column_sets("instruction completions"),
    named=False,
    samples=(ULTRAFEEDBACK_SAMPLE,),
    range="overall 1..10; aspects 1..5",
    direction="higher is better",
    licence="MIT",
    traps={
        "ten for one": "an overall score of 10 beside aspects of 4 and less was a 1: left out, made of the aspects by --fix-known-defects",
        "not applicable": "N/A is no grade: a mean over other aspects than the other reply's has another meaning",
        "two judgements": "overall score and aspects come from two questions and disagree: they are never merged unasked",
        "benchmark": "some prompts are TruthfulQA's, which can't be measured by after training on them: counted, not left out",
    },
)


# Columns of the two scores and their scale: overall scores 1-10, but Argilla's are means of the aspects, 1-5.
LAYOUTS = (
    ("score_chosen", "score_rejected", 1.0, 10.0),
    ("chosen-rating", "rejected-rating", 1.0, 5.0),
    ("chosen_avg_rating", "rejected_avg_rating", 1.0, 5.0),
)


def parse_ultrafeedback_binarized(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a pair as two ratings. Known defects: chosen scored lower (kept as the scores say under fix_known_defects),
    identical texts, different prompts inside chosen and rejected."""
    layout = next((one for one in LAYOUTS if row.get(one[0]) is not None), next((one for one in LAYOUTS if one[0] in row), None))
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
        out.repair("chosen_scored_lower_repaired", evidence=evidence)
    out.extra({"source": row.get("source") or None})


def _turns(reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": reply}]


BINARIZED_SAMPLE = FormatSample(
    "a pair of conversations and their two scores",
    (
        {
            "prompt": "Name a planet.",
            "chosen": _turns("Mars, the red one."),
            "rejected": _turns("The moon."),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
    ),
)

_TEXTS = {"prompt": "Name a planet.", "chosen": "Mars, the red one.", "rejected": "The moon."}
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
    samples=(
        BINARIZED_SAMPLE,
        FormatSample("Argilla's: means of the aspects, 1-5", ({**_TEXTS, "chosen-rating": 4.75, "rejected-rating": 2.0},)),
        FormatSample(
            "Argilla's cleaned copy", ({**_TEXTS, "chosen_avg_rating": 4.75, "rejected_avg_rating": 2.0, "chosen_model": "large"},)
        ),
    ),
    range="1..10; Argilla's 1..5",
    direction="higher is better",
    licence="MIT",
    traps={
        "chosen scored lower": "the chosen reply may have the lower score: left out, kept as the scores say by --fix-known-defects",
        "two scales": "scores are overall scores 1-10, Argilla's means of aspects 1-5: each layout has its own scale",
        "different prompts": "chosen and rejected may answer different prompts",
    },
)
