"""`validate`: is a dataset folder what it says? Every rule of docs/data-contract.md, and what usually goes wrong with preference data.

Adding a check: a rule is counted in mmpo.pipeline.checks, under the name that it has in CHECKS here; what is made of figures is a
function over the `Findings`. One pass over the parts, a row group at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.pipeline.build.mixture import apart
from mmpo.pipeline.build.summary import SAME_SCALE_TIMES
from mmpo.pipeline.checks import Findings, look_at_feedback, look_at_folder, look_at_pairs
from mmpo.pipeline.checks.pairs import SATURATED as SATURATED
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import NORMALISATIONS
from mmpo.pipeline.interactive import Summary
from mmpo.pipeline.margins import resolve_gamma
from mmpo.pipeline.options import read_gamma
from mmpo.pipeline.storage import on_disk, part_files, read_manifest, read_parts
from mmpo.pipeline.tables import SPLITS

Outcome = tuple[str, int, str]
BOTH = ("pairs", "feedback")
MOST_CLIPPED_TIES = 0.1
"""Share of the pairs that may be ties at an end of the scale where a source clips its grades."""


@dataclass(frozen=True)
class Check:
    """One thing that `validate` looks at. outcome: status (pass, warn, fail or unknown), count and message, from the name and what was
    found. tables: the kinds of folder that it is for."""

    outcome: Callable[[str, Findings], Outcome]
    summary: str
    tables: tuple[str, ...] = ("pairs",)


def _rule(good: str, bad: str, *tables: str, status: str = "fail") -> Check:
    """A rule that nothing may break; `Findings.broken` counts what does, under the check's name."""

    def outcome(name: str, found: Findings) -> Outcome:
        count = found.broken[name]
        if count:
            return status, count, f"{bad}; first: {found.first[name]}"
        return ("unknown", 0, found.unknown[name]) if name in found.unknown else ("pass", 0, good)

    return Check(outcome, good, tables or ("pairs",))


def _row_counts(name: str, found: Findings) -> Outcome:
    status, count, message = _COUNTED.outcome(name, found)
    total = sum(found.rows.values())
    return (status, total, f"{total:,} rows, as the manifest says") if status == "pass" else (status, count, message)


_COUNTED = _rule("", "rows or prompts are not as many as the manifest says")


def _score_range(name: str, found: Findings) -> Outcome:
    sources = [found.manifest, *found.mixture.values()]
    if not found.broken[name] and found.manifest.get("kind") == "pairs" and not any(one.get("score_range") for one in sources):
        return "unknown", 0, "not known: no scale is declared, or the margins have none"
    return _IN_RANGE.outcome(name, found)


_IN_RANGE = _rule("scores lie on the declared scale", "scores outside the declared scale")


def _sources(name: str, found: Findings) -> Outcome:
    if not found.mixture:
        return "pass", 0, "the pairs come of one build without a mixture"
    return _OF_MIXTURE.outcome(name, found)


_OF_MIXTURE = _rule(
    "every pair is of a source that the manifest names, as many of each as it says", "pairs of other sources, or of others' number"
)


def _by_source(found: Findings) -> Outcome:
    """Whether the margins of sources that are mixed are of a size, by the γ that each alone would have."""
    gammas = {name: one["gamma_auto"] for name, one in found.manifest.get("by_source", {}).items() if one.get("gamma_auto")}
    told = ", ".join(f"{name} {gamma:.3g}" for name, gamma in gammas.items())
    if apart(gammas):
        return "warn", len(gammas), f"the margins of the sources are on different scales; γ auto of each alone: {told}"
    return "pass", len(gammas), f"the margins of the sources are of a size; γ auto of each alone: {told or 'unknown'}"


