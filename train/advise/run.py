"""`mmpo advise`: do the margins of a data set help, and what should be set? Measured on the data itself, with controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import FEWEST_CLUSTERS
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import ProgressReporter
from mmpo.train.advise import explained
from mmpo.train.advise.advice import CHOSEN, default, margins_add, not_measurable, pick, recipe, recommend, regret, sentences
from mmpo.train.advise.controls import BRADLEY_TERRY, MATCHED, OWN, SHUFFLED, Setting, gamma_of, settings_for, target_of
from mmpo.train.advise.evidence import Evidence, Given, aligned, check_evidence, evidence_of, graders_of, read
from mmpo.train.advise.features import Fit, features_of
from mmpo.train.advise.intervals import MEASURES, Measured
from mmpo.train.advise.measure import Fold, joined, run_split, splits
from mmpo.train.advise.options import AdviseOptions

LEAST_PROMPTS = 10
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the training prompts, for the learning curve."""


def advise(data: str | Path | pa.Table, *, values: np.ndarray | None = None, **options: Any) -> dict[str, Any]:
    """What the margins of PAIRS or FEEDBACK are worth, and what to set: the summary that `mmpo advise DIR --json` prints.

    data: a folder, a Parquet file of pairs, or a table. values: features of the completions in the order of their ids, in place of
    those that the option `features` names, (completions, features). options: the fields of AdviseOptions. Raises UserError where nothing
    can be compared: one prompt, only ties, features that do not vary.

    Returns {"prompts", "pairs", "r2", "baseline", "effects", "margins_add", "recommended", "sentences", ...}; every interval is [value,
    low, high] at 95%.
    """
    chosen = options_from(AdviseOptions, options)
    given = read(data, chosen.seed, chosen.votes or ())
    with ProgressReporter("advise", "splits") as progress, one_thread():
        summary = Look(given, chosen, values).summary(progress)
    if chosen.out:
        from mmpo.train.advise.page import write_page

        summary["out"] = str(write_page(summary, chosen.out))
    return summary


@contextmanager
def one_thread() -> Iterator[None]:
    """torch and numpy with one thread: these products are too small for more, which would only spin."""
    import scipy.linalg  # noqa: F401 - a BLAS of its own; what is loaded later is not limited
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


