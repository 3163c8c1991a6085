"""The logistic function and its kin in float64 numpy, finite for logits of any size."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmpo.pipeline.errors import UserError

__all__ = ["Floats", "InvalidValue", "as_floats", "sigmoid", "softplus"]

Floats = NDArray[np.float64]


class InvalidValue(UserError, ValueError):
    """A number that a formula does not allow: a ValueError in Python, exit status 2 on the command line."""


def as_floats(values: ArrayLike, name: str) -> Floats:
    """The values as a float64 array of their own shape; InvalidValue, naming them, where they are not numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValue(f"{name} must be numbers, not {type(values).__name__}") from None


def sigmoid(z: ArrayLike) -> Floats:
    """σ(z) = 1/(1 + e^−z) elementwise, without overflow: only e^−|z| is ever formed.

    >>> sigmoid([-1e308, 0.0, 1e308]).tolist()
    [0.0, 0.5, 1.0]
    """
    z = np.asarray(z, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def softplus(z: ArrayLike) -> Floats:
    """log(1 + e^z) elementwise = −log σ(−z), in nats, without overflow."""
    z = np.asarray(z, dtype=np.float64)
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))
