"""What the whole input decides before the first pair is made: evidence, scales, score and normalisation, or why it can't be done."""

from mmpo.pipeline.build.options import BuildOptions
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.aggregate import check_scales, parse_score
from mmpo.pipeline.grades.normalise import check_normalisation
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.grades.select import choose_evidence
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics

__all__ = ["decide"]

FOR_COMPARISONS = ("all", "stratified")


def decide(found: GradeStatistics, options: BuildOptions) -> tuple[list[GradeGroup], PairRules]:
    """The groups of grades that are used, and the rules of pairing. Raises UserError where the input and the options do not fit."""
    evidence, groups = choose_evidence(found, options.evidence, kinds=options.kinds, raters=options.raters, aspects=options.aspects)
    score = parse_score(options.score, sorted({group.aspect for group in groups}))
    check_scales(score, groups, options.normalise)
    check_normalisation(options.normalise, groups, found)
    if evidence == "comparisons" and options.strategy not in FOR_COMPARISONS:
        raise UserError(
            f"--strategy {options.strategy} needs a score for each completion; the evidence is comparisons, whose pairs are given. "
            f"Use {' or '.join(FOR_COMPARISONS)}"
        )
    rules = PairRules(
        evidence=evidence,
        score=score,
        merge_raters=options.merge_raters,
        one_order=options.one_order,
        rank=options.normalise == "rank",
        strategy=options.strategy,
        max_per_prompt=options.max_per_prompt,
        min_margin=options.min_margin,
        ties=options.ties,
        max_chars=options.max_chars,
        seed=options.seed,
    )
    return groups, rules
