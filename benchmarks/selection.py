"""How many grades does it take when pairs are chosen, against as many as random choice takes?

    python benchmarks/selection.py [--set NAME ...] [--data FOLDER] [--features bag|MODEL] [--quick] [--json]

Graded sets, whose grades stand for a person's: of 30% of the prompts all pairs are for testing, of 20% some make three small reward models
(for the ways that compare graders), of the rest pairs are chosen 50 at a time, graded, and a head is fitted to all grades so far. The
measure is the head's accuracy on the untied test pairs. Pairs needed: at how many grades a way's accuracy (as a function that never
falls, by isotonic regression) reaches what random choice has at its end, on average over three draws. A fourth draw is measured beside:
what is not clearly better than that is chance. `planted` has votes drawn from a head on features of its own, as Laplace's approximation
supposes. One thread.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support")]

import numpy as np  # noqa: E402
from claims_sets import SETS, pairs_of  # noqa: E402

from mmpo.annotate.select import CompletionTexts, GradedPairs, KnownMargin, Pool, RecordItem, fit_head, in_order  # noqa: E402
from mmpo.pipeline.margins import sigmoid  # noqa: E402
from mmpo.train.advise import completion_features, evidence_of  # noqa: E402

BATCH, BUDGET, QUICK_BUDGET, MOST_PAIRS, GRADERS, DRAWS = 50, 400, 200, 4000, 3, 3
WAYS = {
    "random, again": ("random", None), "small-margin": ("small-margin", None), "model-disagreement": ("model-disagreement", None),
    "information": ("information", None), "prediction": ("prediction", None), "gap": ("gap", 1),
}  # fmt: skip
"""By name: the selection, and how many pairs of one prompt a batch may have."""
REAL = ("alpaca", "arena", "wildbench", "tulu", "mqm-zhen", "summeval")


class GradedSet(NamedTuple):
    """values: features of completions; first, second: places of the pairs' completions, the better one (or either, of a tie) the first;
    margin ≥ 0; prompt: of each pair; group: what stays on one side of a split, of each pair."""

    ids: Sequence[str]
    values: np.ndarray
    first: np.ndarray
    second: np.ndarray
    margin: np.ndarray
    prompt: np.ndarray
    group: np.ndarray


def real_set(name: str, folder: Path, features: str) -> GradedSet:
    """A set of claims_sets."""
    found, _ = evidence_of(pairs_of(name, folder), name)
    keep = np.sort(np.random.default_rng(0).permutation(len(found.margin))[:MOST_PAIRS])
    found = found.only(keep)
    values = completion_features(features, found)
    return GradedSet(found.ids, values, found.chosen, found.rejected, found.margin, found.prompt_of[found.chosen], found.pair_group)


def planted(prompts: int = 300, completions: int = 5, width: int = 40) -> GradedSet:
    """Votes drawn by σ(x·w), with features of which each varies less than the one before."""
    rng = np.random.default_rng(0)
    size = prompts * completions
    values = rng.normal(size=(size, width)) / np.sqrt(np.arange(1, width + 1))
    values /= np.sqrt((values**2).sum(axis=1).mean())
    weights = rng.normal(size=width) * 3
    a, b = np.triu_indices(completions, 1)
    prompt = np.repeat(np.arange(prompts), len(a))
    first, second = (np.add.outer(np.arange(prompts) * completions, side).ravel() for side in (a, b))
    wins = rng.random(len(first)) < sigmoid((values[first] - values[second]) @ weights)
    first, second = np.where(wins, first, second), np.where(wins, second, first)
    return GradedSet([f"{i:06}" for i in range(size)], values, first, second, np.ones(len(first)), prompt, prompt)


class Trial:
    """One split of a set, and the ways on it."""

    def __init__(self, data: GradedSet, seed: int) -> None:
        self.data, self.seed = data, seed
        draw = np.random.default_rng(seed).permutation(int(data.group.max()) + 1)
        share = np.empty(len(draw))
        share[draw] = np.arange(len(draw)) / len(draw)
        place = share[data.group]
        self.test = np.flatnonzero((place < 0.3) & (data.margin > 0))
        self.pool = np.flatnonzero(place >= 0.5)
        self.graders = self._graders(np.flatnonzero((place >= 0.3) & (place < 0.5)))
        self.items = {i: self._item(i) for i in self.pool.tolist()}

    def _x(self, pairs: np.ndarray) -> np.ndarray:
        return self.data.values[self.data.first[pairs]] - self.data.values[self.data.second[pairs]]

    def _key(self, pair: int) -> tuple[str, frozenset[str]]:
        data = self.data
        return str(data.prompt[pair]), frozenset((data.ids[data.first[pair]], data.ids[data.second[pair]]))

    def _graders(self, pairs: np.ndarray) -> dict[str, dict[Any, KnownMargin]]:
        """Heads fitted to a third each of some pairs, and what they say of the pool."""
        said = {}
        for number in range(GRADERS):
            x = self._x(pairs[number::GRADERS])
            head = fit_head(x, np.where(self.data.margin[pairs[number::GRADERS]] > 0, 1.0, 0.5), float((x**2).sum(axis=1).mean()))
            logits = head.logits(self._x(self.pool))
            said[f"model{number}"] = {self._key(i): self._margin(i, z) for i, z in zip(self.pool.tolist(), logits.tolist())}
        return said

    def _margin(self, pair: int, toward_first: float, kind: str = "reward_model") -> KnownMargin:
        better = self.data.first[pair] if toward_first >= 0 else self.data.second[pair]
        return KnownMargin(self.data.ids[better], abs(toward_first), None, 0.0, 1, kind)

    def _item(self, pair: int) -> RecordItem:
        ids = tuple(sorted(self._key(pair)[1]))
        mean = float(np.mean([one[self._key(pair)].toward(ids[0]) for one in self.graders.values()]))
        known = KnownMargin(ids[0] if mean >= 0 else ids[1], abs(mean), None, 0.0, GRADERS, "reward_model")
        return RecordItem(str(self.data.prompt[pair]), [], ids, ids, (None, None), None, {frozenset(ids): known})

    def _featurize(self, name: str, texts: CompletionTexts) -> np.ndarray:
        place = {one: i for i, one in enumerate(self.data.ids)}
        return self.data.values[[place[one] for one in texts.ids]]

    def accuracy(self, graded: dict[Any, KnownMargin], others: dict[Any, KnownMargin]) -> float:
        """Of the head fitted to grades, on the test pairs."""
        items = list(self.items.values())
        z = Pool(items, items, GradedPairs(graded, others, {}), self.seed, featurize=self._featurize).head.logits(
            self._x(self.test)
        )
        return float(np.mean((z > 0) + 0.5 * (z == 0)))

    def begun(self, sizes: Sequence[int]) -> list[float]:
        """What is gained on random choice's pairs where the head begins from what the models say of all pairs."""
        by_models = {self._key(i): next(iter(item.margins.values())) for i, item in self.items.items()}
        place = {self._key(i): i for i in self.pool.tolist()}
        items = list(self.items.values())
        drawn = in_order(Pool(items, items, GradedPairs({}, {}, {}), self.seed), "random", max(sizes))
        keys = [(one.item.prompt_id, frozenset(one.item.ids)) for one in drawn]
        said = [
            {key: self._margin(place[key], float(self.data.margin[place[key]]), "human") for key in keys[:size]} for size in sizes
        ]
        return [self.accuracy(one, by_models) - self.accuracy(one, {}) for one in said]

    def curve(self, way: str, per_prompt: int | None, budget: int, draw: int = 0) -> list[float]:
        """Accuracy on the test pairs after every batch."""
        place = {self._key(i): i for i in self.pool.tolist()}
        context, graded, found = list(self.items.values()), {}, []
        while len(graded) < budget:
            free = [item for i, item in self.items.items() if self._key(i) not in graded]
            if not free:
                break
            pool = Pool(free, context, GradedPairs(graded, {}, self.graders), 1000 * draw + self.seed, featurize=self._featurize)
            for one in in_order(pool, way, min(BATCH, budget - len(graded)), per_prompt):
                key = one.item.prompt_id, frozenset(one.item.ids)
                graded[key] = self._margin(place[key], float(self.data.margin[place[key]]), "human")
            found.append(self.accuracy(graded, {}))
        return found