def _scales(name: str, found: Findings) -> Outcome:
    if found.mixture:
        return _by_source(found)
    scales = found.manifest.get("scales")
    normalisation = found.manifest.get("normalisation", "none")
    if not scales:
        return "unknown", 0, "not known: the manifest names no scale"
    open_ended = any(None in scale for scale in scales)
    if normalisation in NORMALISATIONS and NORMALISATIONS[normalisation].one_scale:
        return "pass", len(scales), f"{len(scales)} declared, brought together by {normalisation}"
    if open_ended and len(scales) > 1:
        return (
            "warn",
            len(scales),
            "some grades have a declared scale and others have none: margins may mix units; --scale declares it",
        )
    apart = _apart(found.manifest.get("grade_ranges", {}))
    if apart:
        return (
            "warn",
            len(apart),
            f"no scale is declared, and raters' grades range too differently to be on one: {'; '.join(apart)}",
        )
    if open_ended:
        return "unknown", 0, "not known: no scale is declared (--scale), so that raters may mean different things by their numbers"
    if len(scales) > 1 and "=" not in str(found.recipe.get("score", "")):
        return "warn", len(scales), f"grades of {len(scales)} scales make the margins and nothing normalises them"
    return "pass", len(scales), "one scale" if len(scales) == 1 else f"{len(scales)} scales, of aspects that are weighed"


def _apart(ranges: dict[str, dict[str, list[float]]]) -> list[str]:
    """Aspects whose raters without a declared scale range too differently, in words. ranges: aspect → rater → least and largest grade."""
    found = []
    for aspect, raters in ranges.items():
        widths = sorted((most - least, rater, least, most) for rater, (least, most) in raters.items() if most > least)
        if widths and widths[-1][0] >= SAME_SCALE_TIMES * widths[0][0]:
            words = [f"{rater!r} {least:g} to {most:g}" for _, rater, least, most in (widths[0], widths[-1])]
            found.append(f"{aspect}: {', '.join(words)}")
    return found


def _ties(name: str, found: Findings) -> Outcome:
    share = found.figures["ties"] / max(sum(found.rows.values()), 1)
    message = f"{share:.1%} of the pairs have margin 0; data for mmpo and rpo-*, left out by objectives that need a winner"
    return ("warn" if share > 0.5 else "pass"), found.figures["ties"], message


def _ends(name: str, found: Findings) -> Outcome:
    """Grades at the ends of their scales, as the build counted them, of FEEDBACK without its word as they stand; pairs that are ties there
    make a warning where a source clips."""
    known = {source: one for source, one in found.manifest.get("saturated", {}).items() if one["at_ends"] is not None}
    if not known and found.figures["grades_with_scale"]:
        grades, at_ends = found.figures["grades_with_scale"], found.figures["at_ends"]
        return "pass", at_ends, f"{at_ends / grades:.1%} of {grades:,} grades stand at an end of their scale"
    if not known:
        return "unknown", 0, "not known: no scale is declared, or the manifest does not say"
    grades, at_ends = (sum(one[key] for one in known.values()) for key in ("grades", "at_ends"))
    ties, pairs = found.manifest.get("ties_at_ends") or 0, max(sum(found.rows.values()), 1)
    message = f"{at_ends / max(grades, 1):.1%} of {grades:,} grades stand at an end of their scale"
    message += f"; {ties:,} pairs are ties there" if ties else ""
    clipped = [source for source, one in known.items() if one["transform"] and one["at_ends"]]
    message += f"; {', '.join(clipped)} clips (--clip)" if clipped else ""
    return ("warn" if clipped and ties / pairs > MOST_CLIPPED_TIES else "pass"), at_ends, message


def _length(name: str, found: Findings) -> Outcome:
    uneven = found.figures["uneven"]
    share = found.figures["longer"] / max(uneven, 1)
    message = f"the longer reply is chosen in {share:.1%} of the untied pairs whose lengths differ"
    if uneven < 50:
        return "unknown", found.figures["longer"], f"{message}; {uneven} are too few to say"
    return ("pass" if 0.35 <= share <= 0.65 else "warn"), found.figures["longer"], message


def _saturation(name: str, found: Findings) -> Outcome:
    if found.gamma is None:
        return "unknown", 0, "not looked at: name a gamma"
    count, untied = found.figures["saturated"], found.figures["untied"]
    share = count / max(untied, 1)
    message = f"at gamma {found.gamma:g}, {share:.1%} of the untied targets pass {SATURATED}: margins above them say nothing"
    return ("warn" if share > 0.5 else "pass"), count, message