class Look:
    """One look at a data set: its completions' features on every split, and what is measured with them."""

    def __init__(self, given: Given, options: AdviseOptions, values: np.ndarray | None = None) -> None:
        self.given, self.options = given, options
        self.normalised = next(iter(given.pairs))
        self.found, self.counts = evidence_of(given.pairs[self.normalised], given.where, options.seed)
        check_evidence(self.found, given.where, LEAST_PROMPTS)
        self.fit: Fit = features_of(options.features, self.found, values, options.ask)
        self.splits = list(splits(self.found, options.seeds, options.seed))
        self.groups = int(self.found.group.max()) + 1

    def summary(self, progress: ProgressReporter) -> dict[str, Any]:
        """All of it, in the order in which it is reported."""
        self.values = []
        for split in self.splits:
            self.values.append(self.fit(np.flatnonzero(split.train[self.found.group[self.found.prompt_of]])))
        if not any(values.shape[1] for values in self.values):
            raise UserError(f"{self.given.where}: no feature varies between completions: are their texts all the same?")
        variants = self.normalisations()
        found = self.found
        rows = settings_for(found)
        votes = self.given.votes(found)
        if votes is not None:
            self.check_votes(found, votes)
        measured = self.measured(found, rows, progress, votes)
        grid = [row for row in rows if row.is_mmpo and row.target == "plain"]
        grid.sort(key=lambda row: row != default(rows))
        picked = measured.chosen(grid)
        measured = measured.with_choice(grid, CHOSEN)
        about = self.explained(found, measured)
        effects = [self.effect(measured, row, found) for row in rows] + [self.effect(measured, CHOSEN, found, picked)]
        if votes is not None:
            polled = measured.of_votes()
            if not polled.folds:
                raise UserError(
                    f"{self.given.where}: none of the prompts that judge has votes: take more --seeds (5 judge by every prompt)"
                )
            for effect, row in zip(effects, [*rows, CHOSEN], strict=True):
                effect["votes"] = self.polled(polled, row)
        few = measured.tested < FEWEST_CLUSTERS
        adds = dict.fromkeys(("accuracy", "calibration")) if few else margins_add(effects[-1])
        best = pick(measured, rows, adds, about["r2"])
        curve = self.learning_curve(found)
        summary = {
            "data": self.given.where,
            "kind": self.given.kind,
            "features": self.options.features,
            "ask": self.options.ask,
            "width": max(values.shape[1] for values in self.values),
            "seeds": self.options.seeds,
            "splits": len(self.splits),
            "turns": len(self.splits) // self.options.seeds,
            **self.counts,
            **about,
            "prompts_that_judge": measured.tested,
            "baseline": {"objective": "dpo", **{name: effects[0][name] for name in (*MEASURES, "untuned", "raw")}},
            "effects": effects,
            "votes": None if votes is None else self.voting(found, votes),
            "margins_add": adds,
            "learning_curve": curve,
            "normalisations": variants,
            "normalisation": self.normalised,
            "regret": regret(measured, rows),
            "recommended": recommend(best, found, self.normalised, effects[rows.index(best)]["minus_bradley_terry"]),
            "not_measurable": not_measurable(self.given, found),
        }
        return summary | {"recipe": recipe(summary["recommended"]), "sentences": sentences(summary)}

    def check_votes(self, found: Evidence, votes: np.ndarray) -> None:
        """Raises UserError where too few prompts have votes to judge anything by."""
        groups = len(np.unique(found.pair_group[votes[:, 1] > 0]))
        if groups < LEAST_PROMPTS:
            raise UserError(
                f"{self.given.where}: {', '.join(self.given.voters)} graded both completions of a pair on {groups} "
                f"prompt{'s' * (groups != 1)} that others graded too, and differences take {LEAST_PROMPTS} at least. Name other raters in "
                "--votes, or gather more of their grades"
            )

    def voting(self, found: Evidence, votes: np.ndarray) -> dict[str, Any]:
        """Whose votes, how many, on how many pairs and prompts, and how often they side with the margin; ties among margins apart."""
        known, mine = votes[:, 1] > 0, found.decided
        total = votes[known & mine].sum(axis=0)
        return {
            "raters": list(self.given.voters),
            "votes": float(votes[:, 1].sum()),
            "pairs": int(known.sum()),
            "prompts": len(np.unique(found.pair_group[known])),
            "with_margin": float(total[0] / total[1]) if total[1] else None,
        }

    def polled(self, measured: Measured, row: Setting) -> dict[str, Any]:
        """One objective by votes: its figures at the temperature that suits the votes on validation prompts, and its differences."""
        found: dict[str, Any] = dict(zip(MEASURES, measured.values[measured.keys.index((row, OWN))].tolist(), strict=True))
        others = {"bradley_terry": (BRADLEY_TERRY, OWN), "matched": (row, MATCHED), "shuffled": (row, SHUFFLED)}
        for name, other in others.items():
            known = other in measured.keys and other != (row, OWN)
            found[f"minus_{name}"] = measured.difference((row, OWN), other) if known else None
        return found

    def measured(
        self, found: Evidence, rows: Sequence[Setting], progress: ProgressReporter, votes: np.ndarray | None = None
    ) -> Measured:
        """Every objective with its controls on every split."""
        turns: dict[int, list[Fold]] = {}
        keys = []
        for number, (split, values) in enumerate(zip(self.splits, self.values, strict=True)):
            rng = np.random.default_rng([self.options.seed, number, 2])
            keys, fold = run_split(found, values, rows, split, rng, votes=votes)
            turns.setdefault(split.number, []).append(fold)
            progress("splits", number + 1, len(self.splits))
        return Measured(keys, [joined(folds) for folds in turns.values()], self.groups, self.options.seed)

    def explained(self, found: Evidence, measured: Measured) -> dict[str, Any]:
        """R² of signed margins, the share of it that length has by itself, and whether a margin says more than its sign."""
        seed = self.options.seed
        all_of_it = explained.r2(explained.margin_sums(found, self.values, self.splits, self.groups), seed=seed)
        size = explained.lengths(found)
        size = ((size - size.mean()) / (size.std() or 1.0))[:, None]
        by_length = explained.r2(explained.margin_sums(found, [size] * len(self.splits), self.splits, self.groups), seed=seed)
        return {
            "margin_levels": len(np.unique(np.round(found.margin[found.decided], 9))),
            "r2": all_of_it[0],
            "r2_95": all_of_it[1:],
            "length": {
                "r2": by_length,
                "share": by_length[0] / all_of_it[0] if all_of_it[0] > 0 else None,
                "longest_wins": explained.longest_wins(found),
            },
            "beyond_sign": explained.beyond_sign(found, measured.folds, seed),
        }

    def effect(self, measured: Measured, row: Setting, found: Evidence, picked: Sequence[Setting] = ()) -> dict[str, Any]:
        """What one objective did: its figures at its own temperature, and its differences to Bradley–Terry and to its controls."""
        at = measured.keys.index((row, OWN))
        gammas = [gamma_of(one, found.margin[found.decided]) for one in picked or [row]]
        gamma = float(np.median(gammas))
        means = [float(target_of(one, found)[found.decided].mean()) for one in picked or [row] if one.soft or one.mean_target]
        settings: dict[str, Any] = {"ties": row.ties, **row.options}
        if row.is_mmpo:
            settings |= {"target": row.target}
        if picked:
            settings = {"chosen": [{"mean_target": one.mean_target, "ties": one.ties} for one in picked]}

        def to(role: str) -> dict[str, list[float]] | None:
            return measured.difference((row, OWN), (row, role)) if (row, role) in measured.keys else None

        return {
            "objective": row.loss,
            "options": settings,
            "gamma": gamma if np.isfinite(gamma) else None,
            "mean_target": float(np.mean(means)) if means else None,
            **{name: float(measured.values[at, i]) for i, name in enumerate(MEASURES)},
            "untuned": {name: float(measured.untuned[at, i]) for i, name in enumerate(MEASURES)},
            "raw": {name: float(measured.raw[at, i]) for i, name in enumerate(MEASURES)},
            "decay": float(np.median([fold.decay[at] for fold in measured.folds])),
            "minus_bradley_terry": measured.difference((row, OWN), (BRADLEY_TERRY, OWN)) if row != BRADLEY_TERRY else None,
            "minus_matched": to(MATCHED),
            "minus_shuffled": to(SHUFFLED),
        }

    def learning_curve(self, found: Evidence) -> list[dict[str, Any]]:
        """Accuracy by the share of the training prompts, on the same test prompts: Bradley–Terry and MMPO at mean target .9.

        more: what the row has over the one before, of Bradley–Terry, [value, low, high].
        """
        rows = [BRADLEY_TERRY, Setting("mmpo", 0.9)]
        marked = [[replace(row, options={"share": share}) for row in rows] for share in SHARES]
        folds = []
        first = {split.number: (split, values) for split, values in zip(self.splits[::-1], self.values[::-1], strict=True)}
        for number, (split, values) in sorted(first.items()):
            order = np.random.default_rng([self.options.seed, number, 3]).permutation(np.flatnonzero(split.train))
            parts = []
            for share in SHARES:
                few = np.isin(np.arange(self.groups), order[: max(1, round(share * len(order)))])
                rng = np.random.default_rng([self.options.seed, number, 2])
                if not (few[found.pair_group] & found.decided).any():
                    few = split.train
                part = replace(split, train=few)
                parts.append(run_split(found, values, rows, part, rng, controls=False)[1])
            together = {
                name: np.concatenate([getattr(p, name) for p in parts])
                for name in ("tuned", "untuned", "raw", "validation", "decay")
            }
            folds.append(replace(parts[-1], **together))
        keys = [(row, OWN) for level in marked for row in level]
        measured = Measured(keys, folds, self.groups, self.options.seed)
        train = np.mean(
            [[split.train.sum(), (split.train[found.pair_group] & found.decided).sum()] for split in self.splits], axis=0
        )
        return [
            {
                "share": share,
                "prompts": round(share * train[0]),
                "pairs": round(share * train[1]),
                "bradley_terry": measured.difference((level[0], OWN))["accuracy"],
                "mmpo": measured.difference((level[1], OWN))["accuracy"],
                "more": measured.difference((level[0], OWN), (before[0], OWN))["accuracy"] if before else None,
            }
            for share, level, before in zip(SHARES, marked, [None, *marked], strict=False)
        ]

    def normalisations(self) -> list[dict[str, Any]]:
        """Of FEEDBACK: how well the margins of each normalisation are explained on held-out prompts, and what each has over the first one,
        with intervals that hold together. Of those that the test prompts tell from it the best one on validation prompts is taken from here
        on; where they tell none, or too few prompts judge, the first one stays.
        """
        if len(self.given.pairs) < 2:
            return []
        seed = self.options.seed
        found = {name: aligned(table, self.found, name) for name, table in self.given.pairs.items()}
        sums = {name: explained.margin_sums(one, self.values, self.splits, self.groups) for name, one in found.items()}
        base, graders = self.normalised, graders_of(self.given.feedback, self.found, self.given.voters)
        lead = {name: explained.r2(mine, sums[base], seed, graders, len(sums) - 1) for name, mine in sums.items() if name != base}
        share = {name: explained.r2(mine, seed=seed, graders=graders) for name, mine in sums.items()}
        enough = int((sums[base][1] > 0).sum()) >= FEWEST_CLUSTERS
        told_apart = [name for name in lead if enough and lead[name][1] > explained.LEAST_LEAD and share[name][1] > 0]
        if told_apart:
            best = max(told_apart, key=lambda name: explained.r2(sums[name][[2, 3]], seed=seed, graders=graders)[0])
            self.normalised, self.found = best, found[best]
            self.counts |= {"pairs": len(found[best].margin), "ties": int((~found[best].decided).sum())}
        return [
            {"normalise": name, "pairs": len(found[name].margin), "r2": share[name], f"minus_{base}": lead.get(name)}
            for name in sums
        ]
