"""`mmpo gamma`: which γ to train with: the conventions, what each γ makes of the margins at hand, and the fits to independent votes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.api import build_pairs, grades_of, load_feedback
from mmpo.pipeline.arrow import codes, flat
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import InvalidValue, UserError
from mmpo.pipeline.margins import MEAN_TARGET, Floats, as_floats, gamma_for_mean_target, target_probability
from mmpo.pipeline.metrics import Votes, fit_gamma
from mmpo.pipeline.pairs import RaterGaps, rater_gaps
from mmpo.pipeline.storage import MANIFEST, on_disk, part_files, read_manifest, read_parts
from mmpo.pipeline.validate import SATURATED

MEANS = (0.75, 0.9)
"""The mean targets whose γ are shown as conventions, beside that of γ auto."""
PUBLISHED = (0.3, 1.1, 2.2)
"""The paper's γ; they hold for margins between grades from 1 to 10, not normalised."""
UNIT_OF_PUBLISHED = "the paper's, for margins of 1–10 grades, not normalised"
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_OF_VOTES = ["prompt_id", "chosen_id", "rejected_id", "source", "preferring", "raters"]
PEOPLE = {"human": "people", "ai": "judges", "reward_model": "reward models"}
ALL = "all sources"
FROM_FEEDBACK = "all pairs of this FEEDBACK"

NO_VOTES = (
    "γ can't be fitted here: PAIRS keep how many of a margin's own raters prefer the chosen completion, and against the raters that made "
    "it every likelihood prefers a larger γ. What gives a fit: single grades of two or more raters (mmpo build SOURCE --feedback-only "
    "--out FEEDBACK; mmpo gamma FEEDBACK leaves each rater out in turn), or votes of others (--votes FILE)"
)
ONE_RATER = (
    "γ can't be fitted here: no pair of completions was graded by two raters, so that there is no vote that made no part of the margin. A "
    "second rater for some of the pairs (mmpo argilla push, or another judge) gives one"
)


_AGAINST = (
    "{source}: of the {votes:,.0f} votes of {votes_of} {share:.0f}% side with the margins of {margins_of}; weighed by these they go "
    "against them, so that the fitted γ is 0: above it none makes the votes likelier than a coin does. Are chosen and rejected swapped in "
    "the votes?"
)


class _Fit(NamedTuple):
    """What a γ is fitted to: whose margins and whose votes; arrays of shape (rows,): margins, votes for, votes, prompt and source."""

    margins_of: str
    votes_of: str
    margin: np.ndarray
    preferring: np.ndarray
    raters: np.ndarray
    prompt: np.ndarray
    source: np.ndarray


