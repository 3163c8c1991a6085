"""What a margin is worth as a probability, learned from the votes of several raters: the target `levels`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import fill_standard_errors, measured_probability

VOTED = ("quality_margin", "margin_se", "preferring", "raters")
"""The columns of PAIRS that it learns from."""
_FARTHEST = 3.5
"""Standard deviations from which on votes can't be told from unanimous ones."""


@dataclass(frozen=True)
class LevelTarget:
    """p of a margin, learned from votes: `margins` ascending from 0, the `p` of each, linear between and constant above; both (levels,)."""

    margins: np.ndarray
    p: np.ndarray

    @classmethod
    def fit(cls, margin: np.ndarray, margin_se: np.ndarray, preferring: np.ndarray, raters: np.ndarray) -> "LevelTarget":
        """Learns from pairs with two raters or more, each (pairs,): what one more rater would say, never falling in the margin, ½ at 0.

        The votes can't be taken as they are: the chosen completion is the one that these very raters made the better one, and raters who
        throw coins agree with it. With λ = 1 − mean se²/mean m² the margins' reliability, σ² = mean n·se² and normal noise, Φ⁻¹(p) of a
        margin m is m/(σ√(1 − 1/n)) for its own raters and λm/(σ√(1 + λ/n)) for another one. p is the latter, and of what the level's votes
        say beyond the former the share λ(n − 1)/(n + 9), for few raters say little. Votes that fall short of the former, even with ties
        rounded up, are no work of the choice: half of that is taken off as well. Neighbours are pooled where p would fall. Raises
        UserError where no pair has two raters, and where margins are no larger than their errors.
        """
        from scipy.optimize import isotonic_regression  # of the extra `train`
        from scipy.special import ndtr, ndtri

        voted = raters >= 2
        if not voted.any():
            raise UserError(
                f"the levels target learns from votes of two raters or more, and none of the {len(raters)} pairs has them. Build from "
                "feedback of several raters (`mmpo judge` with several judges, `mmpo argilla` with several people a record), or take "
                "--target plain"
            )
        measured_probability(preferring, raters)  # refuses what are no counts
        m, k, n, se = margin[voted], preferring[voted], raters[voted], fill_standard_errors(margin_se[voted]).values
        reliability = 1 - (se**2).mean() / max((m**2).mean(), 1e-300)
        if reliability <= 0 or not (m > 0).any():
            raise UserError(
                f"the levels target: over the {len(m)} pairs with two raters or more the margins are no larger than their standard errors, "
                "so that the raters may as well be throwing coins and every p is .5. Take --target plain, or look at them with `mmpo agree`"
            )
        levels, of = np.unique(np.round(m[m > 0], 9), return_inverse=True)
        count, each = n.mean(), np.sqrt((se**2 * n).mean())  # of a pair's raters; the noise of one
        with np.errstate(divide="ignore"):  # raters who always agree
            own, another = (
                np.minimum(scale * levels / each, _FARTHEST)
                for scale in ((1 - 1 / count) ** -0.5, reliability * (1 + reliability / count) ** -0.5)
            )
        pairs, votes = np.bincount(of), np.bincount(of, n[m > 0])
        # PAIRS rounds a tie's half vote down
        said, at_most = (
            ndtri((np.bincount(of, counts[m > 0]) + 2 * ndtr(own)) / (votes + 2)) for counts in (k, np.minimum(k + 0.5, n))
        )
        beyond = (count - 1) / (count + 9) * (said - own) + (count - 1) / (2 * count) * np.minimum(at_most - own, 0)
        p = isotonic_regression(np.maximum(ndtr(another + reliability * beyond), 0.5), weights=pairs).x
        return cls(np.append(0.0, levels), np.append(0.5, p))

    def as_dict(self) -> dict[str, list[float]]:
        """As JSON values: {"margins": [...], "p": [...]}."""
        return {"margins": self.margins.tolist(), "p": self.p.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> "LevelTarget":
        """What `as_dict` gave."""
        return cls(np.array(values["margins"]), np.array(values["p"]))

    def __call__(self, margin: np.ndarray) -> np.ndarray:
        """p of every margin, both (pairs,)."""
        return np.interp(margin, self.margins, self.p)