def never_falling(curve: Sequence[float]) -> np.ndarray:
    """The closest function of the number of grades that never falls."""
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression().fit_transform(np.arange(len(curve)), curve)


def needed(curve: Sequence[float], goal: float) -> float:
    """The share of random's grades at which the curve reaches the goal, between batches by a straight line; inf where it does not."""
    rising = never_falling(curve)
    above = np.flatnonzero(rising >= goal - 1e-12)
    if not len(above):
        return float("inf")
    at = int(above[0])
    before = (goal - rising[at - 1]) / (rising[at] - rising[at - 1]) if at else 1.0
    return float((at + before) / len(rising))


def begin(name: str, data: GradedSet, seeds: int, budget: int) -> dict[str, float]:
    """Whether a head should begin from what models say."""
    sizes = [size for size in (0, 10, 25, 50, 100, 200, 400) if size <= budget]
    gains = np.array([Trial(data, seed).begun(sizes) for seed in range(seeds)])
    print(f"\n{name}: accuracy of a head that begins from three models' grades, less one that does not, points, {seeds} splits")
    print("  ".join(f"{size} grades: {_mean(gains[:, i].tolist())}" for i, size in enumerate(sizes)), flush=True)
    return {f"{name}_begun_{size}": float(gains[:, i].mean()) for i, size in enumerate(sizes)}


