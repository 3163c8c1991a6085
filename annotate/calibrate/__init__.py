"""Calibration: graders' margins mapped onto people's, with errors, by a few pairs that both graded. `mmpo calibrate` prints what
`calibrate` returns. The page's plots are imported where they are drawn.
"""

from typing import TYPE_CHECKING, Any

from mmpo.annotate.calibrate.jury import JURY
from mmpo.annotate.calibrate.maps import MAPS
from mmpo.annotate.calibrate.options import CalibrateOptions
from mmpo.annotate.calibrate.prediction_powered import Estimate, prediction_powered_mean
from mmpo.annotate.calibrate.run import calibrate

if TYPE_CHECKING:
    from mmpo.annotate.calibrate.page import sentences, shown_rows


def __getattr__(name: str) -> Any:
    if name in ("sentences", "shown_rows"):
        from mmpo.annotate.calibrate import page

        return getattr(page, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
