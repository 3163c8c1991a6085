"""Near-duplicates among many: what bands find, in a crowd made of one template, and in parts."""

import random

import numpy as np
import pyarrow as pa
import pytest

from mmpo.pipeline.arrow import flat
from mmpo.pipeline.filters import compared, duplicates, near_texts, texts_of_prompts
from mmpo.pipeline.filters.duplicates import MOST_OF_A_BAND

DRAW = random.Random(0)
VOCABULARY = [f"v{i}" for i in range(20_000)]


def words(count: int) -> list[str]:
    return DRAW.choices(VOCABULARY, k=count)


def left_out(texts: list[str], similarity: float = 0.8, parts: int = 1, **options: bool) -> list[tuple[int, int, float]]:
    """Of each text that is left out its place, the place of the one that stays, and how alike they are."""
    table = pa.table(
        {
            "prompt_id": [f"{place:032x}" for place in range(len(texts))],
            "prompt": [[{"role": "user", "content": text}] for text in texts],
            "tools": pa.nulls(len(texts), pa.large_string()),
        }
    )
    ends = [round(len(texts) * part / parts) for part in range(parts + 1)]
    slices = [table.slice(low, high - low) for low, high in zip(ends, ends[1:])]
    tables = [
        compared(flat(one["prompt_id"]), texts_of_prompts(one), np.zeros(len(one), dtype=np.int8), similarity, 5) for one in slices
    ]
    found = zip(ends, duplicates(tables, similarity, **options))
    return [(low + one.row, int(one.details["near"], 16), one.details["similarity"]) for low, some in found for one in some]


def test_what_is_alike_is_found_in_a_crowd_of_one_template() -> None:
    """More prompts than are looked at begin with the same 100 words and end in 25 of their own (.66); three have a copy."""
    template = words(100)
    crowd = [" ".join([*template, *words(25)]) for _ in range(MOST_OF_A_BAND + 50)]
    assert left_out(crowd) == []
    copies = [f"{crowd[place]} more" for place in (0, 100, len(crowd) - 1)]
    expected = [(len(crowd) + n, place, round(121 / 122, 4)) for n, place in enumerate((0, 100, len(crowd) - 1))]
    assert left_out([*crowd, *copies]) == expected


@pytest.mark.parametrize(("similarity", "changed"), [(0.5, 6), (0.8, 2), (0.95, 0)])
def test_nearly_all_that_is_alike_is_found(similarity: float, changed: int) -> None:
    """Each of 300 texts of 100 words has a copy with some words replaced far from one another: five shingles of 96 differ for each word."""
    texts, copies = [words(100) for _ in range(300)], []
    for text in texts:
        copy = list(text)
        for place in range(changed):
            copy[10 + 10 * place] = "other"
        copies.append([*copy, "end"] if changed == 0 else copy)
    common, size = 96 - 5 * changed, 96 + (changed == 0)
    value = round(common / (96 + size - common), 4)
    assert similarity < value < similarity + 0.05
    found = left_out([" ".join(text) for text in [*texts, *copies]], similarity)
    assert set(found) <= {(300 + place, place, value) for place in range(300)}
    assert len(found) >= 0.98 * 300


def test_parts_give_what_the_whole_gives() -> None:
    texts = [" ".join(text) for text in (words(30) for _ in range(60))]
    texts += [f"{text} once more" for text in texts[::3]] + texts[::7]
    DRAW.shuffle(texts)
    whole = left_out(texts)
    assert 20 < len(whole) < 35
    assert left_out(texts, parts=7) == whole
    assert left_out(texts, parts=len(texts)) == whole


def test_near_texts_of_one_group_alone() -> None:
    first, second = " ".join(words(50)), " ".join(words(50))
    texts = pa.array([first, second, f"{first} more", first, "", "", second.upper()])
    found = near_texts(texts, np.array([0, 0, 0, 1, 1, 1, 0]), 0.8, 5)
    assert found == {(0, 2): pytest.approx(46 / 47), (1, 6): 1.0}
    assert near_texts(texts, np.array([0, 0, 0, 1, 1, 1, 0]), 1.0, 5) == {(1, 6): 1.0}
    assert near_texts(pa.array([], pa.string()), np.zeros(0, dtype=int), 0.8, 5) == {}
