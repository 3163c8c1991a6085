"""The options of `mmpo argilla push` and `mmpo argilla pull`, one dataclass each for flags and for Python."""

import re
from typing import Annotated

from pydantic import Field

from mmpo.annotate.argilla.display import DISPLAYS
from mmpo.annotate.pairings import parse_pairing
from mmpo.annotate.select import SELECTIONS, Features
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import LISTED, Count, Flags, OneOf, Positive, TextOrPath, options

QUESTIONS = {
    "pairs": "two replies side by side, seven signed grades",
    "ratings": "all replies of a prompt, a rating each",
}
"""The family of `--questions`."""

SCALE = (1, 5)
ASPECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


@options
class PushOptions:
    """What people are asked; the line below each field is its help."""

    api_url: str | None = None
    """Argilla's address. Default: the variable ARGILLA_API_URL, else http://127.0.0.1:6900."""
    questions: Annotated[str, OneOf(QUESTIONS)] = "pairs"
    """pairs (how much better is A than B) or ratings (a rating for each reply of a prompt)."""
    aspects: Annotated[tuple[str, ...], LISTED, Flags("--aspect", "--aspects")] = ("overall",)
    """What is graded, a question each, separated by commas."""
    pairs: str = "auto"
    """Which pairs of a FEEDBACK folder: all, chain, best-worst, random:k; auto as for judges."""
    select: Annotated[str, OneOf(SELECTIONS)] = "random"
    """Which come first: {names}; `mmpo list selections` says more."""
    features: Features = "bag"
    """For --select information, prediction and gap: bag (n-grams and style figures), a model's hidden states (a folder or a Hugging Face
    name), or a Parquet file with the columns id and features."""
    limit: Count | None = None
    """Push so many at most, the first by --select."""
    raters: Count | None = None
    """How many people must answer until a record counts as completed. Default: 1 for a new dataset."""
    suggest: bool = False
    """Show AI margins as suggestions, rounded to the grades; people lean toward them."""
    judge: str | None = None
    """The judge whose grades of a FEEDBACK folder count for --suggest and --select. Default: all."""
    much_better: Positive | None = None
    """The margin that is worth 'much better', for --suggest. Default: the whole range of the scale."""
    scale: Annotated[tuple[int, int], LISTED] = SCALE
    """The ratings' scale LOW:HIGH, whole numbers from 0 to 10; for --questions ratings."""
    rationale: bool = True
    """Ask for a reason, in words, as an optional question."""
    display: Annotated[str, OneOf(DISPLAYS)] = "markdown"
    """How texts are shown: {names}; `mmpo list displays` says more."""
    guidelines: TextOrPath | None = None
    """A file with guidelines of your own, Markdown, for a new dataset or to replace the old."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of what is drawn: the order of replies, pairs, --select random."""

    def __post_init__(self) -> None:
        if self.much_better is not None and not self.suggest:
            raise UserError("--much-better says how margins become suggestions: it needs --suggest")
        wrong = [name for name in self.aspects if not ASPECT.fullmatch(name)]
        if wrong or not self.aspects or len(set(self.aspects)) < len(self.aspects):
            given = ",".join(self.aspects)
            raise UserError(
                f"--aspects {given}: name each aspect once, in small letters, digits, - and _, for example overall,tone"
            )
        low, high = self.scale
        if not 0 <= low < high <= 10:
            raise UserError(f"--scale {low}:{high}: write LOW:HIGH, whole numbers from 0 to 10, for example 1:5")
        if self.questions == "pairs" and self.scale != SCALE:
            raise UserError("--scale is for --questions ratings; pairs are always graded by the seven grades")
        parse_pairing(self.pairs)


@options
class PullOptions:
    """What becomes of people's answers; the line below each field is its help."""

    api_url: str | None = None
    """Argilla's address. Default: the variable ARGILLA_API_URL, else http://127.0.0.1:6900."""
    feedback: TextOrPath | None = None
    """A FEEDBACK folder that the grades are added to, so that people can be compared with judges."""
    real_names: bool = False
    """Write user names instead of pseudonyms."""
    trust_labels: bool = False
    """Take answers by their values even where somebody reworded a question in Argilla."""
