"""`mmpo evaluate policy|reward`: accuracy and calibration of a trained model; one flag for every field of EvaluateOptions."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmpo.cli.commands.train import Kind
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table
from mmpo.pipeline.metrics import METRICS
from mmpo.pipeline.options import NUMBER, TextOrPath, options, options_from


@options
class EvaluateOptions:
    """What a model is measured on, and by what; `mmpo.train.evaluate` takes the same by name."""

    split: str = "test"
    """train, validation or test."""
    gamma: Annotated[float | None, NUMBER] = None
    """γ of the targets; the one saved beside the model."""
    target: str | None = None
    """plain, noise-aware or measured; as the model was trained."""
    beta: Annotated[float | None, NUMBER] = None
    """β of a policy's logit; as the model was trained."""
    reference: str | None = None
    """Reference model of a policy; as it was trained."""
    reference_cache: str | None = None
    """Folder or .sqlite file of the reference's log-probabilities, as for training."""
    votes: TextOrPath | None = None
    """Parquet with chosen_id, rejected_id, preferring, raters of raters outside the margins."""
    per_pair: TextOrPath | None = None
    """Parquet file to write every pair's values to."""
    max_length: Annotated[int | None, NUMBER] = None
    """Longest prompt and completion, in tokens."""
    max_prompt_length: Annotated[int | None, NUMBER] = None
    """Longest prompt, in tokens."""
    thinking: Literal["keep", "drop"] | None = None
    """Thinking in replies, keep or drop; as the model was trained."""
    graded_part: Literal["answer", "all"] | None = None
    """What the grades are of, answer or all; as the model was trained."""
    tokens_per_batch: Annotated[int | None, NUMBER] = None
    """Tokens that go through the model at once."""
    chat_template: str = "tokenizer"
    """tokenizer (the model's own), plain, or a file with a Jinja template."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


@with_flags(EvaluateOptions)
def evaluate(
    kind: Annotated[Kind, typer.Argument(help="policy or reward.")],
    model: Annotated[str, typer.Option(help="The trained model: a folder or a Hugging Face name.")],
    data: Annotated[Path, typer.Option(help="A dataset folder, a Parquet file of pairs, or a file of RewardBench's rows.")],
    *,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Measure a model on held-out pairs: accuracy (ties left out), calibration of three kinds, by margin bin; or on RewardBench."""
    from mmpo.train import evaluate as measure

    summary: dict[str, Any] = measure(kind.value, model, data, **vars(options_from(EvaluateOptions, given, flags=True)))
    print_table("", ("measure", "value"), [(name, summary[name]) for name in ("pairs", "ties", *METRICS) if name in summary])
    print_rows("by quality margin", summary.get("by_margin") or [])
    if "sections" in summary:
        print_rows("RewardBench", summary["subsets"], {name: name for name in ("subset", "pairs", "accuracy")})
        print_table("", ("section", "accuracy"), [*summary["sections"].items(), ("average of these", summary["average"])])
    print_json(summary, as_json)
