"""What follows from the figures: whether margins add anything, which settings to train with, and both in sentences that a person can
act on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from mmpo.pipeline.margins import MEAN_TARGET
from mmpo.pipeline.metrics import FEWEST_CLUSTERS
from mmpo.train.advise.controls import OWN, Setting, gamma_of
from mmpo.train.advise.evidence import Evidence, Given
from mmpo.train.advise.intervals import Measured, choice

WELL_EXPLAINED = 0.75
"""Share of the margins' variance from which on margins have added accuracy, with tuned decay (docs/when-margins-help.md)."""
CHOSEN = Setting("mmpo", MEAN_TARGET, options={"chosen": "on validation prompts"})
"""MMPO with γ and ties as the validation prompts of each split choose them, judged on its test prompts."""
MARGINLESS = ("dpo", "cdpo")
"""What is advised where margins add nothing: they read none."""
HALF_A_POINT = 0.005
LITTLE_FOR_DOUBLING = 0.01
NEARLY_ALL = 0.99
"""Accuracy above which objectives can't be told apart: next to nothing is wrong."""


def margins_add(effect: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether margins add accuracy and calibration, from the differences of an objective to its two controls; None: not told apart.

    accuracy: True where the intervals of both lie above 0; False where that to matched smoothing ends below half a point. calibration, by
    the likelihood loss of temperature-scaled probabilities and by their calibration error: True where the intervals of both measures to
    both controls lie below 0; False where neither interval to matched smoothing reaches half a point below 0.
    """
    matched, shuffled = effect["minus_matched"], effect["minus_shuffled"]
    accuracy: bool | None = None
    if matched["accuracy"][1] > 0 and shuffled["accuracy"][1] > 0:
        accuracy = True
    elif matched["accuracy"][2] < HALF_A_POINT:
        accuracy = False
    calibration: bool | None = None
    if all(control[name][2] < 0 for control in (matched, shuffled) for name in ("nll", "ece")):
        calibration = True
    elif all(matched[name][1] > -HALF_A_POINT for name in ("nll", "ece")):
        calibration = False
    return {"accuracy": accuracy, "calibration": calibration}


def pick(measured: Measured, rows: Sequence[Setting], adds: Mapping[str, bool | None], explained: float) -> Setting:
    """The objective that the validation prompts of all splits choose (`choice`). Where margins add nothing, to direction nor to
    probabilities, and where the features explain none of them (R² ≤ 0), it is one that reads no margin: Bradley–Terry, unless constant
    smoothing leads it.
    """
    nothing = explained <= 0 or (adds["accuracy"] is False and adds["calibration"] is not True)
    return measured.recommended([row for row in rows if row.loss in MARGINLESS] if nothing else _candidates(rows))


def recommend(best: Setting, found: Evidence, normalise: str, gain: Mapping[str, list[float]] | None) -> dict[str, Any]:
    """{"loss", "gamma", "ties", "normalise", "target", ...}: the settings of an objective. gain: its differences to Bradley–Terry."""
    gamma = gamma_of(best, found.margin[found.decided]) if best.mean_target is not None else None
    return {
        "loss": best.loss,
        "loss_options": dict(best.options),
        "gamma": gamma,
        "mean_target": best.mean_target,
        "ties": "drop" if best.loss in MARGINLESS else best.ties if not found.decided.all() else "keep",
        "normalise": normalise,
        "target": best.target,
        "minus_bradley_terry": gain,
    }


def regret(measured: Measured, rows: Sequence[Setting]) -> dict[str, dict[str, float]]:
    """What settings cost that are chosen without the test prompts, in accuracy and nll, means over splits: the best of the candidates on
    each split's test prompts in hindsight, minus what `choice` picks on that split's other prompts, and minus γ auto with plain targets.
    """
    candidates = _candidates(rows)
    at = [measured.keys.index((row, OWN)) for row in candidates]
    found: dict[str, dict[str, float]] = {"picked": {}, "gamma_auto": {}}
    for which, (name, sign) in enumerate((("accuracy", 1), ("nll", -1))):
        values = sign * measured.each[:, at, which]
        picks = [choice(fold.validation[at], fold.chosen_on) for fold in measured.folds]
        found["picked"][name] = float((values.max(axis=1) - values[np.arange(len(picks)), picks]).mean())
        found["gamma_auto"][name] = float((values.max(axis=1) - values[:, 0]).mean())
    return found


def _candidates(rows: Sequence[Setting]) -> list[Setting]:
    """What is chosen from: the default, γ auto with plain targets and ties kept, comes first."""
    found = [row for row in rows if row.is_mmpo or row.loss in MARGINLESS]
    return sorted(found, key=lambda row: row != default(found))


def default(rows: Sequence[Setting]) -> Setting:
    """γ auto with plain targets, ties kept where there are any."""
    return next(row for row in rows[::-1] if row.loss == "mmpo" and row.mean_target == MEAN_TARGET and row.target == "plain")


def recipe(advice: Mapping[str, Any]) -> str:
    """The advice as a fragment of a recipe, YAML."""
    train: dict[str, Any] = {"loss": advice["loss"]}
    if advice["loss_options"]:
        train["loss_options"] = advice["loss_options"]
    if advice["gamma"] is not None:
        train["gamma"] = float(f"{advice['gamma']:.4g}")
    if advice["loss"] == "mmpo":
        train["target"] = advice["target"]
    train["ties"] = advice["ties"]
    return yaml.safe_dump(
        {"build": {"normalise": advice["normalise"]}, "training": train}, sort_keys=False, default_flow_style=True
    ).strip()


def points(interval: list[float]) -> str:
    """A difference of shares in points with its interval.

    >>> points([0.0123, -0.001, 0.02])
    '+1.2 points (−0.1 to +2.0)'
    """
    value, low, high = (f"{100 * one:+.1f}".replace("-", "−") for one in interval)
    return f"{value} points ({low} to {high})"


def signed(interval: Sequence[float]) -> str:
    """A difference with its interval.

    >>> signed([-0.0123, -0.02, 0.001])
    '−0.0123 (−0.0200 to +0.0010)'
    """
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*interval).replace("-", "−")


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What a summary says, the most important first."""
    return [*_worth(found), *_votes(found), *_settings(found), *_data(found), *_cautions(found)]


def _worth(found: Mapping[str, Any]) -> list[str]:
    effect, adds = found["effects"][-1], found["margins_add"]
    if found["margin_levels"] < 2:
        return [
            "All untied pairs have the same margin: it says which completion is better and no more, so that training on it is training "
            "with smoothing. Grades on a finer scale, or of several raters, would make margins that differ."
        ]
    right = found["baseline"]["accuracy"]
    instead = (
        "Smoothing without margins (cdpo .1) does as well; grades of more raters, which hold less noise, could change that."
        if right < NEARLY_ALL
        else f"Bradley–Terry is right in {100 * right:.1f}% of the held-out pairs, so that nothing is left to add; harder pairs would tell."
    )
    more = "More prompts would tell." if found["r2"] > 0 else "More prompts, or features that explain the grades, would tell."
    matched, shuffled = effect["minus_matched"], effect["minus_shuffled"]
    beyond = f"{points(matched['accuracy'])} over matched smoothing, {points(shuffled['accuracy'])} over shuffled margins"
    said = {
        True: f"Margins add accuracy here: {beyond}.",
        False: f"Margins add nothing to direction here: {beyond}. {instead}",
        None: f"Whether margins add accuracy can't be told from these {found['prompts']} prompts: {beyond}. {more}",
    }[adds["accuracy"]]
    return [said, _probabilities(matched, shuffled, adds["calibration"])]


def _probabilities(matched: Mapping[str, Any], shuffled: Mapping[str, Any], adds: bool | None) -> str:
    nll, ece = signed(matched["nll"]), signed(matched["ece"])
    against = "against matched smoothing, each at its own temperature"
    if adds:
        return f"Margins make probabilities better: log loss {nll} nats, calibration error {ece}, {against}."
    if adds is False:
        return f"Margins do not make probabilities better: log loss {nll} nats, calibration error {ece}, {against}."
    if matched["nll"][2] < 0 and shuffled["nll"][2] < 0:
        better, least, most = (-matched["nll"][at] for at in (0, 2, 1))
        rest = f"calibration error is larger by {ece}" if matched["ece"][1] > 0 else "calibration error cannot be told apart"
        return f"Likelihood improves by {better:.4f} nats ({least:.4f} to {most:.4f}) {against}; {rest}."
    other = f"{signed(shuffled['nll'])} nats and {signed(shuffled['ece'])} against shuffled margins"
    return f"Whether margins make probabilities better can't be told: log loss {nll} nats, calibration error {ece}, {against}; {other}."


def _votes(found: Mapping[str, Any]) -> list[str]:
    cast, effect = found.get("votes"), found["effects"][-1]
    if not cast:
        return []
    effect = effect["votes"]
    matched, shuffled = (effect[f"minus_{name}"] for name in ("matched", "shuffled"))
    return [
        f"By {cast['votes']:.0f} votes of {', '.join(cast['raters'])} on {cast['pairs']} pairs of {cast['prompts']} prompts, which made no "
        f"part of the margins: {points(matched['accuracy'])} over matched smoothing, {points(shuffled['accuracy'])} over shuffled margins; "
        f"log loss a vote {signed(matched['nll'])} and {signed(shuffled['nll'])} nats."
    ]


def _settings(found: Mapping[str, Any]) -> list[str]:
    advice, r2 = found["recommended"], found["r2"]
    explained = f"the features explain {100 * max(r2, 0):.0f}% of the variance of signed margins on held-out prompts"
    mean = f"{advice['mean_target'] or 0:g}".removeprefix("0")
    lines = []
    if advice["target"] == "levels":
        lines.append(
            f"Train with mmpo --target levels, learned from the raters' votes, which needs no γ: it did best; {explained}."
        )
    elif advice["gamma"] is None:
        epsilon = advice["loss_options"].get("epsilon")
        name = f"cdpo, ε {epsilon:g}" if epsilon else "dpo (Bradley–Terry)"
        none = "to be gained" if found["margins_add"]["accuracy"] is False else "shown to be gained"
        lines.append(f"Nothing is {none} from margins here: train with {name}, or as you would anyway; {explained}.")
    elif advice["mean_target"] == MEAN_TARGET and advice["target"] == "plain" and advice["minus_bradley_terry"]["nll"][2] >= 0:
        lines.append(
            f"No objective is shown to be better than the default, mmpo at γ {advice['gamma']:.3g} (mean target {mean}), nor that one "
            f"better than Bradley–Terry (dpo; log loss {signed(advice['minus_bradley_terry']['nll'])} nats): train as you would anyway; "
            f"{explained}."
        )
    else:
        low = advice["mean_target"] <= MEAN_TARGET
        how = "low, so that small and large margins get different targets" if low else "high, so that most targets are close to 1"
        well = ", which is much" if r2 >= WELL_EXPLAINED else ""
        lines.append(f"Train with {advice['loss']} at γ {advice['gamma']:.3g} (mean target {mean}), {how}; {explained}{well}.")
        if advice["target"] != "plain":
            lines.append(f"Take --target {advice['target']}: it did best on validation prompts.")
    rows = {(row["objective"], row["mean_target"], row["options"].get("ties")): row for row in found["effects"]}
    tied = rows.get(("mmpo", 1.0, "keep"))
    if found["ties"] and tied:
        gain = tied["minus_bradley_terry"]["accuracy"]
        share = f"{100 * found['ties'] / found['pairs']:.0f}% of the pairs are ties"
        ties = {"drop": "Take --ties drop with mmpo, which did best so. ", "keep": "Ties may stay: --ties drop did not lead. "}
        ties = "" if advice["loss"] in MARGINLESS else ties[advice["ties"]]
        lines.append(f"{ties}{share}; added at ½ to Bradley–Terry alone they change its accuracy by {points(gain)}.")
    if found["normalisations"]:
        base = next(row["normalise"] for row in found["normalisations"])
        best = next(row for row in found["normalisations"] if row["normalise"] == found["normalisation"])
        if found["normalisation"] != base:
            lines.append(
                f"Build with --normalise {found['normalisation']}: the features explain {points(best['minus_' + base])} more of its "
                f"margins' variance than of {base}'s."
            )
        else:
            others = " or ".join(row["normalise"] for row in found["normalisations"][1:])
            lines.append(f"No normalisation is told apart from {base}: by {others} margins are not separably better explained.")
    return lines


def _data(found: Mapping[str, Any]) -> list[str]:
    last = found["learning_curve"][-1]
    more = last["more"]
    lines = [f"All of the training prompts instead of half of them change accuracy by {points(more)}."] if more else []
    if more and more[1] > 0.0025:
        lines[-1] += " It still rises: more prompts will help."
    elif more and more[2] < 0:
        lines[-1] += " Half of them did better, which is chance: it says nothing of more prompts."
    elif more and more[2] < LITTLE_FOR_DOUBLING:
        lines[-1] += (
            " More prompts would bring little; grades with less noise (more raters) or better features (--features MODEL) might."
        )
    value, low, high = (f"{one:.2f}".replace("-", "−") for one in found["beyond_sign"])
    known = f"rank correlation of margins with the logits of a model that saw only which is better: {value} ({low} to {high})"
    if found["margin_levels"] < 2:
        pass
    elif found["beyond_sign"][1] > 0:
        lines.append(
            f"Keep the grades, not only which is better: larger margins are on pairs that are clearer by themselves ({known})."
        )
    else:
        lines.append(
            f"Nothing shows that larger margins are on clearer pairs ({known}): finer grades may not be worth their price."
        )
    length = found["length"]
    if length["share"] is not None and length["r2"][1] > 0:
        lines.append(
            f"Length alone explains {100 * min(length['share'], 1):.0f}% of what the features explain, and the longer one wins "
            f"{100 * length['longest_wins']:.0f}% of the pairs: if length should not count, `mmpo agree FEEDBACK` shows who prefers it."
        )
    return lines


def _cautions(found: Mapping[str, Any]) -> list[str]:
    lines = []
    last = found["learning_curve"][-1]
    if found["prompts_that_judge"] < FEWEST_CLUSTERS:
        lines.append(
            f"All of this is judged by {found['prompts_that_judge']} prompts, too few to tell anything by: take more --seeds (5 judge by "
            "every prompt) or give more prompts."
        )
    if found["width"] > last["pairs"]:
        lines.append(
            f"There are more features ({found['width']}) than untied training pairs ({last['pairs']}): the heads lean on weight decay, and "
            "figures are those of a small set."
        )
    if found["r2"] < 0:
        lines.append("On held-out prompts the features foretell margins worse than saying 0 would: take the rest with caution.")
    if found.get("prompts_not_drawn"):
        lines.append(f"{found['prompts_not_drawn']} further prompts were not drawn: a look of a minute reads so many.")
    return lines


_MENDED = {"scale": "mmpo build --scale LOW:HIGH ...", "scores": "scores of single completions would take it"}


def not_measurable(given: Given, found: Evidence) -> list[dict[str, str]]:
    """What this input has no answer to, why, and the command that makes one that has."""
    rows = []
    feedback = "mmpo build SOURCE ... --feedback-only --out FEEDBACK; mmpo advise FEEDBACK"
    votes = "held-out raters' votes"
    if given.kind == "pairs":
        why = "pairs hold merged scores, not single grades"
        rows = [
            {"what": "normalisation by rater or prompt", "why": why, "command": feedback},
            {"what": votes, "why": why, "command": f"{feedback} --votes RATER"},
        ]
    elif len(given.raters) < 2:
        rows = [{"what": votes, "why": "there is one rater", "command": "mmpo judge FEEDBACK --model NAME ..."}]
    elif not given.voters:
        why = f"none of the {len(given.raters)} raters was held out"
        rows = [{"what": votes, "why": why, "command": "mmpo advise FEEDBACK --votes RATER"}]
    if not (~np.isnan(found.margin_se)).any():
        rows.append(
            {
                "what": "noise-aware targets, noise between raters",
                "why": "no pair has a margin_se: one rater, without a spread of its own",
                "command": feedback if given.kind == "pairs" else "mmpo judge FEEDBACK --model NAME ...",
            }
        )
    rows += [
        {"what": f"--normalise {name}", "why": why, "command": _MENDED["scale" if "--scale" in why else "scores"]}
        for name, why in given.refused.items()
    ]
    return rows