def suggest_gamma(data: str | Path | pa.Table, votes: str | Path | None = None) -> dict[str, Any]:
    """The γ at which the mean target over the non-tied training pairs is `MEAN_TARGET` (a convention, not a fit), and its company.

    data: a folder of PAIRS (its train split; all splits where train is empty), a folder of FEEDBACK (margins as `mmpo build --format
    feedback` makes them), or a table of either. votes: a file of votes that made no part of the margins, on pairs of any split, as
    `mmpo evaluate --votes` takes it.

    Returns gamma (in 1/margin-unit), mean_target, pairs, ties, pairs_of (in words which ones these are; the margins below are theirs),
    votes_on (the pairs that fits are of), margin_quantiles, `conventions` (name, gamma and what it makes of the margins), `fits` (per
    source and over all: whose margins, whose votes, gamma, gamma_95, interval, pairs, prompts, votes, with_margin (the share of the votes
    that side with the margin), cross_entropy in nats per vote beside that of a coin, mean_target and saturated at that γ), `not_fitted`:
    why there is no fit, else None, `votes`: of how many pairs the file has some, and how many of these are here,
    `warnings`, in words, and `what_each_gamma_makes`, rows of `gamma_table`. Raises UserError where every pair is a tie, or votes are the
    margins' own.
    """
    columns = ["quality_margin", "margin_se"]
    feedback = _feedback(data)
    table, of = (build_pairs(feedback), FROM_FEEDBACK) if feedback is not None else _pairs(data, columns)
    voted, voted_of = (table, of) if feedback is not None or votes is None else _pairs(data, [*_OF_VOTES, *columns], training=False)
    margins, errors = (table[name].cast(pa.float64()).to_numpy() for name in columns)
    decided = margins > 0
    if not decided.any():
        raise UserError(f"none of the {len(margins)} pairs has a margin above 0: there is nothing to scale by gamma")
    gamma = gamma_for_mean_target(margins[decided], MEAN_TARGET)
    cast = None if votes is None else Votes(votes)
    found = [
        *(_of_feedback(feedback) if feedback is not None else ()),
        *(_of_votes(voted, cast) if cast is not None else ()),
    ]
    fits = [row for one in found for row in _fits(one, margins[decided])]
    conventions = {f"mean target {mean:g}": gamma_for_mean_target(margins[decided], mean) for mean in sorted({*MEANS, MEAN_TARGET})}
    marked = {f"mean target {MEAN_TARGET:g}": " (auto)"}
    named = {name + marked.get(name, ""): value for name, value in conventions.items()}
    named |= {f"published {value:g}": value for value in PUBLISHED}
    return {
        "gamma": gamma,
        "mean_target": MEAN_TARGET,
        "pairs": len(margins),
        "ties": int((~decided).sum()),
        "pairs_of": of,
        "votes_on": voted_of,
        "margin_quantiles": [
            {"share": q, "margin": float(v)} for q, v in zip(LEVELS, np.quantile(margins[decided], LEVELS), strict=True)
        ],
        "conventions": [
            {
                "name": name,
                "gamma": value,
                **_makes(margins[decided], value),
                "unit": "1/margin" if value not in PUBLISHED else UNIT_OF_PUBLISHED,
            }
            for name, value in named.items()
        ],
        "fits": fits,
        "votes": None if cast is None else cast.counts(voted),
        "warnings": [
            *(cast.warnings(voted) if cast is not None else ()),
            *(_AGAINST.format(**row, share=100 * row["with_margin"]) for row in fits if row["gamma"] == 0),
        ],
        "not_fitted": None if fits else NO_VOTES if feedback is None else ONE_RATER,
        "what_each_gamma_makes": gamma_table(
            margins[decided], errors[decided], gamma, [row["gamma"] for row in fits if row["source"] == ALL]
        ),
    }


def _feedback(data: str | Path | pa.Table) -> pa.Table | None:
    if isinstance(data, pa.Table):
        return data if "completions" in data.column_names else None
    folder = on_disk(data)  # of PAIRS, or what `part_files` has its own words for
    known = (folder / MANIFEST).is_file() and read_manifest(folder).get("kind") == "feedback"
    return load_feedback(folder) if known else None


def _pairs(data: str | Path | pa.Table, columns: list[str], training: bool = True) -> tuple[pa.Table, str]:
    """PAIRS of a table or a folder, its train split, or where that is empty, or with training False, all splits; and which, in words."""
    if isinstance(data, pa.Table):
        return data, "the table"
    files = part_files(data)
    if training and files["train"]:
        return read_parts(files["train"], columns=columns), "the train split"
    return read_parts([file for part in files.values() for file in part], columns=columns), "all splits"


def _makes(margins: Floats, gamma: float) -> dict[str, float]:
    p = target_probability(margins, gamma)
    return {"mean_target": float(p.mean()), "saturated": float((p > SATURATED).mean())}


# --- fits to votes --------------------------------------------------------------------------------------------------------------


