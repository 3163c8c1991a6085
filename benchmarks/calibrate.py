"""Do at most 100 human pairs calibrate a grader, on held-out people, and are the errors and estimates honest?

    python benchmarks/calibrate.py [--part real|coverage|estimates] [--data FOLDER] [--quick] [--json]

real: people and another grader on the same pairs. 100 pairs are drawn at random, and what all others say is compared with the calibrated
grader,
beside σ(γm) at γ auto, at γ = 1 and at the γ that is best for all people (the ones held out too), and beside the odd map that never falls
and
is best for them all: the last two have seen the answers. coverage: 95% intervals of calibrated margins over simulated people of known
truth.
estimates: prediction-powered means and agreement, likewise. One thread.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support")]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from calibration_cases import rows_of, world  # noqa: E402
from human_cases import Rows, Scale, compared, table  # noqa: E402
from human_sets import mqm, pandalm, ragchecker, summeval, summeval_groups  # noqa: E402

from mmpo.annotate.agreement.columns import choose_columns  # noqa: E402
from mmpo.annotate.agreement.margins import read_margins  # noqa: E402
from mmpo.annotate.calibrate import CalibrateOptions, prediction_powered_mean  # noqa: E402
from mmpo.annotate.calibrate.crossfit import logits  # noqa: E402
from mmpo.annotate.calibrate.grader import calibrate_grader  # noqa: E402
from mmpo.annotate.calibrate.maps import MAPS, HumanAnswers  # noqa: E402
from mmpo.annotate.calibrate.overlap import Grader, People, grader_of, people_of  # noqa: E402
from mmpo.annotate.calibrate.position import identified  # noqa: E402
from mmpo.pipeline import read_feedback  # noqa: E402
from mmpo.pipeline.margins import fit_gamma_to_votes, gamma_for_mean_target, sigmoid  # noqa: E402
from mmpo.pipeline.metrics import cross_entropy, ece_vote  # noqa: E402

HUMAN_PAIRS = 100
ALLOWED = 0.01
Group = tuple[Rows, Scale, str]


def feedback_of(scratch: Path, *groups: Group) -> pa.Table:
    """FEEDBACK of groups of rows, each with a scale and a kind."""
    tables = []
    for rows, scale, kind in groups:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tables.append(read_feedback(scratch, "jsonl", scale=scale, kind=kind, max_rejects=0.05))
    return pa.concat_tables(tables)


def _gpt35(folder: Path) -> Rows:
    """GPT-3.5's verdicts on PandaLM's pairs, in one order; those that are no verdict left out."""
    frame = table(folder, "pandalm_human_pairs")
    frame = frame[frame["gpt35_result"] != "garbage"].assign(rater="gpt35")
    frame["gap"] = frame["gpt35_result"].map({"Tie": 0, "1": 1, "2": -1})
    return compared(frame, "response_1", "response_2", "gap", "rater")


def _experts(folder: Path) -> Rows:
    return [row for row in summeval(folder) if row["rater"].startswith("expert")]


class Set(NamedTuple):
    """groups: of the folder of real files; grader; people: (); all others; aspect."""

    groups: Callable[[Path], list[Group]]
    grader: str
    people: tuple[str, ...] = ()
    aspect: str = "overall"


SETS = {
    "pandalm: GPT-3.5": Set(lambda f: [(pandalm(f), (-1, 1), "human"), (_gpt35(f), (-1, 1), "ai")], "gpt35"),
    "ragchecker: one of two": Set(lambda f: [(ragchecker(f), (-2, 2), "human")], "0"),
    "mqm en-de: rater 7": Set(lambda f: [(mqm(f, "en-de"), None, "human")], "rater7"),
    "mqm zh-en: rater 6": Set(lambda f: [(mqm(f, "zh-en"), None, "human")], "rater6"),
    "summeval coherence: an expert": Set(lambda f: [(_experts(f), (1, 5), "human")], "expert0", aspect="coherence"),
    "summeval relevance: an expert": Set(lambda f: [(_experts(f), (1, 5), "human")], "expert0", aspect="relevance"),
    "summeval coherence: the crowd": Set(
        lambda f: [(_experts(f), (1, 5), "human"), (summeval_groups(f), (1, 5), "human")],
        "turker", ("expert0", "expert1", "expert2"), "coherence",
    ),
}  # fmt: skip


def shared_pairs(one: Set, folder: Path, scratch: Path) -> tuple[Grader, People]:
    """The pairs that both graded, and all that people said of them."""
    feedback = feedback_of(scratch, *one.groups(folder))
    margins = read_margins(feedback, choose_columns(feedback, aspects=(one.aspect,)))
    names = [column.name for column in margins.chosen.columns]
    people = people_of(margins, [names.index(name) for name in one.people or names if name != one.grader], 0)
    grader = grader_of(margins, names.index(one.grader), 0)
    assert grader is not None
    return grader.take(people.answers.voters[grader.unit] > 0), people


def only(people: People, units: np.ndarray) -> People:
    """The same people where they had graded nothing but these pairs; their own noise is still that of all."""
    asked = np.isin(np.arange(len(people.answers.voters)), units)
    answers = people.answers
    left = {name: getattr(answers, name) * asked for name in ("votes", "voters", "mean")}
    return replace(people, answers=answers._replace(**left, levels=answers.levels * asked[:, None]))


def measured(chance: np.ndarray, answers: HumanAnswers) -> tuple[float, float]:
    """Cross-entropy and ECE to people's votes."""
    return (
        cross_entropy(logits(chance), answers.votes / answers.voters) or 0.0,
        ece_vote(chance, answers.votes, answers.voters) or 0.0,
    )


