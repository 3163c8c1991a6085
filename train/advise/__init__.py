"""Advice: what the margins of a data set are worth, measured on it with controls. Importing this room imports no torch and no sklearn."""

from mmpo.train.advise.controls import BRADLEY_TERRY, MATCHED, MEAN_TARGETS, OWN, SHUFFLED, Objective, objectives
from mmpo.train.advise.evidence import Evidence, check_evidence, evidence_of
from mmpo.train.advise.features import FEATURES, Fit, bag, fixed
from mmpo.train.advise.heads import DECAYS, Head, fit_heads
from mmpo.train.advise.intervals import Measured
from mmpo.train.advise.measure import Fold, Split, run_split, splits