def _fits(one: _Fit, margins: Floats) -> Iterator[dict[str, Any]]:
    """A row for all sources together, and one for each where there are several."""
    sources = sorted(set(one.source.tolist()), key=str)
    for source in (ALL, *(sources if len(sources) > 1 else ())):
        mine = np.full(len(one.margin), True) if source is ALL else one.source == source
        try:
            fit = fit_gamma(one.margin[mine], one.preferring[mine], one.raters[mine], one.prompt[mine])
        except InvalidValue:  # no pair of this source has both a margin and a vote
            continue
        interval = None if fit.low is None or fit.high is None else [fit.low, fit.high]
        yield {
            "source": source,
            "margins_of": one.margins_of,
            "votes_of": one.votes_of,
            "pairs": fit.pairs,
            "prompts": fit.clusters,
            "votes": fit.votes,
            "with_margin": _with_margin(*(values[mine] for values in (one.margin, one.preferring, one.raters))),
            "gamma": fit.gamma,
            "gamma_95": interval,
            "interval": fit.method,
            "cross_entropy": fit.cross_entropy,
            "coin": float(np.log(2)),
            **_makes(margins, fit.gamma),
        }


def _with_margin(margin: Floats, preferring: Floats, raters: Floats) -> float:
    """The share of the votes on untied pairs that side with the margin."""
    sides = np.where(margin > 0, preferring, raters - preferring) * (margin != 0)
    return float(sides.sum() / (raters * (margin != 0)).sum())


def _of_votes(table: pa.Table, cast: Votes) -> Iterator[_Fit]:
    """PAIRS and votes from a file. Raises UserError where these are the votes that PAIRS hold themselves."""
    preferring, raters = cast.of(table).T
    voted = raters > 0
    own = [table[name].cast(pa.float64()).to_numpy()[voted] for name in ("preferring", "raters")]
    if (own[1] > 1).any() and (own[0] == preferring[voted]).all() and (own[1] == raters[voted]).all():
        raise UserError(
            f"the votes in {cast.path} are those of the margins' own raters on all {int(voted.sum()):,} pairs: against them every "
            "likelihood prefers a larger gamma; give votes of raters that made no part of the margins"
        )
    prompt, source = (codes(flat(table[name]))[0] for name in ("prompt_id", "source"))
    names = np.array(codes(flat(table["source"]))[1], dtype=object)
    yield _Fit("the pairs", str(cast.path), table["quality_margin"].to_numpy(), preferring, raters, prompt, names[source])


def _of_feedback(feedback: pa.Table) -> Iterator[_Fit]:
    """From single grades: each rater's verdict against the mean of the others of its kind, and people's against the mean of judges, also
    where the ones gave scores and the others compared.
    """
    found: dict[str, RaterGaps] = {}
    for evidence in ("ratings", "comparisons"):
        if len(flat(feedback[evidence]).flatten()):
            merged, resolved = grades_of(feedback, BuildOptions(format="feedback", evidence=evidence))
            found[evidence] = rater_gaps(merged, replace(resolved.rules, strategy="all"))
    for evidence, gaps in found.items():
        for code, kind in enumerate(gaps.kinds):
            yield _left_out(gaps, gaps.kind == code, PEOPLE.get(kind, kind), evidence)
            for voted, votes in found.items():
                if kind != "human" and "human" in votes.kinds:
                    words = f"the mean of {PEOPLE.get(kind, kind)} ({evidence})", f"people ({voted})"
                    yield _against_people(gaps, code, votes, words)


def _sums(gaps: RaterGaps, mine: np.ndarray, values: Floats) -> tuple[Floats, Floats]:
    """Of every pair the sum of the values of these gaps, and how many there are."""
    size = int(gaps.pair.max(initial=-1)) + 1
    count = np.bincount(gaps.pair[mine], minlength=size)
    return as_floats(np.bincount(gaps.pair[mine], values[mine], minlength=size), "sums"), as_floats(count, "counts")


def _cleared(margin: Floats, gaps: RaterGaps) -> Floats:
    """Means that are rounding are ties."""
    return np.where(np.abs(margin) <= 1e-9 * float(np.abs(gaps.gap).max(initial=0.0)), 0.0, margin)


