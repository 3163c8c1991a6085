"""Advice: what the margins of a data set are worth, measured on it with controls. Importing this room imports no torch and no sklearn."""

from typing import TYPE_CHECKING, Any

from mmpo.train.advise.options import AdviseOptions

if TYPE_CHECKING:
    from mmpo.train.advise.advice import CHOSEN, margins_add, recommend
    from mmpo.train.advise.controls import BRADLEY_TERRY, MATCHED, MEAN_TARGETS, OWN, SHUFFLED, Setting, settings_for
    from mmpo.train.advise.evidence import Evidence, Given, check_evidence, evidence_of, read
    from mmpo.train.advise.explained import beyond_sign, longest_wins, margin_sums, r2
    from mmpo.train.advise.features import FEATURES, bag, completion_features, features_of, fixed
    from mmpo.train.advise.heads import DECAYS, Head, fit_heads
    from mmpo.train.advise.intervals import MEASURES, Measured
    from mmpo.train.advise.measure import Fold, Split, joined, run_split, splits
    from mmpo.train.advise.run import advise, one_thread

_FILES = {
    "advice": ("CHOSEN", "margins_add", "recommend"),
    "controls": ("BRADLEY_TERRY", "MATCHED", "MEAN_TARGETS", "OWN", "SHUFFLED", "Setting", "settings_for"),
    "evidence": ("Evidence", "Given", "check_evidence", "evidence_of", "read"),
    "explained": ("beyond_sign", "longest_wins", "margin_sums", "r2"),
    "features": ("FEATURES", "bag", "completion_features", "features_of", "fixed"),
    "heads": ("DECAYS", "Head", "fit_heads"),
    "intervals": ("MEASURES", "Measured"),
    "measure": ("Fold", "Split", "joined", "run_split", "splits"),
    "run": ("advise", "one_thread"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"mmpo.train.advise.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
