"""What the whole input decides before the first pair is made, or why it can't be: which grades, scales, rules, and what passes find.

`mmpo build` and `build_pairs` take the same steps: `resolve_build`, `merged_grades` of each part of the input, `with_learned`, then pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat
from mmpo.pipeline.build.mixed import MixedSource
from mmpo.pipeline.build.options import BuildOptions
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.filters import PromptRules, check_languages, check_tokenizer, read_evaluation
from mmpo.pipeline.grades.aggregate import RATER_MERGERS, averaged_aspects, parse_score
from mmpo.pipeline.grades.merge import merge_prompts
from mmpo.pipeline.grades.normalise import check_normalisation, check_scales, normalise, rounding_steps, score_origin
from mmpo.pipeline.grades.position_bias import position_biases
from mmpo.pipeline.grades.rater_effects import RaterAgreement, RaterSample, fit_rater_effects, rater_agreement
from mmpo.pipeline.grades.rules import PairRules, orders_of, rater_sample, sample_share, wants_orders
from mmpo.pipeline.grades.statistics import COLUMNS, GradeGroup, GradeStatistics, choose_evidence, select_grades
from mmpo.pipeline.options import shared
from mmpo.pipeline.pairs.choose import between_raters
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.pairs.uncertainty import PooledVariance, grid_of, pooled_variance
from mmpo.pipeline.sources import SOURCES, Source
from mmpo.pipeline.storage.accounting import RowAccounting

Collect = Callable[["ResolvedBuild", Callable[[pa.Table, PairRules], Any]], Iterable[Any]]
"""Calls a function with the merged grades of each part of the input and the rules; yields what it returns, in order."""

_BOUNDED: dict[str, tuple[float, float] | None] = {"none": None, "minmax": (0.0, 1.0), "rank": (0.0, 1.0)}
"""Normalisations that leave values between bounds: those given, or (None) those of the declared scale."""


@dataclass(frozen=True)
class ResolvedBuild:
    """A build that can be done.

    groups: the grades it uses; pooled: each source's within-pair variances, and agreement: each rater's with the others, where passes found
    any; keys: those of OPTIONAL_KEYS that the input holds; mixed: what it is among the sources of a build of several, else None.
    """

    options: BuildOptions
    rules: PairRules = field(default_factory=PairRules)
    groups: tuple[GradeGroup, ...] = ()
    statistics: GradeStatistics = field(default_factory=GradeStatistics)
    pooled: dict[str, PooledVariance] = field(default_factory=dict)
    agreement: dict[str, RaterAgreement] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    mixed: MixedSource | None = None

    @property
    def name(self) -> str:
        """Of one of several sources; else nothing."""
        return self.mixed.name if self.mixed else ""

    @property
    def times(self) -> float:
        """What its margins and scores are multiplied by in the end."""
        return self.mixed.margin_times if self.mixed else 1.0

    def pooled_variance(self) -> dict[str, float]:
        """By source, as the manifest keeps it: the variance of raters' own gaps within pairs."""
        return {source: variance.gaps for source, variance in self.pooled.items() if np.isfinite(variance.gaps)}

    def metadata(self) -> dict[str, Any]:
        """What manifest and Parquet metadata keep of it: scales, normalisation, and what was found of raters."""
        scales = sorted({(group.low, group.high) for group in self.groups}, key=str)
        steps = {
            f"{g.rater}/{g.aspect}": self.rules.steps[g.rater, g.aspect] for g in self.groups if g.low is None or g.high is None
        }
        ranges: dict[str, dict[str, list[float]]] = {}
        for group in self.groups:
            if group.low is None or group.high is None:
                found, one = ranges.setdefault(group.aspect, {}), self.statistics.groups[group]
                least, most = found.get(group.rater, [one.least, one.most])
                found[group.rater] = [min(least, one.least), max(most, one.most)]
        of_unbounded = {"rounding_steps": steps, "grade_ranges": ranges} if steps else {}
        about = (
            {}
            if self.options.feedback_only
            else {"evidence": self.rules.evidence, "score": self.rules.score, "score_range": self.score_range()}
        )
        ends = saturated(self.statistics.groups if self.options.feedback_only else self.groups, self.statistics)
        about |= {"saturated": ends} | of_unbounded | self.rules.learned()
        return {"scales": scales, "normalisation": self.options.normalise, **about}

    def score_range(self) -> list[float] | None:
        """Between what all scores lie, or margins of comparisons; None where there are no bounds."""
        rules, normalise = self.rules, self.options.normalise
        compared = rules.evidence == "comparisons"
        kept = compared and rules.position and rules.one_order == "keep"  # then a bias is taken from single answers
        if RATER_MERGERS[rules.merge_raters].effects or normalise not in _BOUNDED or kept:
            return None
        ranges: dict[str, tuple[float, float]] = {}
        for group in self.groups:
            low, high = _BOUNDED[normalise] or (group.low, group.high)
            if low is None or high is None:
                return None
            before = ranges.get(group.aspect, (low, high))
            ranges[group.aspect] = (min(low, before[0]), max(high, before[1]))
        if isinstance(rules.score, dict) and normalise != "rank":
            ends = [sorted((w * ranges[aspect][0], w * ranges[aspect][1])) for aspect, w in rules.score.items()]
            found = [sum(end[0] for end in ends), sum(end[1] for end in ends)]
        else:
            merged = [ranges[aspect] for aspect in (rules.averaged if rules.score == "mean" else ranges)]
            found = [min(low for low, _ in merged), max(high for _, high in merged)]
        return [0.0, found[1] * self.times] if compared else [end * self.times for end in found]


