"""A model's card, README.md of its folder: what it was made of and on, its objective, its figures with intervals; the head as the Hub
reads it. No path of this machine stands in it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmpo.pipeline.errors import MmpoError, UserError
from mmpo.pipeline.hub import marked_page, parts_of_page
from mmpo.pipeline.metrics import METRICS
from mmpo.pipeline.storage import MANIFEST, atomic_file, file_digest, read_manifest
from mmpo.train.data import PromptPairs
from mmpo.train.messages import warn
from mmpo.train.objective import parse_terms, reads_gamma, reads_targets
from mmpo.train.options import ALL_LINEAR, TrainOptions
from mmpo.train.release.origin import Origin

CARD = "README.md"
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_USE = {
    "policy": """from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")""",
    "reward": """from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")  # its one logit is the score of a whole conversation""",
}
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
base = AutoModelForCausalLM.from_pretrained("{name}/reference")  # its base, which no other place has
model = PeftModel.from_pretrained(base, "{name}")"""
_BASE_HERE = "# first, from where it was trained, whose folder `{base}` it adds to: mmpo merge {name} --out {name}-whole\n"
_WHAT = {
    "policy": "A language model trained on pairs of replies and on how much better one of them is.",
    "reward": "A reward model, which scores replies: trained on pairs of them and on how much better one is.",
}
_PACKAGES = ("mmpo", "torch", "transformers", "peft")


class EndedRun(NamedTuple):
    """What a card tells of. record: as mmpo.json keeps it, with "origin" and "gamma"; summary: of the run; trained_on: its prompts, of
    which the model that is kept has seen those of `seen`; held_out: those of its figures."""

    options: TrainOptions
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    trained_on: Sequence[PromptPairs]
    seen: Sequence[PromptPairs]
    held_out: Sequence[PromptPairs]


def write_card(run: EndedRun) -> None:
    """README.md of a run's folder; what a person wrote there outside its marks stays. A page that is there and can't be read is left as
    it is, with a warning: the model is finished without it."""
    options = run.options
    place, name = Path(options.out) / CARD, Path(options.out).resolve().name
    adapter = bool(options.lora) and options.kind == "policy"
    try:
        old = _old(place)
        text = marked_page(name, old, _head(options, run.record, adapter), _about(run))
    except (UserError, UnicodeDecodeError, OSError) as error:
        warn([f"no model card was written, {place} stays as it is: {error}"])
        return
    with atomic_file(place) as file:
        file.write_text(text, encoding="utf-8")


def card_of_merged(name: str, adapter: Path, record: Mapping[str, Any]) -> str:
    """The card of a merged model: what its adapter's says, and that it was merged."""
    head, about = parts_of_page(_old(adapter / CARD) or "", str(adapter))
    use = f"```python\n{_USE[record['kind']].format(name=name)}\n```"
    about = re.sub(r"```python\n.*?\n```", lambda _: use, about, count=1, flags=re.DOTALL)
    own = {"library_name": "transformers", "pipeline_tag": _task(record["kind"]), "tags": ["mmpo"]}
    origin = record["origin"]
    own |= {"base_model": origin["name"], "base_model_relation": "finetune"} if origin["name"] else {}
    own |= {"license": origin["license"]} if origin["license"] else {}
    made = f"This is the adapter `{adapter.resolve().name}` added to the weights of its base, {origin['name'] or origin['called']}"
    made += f", by `mmpo merge`; weights are {record['merged']['dtype']}."
    return marked_page(name, None, {**head, **own, "tags": [*head.get("tags", []), "mmpo"]}, f"{made}\n\n{about}".rstrip() + "\n")


def _old(place: Path) -> str | None:
    """The card that is there, but for one that peft wrote, which says nothing."""
    text = place.read_text(encoding="utf-8") if place.is_file() else None
    return None if text is not None and "[More Information Needed]" in text else text


def _task(kind: str) -> str:
    return "text-generation" if kind == "policy" else "text-classification"


def _head(options: TrainOptions, record: Mapping[str, Any], adapter: bool) -> dict[str, Any]:
    """What the Hub reads; base_model and datasets are names that it can follow, or are left out."""
    origin, manifest = record["origin"], _manifest(options)
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": _task(options.kind)}
    if origin["name"]:
        head |= {"base_model": origin["name"], "base_model_relation": "adapter" if adapter else "finetune"}
    if origin["license"]:
        head["license"] = origin["license"]
    named = [one.get("name", "") for one in manifest.get("inputs", ()) if one.get("revision")]
    named.append((manifest.get("pulled") or {}).get("dataset", ""))
    if datasets := sorted({one for one in named if _DATASET.fullmatch(one)}):
        head["datasets"] = datasets
    own = [
        "mmpo",
        "preference",
        "margins",
        "reward-model" if options.kind == "reward" else "policy",
        *(["lora"] if options.lora else []),
    ]
    return {**head, "tags": own}


def _manifest(options: TrainOptions) -> dict[str, Any]:
    with suppress(MmpoError):
        return read_manifest(Path(options.data))
    return {}


