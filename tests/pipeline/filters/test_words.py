"""Texts as words: what counts as a difference and what does not; shingles and their bands; n-grams found again."""

import numpy as np
import pyarrow as pa
import pytest

from mmpo.pipeline.filters.minhash import bands_for, bands_of
from mmpo.pipeline.filters.words import NumberSets, jaccard, keys_of, shingles, words_of


def words(*texts: str | None) -> list[list[str]]:
    found = words_of(pa.array(texts, pa.large_string()))
    spelled = found.spelled.to_pylist()
    return [spelled[low:high] for low, high in zip(found.offsets, found.offsets[1:])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's  a\n\ttest, isn't it?", ["it", "s", "a", "test", "isn", "t", "it"]),
        ("3*4", ["3", "*", "4"]),
        ("f(x) = a[0]", ["f", "(", "x", ")", "=", "a", "[", "0", "]"]),
        ("请写诗。", ["请", "写", "诗"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("가을 시", ["가을", "시"]),
        ("🎉🎉 yes", ["🎉", "🎉", "yes"]),
        ("ＡＢＣ　１２", ["abc", "12"]),
        ("résumé", ["résumé"]),
        ("«Да» — сказал", ["да", "сказал"]),
        ("a\u200bb\u00a0c", ["a", "b", "c"]),
        ("?!", ["?", "!"]),
        ("if x!=y: print", ["if", "x", "!", "=", "y", "print"]),
        ("(!done || !!x)", ["(", "!", "done", "|", "|", "!", "!", "x", ")"]),
        ("5! is 120, (n+1)! more", ["5", "!", "is", "120", "(", "n", "+", "1", ")", "!", "more"]),
        ("x?y:z", ["x", "?", "y", ":", "z"]),
        ("3:4:5 std::sort", ["3", ":", "4", ":", "5", "std", ":", ":", "sort"]),
        ("a[1:], a[:1]", ["a", "[", "1", ":", "]", "a", "[", ":", "1", "]"]),
        ("f'(x) isn't f(x)", ["f", "'", "(", "x", ")", "isn", "t", "f", "(", "x", ")"]),
        ("What is .5+3.5?", ["what", "is", ".", "5", "+", "3", ".", "5"]),
        ('{"a":1}', ["{", "a", "1", "}"]),
        ('he said: "!x"', ["he", "said", "!", "x"]),
        ("x²+1½", ["x", "^", "2", "+", "1", "1", "⁄", "2"]),
        ("x⁻¹", ["x", "^", "−", "1"]),
        ("你好！AI是？a", ["你", "好", "ai", "是", "a"]),
        ("？！", ["?", "!"]),
        (" \n", []),
        ("", []),
        (None, []),
    ],
)
def test_the_words_of_a_text(text: str | None, expected: list[str]) -> None:
    assert words(text) == [expected]
    assert words("before", text, "日本", text) == [["before"], expected, ["日", "本"], expected]


def keys(*texts: str) -> list[int]:
    return keys_of(words_of(pa.array(texts))).tolist()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 2+2?", "what is 2 + 2", True),
        ("Hello, world!", "hello world", True),
        ("What is 3*4?", "What is 3/4?", False),
        ("a b", "b a", False),
        ("a", "a a", False),
        ("?", "!", False),
        ("Wie heißt du", "Wie heisst du", False),
        ("你好，世界", "你好 世界!", True),
        ("if x!=y: print", "if x=y: print", False),
        ("return !x", "return x", False),
        ("x?y:z", "x y z", False),
        ("a:b", "a b", False),
        ("x² = 4", "x2 = 4", False),
        ("x² = 4", "x^2 = 4", True),
        ("What is 5!", "What is 5", False),
        ("What is .5 + .5?", "What is 5 + 5?", False),
        ("f'(x) = 0", "f(x) = 0", False),
        ("f(a,b)", "f(a, b)", True),
        ('{"a":1}', '{ "a": 1 }', True),
        ("Ça va ? Oui !", "Ça va? Oui!", True),
        ('Note: do it. "Now!"', "note do it now", True),
        ("(Why?) Yes: so!", "( why ) yes so", True),
        ("**Note:** be brief...", "**Note** be brief", True),
    ],
)
def test_texts_have_the_same_key_where_they_have_the_same_words(one: str, other: str, same: bool) -> None:
    first, second = keys(one, other)
    assert (first == second) == same


