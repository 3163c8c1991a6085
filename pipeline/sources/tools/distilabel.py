"""distilabel's data: replies with the grades of its UltraFeedback and QualityScorer tasks, or the pairs that formatting steps make of them.

The tasks number the pieces of a judge's reply by their place, so that an opening sentence or a blank line in a rationale shifts all later
grades, a cut reply hides it, replies graded in another order swap their grades, and 4.5 becomes 4. Where the raw output is there
(distilabel_metadata), grades are read from it by the number that the judge wrote; without it only a list without gaps, as long as the
replies, is taken at its word.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import FeedbackBuilder
from mmpo.pipeline.sources.cells import below_other
from mmpo.pipeline.sources.literals import spelled, structure
from mmpo.pipeline.sources.messages import read_conversation, read_reply, split_pair, with_system
from mmpo.pipeline.sources.tools.answers import as_note

SCALE = (1.0, 5.0)
_PIECE = re.compile(r"^#+ *Output for Text (\d+) *$", re.MULTILINE | re.IGNORECASE)
_SCORE = re.compile(r"^\W*\[(?:Response )?(\d+)\]\s*Score:\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_RATING = re.compile(r"^\W*Rating\W*:\W*?(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_RATIONALE = re.compile(r"^\W*Rationale\W*:\s*", re.MULTILINE | re.IGNORECASE)
_NUMBER = re.compile(r"[*_\s]*(\d+(?:\.\d+)?)(?:\s*/\s*5)?\W*")
Grade = tuple[str | float | None, str | None]
"""A grade, its text where it is none, or None; and the rationale."""


def parse_distilabel(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a prompt with its replies and their grades, or a pair with both."""
    prompt = next((row[name] for name in ("instruction", "prompt", "messages", "input") if row.get(name) is not None), None)
    by = {"rater": options.rater or str(row.get("model_name") or "distilabel"), "kind": options.kind or "ai"}
    replies = spelled(row.get("generations") if row.get("generations") is not None else row.get("responses"))
    if replies is None:
        _pair(row, prompt, out, options, by)
        return
    if not isinstance(replies, list):
        raise BadRow(
            "not_a_list", {"generations": repr(replies)[:80], "hint": "a row has the list of all replies to its instruction"}
        )
    grades = _raw_grades(row, len(replies), out) or _listed_grades(row, len(replies), out)
    models = row.get("generation_models") or row.get("model_names") or row.get("generation_model")
    models = models if isinstance(models, list) and len(models) == len(replies) else [None] * len(replies)
    _prompt(row, prompt, out)
    for reply, model, (grade, note) in zip(replies, models, grades, strict=True):
        try:
            index = out.completion(read_reply(reply, out.count), model)
        except BadRow as error:
            out.reject(error.reason, unit="completion", limited=error.limited, evidence=error.evidence)
            continue
        _rate(out, index, grade, note, by, options.scale or (SCALE if row.get("ratings") is not None else (None, None)))


def _prompt(row: Mapping[str, Any], prompt: Any, out: FeedbackBuilder) -> None:
    prompt = read_conversation(prompt)
    system = row.get("system_prompt")
    out.prompt(with_system(prompt, system) if isinstance(system, str) and system.strip() else prompt)


def _pair(row: Mapping[str, Any], prompt: Any, out: FeedbackBuilder, options: SourceOptions, by: dict[str, str]) -> None:
    before, chosen, rejected = split_pair(prompt, row.get("chosen"), row.get("rejected"), out.count)
    _prompt(row, before, out)
    if below_other((row.get("chosen_rating"), row.get("rejected_rating"))):
        out.count("chosen_below_rejected")
    for side, reply in (("chosen", chosen), ("rejected", rejected)):
        _rate(out, out.completion(reply, row.get(f"{side}_model")), row.get(f"{side}_rating"), None, by, options.scale or SCALE)


def _rate(out: FeedbackBuilder, index: int, grade: Any, note: str | None, by: dict[str, str], scale: Any) -> None:
    low, high = scale
    if grade is None:
        out.reject("no_grade", unit="grade", limited=False)
        return
    if isinstance(grade, str):
        spelled = _NUMBER.fullmatch(grade)
        grade = float(spelled[1]) if spelled else grade
    if isinstance(grade, str):
        out.reject("not_applicable", unit="grade", limited=False, evidence={"rating": grade[:80]})
        return
    try:
        out.rating(index, grade, **by, low=low, high=high, note=as_note(note))
    except BadRow as error:
        out.reject(error.reason, unit="grade", limited=error.limited, evidence=error.evidence)


def _raw_outputs(row: Mapping[str, Any]) -> Iterator[str]:
    """What judges wrote in one of the tasks' layouts."""
    kept = row.get("distilabel_metadata")
    kept = structure(kept) if isinstance(kept, str) else kept
    for name, raw in kept.items() if isinstance(kept, Mapping) else ():
        if name.startswith("raw_output") and isinstance(raw, str) and (_PIECE.search(raw) or _SCORE.search(raw)):
            yield raw


