"""The options of `mmpo judge`, one dataclass for flags, recipes and Python; and the judges that it asks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmpo.annotate.asking import AskingOptions, asked_models, json_object
from mmpo.annotate.client import EndpointSettings
from mmpo.annotate.judge.modes import MODES, reply_format
from mmpo.annotate.judge.rubrics import find_rubrics
from mmpo.annotate.pairings import parse_pairing
from mmpo.annotate.replies import REPLIES
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import (
    LISTED,
    NUMBER,
    Count,
    Flags,
    OneOf,
    Share,
    TextOrPath,
    options,
)


@options
class JudgeOptions(AskingOptions):
    """What a judging run does. The field names are the recipe's keys, the line below each is its help."""

    mode: Annotated[str, OneOf(MODES)] = "pairwise"
    """How judges are asked: {names}; `mmpo list modes` says more."""
    model: Annotated[str | None, Flags("--model", once="name several judges by --judge")] = None
    """The judge's model, as its endpoint calls it; several judges: --judge."""
    rubrics: Annotated[tuple[str, ...], LISTED, Flags("--rubric", "--rubrics")] = ("overall",)
    """What is judged: names of rubrics or .yaml files, separated by commas."""
    pairs: str = "auto"
    """Which pairs: all, chain, best-worst, random:k; auto is all up to 4 completions, else chain + random:n."""
    orders: Literal["auto", "both", "one"] = "auto"
    """both: every pair in both orders; one: in one, drawn by hash. auto: both for pairwise, one for listwise."""
    reasoning: bool = False
    """Let the judge think before its verdict: dearer, slower, and its certainty collapses."""
    reference: str | None = None
    """Key of FEEDBACK's `extra` that holds a reference answer to show the judge."""
    template: TextOrPath | None = None
    """A prompt template of your own, a .j2 file."""
    reply: Annotated[str | None, OneOf(REPLIES)] = None
    """How the reply is read, for templates of your own; `mmpo replies` lists the ways."""
    logprobs: Literal["auto", "off", "need"] = "auto"
    """auto: use token probabilities where one probe finds them; off: never; need: refuse to go on without."""
    samples: Count | None = None
    """Replies drawn a question. Default: 5 without token probabilities; with them 1, of judges that think first also more."""
    min_mass: Share = 0.5
    """Least probability that must lie on the offered grades; below it the reply counts as failed."""
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    """Sampling temperature. Default: 0, and 1 where several replies are drawn."""
    max_tokens: Count | None = None
    """Longest reply in tokens. Default: 8, listwise 16 a reply, 1024 more with reasoning."""
    structured: Literal["auto", "off"] = "auto"
    """auto: ask for JSON by schema where the endpoint honours it (listwise); off: never."""
    limit: Count | None = None
    """Judge so many prompts only, drawn by hash: a pilot."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of everything drawn: pairs, orders, shuffles, pilot."""

    def __post_init__(self) -> None:
        parse_pairing(self.pairs)
        json_object(self.extra_body)
        rubrics = find_rubrics(self.rubrics)
        if reply_format(self).grades == "aspects":
            scales = {str((rubric.grades if MODES[self.mode].signed else rubric.scale).labels) for rubric in rubrics}
            if len(scales) > 1:
                raise UserError(
                    "--reply aspects-json grades all rubrics in one reply, on one scale; those given have different ones"
                )
        if self.template is not None and not Path(self.template).is_file():
            raise UserError(f"--template {self.template}: no such file")


@options
class Judge(EndpointSettings):
    """One judge: a model at an endpoint. rater: its name in FEEDBACK (its model's, unless given).

    same_model: another judge of the run has the same model and settings, at another address: their answers are kept apart by name.
    """

    rater: str = ""
    same_model: bool = False

    @property
    def name(self) -> str:
        """Its name as a rater."""
        return self.rater or self.model


def judges_of(options: JudgeOptions, given: list[str] | list[Mapping[str, Any]] | tuple[Any, ...] = ()) -> list[Judge]:
    """The judges of a run: those of `--judge`, else the one of `--model`; what a judge does not say comes from the options.

    Raises UserError: none named, two with one name.
    """
    if bool(given) == bool(options.model):
        raise UserError(
            "name the judge by --model, or several by --judge (repeated), not both" if given else "name a judge: --model NAME"
        )
    judges = asked_models(Judge, options, given or [{"model": options.model}], "judge", "--judge")
    alike = [(judge.model, json.dumps(judge.extra_body, sort_keys=True)) for judge in judges]
    judges = [replace(judge, same_model=alike.count(own) > 1) for judge, own in zip(judges, alike)]
    names = [judge.name for judge in judges]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two judges are called {twice[0]!r}: give one a name of its own, --judge {twice[0]},rater=...")
    return judges
