"""The options of `mmpo argilla push` and `mmpo argilla pull`, one dataclass each for flags and for Python."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from mmpo.annotate.argilla.display import DISPLAYS
from mmpo.annotate.argilla.priorities import SELECTIONS
from mmpo.annotate.pairings import parse_pairing
from mmpo.pipeline.errors import UserError, unknown_name

__all__ = ["QUESTIONS", "PullOptions", "PushOptions", "check_push_options"]

QUESTIONS = {
    "pairs": "two replies side by side, seven signed grades",
    "ratings": "all replies of a prompt, a rating each",
}
"""The family of `--questions`."""

SCALE = (1, 5)
ASPECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PushOptions:
    """What people are asked; `mmpo argilla push --help` explains each."""

    api_url: str | None = _option(None, "Argilla's address. Default: the variable ARGILLA_API_URL, else http://127.0.0.1:6900.")
    questions: str = _option("pairs", "pairs (how much better is A than B) or ratings (a rating for each reply of a prompt).")
    aspects: tuple[str, ...] = _option(("overall",), "What is graded, a question each, separated by commas.")
    pairs: str = _option("auto", "Which pairs of a FEEDBACK folder: all, chain, best-worst, random:k; auto as for judges.")
    select: str = _option(
        "random", "Which come first: random, uncertain (largest standard error), small-margin or disagreement (of raters)."
    )
    limit: int | None = _option(None, "Push so many at most, the first by --select.")
    raters: int | None = _option(
        None, "How many people must answer until a record counts as completed. Default: 1 for a new dataset."
    )
    suggest: bool = _option(False, "Show AI margins as suggestions, rounded to the grades; people lean toward them.")
    judge: str | None = _option(None, "The judge whose grades of a FEEDBACK folder count for --suggest and --select. Default: all.")
    much_better: float | None = _option(
        None, "The margin that is worth 'much better', for --suggest. Default: the whole range of the scale."
    )
    scale: tuple[int, int] = _option(SCALE, "The ratings' scale LOW:HIGH, whole numbers from 0 to 10; for --questions ratings.")
    rationale: bool = _option(True, "Ask for a reason, in words, as an optional question.")
    display: str = _option("markdown", "How texts are shown: markdown (no HTML, pictures or formulas) or plain (every character).")
    guidelines: str | None = _option(None, "A file with guidelines of your own, Markdown, for a new dataset or to replace the old.")
    seed: int = _option(0, "Seed of what is drawn: the order of replies, pairs, --select random.")


@dataclass(frozen=True)
class PullOptions:
    """What becomes of people's answers; `mmpo argilla pull --help` explains each."""

    api_url: str | None = _option(None, "Argilla's address. Default: the variable ARGILLA_API_URL, else http://127.0.0.1:6900.")
    feedback: str | None = _option(
        None, "A FEEDBACK folder that the grades are added to, so that people can be compared with judges."
    )
    real_names: bool = _option(False, "Write user names instead of pseudonyms.")
    trust_labels: bool = _option(False, "Take answers by their values even where somebody reworded a question in Argilla.")


def check_push_options(options: PushOptions) -> None:
    """Refuse values that cannot work before anything is read or sent. Raises UserError."""
    for name, allowed in (("questions", QUESTIONS), ("select", SELECTIONS), ("display", DISPLAYS)):
        if getattr(options, name) not in allowed:
            raise unknown_name(f"--{name}", getattr(options, name), allowed)
    for name in ("limit", "raters"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be a whole number from 1 up")
    if options.much_better is not None and not 0 < options.much_better < math.inf:
        raise UserError(f"--much-better {options.much_better}: must be a number above 0, in the units of the margins")
    if options.much_better is not None and not options.suggest:
        raise UserError("--much-better says how margins become suggestions: it needs --suggest")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be a whole number from 0 up")
    wrong = [name for name in options.aspects if not ASPECT.fullmatch(name)]
    if wrong or not options.aspects or len(set(options.aspects)) < len(options.aspects):
        raise UserError(
            f"--aspects {','.join(options.aspects)}: name each aspect once, in small letters, digits, - and _, for example overall,tone"
        )
    if len(options.scale) != 2 or not 0 <= options.scale[0] < options.scale[1] <= 10:
        raise UserError(f"--scale {':'.join(map(str, options.scale))}: write LOW:HIGH, whole numbers from 0 to 10, for example 1:5")
    if options.questions == "pairs" and tuple(options.scale) != SCALE:
        raise UserError("--scale is for --questions ratings; pairs are always graded by the seven grades")
    parse_pairing(options.pairs)
