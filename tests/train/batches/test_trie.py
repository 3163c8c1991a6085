"""Tries: each path spells its sequence, `ends` and segments say who is whose ancestor, and no prefix is stored twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_cases import prefixes

from mmpo.train.batches import BATCHES
from mmpo.train.batches.layouts import segments_of, trie_of
from mmpo.train.data import Rendered

# Three tokens only: shared beginnings, prefixes of one another and equal sequences are the rule.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=6)


@given(SEQUENCES)
def test_each_path_spells_its_sequence_and_each_prefix_has_one_column_that_sees_its_ancestors(sequences):
    trie = trie_of(sequences)
    for sequence, path in zip(sequences, trie.paths, strict=True):
        assert tuple(trie.ids[path]) == sequence
        assert trie.positions[path].tolist() == list(range(len(sequence)))
        assert (np.diff(path) > 0).all()
    assert len(trie.ids) == len(trie.positions) == len(trie.ends) == len(prefixes(sequences))
    columns = {}  # the prefixes that each stands for
    for sequence, path in zip(sequences, trie.paths, strict=True):
        for length, column in enumerate(path):
            columns.setdefault(int(column), set()).add(sequence[: length + 1])
    assert sorted(columns) == list(range(len(trie.ids)))
    assert all(len(meanings) == 1 for meanings in columns.values())
    # a token sees its ancestors and itself
    prefix = {column: next(iter(meanings)) for column, meanings in columns.items()}
    for i, mine in prefix.items():
        for j, theirs in prefix.items():
            assert (j <= i < trie.ends[j]) == (mine[: len(theirs)] == theirs)
    # the order of the sequences changes nothing but that of the paths
    other = trie_of(sequences[::-1])
    for name in ("ids", "positions", "ends"):
        assert (getattr(trie, name) == getattr(other, name)).all()
    assert all((a == b).all() for a, b in zip(trie.paths, other.paths[::-1], strict=True))


@given(st.lists(SEQUENCES, min_size=1, max_size=3))
def test_segments_are_unbranched_and_before_each_lie_its_ancestors(groups):
    tries = [trie_of(sequences) for sequences in groups]
    starts = np.cumsum([0, *(len(trie.ids) for trie in tries)])[:-1]
    ends = np.concatenate([trie.ends + start for trie, start in zip(tries, starts, strict=True)])
    segments = segments_of(ends)
    bounds = np.cumsum([0, *(size for size, _ in segments)])
    assert bounds[-1] == len(ends)  # they are a partition
    columns = [np.arange(first, last) for first, last in zip(bounds, bounds[1:])]
    for own, (size, before) in zip(columns, segments, strict=True):
        assert size >= 1
        seen = [j for j in range(own[0]) if own[0] < ends[j]]
        assert [j for number in before for j in columns[number]] == seen
        assert all(own[-1] < ends[j] for j in own)  # within a stretch each sees all before it
    # as few as there can be: a new one begins only at a root, behind a branch or after a leaf
    children = [sum(1 for k in range(j + 1, ends[j]) if not any(k < ends[m] for m in range(j + 1, k))) for j in range(len(ends))]
    assert all(children[own[0] - 1] != 1 for own in columns[1:])


def test_a_batch_of_rows_a_tree_and_a_packed_batch_predict_the_same_tokens():
    """Completion by completion, from parents that are the token before on the same path; shared ones once in trees."""
    groups = [
        [Rendered((5, 6, 7, 1, 2), 3), Rendered((5, 6, 7, 1, 3, 3), 3), Rendered((5, 6, 7, 1), 3), Rendered((5, 6, 4, 9), 2)],
        [Rendered((5, 8), 1), Rendered((5, 8), 1)],
    ]
    expected = [list(item.ids[item.start :]) for group in groups for item in group]
    distinct = {"rows": 2 + 3 + 1 + 2 + 1 + 1, "tree": 4 + 2 + 1, "packed": 4 + 2 + 1}
    sizes = {"rows": 6 * 6, "tree": 2 * 9, "packed": 9 + 2}
    for name, layout in BATCHES.items():
        batch = layout.build(groups, 0)
        assert batch.input_ids.numel() == sizes[name] == layout.tokens([layout.size(group) for group in groups])
        assert batch.lengths.sum() == (sum(len(item.ids) for group in groups for item in group) if name == "rows" else 9 + 2)
        assert len(batch.tokens) == len(batch.parents) == distinct[name]
        own = batch.tokens[batch.spans].split(batch.counts.tolist())
        assert [tokens.tolist() for tokens in own] == expected
        flat, positions = batch.input_ids.flatten(), batch.positions.flatten()
        items = [item for group in groups for item in group]
        before = flat[batch.parents[batch.spans]].split(batch.counts.tolist())
        assert [tokens.tolist() for tokens in before] == [list(item.ids[item.start - 1 : -1]) for item in items]
        assert flat[batch.last].tolist() == [item.ids[-1] for item in items]
        assert positions[batch.last].tolist() == [len(item.ids) - 1 for item in items]


@pytest.mark.parametrize("name", ["tree", "rows"])
def test_padding_sees_itself_and_nothing_sees_padding(name):
    batch = BATCHES[name].build([[Rendered((5, 6, 7), 1)], [Rendered((5,) * 6, 1)]], 0)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    columns = np.arange(6)
    ends = batch.ends.numpy()
    sees = (columns <= columns[:, None]) & (columns[:, None] < ends[:, None, :])
    assert sees[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip
