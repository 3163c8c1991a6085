"""The options of `mmpo select`."""

from typing import Annotated

from pydantic import Field

from mmpo.annotate.pairings import parse_pairing
from mmpo.annotate.select.ways import SELECTIONS
from mmpo.pipeline.options import LISTED, NUMBER, Count, Flags, OneOf, TextOrPath, options

Features = Annotated[TextOrPath, Field(min_length=1)]


@options
class SelectOptions:
    """Which pairs deserve a person next; the line below each field is its help."""

    by: Annotated[str, OneOf(SELECTIONS)] = "random"
    """Which come first: {names}; `mmpo list selections` says more."""
    limit: Count | None = 100
    """So many pairs at most."""
    per_prompt: Count | None = None
    """So many pairs of one prompt at most. Default: any number."""
    to: Annotated[tuple[str, ...], LISTED] = ("human",)
    """Whose grades are wanted: human, or raters by name, separated by commas; pairs that they graded are left out."""
    raters: Annotated[tuple[str, ...] | None, LISTED, Flags("--rater", "--raters")] = None
    """For model-disagreement: compare these graders. Default: reward models, with judges where there are fewer than two."""
    pairs: str = "all"
    """Which pairs there are to choose from: all, chain, best-worst, random:k; auto as for judges."""
    features: Features = "bag"
    """For information, prediction and gap: bag (n-grams and style figures), a model's hidden states (a folder or a Hugging Face name), or
    a Parquet file with the columns id and features (a list)."""
    seed: Annotated[int, Field(ge=0), NUMBER] = 0
    """Seed of all that is drawn."""

    def __post_init__(self) -> None:
        parse_pairing(self.pairs)
