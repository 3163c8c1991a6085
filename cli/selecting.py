"""What the commands hand over that choose pairs: features of completions, which `mmpo.train` makes where a way asks for them."""

from typing import Any

import numpy as np


def featurize(name: str, completions: Any) -> np.ndarray:
    """The features that `--features` names, (completions, features); torch and scikit-learn are imported only now."""
    from mmpo.train import completion_features

    return completion_features(name, completions)
