"""What a selection looks at: the items as pairs of completions, what is known of them, features of completions, and the head fitted to
the grades that are there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmpo.annotate.pairings import digest_of
from mmpo.annotate.select.head import LaplaceHead, fit_head
from mmpo.annotate.select.items import RecordItem
from mmpo.annotate.select.known_margins import GradedPairs, KnownMargin, PairKey
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.tables import Message

MOST_PAIRS, MOST_GRADED = 20_000, 10_000
"""Pairs that a head looks at, and is fitted to, at most; of more so many drawn by hash."""
STARTS = (1.0, 0.0, 0.5, 2.0)
"""How large the logit of a usual pair may be by others' grades, before any of those that are wanted; the first where these are too few."""


@dataclass(frozen=True, eq=False)
class CompletionTexts:
    """Completions, each once. prompts: conversations, each once; texts, ids: of completions; prompt_of: the number of each one's prompt,
    (completions,)."""

    prompts: list[Sequence[Message]]
    texts: list[str]
    ids: list[str]
    prompt_of: np.ndarray


Featurize = Callable[[str, CompletionTexts], np.ndarray]
"""From what `features` names and completions to their features, finite numbers of shape (completions, features)."""


@dataclass(eq=False)
class Pool:
    """items: what there is to choose from; context: items that hold all completions that people or others graded too.

    features: what completions are seen by, made by `featurize`.
    """

    items: Sequence[RecordItem]
    context: Sequence[RecordItem]
    graded: GradedPairs
    seed: int = 0
    features: str = "bag"
    featurize: Featurize | None = None

    @cached_property
    def keys(self) -> list[PairKey]:
        """The pairs of all items, an item's one behind another; (prompt id, ids of two completions)."""
        return [(item.prompt_id, frozenset((a, b))) for item in self.items for n, a in enumerate(item.ids) for b in item.ids[:n]]

    @cached_property
    def item_of(self) -> np.ndarray:
        """The item of each pair, (pairs,)."""
        sizes = [len(item.ids) * (len(item.ids) - 1) // 2 for item in self.items]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def known(self) -> list[KnownMargin | None]:
        """What all raters together say of each pair."""
        return [self.items[item].margins.get(key[1]) for item, key in zip(self.item_of.tolist(), self.keys, strict=True)]

    def margins_by(self, grader: str) -> Floats:
        """One grader's margins, toward the smaller id, as multiples of the root mean square of those it gave; (pairs,), NaN: none."""
        said = self.graded.graders[grader]
        values = np.array([np.nan if (one := said.get(key)) is None else one.toward(min(key[1])) for key in self.keys], dtype=float)
        everything = np.array([one.margin for one in said.values()])
        size = np.sqrt(np.mean(everything**2)) if len(everything) else 0.0
        return values / size if size > 0 else values

    @cached_property
    def looked_at(self) -> np.ndarray:
        """Places of the pairs that the head looks at."""
        if len(self.keys) <= MOST_PAIRS:
            return np.arange(len(self.keys))
        drawn = sorted(range(len(self.keys)), key=lambda i: digest_of(self.seed, "looked at", *sorted(self.keys[i][1])))
        return np.sort(np.array(drawn[:MOST_PAIRS]))

    @cached_property
    def sides(self) -> tuple[Floats, Floats]:
        """The features of both completions of each pair that is looked at, the smaller id's first, as deviations from the mean over the
        completions of its prompt; (pairs, features) each."""
        ids = [sorted(self.keys[i][1]) for i in self.looked_at.tolist()]
        return tuple(self._values[[self._place[pair[side]] for pair in ids]] for side in (0, 1))  # type: ignore[return-value]

    @cached_property
    def differences(self) -> Floats:
        """Of each pair that is looked at, the features of the smaller id less those of the other, (pairs, features)."""
        first, second = self.sides
        return first - second

    @cached_property
    def head(self) -> LaplaceHead:
        """The head: others' grades say in which direction it begins; those that are wanted say how far (not at all, it may be) and where it
        goes from there, and they alone narrow what is not known. Before there are enough, a usual pair's logit by others is 1."""
        usual = float((self.differences**2).sum(axis=1).mean())
        wanted, others = (self._labels(said) for said in (self.graded.people, self.graded.others))
        starts: list[Floats] = []
        if len(others[1]):
            begun = fit_head(*others, usual).mean
            size = np.sqrt(np.mean((self.differences @ begun) ** 2))
            starts = [begun * (share / max(float(size), 1e-12)) for share in STARTS]
        return fit_head(*wanted, usual, starts)

    @property
    def about(self) -> dict[str, Any] | None:
        """What the head was fitted to, None where no way asked for it. people, others: pairs by whom; spread: see `LaplaceHead`."""
        if "head" not in self.__dict__:
            return None
        sizes = {name: len(self._labels(getattr(self.graded, name))[1]) for name in ("people", "others")}
        width = self.differences.shape[1]
        return {"features": self.features, "width": width, **sizes, "spread": self.head.spread, "looked_at": len(self.looked_at)}

    def _labels(self, said: Mapping[PairKey, KnownMargin]) -> tuple[Floats, Floats]:
        """Differences of features of graded pairs, toward the smaller id, and the share of raters that prefer it."""
        keys = [key for key in said if all(one in self._place for one in key[1])]
        keys = sorted(keys, key=lambda key: digest_of(self.seed, "graded", *sorted(key[1])))[:MOST_GRADED]
        ids = [sorted(key[1]) for key in keys]
        x = self._values[[self._place[a] for a, _ in ids]] - self._values[[self._place[b] for _, b in ids]]
        shares = [(1 - one.minority if one.better == a else one.minority) for one, (a, _) in zip(map(said.get, keys), ids) if one]
        return x, np.array([0.5 if said[key].margin == 0 else p for key, p in zip(keys, shares, strict=True)], dtype=np.float64)

    @cached_property
    def _texts(self) -> CompletionTexts:
        """The completions of the pairs that are looked at and of those that are graded."""
        wanted = {one for i in self.looked_at.tolist() for one in self.keys[i][1]}
        wanted |= {one for said in (self.graded.people, self.graded.others) for key in said for one in key[1]}
        return texts_of(self.context, wanted)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {one: place for place, one in enumerate(self._texts.ids)}

    @cached_property
    def _values(self) -> Floats:
        if self.featurize is None:
            raise UserError(
                "this selection fits a head to features of completions: hand over what makes them, "
                "featurize=mmpo.train.completion_features, as the commands do"
            )
        values = np.asarray(self.featurize(self.features, self._texts), dtype=np.float64)
        prompt = self._texts.prompt_of
        sums = np.zeros((len(self._texts.prompts), values.shape[1]))
        np.add.at(sums, prompt, values)
        values = values - (sums / np.bincount(prompt, minlength=len(sums))[:, None])[prompt]
        if not values.any():
            raise UserError(
                f"--features {self.features}: no feature varies between completions of a prompt, so that they tell no pair from another: "
                "are their texts all the same?"
            )
        return values


def texts_of(items: Iterable[RecordItem], wanted: set[str]) -> CompletionTexts:
    """The wanted completions of some items, each once, by prompt and in the order of their ids: nothing depends on where a row stands."""
    prompts: dict[str, Sequence[Message]] = {}
    found: dict[str, tuple[str, str]] = {}
    for item in items:
        for one, text in zip(item.ids, item.texts, strict=True):
            if one in wanted:
                prompts[item.prompt_id] = item.prompt
                found[one] = item.prompt_id, text
    number = {own: place for place, own in enumerate(sorted(prompts))}
    order = sorted(found, key=lambda one: (found[one][0], one))
    prompt_of = np.array([number[found[one][0]] for one in order], dtype=np.int64)
    return CompletionTexts([prompts[own] for own in number], [found[one][1] for one in order], order, prompt_of)
