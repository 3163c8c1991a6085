"""The options of `mmpo calibrate`."""

from typing import Annotated, Literal

from pydantic import Field

from mmpo.annotate.calibrate.maps import MAPS
from mmpo.pipeline.options import LISTED, NUMBER, Flags, OneOf, TextOrPath, options


@options
class CalibrateOptions:
    """What is calibrated onto whom; the line below each field is its help."""

    to: Annotated[tuple[str, ...], LISTED] = ("human",)
    """Whose margins are the measure: human (all people but the grader), or raters by name, separated by commas."""
    raters: Annotated[tuple[str, ...] | None, LISTED, Flags("--rater", "--raters")] = None
    """Calibrate these graders only, separated by commas. Default: all that are no people."""
    aspects: Annotated[tuple[str, ...] | None, LISTED, Flags("--aspect", "--aspects")] = None
    """Keep these aspects only, separated by commas; each has a map of its own."""
    method: Annotated[str, OneOf(["auto", *MAPS])] = "auto"
    """{names}; auto: the simplest, unless another says more of held-out people."""
    length: Literal["auto", "on", "off"] = "auto"
    """Let the difference of lengths move margins: on, off, or auto, where held-out people say so."""
    jury: bool = True
    """Of several graders, calibrate them as one as well, as the rater jury@human."""
    unproven: Literal["drop", "keep"] = "drop"
    """A grader that can't be told from a coin on held-out people: drop (nothing is written of it) or keep."""
    folds: Annotated[int, Field(ge=2), NUMBER] = 10
    """Parts of the prompts, each judged by maps fitted to the others."""
    bootstrap: Annotated[int, Field(ge=20), NUMBER] = 200
    """Draws of prompts behind the errors of a map."""
    seed: Annotated[int, Field(ge=0), NUMBER] = 0
    """Seed of folds and draws."""
    out: TextOrPath | None = None
    """FEEDBACK folder to write: the input, every calibrated grader as a rater NAME@human (NAME@RATER with --to RATER), and a page,
    calibration.html."""
