"""UltraFeedback-shaped preference data for `train_speed.py`: real lengths, random words, tables of pairs.

Lengths are drawn from quantiles of the 962 real rows of UltraFeedback in the project's collection of real data
(`ultrafeedback_binarized_1200.parquet`: trl-lib/ultrafeedback_binarized, MIT), counted in tokens of a byte-level BPE with 32,000
entries that was trained on 114 million characters of other chat data (4.3 characters a token on replies). What ties the lengths of one
prompt together are the two correlations of their normal scores, measured on the same rows. Texts are words of the model's own
vocabulary, one token each, so that what is rendered has the length that was drawn.
"""

from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
from train_model import COMMON_WORDS, WORDS

from mmpo.pipeline.tables import PAIRS, completion_id, prompt_id, with_metadata

__all__ = ["Data", "evenly", "make_data", "pairs_table"]

PROMPT_TOKENS = (
    4, 8, 9, 11, 13, 14, 16, 17, 20, 22, 24, 27, 31, 35, 40, 48, 57, 63, 71, 77, 81, 89, 95, 103, 116, 128, 139, 155, 178, 201, 233,
    263, 299, 334, 385, 442, 483, 586, 729, 948, 2077,
)  # fmt: skip
COMPLETION_TOKENS = (
    1, 3, 8, 13, 18, 24, 29, 36, 46, 56, 63, 75, 86, 99, 110, 125, 141, 159, 177, 193, 211, 230, 250, 271, 296, 317, 336, 362, 388, 419,
    442, 467, 493, 525, 564, 595, 640, 700, 773, 884, 1422,
)  # fmt: skip
"""Tokens at the quantiles 0, .025, .05, ..., 1; chosen and rejected replies together. Empty replies count one token here."""
PROMPT_WITH_COMPLETION = -0.19
COMPLETION_WITH_COMPLETION = 0.58
"""Correlations of normal scores: within a prompt, replies are alike in length; long prompts (a passage and a question) have short ones."""
PROMPT_MARKS, COMPLETION_MARKS = 3, 1
"""Tokens that the chat template adds: the turn's opening, its end and the opening of the reply; the reply's end."""
SEED = 4


