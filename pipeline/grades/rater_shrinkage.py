"""How certain raters' standard deviations and reliabilities are, whatever the shape of grades, and shrinkage by it.

Sampling variances are sums of squared influences of clusters of grades ("sandwich"): no distribution is assumed, so that heavy tails and
grades that hang together make an estimate as uncertain as it is.
"""

import numpy as np

__all__ = ["sampling_variances", "shrunk"]


def sampling_variances(
    item: np.ndarray, rater: np.ndarray, z: np.ndarray, cluster: np.ndarray, reliability: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variances of the logarithm of each rater's standard deviation and of its reliability, shape (raters,) each.

    item, rater, z (standardised grades), cluster: shape (grades,). reliability: estimates, shape (raters,); shared: items that two raters
    share, shape (raters, raters). The influence of an item on the correlation c of two raters is z_r·z_s - c·(z_r² + z_s²)/2; reliability_r
    is the slope of its correlations on the others' reliabilities, which are taken as known.
    """
    raters = len(reliability)
    keys, group = np.unique(cluster * raters + rater, return_inverse=True)
    clusters = np.bincount(keys % raters, minlength=raters)

    def spread(influence: np.ndarray) -> np.ndarray:
        squares = np.bincount(group, weights=influence) ** 2
        return np.bincount(keys % raters, weights=squares, minlength=raters) * clusters / np.maximum(clusters - 1, 1)

    def others(values: np.ndarray) -> np.ndarray:
        return np.bincount(item, weights=values)[item] - values

    r = reliability[rater]
    products = z * others(r * z) - r / 2 * (z * z * others(r * r) + others(r * r * z * z))
    n = np.bincount(rater, minlength=raters)
    return spread((z * z - 1) / 2) / n**2, spread(products) / (shared @ reliability**2) ** 2


def shrunk(estimate: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Estimates drawn to their precision-weighted mean by empirical Bayes: what varies beyond sampling is taken for real.

    How much that is comes from the method of moments with weights (DerSimonian and Laird 1986): one rater of few grades does not hide that
    others differ. estimate, variance: shape (raters,), two or more.

    >>> shrunk(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()  # a variance of 2 is what sampling makes
    [2.0, 2.0]
    """
    variance = np.maximum(variance, 1e-12 + 1e-9 * variance.max())
    weight = 1 / variance
    mean = (weight * estimate).sum() / weight.sum()
    beyond = (weight * (estimate - mean) ** 2).sum() - (len(estimate) - 1)
    real = max(0.0, float(beyond / (weight.sum() - (weight**2).sum() / weight.sum())))
    weight = 1 / (variance + real)
    mean = (weight * estimate).sum() / weight.sum()
    return mean + (estimate - mean) * real * weight
