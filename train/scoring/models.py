"""One model's grades: a reward model's scores, or a policy's implicit reward β·(log π − log π_ref), each computed once and kept."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.train.data import Renderer, choose_template, of_part, pad_token
from mmpo.train.evaluation import options_as_trained, trained_part_of, trained_reference, trained_reference_weights
from mmpo.train.inference import cached_values
from mmpo.train.messages import memory_error, out_of_memory, rendering_warnings, some_ids, warn
from mmpo.train.model import Fingerprint, check_ids, check_model, fingerprint_of, kind_of, load_pretrained, positions_of
from mmpo.train.options import TrainOptions, pass_tokens
from mmpo.train.record import read_record
from mmpo.train.scoring.actors import OnActors, ScoringActors, device_here
from mmpo.train.scoring.candidates import KIND, Rendering, StoredCompletions, rendered
from mmpo.train.scoring.options import ScoreOptions, Scorer

SAME = 1e-3
"""How far a score may be from the one that is there already, absolutely and relatively, to be taken for the same model's."""
OF_THE_MODEL = ("reference", "beta", "chat_template")
OF_POLICIES = ("reference", "beta")
SETTINGS = ("max_length", "max_prompt_length", "thinking", "graded_part")


@dataclass
class Scores:
    """One model's grades. values: the new ones, NaN where there is none, shape (completions,); already: how many it had given before;
    left_out: completions without a grade, by their numbers, with the reason; identity: what the grades depend on.
    """

    scorer: Scorer
    kind: str
    identity: dict[str, Any]
    values: np.ndarray
    already: int
    truncated: int
    left_out: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


def scores_of(candidates: StoredCompletions, scorer: Scorer, options: ScoreOptions, actors: ScoringActors | None = None) -> Scores:
    """What one model gives the completions that it has not graded yet. actors: that compute it; None: this process. Raises UserError."""
    began = time.monotonic()
    how = _options(scorer, options)
    model, tokenizer = load_pretrained(how.kind, how.model, trust_remote_code=how.trust_remote_code)
    choose_template(tokenizer, how.chat_template)
    how = _fitted(how, options, model)
    check_model(model, how.model, how.max_length)
    reference = None
    if how.kind == "policy":
        record = read_record(how.model) or {}
        named = scorer.reference or options.reference
        reference = trained_reference(how, tokenizer, trained_reference_weights(record, named))
    prints = [None if one is None else fingerprint_of(one, tokenizer, bf16=how.bf16) for one in (model, reference)]
    _check_apart(how, prints)
    identity = {name: getattr(how, name) for name in SETTINGS} | {"kind": how.kind, "fingerprint": prints[0].name}
    if prints[1] is not None:
        identity |= {"reference": prints[1].name, "beta": how.beta, "length_normalised": how.length_normalised}
    before = candidates.graded(scorer.name)
    given = np.isfinite(before)
    vouched = _vouched(candidates, scorer, identity, int(given.sum()))
    renderer = Renderer(tokenizer, how.max_length, how.max_prompt_length, how.thinking or "keep", how.graded_part or "all")
    found = rendered(candidates, renderer, ~given if vouched else np.ones(len(given), dtype=bool))
    warn(line.replace(" with all their pairs", "") for line in rendering_warnings(renderer))
    values = np.full(len(given), np.nan)
    if found.prompts:
        values[np.concatenate(found.places)] = _computed(how, options, scorer, found, [model, reference], prints, tokenizer, actors)
    elif not given.any():
        raise UserError(_nothing(scorer, found))
    _check_same(scorer, before, values)
    values[given] = np.nan
    left_out = {place: why for place, why in found.left_out.items() if not given[place]}
    truncated = sum(item.truncated for prompt in found.prompts for item in prompt.completions)
    return Scores(scorer, how.kind, identity, values, int(given.sum()), truncated, left_out, time.monotonic() - began)


def _options(scorer: Scorer, options: ScoreOptions) -> TrainOptions:
    """How the model is run: what is given for it, else for all, else as it was trained."""
    given = {name: getattr(scorer, name) or getattr(options, name) for name in OF_THE_MODEL}
    given |= {name: getattr(options, name) for name in (*SETTINGS, "tokens_per_batch", "layout", "bf16", "trust_remote_code")}
    record = read_record(scorer.model) or {}
    kind = record.get("kind") or kind_of(scorer.model, trust_remote_code=options.trust_remote_code)
    kind = "policy" if kind == "policy" else "reward"  # what has no output layer is refused as one without a score
    if kind == "reward":
        _check_of_policies(scorer, options)
        given["reference"] = given["beta"] = None
    given = {name: value for name, value in given.items() if value is not None}
    how = options_as_trained(kind, scorer.model, record, {"gamma": 1.0, **given})  # no target is made, so that any γ does
    return of_part(how, options.graded_part or trained_part_of(record) or "all")