def real(folder: Path, scratch: Path, quick: bool) -> dict[str, float]:
    """A row a set: cross-entropy and ECE on held-out pairs, means over draws, and whether the three claims hold."""
    draws, met = 5 if quick else 20, []
    print(f"{HUMAN_PAIRS} human pairs drawn {draws} times; cross-entropy / ECE of all other pairs, means over draws")
    print(
        f"{'':30} {'pairs':>6} {'calibrated':>14} {'γ auto':>14} {'γ = 1':>14} {'best γ':>14} {'best map':>14}  knows  claims  maps"
    )
    for name, one in SETS.items():
        grader, people = shared_pairs(one, folder, scratch)
        answers, x, ids = people.answers.take(grader.unit), grader.features[:, 0], np.arange(int(grader.prompt.max()) + 1)
        up = np.where(x >= 0, answers.votes, answers.voters - answers.votes)
        best = MAPS["isotonic"](x[:, None], 1, answers, np.ones(len(x)))
        fixed = {
            "auto": sigmoid(gamma_for_mean_target(np.abs(x)) * x), "one": sigmoid(x),
            "gamma": sigmoid(fit_gamma_to_votes(np.abs(x), up, answers.voters) * x), "map": best.chance(best.index(x[:, None])),
        }  # fmt: skip
        rows, knows, maps = [], [], []
        for draw in range(draws):
            asked = np.random.default_rng([draw, 1]).permutation(len(x))[:HUMAN_PAIRS]
            rest = np.setdiff1d(np.arange(len(x)), asked)
            told = only(people, grader.unit[asked])
            found = calibrate_grader(identified(grader, told.answers), told, ids, CalibrateOptions(bootstrap=20, seed=draw))
            knows.append(found.knows)
            maps.append(found.held.setting.name)
            held = answers.take(rest)
            rows.append([measured(found.chance[rest], held), *(measured(chance[rest], held) for chance in fixed.values())])
        mean = np.mean(rows, axis=0)
        (calibrated, ece), (auto, auto_ece), _, (gamma, _), (oracle, _) = mean
        claims = (calibrated <= gamma, auto - calibrated >= auto - oracle - ALLOWED, ece <= auto_ece / 2)
        met.append(claims)
        cells = " ".join(f"{f'{one:.3f} / {two:.3f}':>14}" for one, two in mean)
        most = max(sorted(set(maps)), key=maps.count)
        verdict = "".join("yn"[not claim] for claim in claims)
        print(f"{name:30} {len(x):>6,} {cells}  {np.mean(knows):>5.2f}  {verdict:>6}  {most} ({maps.count(most)} of {draws})")
    print("claims: no higher than the best γ; γ auto less calibrated at least what the best map allows less .01; ECE at most half")
    return dict(zip(("no_higher_than_best_gamma", "near_best_map", "ece_halved"), np.mean(met, axis=0).tolist()))


WORLDS: dict[str, dict[str, Any]] = {
    "two people a pair": {},
    "close to the map": {"beyond": 0.2},
    "far from the map": {"beyond": 1.2},
    "noisy people": {"noise": 1.2},
    "three people a pair": {"people": 3},
    "one person a pair (a bound)": {"people": 1},
}