def _errors_known(name: str, found: Findings) -> Outcome:
    share = found.figures["unsure"] / max(sum(found.rows.values()), 1)
    return "pass", found.figures["unsure"], f"margin_se is unknown for {share:.1%} of the pairs"


def _raters(name: str, found: Findings) -> Outcome:
    doubtful = found.manifest.get("doubtful_raters")
    if doubtful is None:
        return "unknown", 0, "the manifest does not say how raters agree"
    if doubtful:
        return (
            "warn",
            len(doubtful),
            f"raters who go against the others or can't be told from chance: {', '.join(list(doubtful)[:5])}",
        )
    return "pass", 0, "no rater of 20 items shared with others goes against them"


def _empty_splits(name: str, found: Findings) -> Outcome:
    shares = found.recipe.get("split") or (1, 1, 1)
    empty = [split for split, share in zip(SPLITS, shares, strict=False) if share and not found.rows[split]]
    if not empty or found.unread:
        return "pass", 0, "every split that has a share holds pairs"
    prompts, alike = found.figures["prompts"], found.figures["conversations"]
    why = f"{prompts:,} prompts are too few"
    if alike < prompts:
        why = f"the {prompts:,} prompts have {alike:,} different first user messages, and those decide the split"
    return "warn", len(empty), f"{', '.join(empty)} hold no pairs: {why}"


CHECKS: dict[str, Check] = {
    "parts": _rule("every part can be read", "parts that can't be read, are gone or too many", *BOTH),
    "schema": _rule("columns and types as in the data contract", "columns missing or of other types", *BOTH),
    "other columns": _rule("no other columns", "columns that the contract does not have", *BOTH),
    "metadata": _rule("the parts' metadata are the manifest's", "metadata of parts that are not the manifest's", *BOTH),
    "digests": _rule("every file is as it was written", "files that are not what was written", *BOTH),
    "files": _rule("no file is gone or added", "files that are gone or that the manifest does not name", *BOTH),
    "row counts": Check(_row_counts, "as many rows and prompts as the manifest says", BOTH),
    "counts": _rule("what came in went out or was dropped by reason", "counts in the manifest that do not balance", *BOTH),
    "card": _rule("README.md names the splits", "the dataset card does not fit", *BOTH),
    "rejects": _rule("rejects.parquet holds what was dropped", "rejects that are not those of the counts", *BOTH),
    "nulls": _rule("no null where a value is needed", "nulls where a value is needed", *BOTH),
    "messages": _rule("prompts have messages, replies are one by the assistant", "prompts or replies of other messages", *BOTH),
    "prompt ids": _rule("prompt ids are the digests of the prompts", "prompt ids that do not fit the prompt", *BOTH),
    "completion ids": _rule("completion ids are the digests of the texts", "completion ids that do not fit", *BOTH),
    "empty texts": _rule("no empty text", "empty texts", *BOTH),
    "identical texts": _rule("no pair of equal texts", "pairs of equal texts"),
    "duplicates": _rule("nothing stands there twice", "pairs, replies or prompts that occur more than once", *BOTH),
    "adjacent rows": _rule("rows of one prompt stand together", "prompts whose rows stand apart"),
    "one value": _rule("a reply has one score and one model", "replies with another score or model in another pair"),
    "margin sign": _rule("margins are finite and 0 or more", "margins that are negative or not finite"),
    "scores": _rule("margins are the differences of the scores", "scores that do not give the margin, or are not there"),
    "score range": Check(_score_range, "scores lie on the declared scale", BOTH),
    "order of ties": _rule("of a tie the smaller id is chosen", "ties whose chosen reply has the larger id"),
    "left out": _rule("no pair that the recipe leaves out", "pairs that the recipe leaves out"),
    "standard errors": _rule("standard errors are 0 or more", "standard errors below 0, infinite or NaN (unknown is null)", *BOTH),
    "known errors": Check(_errors_known, "for how many pairs margin_se is known"),
    "votes": _rule("votes lie between 0 and the raters", "votes below 0 or above the raters"),
    "witnesses": _rule(
        "some rater graded both sides of every pair",
        "pairs whose margin no rater witnessed (raters 0; mmpo build --min-raters 1 leaves them out)",
        status="warn",
    ),
    "raters": Check(_raters, "no rater whose agreement with the others can't be told from chance"),
    "kinds": _rule("known kinds of raters", "unknown kinds of raters", *BOTH),
    "grades": _rule("grades are of the row's replies, by named raters", "grades that can't be used", "feedback"),
    "probabilities": _rule("probabilities are shares that sum to at most 1", "probabilities that are none", "feedback"),
    "extra": _rule("extra is a JSON object or null", "extra that is no JSON object", "feedback"),
    "split": _rule("prompts are in the split of their hash", "prompts in another split than that of their hash"),
    "leakage": _rule(
        "no prompt and no conversation is on two sides of the split", "prompts or conversations on two sides of the split"
    ),
    "near leakage": _rule(
        "no first messages on two sides are equal but for case and space",
        "first messages on two sides of the split that are equal but for case and space (`mmpo build --duplicates splits` keeps one side)",
        status="warn",
    ),
    "empty splits": Check(_empty_splits, "every split that has a share holds pairs"),
    "scales": Check(_scales, "one scale, or one that a normalisation makes"),
    "sources": Check(_sources, "of several sources that are mixed, those that the manifest names"),
    "scale ends": Check(_ends, "grades that are not cut off at an end of their scale", BOTH),
    "ties": Check(_ties, "not mostly pairs of margin 0"),
    "length bias": Check(_length, "neither the longer nor the shorter reply is nearly always chosen"),
    "saturation": Check(_saturation, "targets at --gamma that still tell margins apart"),
}


