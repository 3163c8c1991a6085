"""`mmpo evaluate policy|reward`: accuracy and calibration of a trained model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.commands.train import Kind
from mmpo.cli.output import print_json, print_table
from mmpo.pipeline.metrics import METRICS


def evaluate(
    kind: Annotated[Kind, typer.Argument(help="policy or reward.")],
    model: Annotated[str, typer.Option(help="The trained model: a folder or a Hugging Face name.")],
    data: Annotated[Path, typer.Option(help="A dataset folder, a Parquet file of pairs, or a file of RewardBench's rows.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    gamma: Annotated[float | None, typer.Option(help="γ of the targets; the one saved beside the model.")] = None,
    target: Annotated[str | None, typer.Option(help="plain, noise-aware or measured; as the model was trained.")] = None,
    beta: Annotated[float | None, typer.Option(help="β of a policy's logit; as the model was trained.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference model of a policy; as it was trained.")] = None,
    reference_cache: Annotated[
        str | None, typer.Option(help="Folder or .sqlite file of the reference's log-probabilities, as for training.")
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(help="Parquet with chosen_id, rejected_id, preferring, raters of raters outside the margins."),
    ] = None,
    per_pair: Annotated[Path | None, typer.Option(help="Parquet file to write every pair's values to.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest prompt and completion, in tokens.")] = None,
    max_prompt_length: Annotated[int | None, typer.Option(help="Longest prompt, in tokens.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Tokens that go through the model at once.")] = None,
    chat_template: Annotated[
        str, typer.Option(help="tokenizer (the model's own), plain, or a file with a Jinja template.")
    ] = "tokenizer",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Measure a model on held-out pairs: accuracy (ties left out), calibration of three kinds, by margin bin; or on RewardBench."""
    from mmpo.train import evaluate as measure

    summary: dict[str, Any] = measure(
        kind.value,
        model,
        data,
        split=split,
        gamma=gamma,
        target=target,
        beta=beta,
        reference=reference,
        reference_cache=reference_cache,
        votes=votes,
        per_pair=per_pair,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        tokens_per_batch=tokens_per_batch,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    print_table("", ("measure", "value"), [(name, summary[name]) for name in ("pairs", "ties", *METRICS) if name in summary])
    bins = summary.get("by_margin") or []
    if bins:
        columns = list(bins[0])
        print_table("by quality margin", columns, [[row.get(column) for column in columns] for row in bins])
    if "sections" in summary:
        columns = ("subset", "pairs", "accuracy")
        print_table("RewardBench", columns, [[row[name] for name in columns] for row in summary["subsets"]])
        print_table("", ("section", "accuracy"), [*summary["sections"].items(), ("average of these", summary["average"])])
    if as_json:
        print_json(summary)
