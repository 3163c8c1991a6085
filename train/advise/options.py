"""The options of `mmpo advise`."""

from typing import Annotated

from pydantic import Field

from mmpo.pipeline.options import LISTED, NUMBER, Count, TextOrPath, options


@options
class AdviseOptions:
    """How margins are looked at; the line below each field is its help."""

    features: Annotated[TextOrPath, Field(min_length=1)] = "bag"
    """what completions are seen by: bag (n-grams and style figures), a model's hidden states (a folder or a Hugging Face name), or a
    Parquet file with the columns id and features (a list)"""
    ask: Annotated[str, Field(min_length=1)] | None = None
    """a question put behind every completion for a model's hidden states, such as "Is this a good answer?": what a model that follows
    instructions has to say of a reply stands at its end, more than at the reply's"""
    seeds: Count = 5
    """fifths of the prompts that are held out as test prompts, one after the other: five test every prompt once, further ones draw anew. Of
    each, four splits are run on up to 3,000 pairs, three on 4,000, two on 6,000, else one: which quarter of the other prompts chooses takes
    turns, and figures are means of the turns"""
    seed: Annotated[int, Field(ge=0), NUMBER] = 0
    """seed of the splits and of every other draw"""
    votes: Annotated[tuple[str, ...] | None, LISTED] = None
    """raters of FEEDBACK, separated by commas, who make no part of the margins: heads are judged on their votes too"""
    out: TextOrPath | None = None
    """page to write, self-contained HTML with plots"""