def _about(run: EndedRun) -> str:
    options = run.options
    control = (
        f"\n\n**This is a control ({options.control})**: a model to hold others against, not trained on the margins of its own pairs."
        if options.control
        else ""
    )
    return f"""{_WHAT[options.kind]}{control}

```python
{_use(options)}
```

| | |
|---|---|
{_rows(_facts(run))}
{_figures(run)}
Made by {", ".join(f"{package} {version(package)}" for package in _PACKAGES)}. `mmpo.json` beside this page has all options,
counts and curves.
"""


def _use(options: TrainOptions) -> str:
    """Python that loads the model, from the folder that its own lies in."""
    name = Path(options.out).resolve().name
    if options.kind == "reward" or not options.lora:
        return _USE[options.kind].format(name=name)
    if (Path(options.out) / "reference" / "config.json").is_file():
        return _ADAPTER.format(name=name)
    if Path(options.model).exists():  # no place that others know, and it may be named from the folder at hand
        first = _BASE_HERE.format(name=name, base=Path(options.model).resolve().name)
        return first + _USE[options.kind].format(name=f"{name}-whole")
    return _USE[options.kind].format(name=name)


def _facts(run: EndedRun) -> dict[str, str | None]:
    options, record, summary, trained_on, seen, _ = run
    manifest = _manifest(options)
    p, margin = (np.concatenate([getattr(prompt, name) for prompt in trained_on]) for name in ("p", "margin"))
    gamma = f"; γ = {float(record['gamma']):.4g} per point of margin" if reads_gamma(options.loss, options.target) else ""
    mean = (
        f", mean target of untied pairs {p[margin > 0].mean():.3f}"
        if (margin > 0).any() and reads_targets(parse_terms(options.loss))
        else ""
    )
    return {
        "base model": str(Origin(**record["origin"])),
        "what was trained": _trained(options),
        "objective": f"{options.loss}" + (f", {options.loss_options}" if options.loss_options else ""),
        "targets": f"{options.target}{gamma}{mean}",
        "β": f"{options.beta:g}" if options.kind == "policy" else None,
        "steps": f"{summary['steps']:,} of at least {options.pairs_per_step:,} pairs in whole prompts; seed {options.seed}",
        "learning rate": f"{options.resolved_learning_rate:g} at its peak, {options.schedule}; {options.optimizer}",
        "lengths": f"{options.max_length:,} tokens, prompts {options.max_prompt_length:,}",
        "data": f"`{Path(options.data).resolve().name}`: "
        + ", ".join(f"{count:,} {split}" for split, count in manifest.get("rows", {}).items() if split)
        if manifest
        else f"`{Path(options.data).resolve().name}`, without a manifest",
        "its manifest": f"SHA-256 `{file_digest(Path(options.data) / MANIFEST)['sha256']}`" if manifest else None,
        "made of": ", ".join(_input(one) for one in manifest.get("inputs", ())) or None,
        "pairs trained on": f"{_pairs(seen):,} of {_pairs(trained_on):,}, in {len(seen):,} of {len(trained_on):,} prompts",
    }


def _pairs(prompts: Sequence[PromptPairs]) -> int:
    return sum(len(prompt.rows) for prompt in prompts)


def _trained(options: TrainOptions) -> str:
    if options.lora:
        alpha = 2 * options.lora if options.lora_alpha is None else options.lora_alpha
        where = "all linear modules" if options.lora_targets == ALL_LINEAR else options.lora_targets
        merged = ", merged into the model" if options.kind == "reward" else ""
        below = f", above weights of {options.load_in.removesuffix('bit')} bits" if options.load_in else ""
        return (
            f"a LoRA adapter of rank {options.lora}, alpha {alpha:g}, dropout {options.lora_dropout:g}, on {where}{below}{merged}"
        )
    if options.top_layers is not None:
        return (
            "the score layer alone"
            if not options.top_layers
            else f"the uppermost {options.top_layers} layers, what comes after them"
        )
    return "all weights" + (f" of the lowest {options.layers} layers, which are all that it has" if options.layers else "")


def _input(one: Mapping[str, Any]) -> str:
    """An input's name without the folders of the machine that it was read on, its revision, and its digest."""
    name = str(one.get("name", ""))
    shown = f"{name}@{one['revision']}" if one.get("revision") else re.split(r"[/\\]", name)[-1]
    return f"{shown} (digest `{one['digest']}`)" if one.get("digest") else shown


def _figures(run: EndedRun) -> str:
    found, bounds = run.summary.get("metrics") or {}, run.summary.get("metrics_95") or {}
    told = [
        metric for metric in METRICS if metric in found or (found and metric == "accuracy")
    ]  # which a z of 0 throughout has none of
    rows = [(metric, found.get(metric), bounds.get(metric), METRICS[metric].summary) for metric in told]
    if not rows:
        return "\nNothing was measured on held-out pairs.\n"
    lines = "\n".join(
        f"| {metric} | {_short(value)} | {'–' if span is None else f'{_short(span[0])} to {_short(span[1])}'} | {_cell(what)} |"
        for metric, value, span, what in rows
    )
    return f"""
Figures on {_pairs(run.held_out):,} held-out pairs of {len(run.held_out):,} prompts (the split `{run.options.eval_split}`,
at step {found["step"]:,}; 95% by resampling prompts):

| measure | value | 95% | what it is |
|---|---|---|---|
{lines}
"""


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _rows(facts: Mapping[str, str | None]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