def _gamma_of(folder: Path, given: float | str) -> float | None:
    """The γ, by the training pairs where it is auto; None where these can't be read or have no margin, which other checks say."""
    gamma = read_gamma(given)
    if not isinstance(gamma, str):
        return gamma
    try:
        files = part_files(folder)
        table = read_parts(files["train"] or [file for part in files.values() for file in part], columns=["quality_margin"])
        return resolve_gamma(gamma, table["quality_margin"].drop_null())
    except UserError:
        return None


def validate(
    dir: str | Path,
    *,
    gamma: float | str | None = None,
    strict: bool = False,
    watch: Callable[[str, Path, int, pa.RecordBatch], None] | None = None,
) -> dict[str, Any]:
    """Check a dataset folder, of PAIRS or of FEEDBACK.

    gamma: in 1/margin-unit, or auto, auto:MEAN (of the training pairs); where given, the share of saturated targets is a check of its own.
    strict: warnings count as failures; "unknown" is a check that had nothing to look at, and neither passes nor fails. watch: called
    with rows of pairs as they are read (`Findings.watch`), for whoever wants more of the same pass.
    Returns {"ok", "checks": [{"name", "status": "pass" | "warn" | "fail" | "unknown", "count", "message"}]}.
    Raises UserError where the folder is no dataset of mmpo.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> from mmpo.pipeline import build_pairs, read_feedback, write_dataset
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_dataset(build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5))), f"{folder}/pairs")
    ...     checked = validate(f"{folder}/pairs")
    >>> checked["ok"], checked["checks"][0]["status"]
    (True, 'pass')
    """
    folder = on_disk(dir)
    manifest = read_manifest(folder)
    kind = manifest.get("kind")
    if kind not in BOTH:
        raise UserError(f"{folder}: its manifest says kind {kind!r}; a dataset holds {' or '.join(BOTH)}")
    found = Findings(folder, manifest, None if gamma is None else _gamma_of(folder, gamma), watch=watch)
    (look_at_pairs if kind == "pairs" else look_at_feedback)(found)
    look_at_folder(found)
    checks = []
    for name, check in CHECKS.items():
        if kind in check.tables:
            status, count, message = check.outcome(name, found)
            checks.append({"name": name, "status": status, "count": count, "message": message})
    bad = ("fail", "warn") if strict else ("fail",)
    return Summary({"ok": not any(check["status"] in bad for check in checks), "checks": checks})