def prompt_rules(options: BuildOptions) -> PromptRules:
    """What prompts are left out for; evaluation prompts are read, and packages that filters need are looked for. Raises UserError."""
    check_languages(options.languages)
    if options.tokenizer is not None:
        check_tokenizer(str(options.tokenizer))
    files = options.decontaminate
    evaluation = read_evaluation(files, options.decontaminate_ngram, options.decontaminate_column) if files else None
    return PromptRules(**shared(options, PromptRules), evaluation=evaluation)


def resolve_build(statistics: GradeStatistics, options: BuildOptions) -> ResolvedBuild:
    """Which grades are used, and the rules of pairing. Raises UserError where the input and the options do not fit."""
    if options.feedback_only:
        return ResolvedBuild(options, statistics=statistics)
    own = {_own(group.source, "evidence") for group in statistics.groups}
    first = "comparisons" if own == {"comparisons"} else "ratings"
    evidence, groups = choose_evidence(statistics, options.evidence, options.wanted, first)
    score = _score(options.score, groups, options.aspects or ())
    check_scales(score, groups, options.normalise)
    check_normalisation(options.normalise, groups, statistics)
    if evidence == "comparisons" and not STRATEGIES[options.strategy].every_pair:
        fitting = " or ".join(name for name, strategy in STRATEGIES.items() if strategy.every_pair)
        raise UserError(
            f"--strategy {options.strategy} needs a score for each completion; the grades are comparisons, whose pairs are given. "
            f"Use {fitting}"
        )
    known = sorted({group.rater for group in groups})
    for name in options.agree_between:
        if name not in known:
            raise unknown_name("rater among those that make the margins (--agree-between)", name, known[:40])
    steps = rounding_steps(groups, statistics, options.normalise)
    origin, averaged = score_origin(score, groups, options.normalise), averaged_aspects(sorted({group.aspect for group in groups}))
    found = {"evidence": evidence, "score": score, "averaged": tuple(averaged), "steps": steps, "origin": origin}
    rules = PairRules(**{**shared(options, PairRules), **found})
    return ResolvedBuild(options, rules, tuple(groups), statistics)


def _own(source: str, name: str) -> str:
    """What the format of a source says of evidence or score; of several, or of one that is not known, what most say."""
    said = {getattr(SOURCES[one], name) for one in source.split(" + ") if one in SOURCES}
    return said.pop() if len(said) == 1 else getattr(Source, name)


def _score(given: str, groups: Sequence[GradeGroup], chosen: Sequence[str]) -> dict[str, float] | str:
    """How aspects merge; `auto` is what the formats that the grades come from say, where they agree and the grades have those aspects; of
    one aspect that was `chosen` (--aspect) that one, unless more of it is worse by the format's own weights."""
    aspects = sorted({group.aspect for group in groups})
    if given != "auto":
        return parse_score(given, aspects)
    own = {_own(group.source, "score") for group in groups}
    wanted = own.pop() if len(own) == 1 else "overall"
    if len(aspects) == len(set(chosen)) == 1:
        if f"{aspects[0]}=-" in wanted:
            raise UserError(
                f"--aspect {aspects[0]}: the format takes more of it for worse ({wanted}), so that --score has to say which end is "
                f"better: {aspects[0]}=-1 or {aspects[0]}=1"
            )
        return parse_score(aspects[0], aspects)
    try:
        score = parse_score(wanted, aspects)
    except UserError:  # the format's other layouts have other aspects
        if "overall" not in aspects:
            sources = sorted({group.source for group in groups})
            or_overall = "" if wanted == "overall" else ", or overall"
            known = [SOURCES[name] for name in sources if name in SOURCES]
            named = len(known) < len(sources) or any(source.fields or source.aspects for source in known)
            told = ", ".join(sorted({source.aspects for source in known} - {""}))
            why = f" (they are {told})" if told else "" if named else ". Is a column gone?"
            raise UserError(
                f"--score auto: of {', '.join(sources)} it is {wanted}{or_overall}, and the grades do not have these aspects. Aspects "
                f"present: {', '.join(aspects)}{why}{'' if why[-1:] == '?' else '.'} --score names what shall count: {aspects[0]}"
                f"{f', or weights: {aspects[0]}=1,{aspects[1]}=.5' if len(aspects) > 1 else ''}, or mean"
            ) from None
        score = parse_score("overall", aspects)
    lost = {group.source for group in groups} - {group.source for group in groups if score == "mean" or group.aspect in score}
    if lost:
        raise UserError(
            f"--score auto: no grade of {', '.join(sorted(lost))} is of {', '.join(score)}, so that none of them would count. Name with "
            f"--score what does (aspects present: {', '.join(aspects)}), or build the sources apart"
        )
    return score