def coverage(folder: Path, scratch: Path, quick: bool) -> dict[str, float]:
    """Share of margins whose 95% interval holds what people would say on average, on pairs that no person graded."""
    seeds, shares = 8 if quick else 60, {}
    print(f"{seeds} worlds of 600 pairs each, 120 human pairs: held-out margins within 1.96·spread, their error, spread")
    for name, given in WORLDS.items():
        found = []
        for seed in range(seeds):
            made = world(10_000 + seed, **given)
            judge, people = rows_of(made, 120)
            feedback = feedback_of(scratch, (judge, (-20, 20), "ai"), (people, (-3, 3), "human"))
            margins = read_margins(feedback, choose_columns(feedback))
            theirs = people_of(margins, list(range(made.answers.shape[1])), 0)
            grader = grader_of(margins, made.answers.shape[1], 0)
            assert grader is not None
            ids = np.arange(margins.prompts)
            one = calibrate_grader(
                identified(grader, theirs.answers), theirs, ids, CalibrateOptions(bootstrap=50, length="off", seed=seed)
            )
            number, sign = order_of(feedback, margins)
            off = (one.expected - sign * made.expected[number])[~one.labelled]
            spread = one.errors.spread[~one.labelled]
            found.append((np.mean(np.abs(off) <= 1.96 * spread), np.mean(off**2), np.mean(spread**2)))
        held, off, spread = np.mean(found, axis=0)
        shares[name] = float(held)
        print(f"{name:30} {held:.3f} {np.sqrt(off):.3f} {np.sqrt(spread):.3f}")
    known = [value for name, value in shares.items() if "bound" not in name]
    return {"margin_se_least": min(known), "margin_se_most": max(known)}


def order_of(feedback: pa.Table, margins: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit: its number in the world, and 1 where the completion of the smaller id is the world's first."""
    from mmpo.pipeline.arrow import flat, large
    from mmpo.pipeline.grades import merge_prompts

    merged, _ = merge_prompts(large(feedback).combine_chunks())
    texts = np.array(flat(merged["completions"]).flatten().field("text").to_pylist(), dtype=object)
    words = [text.split() for text in texts[margins.low]]
    return np.array([int(one[1]) for one in words]), np.array([1.0 if one[2] == "a" else -1.0 for one in words])


def estimates(folder: Path, scratch: Path, quick: bool) -> dict[str, float]:
    """Coverage and width of prediction-powered means over populations of known mean: a margin, and an agreement (shares of two votes)."""
    seeds, ratios = 500 if quick else 4000, {}
    print(f"{seeds} samples of 300 prompts with two pairs each, people on 40: coverage, width over that of people alone")
    for name in ("margin", "agreement"):
        held, widths = [], []
        for seed in range(seeds):
            random = np.random.default_rng([seed, 5])
            prompt = np.repeat(np.arange(300), 2)
            seen = 0.3 + random.normal(0, 0.7, 300)[prompt] + random.normal(0, 0.7, 600)
            asked = np.isin(prompt, random.permutation(300)[:40])
            if name == "margin":
                truth, predicted, mean = seen + random.normal(0, 0.5, 600), 0.7 * seen + random.normal(0, 0.4, 600), 0.3
            else:
                chance = sigmoid(2 * seen)
                truth, predicted, mean = random.binomial(2, chance) / 2, chance, AGREEMENT
            found = prediction_powered_mean(np.where(asked, truth, np.nan), predicted, prompt)
            assert found.interval is not None and found.people_only_interval is not None
            held.append(found.interval[0] <= mean <= found.interval[1])
            widths.append(float(np.subtract(*found.interval) / np.subtract(*found.people_only_interval)))
        ratios[f"{name}_covered"], ratios[f"{name}_width"] = float(np.mean(held)), float(np.mean(widths))
        print(f"{name:30} {np.mean(held):.3f} {np.mean(widths):.3f}")
    return ratios


NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
AGREEMENT = float(sigmoid(2 * (0.3 + np.sqrt(2 * 0.7**2) * NODES)) @ NODE_WEIGHTS / NODE_WEIGHTS.sum())
"""The mean of σ(2·seen) with seen normal about .3, by Gauss and Hermite."""
PARTS: dict[str, tuple[Callable[[Path, Path, bool], dict[str, float]], bool]] = {
    "real": (real, True), "coverage": (coverage, False), "estimates": (estimates, False),
}  # fmt: skip
"""Each part, and whether it reads real files."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part only; may be given again (all)")
    parser.add_argument("--data", type=Path, default=os.environ.get("MMPO_REAL_DATA"), help="folder of real files (MMPO_REAL_DATA)")
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer draws and worlds")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args(arguments)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.part or PARTS:
            run, needs_files = PARTS[name]
            if needs_files and not (options.data and Path(options.data).is_dir()):
                print(f"{name}: skipped, neither --data nor MMPO_REAL_DATA names a folder of real files")
                continue
            ratios |= run(Path(options.data or "."), Path(scratch) / "rows.jsonl", options.quick)
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