def test_a_text_without_words_has_no_key_and_no_shingle() -> None:
    found = words_of(pa.array(["", "one", " "]))
    assert (keys_of(found) != 0).tolist() == [False, True, False]
    assert np.diff(shingles(found, 5).offsets).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a b c d e f g h i j", "a b c d e f g h i x", 5 / 7),  # six shingles of five words each, five in common
        ("a b c d e f g h i j", "a b c d e f g h i j k", 6 / 7),
        ("a b c d e f g h i j", "k l m n o p q r s t", 0),
        ("a b c", "A, b, c!", 1),  # shorter than a shingle: all words together are the only one
        ("a b c", "a b d", 0),
        ("a b c d e a b c d e", "a b c d e", 1 / 5),  # of six shingles the first and the last are one
        ("请写一首关于秋天的诗", "请写一首关于秋天的歌", 5 / 7),
        ("", "", 1),
        ("", "a", 0),
    ],
)
def test_similarity_by_hand(one: str, other: str, expected: float) -> None:
    sets = shingles(words_of(pa.array([one, other])), 5)
    first, second = (sets.values[low:high] for low, high in zip(sets.offsets, sets.offsets[1:]))
    assert jaccard(first, second) == pytest.approx(expected)


def test_bands_are_few_enough_to_find_what_is_alike_and_no_fewer() -> None:
    """1 − (1 − .8^6)^21 = .998; with seven numbers in each of 18 bands it would be .986."""
    assert bands_for(0.8) == (21, 6)
    assert 1 - (1 - 0.8**7) ** 18 < 0.99 < 1 - (1 - 0.8**6) ** 21


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9])
def test_sets_share_a_band_as_often_as_the_formula_says(similarity: float) -> None:
    """Pairs of 100 to 140 random numbers with a known Jaccard similarity; three standard errors around the expected share."""
    random, pairs, size = np.random.default_rng(1), 1500, 120
    bands, rows = bands_for(similarity)
    common = round(2 * size * similarity / (1 + similarity))
    true = common / (2 * size - common)
    values = [np.unique(random.integers(0, 1 << 32, 2 * size - common, dtype=np.uint32)) for _ in range(pairs)]
    both = []
    for one in values:
        one = random.permutation(one)
        both += [np.sort(one[:size]), np.sort(one[size - common :])]
    sets = NumberSets(np.concatenate(both), np.cumsum([0, *map(len, both)]))
    found = bands_of(sets, similarity)
    assert found.shape == (2 * pairs, bands)
    per_band = (found[::2] == found[1::2]).mean()
    expected = true**rows
    assert abs(per_band - expected) < 3 * np.sqrt(expected * (1 - expected) / pairs)
    assert (found[::2] == found[1::2]).any(axis=1).mean() > 0.98
    assert (found[::2] == np.roll(found[1::2], 1, axis=0)).mean() < 0.001


def test_bands_do_not_depend_on_what_else_is_there() -> None:
    texts = [f"word{i} and word{i + 1} and then {i} more of them {'again ' * (i % 7)}" for i in range(50)]
    sets = shingles(words_of(pa.array(["", *texts, ""])), 5)
    whole = bands_of(sets, 0.8)
    for place in (0, 1, 20, 50, 51):
        alone = bands_of(shingles(words_of(pa.array([["", *texts, ""][place]])), 5), 0.8)
        assert (alone[0] == whole[place]).all()