def _check_of_policies(scorer: Scorer, options: ScoreOptions) -> None:
    """What a reward model has no use for: refused where it is given for this model, said where it is given for all."""
    for name in OF_POLICIES:
        if getattr(scorer, name) is not None:
            raise UserError(
                f"{scorer.model} is a reward model, which scores by itself: {name} belongs to policies' implicit rewards; leave it out"
            )
        if getattr(options, name) is not None:
            warn([f"{scorer.name} is a reward model, which scores by itself: --{name} is for policies and not used for it"])


def _check_apart(how: TrainOptions, prints: Sequence[Fingerprint | None]) -> None:
    """Raises UserError for a policy against itself, whose implicit rewards are all 0."""
    policy, reference = prints
    if policy is not None and reference is not None and policy.weights == reference.weights:
        raise UserError(
            f"the policy {how.model} and its reference {how.reference} have the same weights: an implicit reward says how much likelier "
            "the policy finds a reply than its reference does, and all of them would be 0. Give the model that the policy was trained "
            "from: --model DIR,reference=DIR"
        )


def _fitted(how: TrainOptions, options: ScoreOptions, model: Any) -> TrainOptions:
    """With lengths that the model takes, where none was asked for."""
    limit = positions_of(model)
    if limit is None or how.max_length <= limit or options.max_length is not None:
        return how
    return replace(how, max_length=limit, max_prompt_length=min(how.max_prompt_length, limit // 2))


def _vouched(candidates: StoredCompletions, scorer: Scorer, identity: dict[str, Any], given: int) -> bool:
    """Whether the manifest says that the rater's grades are this model's. Raises UserError where it says otherwise."""
    if not given:
        return True
    recipe = candidates.manifest.get("recipe")
    while isinstance(recipe, dict):
        for one in recipe.get("scorers", ()):
            if one["rater"] == scorer.name:
                differs = sorted(name for name in {*one["identity"], *identity} if one["identity"].get(name) != identity.get(name))
                if differs:
                    raise UserError(
                        f"{candidates.folder} holds {given:,} grades by {scorer.name!r} that were made otherwise "
                        f"({', '.join(differs)}), and one rater is one grader. {_renamed(scorer)}"
                    )
                return True
        recipe = recipe.get("feedback")
    return False


def _check_same(scorer: Scorer, before: np.ndarray, now: np.ndarray) -> None:
    """Raises UserError where grades that nobody vouches for are not those of this model."""
    both = np.isfinite(before) & np.isfinite(now)
    other = both & ~np.isclose(now, before, rtol=SAME, atol=SAME)
    if other.any():
        at = int(other.argmax())
        raise UserError(
            f"{int(other.sum()):,} of {int(both.sum()):,} grades by {scorer.name!r} are not those of {scorer.model} (the first: "
            f"{before[at]:.4g}, now {now[at]:.4g}): another model gave them. {_renamed(scorer)}"
        )


def _renamed(scorer: Scorer) -> str:
    return f"Give these grades another name: --model {scorer.model},rater=NAME"


def _computed(
    how: TrainOptions,
    options: ScoreOptions,
    scorer: Scorer,
    found: Rendering,
    models: list[Any],
    prints: list[Any],
    tokenizer: Any,
    actors: ScoringActors | None,
) -> np.ndarray:
    """The grades of the rendered completions, in their order, float64."""
    device = device_here()
    tokens = pass_tokens(how.tokens_per_batch, device)
    shared: dict[str, Any] = {"tokens": tokens, "pad_token": pad_token(tokenizer), "device": device, "bf16": how.bf16}
    shared |= {"layout": how.layout, "tokenizer": tokenizer, "option": "--cache"}
    titles = (scorer.name, f"{scorer.name}'s reference")
    run = [one for one in zip(models, (how.model, str(how.reference)), prints, titles, strict=True) if one[0] is not None]
    for model, name, _, _ in run:
        check_ids(found.prompts, model, tokenizer, name)
    values = []
    for model, name, own, called in run:
        elsewhere = actors and OnActors(actors, how, name, own, called, shared["pad_token"])
        given = {"fingerprint": own, "called": called, "elsewhere": elsewhere}
        try:
            known = cached_values(model, how.kind, found.prompts, options.cache, **given, **shared)
        except Exception as error:
            if isinstance(error, UserError) or not out_of_memory(error):
                raise
            raise memory_error("while scoring", [f"set tokens_per_batch lower (--tokens-per-batch, now {tokens})"]) from error
        model.to("cpu")  # policy and reference need not lie on a device together
        values.append(known)
    if how.kind == "reward":
        return np.concatenate(values[0])
    ratio = np.concatenate(values[0]) - np.concatenate(values[1])
    if how.length_normalised:
        ratio /= np.array([len(item.ids) - item.start for prompt in found.prompts for item in prompt.completions])
    return how.beta * ratio


def _nothing(scorer: Scorer, found: Rendering) -> str:
    reasons = sorted(set(found.left_out.values()))
    return f"{scorer.name}: none of {len(found.left_out):,} completions can be graded ({some_ids(reasons)}); see the warnings above"


def described(scores: Scores) -> dict[str, Any]:
    """What the manifest keeps of a model that graded."""
    return {"rater": scores.scorer.name, "kind": KIND, "model": scores.scorer.model, "identity": scores.identity}
