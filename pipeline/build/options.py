"""The options of a build and what each may be; read once at the edge, plain arguments below it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades.aggregate import RATER_MERGERS
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.select import EVIDENCE
from mmpo.pipeline.pairs.splits import check_shares
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.sources import SourceOptions, get_source
from mmpo.pipeline.sources.base import check_options

__all__ = ["BuildOptions", "check_build_options", "source_options"]

ONE_ORDER = ("drop", "keep")
RATER_WEIGHTS = ("fitted", "equal")
TIES = ("keep", "drop")


@dataclass(frozen=True)
class BuildOptions:
    """What a build does; the field names are the recipe's keys. `mmpo build --help` explains each."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    fix_known_defects: bool = False
    rater: str | None = None
    kind: str | None = None
    evidence: str = "auto"
    kinds: tuple[str, ...] | None = None
    raters: tuple[str, ...] | None = None
    aspects: tuple[str, ...] | None = None
    normalise: str = "none"
    score: str = "overall"
    merge_raters: str = "mean"
    rater_weights: str = "fitted"
    one_order: str = "drop"
    strategy: str = "all"
    max_per_prompt: int | None = None
    min_margin: float = 0.0
    ties: str = "keep"
    max_chars: int | None = None
    seed: int = 0
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    max_rejects: float = 0.01
    feedback_only: bool = False
    workers: int | None = None


def check_build_options(options: BuildOptions) -> None:
    """Refuse values and combinations that cannot work, before anything is read. Raises UserError."""
    for name, given, allowed in (
        ("evidence (--from)", options.evidence, EVIDENCE),
        ("normalisation (--normalise)", options.normalise, NORMALISATIONS),
        ("way to merge raters (--raters)", options.merge_raters, RATER_MERGERS),
        ("--rater-weights", options.rater_weights, RATER_WEIGHTS),
        ("--one-order", options.one_order, ONE_ORDER),
        ("strategy", options.strategy, STRATEGIES),
        ("--ties", options.ties, TIES),
    ):
        if given not in allowed:
            raise unknown_name(name, given, allowed)
    if options.rater_weights != "fitted" and not RATER_MERGERS[options.merge_raters].effects:
        raise UserError(
            f"--rater-weights {options.rater_weights}: only --raters rater-effects weighs raters; with --raters {options.merge_raters} all "
            "count the same anyway. Leave it out, or choose --raters rater-effects"
        )
    for name in ("max_per_prompt", "max_chars", "workers"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number}: must be 1 or more")
    if not 0 <= options.min_margin < math.inf:
        raise UserError(f"--min-margin {options.min_margin}: must be a number from 0 up")
    if not 0 <= options.max_rejects <= 1:
        raise UserError(f"--max-rejects {options.max_rejects}: must be a share from 0 to 1, such as 0.01 for 1%")
    check_shares(options.split)
    check_options(get_source(options.format), source_options(options))


def source_options(options: BuildOptions) -> SourceOptions:
    return SourceOptions(
        columns=dict(options.columns),
        scale=options.scale,
        fix_known_defects=options.fix_known_defects,
        rater=options.rater,
        kind=options.kind,
        need_scores=not options.feedback_only,
    )