def _left_out(gaps: RaterGaps, mine: np.ndarray, who: str, evidence: str) -> _Fit:
    total, count = _sums(gaps, mine, gaps.gap)
    kept = mine & (count[gaps.pair] > 1)
    pair, gap = gaps.pair[kept], gaps.gap[kept]
    margin = _cleared((total[pair] - gap) / (count[pair] - 1), gaps)
    names = np.array(gaps.sources, dtype=object)
    words = f"the other {who} ({evidence})", f"one of the {who} left out"
    return _Fit(*words, margin, (gap > 0) + 0.5 * (gap == 0), np.ones(len(gap)), gaps.prompt[kept], names[gaps.source[kept]])


def _against_people(gaps: RaterGaps, code: int, votes: RaterGaps, words: tuple[str, str]) -> _Fit:
    """People's votes on the pairs that raters of a kind graded, joined by the ids of completions, either way round."""
    total, count = _sums(gaps, gaps.kind == code, gaps.gap)
    people = votes.kind == votes.kinds.index("human")
    preferring, voters = _sums(votes, people, (votes.gap > 0) + 0.5 * (votes.gap == 0))
    number, at = np.unique(votes.pair, return_index=True)
    cast: dict[tuple[str, str], tuple[float, float]] = {}
    for one, better, worse in zip(number.tolist(), votes.better[at].tolist(), votes.worse[at].tolist(), strict=True):
        cast[better, worse] = (preferring[one], voters[one])
        cast[worse, better] = (voters[one] - preferring[one], voters[one])
    pair, first = np.unique(gaps.pair, return_index=True)
    graded = count[pair] > 0
    pair, first = pair[graded], first[graded]
    keys = zip(gaps.better[first].tolist(), gaps.worse[first].tolist(), strict=True)
    k, n = np.array([cast.get(key, (0.0, 0.0)) for key in keys], dtype=np.float64).reshape(-1, 2).T
    names = np.array(gaps.sources, dtype=object)
    return _Fit(*words, _cleared(total[pair] / count[pair], gaps), k, n, gaps.prompt[first], names[gaps.source[first]])


# --- what each γ makes ----------------------------------------------------------------------------------------------------------


def gamma_table(
    margins: Floats, errors: Floats | None, suggested: float, fitted: list[float] | None = None
) -> list[dict[str, Any]]:
    """A row per γ, ascending: gamma, note, mean_target, the targets' 10%, 50% and 90% quantiles, the share saturated
    (> .95).

    margins: those above 0, shape (pairs,). errors: their margin_se, NaN where unknown, or None; with any known,
    `noise_aware` is the mean target that takes them into account, else None. The γ: a quarter to four times the
    suggestion, that of a mean target of .9, the published ones, and the fitted ones above 0 and below infinity.
    """
    known = errors is not None and bool((~np.isnan(errors)).any())
    notes = {suggested * factor: "" for factor in (0.25, 0.5, 2.0, 4.0)}
    notes |= {gamma_for_mean_target(margins, mean): f"mean target {mean:g}" for mean in MEANS}
    notes |= {gamma: "fitted to votes" for gamma in fitted or () if 0 < gamma < np.inf}
    notes |= dict.fromkeys(PUBLISHED, "published, for 1–10 grades") | {suggested: "suggested"}
    rows = []
    for gamma in sorted(notes):
        p = target_probability(margins, gamma)
        low, middle, high = np.quantile(p, (0.1, 0.5, 0.9))
        rows.append(
            {
                "gamma": float(gamma),
                "note": notes[gamma],
                "mean_target": float(p.mean()),
                "p10": float(low),
                "p50": float(middle),
                "p90": float(high),
                "saturated": float((p > SATURATED).mean()),
                "noise_aware": float(target_probability(margins, gamma, errors).mean()) if known else None,
            }
        )
    return rows