def compare(name: str, data: GradedSet, seeds: int, budget: int) -> dict[str, float]:
    """Runs all ways on some splits, and prints what they need."""
    began = time.process_time()
    curves: dict[str, list[list[float]]] = {way: [] for way in ("random", *WAYS)}
    for seed in range(seeds):
        trial = Trial(data, seed)
        budget = min(budget, max(1, len(trial.pool) // 2 // BATCH) * BATCH)  # where all pairs are asked all ways are one
        draws = [trial.curve("random", None, budget, draw) for draw in range(DRAWS)]
        curves["random"].append(np.mean([curve[: min(map(len, draws))] for curve in draws], axis=0).tolist())
        for way, (selection, per_prompt) in WAYS.items():
            curves[way].append(trial.curve(selection, per_prompt, budget, DRAWS))
    size = min(len(curve) for each in curves.values() for curve in each)
    means = {way: np.mean([curve[:size] for curve in each], axis=0) for way, each in curves.items()}
    goals = [never_falling(curve[:size])[-1] for curve in curves["random"]]
    goal = float(never_falling(means["random"])[-1])
    at = max(0, round(size / 3) - 1)
    print(f"\n{name}: {size * BATCH} pairs, {seeds} splits, {time.process_time() - began:.0f} s; random ends at {100 * goal:.1f}")
    print("way                | pairs needed (splits)       | accuracy by pairs graded, less random's at the end, in points")
    print("                   |                             | of a third of the grades; of all numbers of grades, less random's")
    ratios = {}
    for way in means:
        each = sorted(needed(curve[:size], g) for curve, g in zip(curves[way], goals, strict=True))
        ratios[f"{name}_{way.replace(', ', '_')}"] = ratio = needed(means[way], goal)
        steps = " ".join(f"{100 * (value - goal):+5.1f}" for value in means[way])
        third = [curve[at] - g for curve, g in zip(curves[way], goals, strict=True)]
        whole = [np.mean(curve[:size]) - np.mean(base[:size]) for curve, base in zip(curves[way], curves["random"], strict=True)]
        print(
            f"{way:18s} | {_share(ratio)} ({_share(each[0])} – {_share(each[-1])}) | {steps} | {_mean(third)} | {_mean(whole)}",
            flush=True,
        )
    return ratios


def _mean(differences: Sequence[float]) -> str:
    """In points, with the standard error over splits."""
    points = 100 * np.array(differences)
    error = points.std(ddof=1) / np.sqrt(len(points)) if len(points) > 1 else float("nan")
    return f"{points.mean():+.1f} ± {error:.1f}"


def _share(value: float) -> str:
    return f"{value:5.2f}" if np.isfinite(value) else "never"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--part", choices=["ways", "begin"], default="ways", help="ways to choose, or what the head begins from (ways)"
    )
    parser.add_argument(
        "--set", action="append", choices=["planted", *SETS], help="this set only; may be given again (planted and six)"
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("MMPO_REAL_DATA"), help="folder of real files (MMPO_REAL_DATA)")
    parser.add_argument(
        "--features", default="bag", help="bag, or a model's folder, whose hidden states are kept in the user's cache"
    )
    parser.add_argument("--seeds", type=int, default=5, help="splits (5)")
    parser.add_argument("--quick", action="store_true", help="a minute: planted and tulu, two splits, 200 pairs")
    parser.add_argument("--json", action="store_true", help="print the ratios as the last line")
    options = parser.parse_args(arguments)
    there = bool(options.data and Path(options.data).is_dir())
    makers: dict[str, Callable[[], GradedSet]] = {"planted": planted}
    makers |= {name: lambda name=name: real_set(name, Path(options.data), options.features) for name in SETS}
    ratios: dict[str, float] = {}
    for name in options.set or (("planted", "tulu") if options.quick else ("planted", *REAL)):
        if name != "planted" and not there:
            print(f"{name}: skipped, neither --data nor MMPO_REAL_DATA names a folder of real files")
            continue
        seeds, budget = (2, QUICK_BUDGET) if options.quick else (options.seeds, BUDGET)
        ratios |= (compare if options.part == "ways" else begin)(name, makers[name](), seeds, budget)
    if options.json:
        print(json.dumps({"ratios": {name: value if np.isfinite(value) else None for name, value in ratios.items()}}))


if __name__ == "__main__":
    main()