def merged_grades(rows: pa.Table, build: ResolvedBuild, accounting: RowAccounting) -> pa.Table:
    """FEEDBACK rows of whole prompts, narrowed to the chosen grades, normalised, and merged to one row per prompt; all is counted."""
    options, evidence = build.options, build.rules.evidence
    if not options.feedback_only:
        given = {name: len(flat(rows[name]).flatten()) for name in COLUMNS}
        rows, left_out = select_grades(rows, evidence, options.wanted)
        used = given[evidence] - left_out
        total = sum(given.values())
        not_chosen = {"grade_not_chosen": total - used} if total > used else {}
        accounting.count("evidence", "grade", into=total, out=used, dropped=not_chosen)
        rows = normalise(rows, evidence, options.normalise, build.groups, build.statistics)
    merged, counts = merge_prompts(rows)
    completions = len(flat(merged["completions"]).flatten())
    accounting.count("merge", "prompt", into=rows.num_rows, out=merged.num_rows, merged=counts["prompt"])
    accounting.count("merge", "completion", into=completions + counts["completion"], out=completions, merged=counts["completion"])
    return merged


def with_learned(build: ResolvedBuild, collect: Collect) -> ResolvedBuild:
    """The build with what passes over all grades find: position biases, rater effects, within-pair variances, each given the former."""
    if wants_orders(build.rules, build.groups):
        build = replace(build, rules=replace(build.rules, position=position_biases(collect(build, orders_of))))
    if RATER_MERGERS[build.rules.merge_raters].effects:
        share = sample_share(build.groups, build.statistics)
        sample = RaterSample.joined(list(collect(build, partial(rater_sample, share=share))))
        weighted = build.options.rater_weights == "fitted"
        effects = fit_rater_effects(sample, centered=build.rules.evidence == "ratings", weighted=weighted)
        build = replace(build, rules=replace(build.rules, effects=effects))
    if len({group.rater for group in build.groups}) > 1:
        parts = list(collect(build, partial(between_raters, share=sample_share(build.groups, build.statistics))))
        total: dict[str, np.ndarray] = {}
        for source, squares in (item for part in parts for item in part.squares.items()):
            total[source] = total.get(source, np.zeros(3)) + squares
        grades = {source: [part.grades[source] for part in parts if source in part.grades] for source in total}
        grid = {source: grid_of(np.unique(np.concatenate(found))) if found else 0.0 for source, found in grades.items()}
        pooled = {source: pooled_variance(sums, grid[source]) for source, sums in sorted(total.items())}
        agreement = rater_agreement(RaterSample.joined([part.sample for part in parts]))
        build = replace(build, pooled=pooled, agreement=agreement)
    return build


def saturated(groups: Iterable[GradeGroup], statistics: GradeStatistics) -> dict[str, dict[str, Any]]:
    """By source {"grades", "at_ends", "transform"}: how many grades, how many of those with a scale stand at an end of it (None: no scale),
    and what of the source's own put them there, "clip", else None: the rater.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        clips = any(SOURCES[name].clipped for name in group.source.split(" + ") if name in SOURCES)
        one = found.setdefault(group.source, {"grades": 0, "at_ends": None, "transform": None})
        moments = statistics.groups[group]
        one["grades"] += moments.count
        if None not in (group.low, group.high):
            one["at_ends"] = (one["at_ends"] or 0) + moments.at_ends
            one["transform"] = "clip" if clips else None
    return dict(sorted(found.items()))