@dataclass(frozen=True)
class Data:
    """Prompts with their completions, in tokens as rendered.

    prompt: (prompts,). completion, grade: (prompts, completions); the grades of a prompt are a permutation of 0, 1, ... pairs:
    (pairs, 3), the prompt's number and its chosen and rejected completion. left_out: prompts that were drawn and are too long.
    """

    prompt: np.ndarray
    completion: np.ndarray
    grade: np.ndarray
    pairs: np.ndarray
    left_out: int

    def pair_tokens(self) -> np.ndarray:
        """Tokens of the chosen and of the rejected row of every pair, (pairs, 2)."""
        number = self.pairs[:, 0]
        return self.prompt[number][:, None] + np.take_along_axis(self.completion[number], self.pairs[:, 1:], axis=1)

    def tree_tokens(self) -> np.ndarray:
        """Tokens of every prompt if it and each of its completions that is in a pair are computed once, (prompts,)."""
        used = np.zeros(self.completion.shape, dtype=bool)
        for side in (1, 2):
            used[self.pairs[:, 0], self.pairs[:, side]] = True
        return self.prompt + (self.completion * used).sum(axis=1)

    def sorted_batches(self, size: int) -> list[np.ndarray]:
        """The pairs' numbers cut into batches of similar length: what a loader makes of data that lies sorted by length."""
        order = np.argsort(self.pair_tokens().max(axis=1), kind="stable")
        return np.array_split(order[: len(order) // size * size], len(order) // size)

    def padded_tokens(self, batches: list[np.ndarray]) -> float:
        """Tokens a pair in padded batches, both rows of a pair as long as the longest row of their batch."""
        longest = self.pair_tokens().max(axis=1)
        return sum(2 * len(batch) * longest[batch].max() for batch in batches) / sum(map(len, batches))

    def tokens_a_pair(self, batch: int) -> dict[str, float]:
        """Over the whole data: tokens a pair as a tree, in padded batches of random order, and in sorted ones."""
        random = np.random.default_rng(SEED)
        shuffled = np.concatenate([random.permutation(len(self.pairs)) for _ in range(5)])
        batches = np.array_split(shuffled[: len(shuffled) // batch * batch], len(shuffled) // batch)
        return {
            "mmpo": self.tree_tokens().sum() / len(self.pairs),
            "shipped": self.padded_tokens(batches),
            "sorted": self.padded_tokens(self.sorted_batches(batch)),
        }


def make_data(
    prompts: int, completions: int = 4, *, one_pair: bool = False, ratio: float | None = None, scale: float = 1.0, limit: int = 1024,
    prompt_limit: int = 512,
) -> Data:  # fmt: skip
    """So many prompts, with all pairs of their completions or with the best against the worst.

    ratio: prompt tokens to completion tokens, the same for every prompt, its total kept; None: as drawn. scale: of all lengths, limits
    included. A prompt that is too long, or has a row that is, is left out whole.
    """
    random = np.random.default_rng([SEED, completions])
    prompt, completion = _lengths(random, 2 * prompts + 50, completions)
    if ratio is not None:
        total = prompt + completion.mean(axis=1)
        completion = completion / completion.mean(axis=1, keepdims=True) * (total / (1 + ratio))[:, None]
        prompt, prompt_limit = total * ratio / (1 + ratio), limit
    prompt = np.maximum(1, np.rint(prompt * scale)).astype(int) + PROMPT_MARKS
    completion = np.maximum(1, np.rint(completion * scale)).astype(int) + COMPLETION_MARKS
    fits = (prompt <= prompt_limit * scale) & (prompt + completion.max(axis=1) <= limit * scale)
    if fits.sum() < prompts:
        raise RuntimeError(f"only {fits.sum()} of the drawn prompts fit, {prompts} were asked for")
    drawn = int(np.flatnonzero(fits)[prompts - 1]) + 1
    kept = np.flatnonzero(fits)[:prompts]
    grade = random.permuted(np.tile(np.arange(completions), (prompts, 1)), axis=1)
    return Data(prompt[kept], completion[kept], grade, _pairs(grade, one_pair), drawn - prompts)


def _lengths(random: np.random.Generator, prompts: int, completions: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw token counts: normal scores with the measured correlations, then the measured quantiles."""
    places = np.linspace(0, 1, len(PROMPT_TOKENS))
    of_prompt, of_all = random.standard_normal(prompts), random.standard_normal(prompts)
    shared = sqrt(COMPLETION_WITH_COMPLETION - PROMPT_WITH_COMPLETION**2)
    own = sqrt(1 - COMPLETION_WITH_COMPLETION) * random.standard_normal((prompts, completions))
    scores = (PROMPT_WITH_COMPLETION * of_prompt + shared * of_all)[:, None] + own
    chance = np.vectorize(lambda value: 0.5 * (1 + erf(value / sqrt(2))))
    return np.interp(chance(of_prompt), places, PROMPT_TOKENS), np.interp(chance(scores), places, COMPLETION_TOKENS)


def _pairs(grade: np.ndarray, one_pair: bool) -> np.ndarray:
    if one_pair:
        return np.stack([np.arange(len(grade)), grade.argmax(axis=1), grade.argmin(axis=1)], axis=1)
    number, first, second = np.nonzero(grade[:, :, None] > grade[:, None, :])
    return np.stack([number, first, second], axis=1)


def evenly(order: np.ndarray | list, count: int) -> list[Any]:
    """So many members of an ordered list, evenly spaced, the same distance from both ends.

    >>> evenly([0, 1, 2, 3, 4, 5, 6, 7, 8], 3)
    [1, 4, 7]
    """
    return [order[int((place + 0.5) * len(order) / count)] for place in range(count)]


def pairs_table(data: Data, chosen: np.ndarray) -> pa.Table:
    """A PAIRS table of the pairs with these numbers, in this order. A text depends on nothing but its prompt's number and its own."""
    texts: dict[tuple[int, int], str] = {}

    def text(number: int, place: int) -> str:
        if (number, place) not in texts:
            texts[number, place] = _text(data, number, place)
        return texts[number, place]

    rows = []
    for number, winner, loser in data.pairs[chosen].tolist():
        prompt = [{"role": "user", "content": text(number, -1)}]
        identity = prompt_id(prompt)
        replies = {place: text(number, place) for place in (winner, loser)}
        scores = [float(data.grade[number, place]) for place in (winner, loser)]
        rows.append(
            {
                "prompt_id": identity,
                "chosen_id": completion_id(identity, replies[winner]),
                "rejected_id": completion_id(identity, replies[loser]),
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": replies[winner]}],
                "rejected": [{"role": "assistant", "content": replies[loser]}],
                "score_chosen": scores[0],
                "score_rejected": scores[1],
                "quality_margin": scores[0] - scores[1],
                "preferring": 1,
                "raters": 1,
                "kind": "ai",
                "source": "ultrafeedback-shaped",
            }
        )
    return pa.Table.from_pylist(rows, schema=with_metadata(PAIRS, {}))


def _text(data: Data, number: int, place: int) -> str:
    """Random words; the better a completion, the more of them are common ones, so that there is something to learn."""
    random = np.random.default_rng([SEED, number, place + 1])
    count = int(data.prompt[number]) - PROMPT_MARKS if place < 0 else int(data.completion[number, place]) - COMPLETION_MARKS
    words = random.integers(COMMON_WORDS, WORDS, count)
    if place >= 0:
        common = random.random(count) < 0.4 * data.grade[number, place] / (data.grade.shape[1] - 1)
        words = np.where(common, random.integers(0, COMMON_WORDS, count), words)
    return " ".join(f"w{word}" for word in words)
