"""Rows in spill files: each comes back once, in order of positions, within a limit, at a disk that grows with the rows alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmpo.pipeline.arrow import LARGE_FEEDBACK, without_texts
from mmpo.pipeline.sources import FeedbackBuilder
from mmpo.pipeline.storage.spill import even_bounds, positions_of, read_spills, write_spill


def rows(prompts: int, start: int = 0, text: str = "a reply of some length, said by nobody ") -> pa.Table:
    """FEEDBACK of one graded reply a row, every third with a comparison, notes and thinking."""
    out = FeedbackBuilder("test")
    for number in range(start, start + prompts):
        out.prompt(f"question {number}")
        first = out.completion(f"{text}{number}", "model")
        out.rating(first, number % 10, rater="r", low=0, high=10, note=f"because {number}" if number % 3 == 0 else None)
        if number % 3 == 0:
            out.comparison(first, out.completion([{"type": "text", "text": f"other {number}"}]), 1, rater="s", limit=3)
            out.extra({"number": number})
    return out.finish()


def spilled(tables, folder, shards, cells):
    """What write_spill leaves of each table, by shard."""
    folder.mkdir()
    found = [write_spill(table, folder, shards, cells) for table in tables]
    return [[one[shard] for one in found if shard in one] for shard in range(shards)]


def as_rows(tables) -> list[dict]:
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["prompt_id"])


@pytest.mark.parametrize(("shards", "cells", "limit"), [(1, 1, 1 << 30), (3, 4, 20_000), (7, 50, 1), (1, 1, 15_000)])
def test_every_row_comes_back_once_in_order(tmp_path: Path, shards: int, cells: int, limit: int) -> None:
    tables = [rows(100), rows(100, start=50), rows(0), rows(7, start=900)]
    by_shard = spilled(tables, tmp_path / "spill", shards, cells)
    found = [group for extents in by_shard for [group] in read_spills([extents], limit, tmp_path)]
    assert as_rows(found) == as_rows(tables)
    assert all(one.schema.equals(LARGE_FEEDBACK) for one in found)
    positions = [np.sort(positions_of(one["prompt_id"].combine_chunks())) for one in found]
    assert all(one[-1] < other[0] for one, other in zip(positions[:-1], positions[1:], strict=True))  # whole prompts, ascending
    assert len(found) == shards if limit > 1 << 20 else len(found) > shards
    assert [path.name for path in tmp_path.iterdir()] == ["spill"]  # what was cut again is gone


def test_grades_are_read_without_their_texts(tmp_path: Path) -> None:
    [extents] = spilled([rows(30)], tmp_path / "spill", 1, 5)
    [[light]] = read_spills([extents], 1 << 30, tmp_path, texts=False)
    [[whole]] = read_spills([extents], 1 << 30, tmp_path)
    assert light.equals(without_texts(whole))


def test_sources_are_read_together(tmp_path: Path) -> None:
    [one], [other] = (spilled([rows(40, start)], tmp_path / str(start), 1, 9) for start in (0, 20))
    groups = list(read_spills([one, other], 15_000, tmp_path))
    assert as_rows([a for a, _ in groups]) == as_rows([rows(40)])
    assert as_rows([b for _, b in groups]) == as_rows([rows(40, 20)])
    ids = [{*a["prompt_id"].to_pylist(), *b["prompt_id"].to_pylist()} for a, b in groups]
    assert len(groups) > 2
    assert sum(map(len, ids)) == len(set().union(*ids)) == 60


def test_one_prompt_is_one_group_whatever_its_size(tmp_path: Path) -> None:
    out = FeedbackBuilder("test")
    for number in range(300):
        out.prompt("the one question" if number % 3 else f"question {number}")
        out.rating(out.completion(f"reply {number}"), 1, rater="r", low=0, high=2)
    [extents] = spilled([out.finish()], tmp_path / "spill", 1, 1)
    sizes = sorted(group.num_rows for [group] in read_spills([extents], 5_000, tmp_path))
    assert sizes[-1] == 200
    assert sizes[-2] <= 20
    assert sum(sizes) == 300


@pytest.mark.parametrize("texts", [True, False])
def test_what_all_rows_have_counts_in_each_though_it_is_stored_once(tmp_path: Path, texts: bool) -> None:
    out = FeedbackBuilder("test")
    for number in range(400):
        out.prompt(f"question {number}", '[{"name": "' + "t" * 5_000 + '"}]')
        for _ in range(20):
            out.rating(out.completion(f"reply {number}"), 1, rater="a rater with a long name", low=0, high=2, note="the same note")
    [extents] = spilled([out.finish()], tmp_path / "spill", 1, 100)
    groups = [group for [group] in read_spills([extents], 200_000, tmp_path, texts=texts)]
    assert len(groups) >= 5
    assert max(group.nbytes for group in groups) <= 200_000


def test_disk_grows_with_the_rows_alone(tmp_path: Path) -> None:
    """Sixteen times the input in as many runs, cut into as many more cells, as a build does."""

    def bytes_a_row(runs: int) -> float:
        tables = [rows(200, start=1000 * run) for run in range(runs)]
        by_shard = spilled(tables, tmp_path / str(runs), shards=1, cells=min(4 * runs, 4))
        return sum(one.end - one.start for extents in by_shard for one in extents) / (200 * runs)

    assert bytes_a_row(16) <= 1.05 * bytes_a_row(1)


def test_positions_are_in_the_order_of_ids_and_spread_those_of_others(tmp_path: Path) -> None:
    ids = sorted(rows(50)["prompt_id"].to_pylist())
    ours = positions_of(pa.array(ids))
    assert [int(one[:16], 16) for one in ids] == ours.tolist()
    assert positions_of(pa.array(ids).slice(10, 5)).tolist() == ours[10:15].tolist()
    foreign = [f"p{number}" for number in range(1000)]
    shares = np.histogram(positions_of(pa.array([*ids, *foreign]))[50:], bins=[*even_bounds(4).tolist(), 2**64])[0]
    assert shares.min() > 200  # of 250 each, that is 3.6 standard deviations
    assert positions_of(pa.array([ids[0], "p1"]))[0] == ours[0]


def test_foreign_ids_come_back_as_they_are(tmp_path: Path) -> None:
    table = rows(20)
    named = table.set_column(0, table.schema.field(0), pa.array([f"p{number}" for number in range(20)]))
    [extents] = spilled([named, rows(5, 100)], tmp_path / "spill", 1, 3)
    assert as_rows(one for [one] in read_spills([extents], 1 << 30, tmp_path)) == as_rows([named, rows(5, 100)])
