"""Calibration: graders' margins mapped onto people's, with errors, by a few pairs that both graded. `mmpo calibrate` prints what
`calibrate`
returns."""

from mmpo.annotate.calibrate.options import CalibrateOptions
from mmpo.annotate.calibrate.page import sentences, shown_rows
from mmpo.annotate.calibrate.prediction_powered import Estimate, prediction_powered_mean
from mmpo.annotate.calibrate.run import calibrate
