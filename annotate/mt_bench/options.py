"""The options of `mmpo evaluate mt-bench`: where questions, references and prompts stand, how answers are sampled, how they are graded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from mmpo.annotate.asking import AskingOptions, asked_models, json_object
from mmpo.annotate.generate.options import GenerateOptions, Temperature
from mmpo.annotate.judge.options import Judge
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import NUMBER, AtLeastZero, Count, TextOrPath, options, shared

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
"""At which answers to each category of MT-bench are sampled, as FastChat has it (fastchat/llm_judge/common.py, 0.2)."""
OTHER_TEMPERATURE = 0.7
"""Of a category that MT-bench does not have."""
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Of MT-bench: answers to them are graded against a reference."""


@options
class MtBenchOptions(AskingOptions):
    """What a run of MT-bench asks, samples and grades by."""

    questions: TextOrPath | None = None
    """The questions, in FastChat's layout: question_id, category, turns (two texts)."""
    references: TextOrPath | None = None
    """Reference answers in the layout of FastChat's model_answer; none grades without. Default: the one file in the folder
    reference_answer beside the questions. A question that has one is graded against it."""
    judge_prompts: TextOrPath | None = None
    """A file of the judge's prompts in FastChat's layout (judge_prompts.jsonl: single-v1, single-math-v1, and both with -multi-turn).
    Default: mmpo's own."""
    system: str | None = None
    """A system prompt for the models that answer."""
    temperature: Temperature | None = None
    """Sampling temperature of all answers. Default: by category, .7 writing and roleplay, .1 stem and humanities, 0 the others; a
    question's required_temperature comes before it."""
    top_p: Annotated[float | None, Field(gt=0, le=1), NUMBER] = None
    """Sample answers from the likeliest tokens that have so much probability together."""
    max_tokens: Count = 1024
    """Longest answer in tokens, thinking included."""
    judge_temperature: Temperature = 0.0
    """The judge's sampling temperature."""
    judge_max_tokens: Count = 2048
    """Longest judgment in tokens; one that is cut before its score has none."""
    bootstrap: Annotated[int, AtLeastZero] = 1000
    """Samples of questions behind each 95% interval; 0 for none."""

    def __post_init__(self) -> None:
        json_object(self.extra_body)

    def sampling(self, temperature: float) -> GenerateOptions:
        """The options of generating an answer at that temperature."""
        return GenerateOptions(**{**shared(self, GenerateOptions), "n": 1, "temperature": temperature})


def judges_of(options: MtBenchOptions, given: Sequence[str | Mapping[str, Any]], models: Sequence[str]) -> dict[str, Judge]:
    """The judges by the names that stand in judgments. Raises UserError: none, or two of one name.

    A model that grades itself is another one as a judge, in the journal and in what is said of it.
    """
    if not given:
        raise UserError("name a judge: --judge NAME (repeated for several)")
    judges = asked_models(Judge, options, given, "judge", "--judge")
    names = [one.name for one in judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two judges are called {twice!r}: give one a name of its own, --judge {twice},rater=...")
    alike = [one.model for one in judges]
    return {
        one.name: replace(
            one, same_model=alike.count(one.model) > 1, rater=f"{one.name} as judge" if one.name in models else one.rater
        )
        for one in judges
    }