def _raw_grades(row: Mapping[str, Any], count: int, out: FeedbackBuilder) -> list[Grade] | None:
    """The grades of the one raw output in the task's layout, by the numbers that the judge wrote; None where there is none or several."""
    raw = list(_raw_outputs(row))
    if len(raw) != 1:
        return None
    found: list[Grade] = [(None, None)] * count
    _, *pieces = _PIECE.split(raw[0])
    graded = (
        zip(map(int, pieces[::2]), map(_rated, pieces[1::2]))
        if pieces
        else ((int(n), (text, None)) for n, text in _SCORE.findall(raw[0]))
    )
    for number, (rating, note) in graded:
        if not 1 <= number <= count or found[number - 1] != (None, None):
            out.reject("rating_of_no_reply", unit="grade", limited=False, evidence={"text": number, "replies": count})
        elif rating is not None:
            value = _NUMBER.fullmatch(rating)
            found[number - 1] = float(value[1]) if value else rating, note
    written = [grade if isinstance(grade, float) else None for grade, _ in found]
    given = row.get("ratings") if pieces else row.get("scores")
    if isinstance(given, list) and given != written:
        out.count("ratings_reread")
    return found


def _rated(piece: str) -> tuple[str | None, str | None]:
    """The text of a piece's rating, and its rationale, which some aspects have before it and some behind."""
    rating = _RATING.search(piece)
    if rating is None:
        return None, None
    behind, before = (_RATIONALE.split(text, maxsplit=1) for text in (piece[rating.end() :], piece[: rating.start()]))
    told = behind if len(behind) > 1 else before
    return rating[1], told[1].strip() if len(told) > 1 else None


def _listed_grades(row: Mapping[str, Any], count: int, out: FeedbackBuilder) -> list[Grade]:
    """The grades as distilabel has them. Raises BadRow lengths_differ; place_unknown, where a null stands before a grade."""
    given = spelled(row.get("ratings") if row.get("ratings") is not None else row.get("scores"))
    if given is None:
        return [(None, None)] * count
    if not isinstance(given, list):
        raise BadRow("not_a_list", {"ratings": repr(given)[:80]})
    notes = row.get("rationales")
    notes = notes if isinstance(notes, list) and len(notes) == len(given) else [None] * len(given)
    graded = [one for one in given if one is not None]
    hint = "grades are numbered by place, and one is missing: keep distilabel_metadata, whose raw output says which is whose"
    if len(given) != count and graded:
        raise BadRow("lengths_differ", {"generations": count, "ratings": len(given), "hint": hint}, limited=False)
    if graded and given[: len(graded)] != graded:
        raise BadRow("place_unknown", {"ratings": given, "hint": hint}, limited=False)
    return list(zip(given, notes)) if len(given) == count else [(None, None)] * count


_RAW = "#### Output for Text 1\nRating: 2\nRationale: no planet\n\n#### Output for Text 2\nRating: 5\nRationale: right"
_ROW = {
    "instruction": "Name a planet.",
    "generations": ["The moon.", "Mars, the red one."],
    "generation_models": ["small", "large"],
}
_PAIR = {
    "prompt": "Name a planet.",
    "chosen": [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "Mars, the red one."}],
    "rejected": [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": "The moon."}],
    "chosen_rating": 5,
    "rejected_rating": 2,
}
DISTILABEL = Source(
    "distilabel",
    "distilabel's data: generations with the grades of its UltraFeedback and QualityScorer tasks, or pairs made of them",
    parse=parse_distilabel,
    requires=column_sets("generations ratings", "responses scores", "chosen rejected chosen_rating rejected_rating"),
    export="Read are the rows of the tasks UltraFeedback and QualityScorer and of the steps that format them; others by --format jsonl "
    "--columns completions=generations,scores=COLUMN.",
    scaled=True,
    samples=(
        FormatSample(
            "generations, their ratings (here one place off) and the judge's raw output, which is read",
            ({**_ROW, "ratings": [None, 2, 5], "distilabel_metadata": {"raw_output_ultra_feedback_0": "Sure.\n\n" + _RAW}},),
        ),
        FormatSample("generations and ratings alone", ({**_ROW, "ratings": [2, 5], "rationales": ["no planet", "right"]},)),
        FormatSample("pairs, as the steps that format for DPO make them", (_PAIR,)),
    ),
    range="ratings 1 to 5; QualityScorer's scores from 1",
    direction="higher is better",
    traps={
        "shifted ratings": "ratings are numbered by the place of their piece in the judge's reply: an opening sentence or a blank line in "
        "a rationale shifts all that follow",
        "swapped scores": "QualityScorer takes scores in the order in which the judge wrote them: [2] before [1] swaps them, and only the "
        "raw output tells",
        "cut decimals": "4.5 becomes 4",
        "null before grades": "without the raw output nobody knows whose grade stands behind a null",
        "tied pairs": "of two replies with one grade the formatting step takes the first as chosen and as rejected",
    },
)
