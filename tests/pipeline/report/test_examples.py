"""The pairs that a page shows: the same whatever the order of rows, with the ends and every source among them; and how they are written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import pairs_folder
from pair_cases import pair, pairs_by_hand

from mmpo.pipeline.report import read_figures, write_report
from mmpo.pipeline.report.dataset.examples import BYTES, MOST_VERDICTS, SAMPLE, choose, cut_alike, payload, shown_pairs


def ids(folder: Path, most: int = 60) -> set[tuple[str, str, tuple[str, ...]]]:
    figures = read_figures(folder)
    shown = shown_pairs(folder, figures, choose(figures, most))
    return {(one["chosen_id"], one["rejected_id"], tuple(one["why"])) for one in shown}


def test_the_sample_depends_on_pairs_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    rows = [
        pair(f"q{i % 90}", f"one {i}", f"two {i}" + "x" * int(draw.integers(40)), max(0.0, draw.normal(2, 2)), source=f"s{i % 3}")
        for i in range(400)
    ]
    rows.sort(key=lambda row: row["prompt_id"])
    chosen = ids(pairs_by_hand(tmp_path / "one", *rows))
    backwards = rows[::-1]
    assert ids(pairs_by_hand(tmp_path / "other", *backwards[:150], test=backwards[150:])) == chosen
    assert len(chosen) > 60  # all the ends, though that is more than was asked for


def test_ends_ties_and_every_source_are_there(tmp_path: Path) -> None:
    rows = [
        pair(f"q{i}", f"one {i}", f"two {i}", i % 50, source="rare" if i == 77 else "common", raters=3, preferring=1 + i % 3)
        for i in range(600)
    ]
    figures = read_figures(pairs_by_hand(tmp_path / "pairs", *rows))
    chosen = choose(figures, 200)
    assert len(chosen) == 200
    why = {
        words: [row for row, all_words in chosen.items() if words in all_words]
        for words in {w for ws in chosen.values() for w in ws}
    }
    assert {figures.margin[row] for row in why["largest margins"]} == {48, 49}  # twelve rows have each
    assert {figures.margin[row] for row in why["smallest margins above 0"]} == {1, 2}
    assert all(figures.margin[row] == 0 for row in why["ties"]) and len(why["ties"]) == 12
    assert all(2 * figures.preferring[row] <= 3 for row in why["most raters don't prefer the chosen one"])
    assert 77 in chosen
    sampled = figures.margin[why[SAMPLE]]
    assert np.histogram(sampled[sampled > 0], [0, 10, 20, 30, 40, 50])[0].min() >= 10  # of every size of margin


def test_no_prompt_fills_the_page(tmp_path: Path) -> None:
    rows = [pair("one prompt", f"a{i}", f"b{i}", 100 + i) for i in range(50)] + [pair(f"q{i}", "a", "b", i) for i in range(50)]
    figures = read_figures(pairs_by_hand(tmp_path / "pairs", *rows))
    largest = [row for row, why in choose(figures).items() if "largest margins" in why]
    assert [row for row in largest if row < 50] == [47, 48, 49]


def test_texts_that_begin_alike_are_cut_where_they_part() -> None:
    same = "word " * 400_000
    one, other = cut_alike(f"{same}left end", f"{same}right end", 400)
    assert len(one) < 600 and one.endswith("word left end") and other.endswith("word right end")
    assert one.split("]")[0] == other.split("]")[0] == "[1,999,900 characters that both begin with not shown"
    assert cut_alike("a", "b", 400) == ("a", "b")


@pytest.mark.slow
def test_what_is_written_ends_no_element_and_has_room() -> None:
    text = "</script><!-- &amp; \u2028 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    pairs = [{"prompt": text, "chosen": f"{text}{i}" * 40_000, "rejected": "no", "note": text} for i in range(400)]
    written, most = payload(pairs)
    assert not set("<>&\u2028\u2029") & set(written) and len(written.encode()) <= BYTES and most < 6000
    read = json.loads(written)
    assert read["texts"][read["pairs"][0]["prompt"]] == text and read["pairs"][3]["note"] == text
    assert len(read["texts"]) == len(set(read["texts"])) == 402


def test_verdicts_are_coded_and_what_is_left_out_of_very_many_is_counted(tmp_path: Path) -> None:
    figures = read_figures(folder := pairs_by_hand(tmp_path / "pairs", *(pair(f"q{i}", "yes", "no", 1 + i) for i in range(3))))
    sizes = [30_000, 2, 25_000]

    def said(pairs: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        return [[{"rater": f"r{at % 9}", "aspect": "use", "margin": at / 3} for at in range(size)] for size, _ in zip(sizes, pairs)]

    shown = shown_pairs(folder, figures, choose(figures), said)
    kept = [len(one["said"]) for one in shown]
    assert kept[1] == 2 and "unsaid" not in shown[1] and 0.97 * MOST_VERDICTS < sum(kept) <= MOST_VERDICTS and kept[0] == kept[2]
    assert [one.get("unsaid", 0) + size for one, size in zip(shown, kept, strict=True)] == sizes
    assert shown[0]["said"][-1]["margin"] > 9990  # some from all over the list
    read = json.loads(payload(shown)[0])
    assert read["pairs"][1]["said"] == [[0, 0.0], [read["who"].index(["r1", "use"]), 0.3333]] and len(read["who"]) == 9


SHAPES = {
    "one pair": [("q", "yes", "no", 1.0)],
    "margins all equal": [(f"q{i}", "yes", f"no {i}", 2.0) for i in range(20)],
    "lengths all equal": [(f"q{i}", "yes", "noo", float(i)) for i in range(20)],
    "texts of a megabyte": [(f"q{i}", "long " * 200_000 + f"{i}", "long " * 200_000 + "end", float(i)) for i in range(6)],
    "tiny and huge margins": [(f"q{i}", "yes", "no", 10.0 ** (i * 10 - 100)) for i in range(20)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_pages_of_odd_shapes(name: str, tmp_path: Path) -> None:
    folder = pairs_by_hand(tmp_path / "pairs", *(pair(*row) for row in SHAPES[name]))
    page = write_report(folder, tmp_path / "page.html", [])
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 5_000_000
    assert f"<b>{len(SHAPES[name])}</b><span>pairs in train" in text and "nan" not in text.split("<script")[0].lower().replace(
        "finance", ""
    )
    assert ("No pair with a margin has replies of different length" in text) == (name == "lengths all equal")


def test_a_page_of_300_models_and_60_sources(tmp_path: Path) -> None:
    rows = [
        pair(
            f"q{i}", f"yes {i}", f"no {i}", 1 + i % 7, models=(f"model{i % 300}", f"model{(i * 7 + 1) % 300}"), source=f"s{i % 70}"
        )
        for i in range(900)
    ]
    page = write_report(pairs_by_hand(tmp_path / "pairs", *rows), tmp_path / "page.html", [])
    text = page.read_text(encoding="utf-8")
    assert "300 models; the 40 with the most replies are shown" in text and "60 of 70 sources, the largest" in text
    assert page.stat().st_size < 1_000_000


def test_one_split_and_no_errors(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{j} {i}", "score": j} for i in range(8) for j in range(2)]
    text = write_report(pairs_folder(tmp_path / "pairs", rows, split=(1, 0, 0)), tmp_path / "page.html").read_text(encoding="utf-8")
    for count, words in ((8, "pairs in train"), (0, "pairs in validation"), (0, "pairs in test"), ("0%", "with a standard error")):
        assert f"<b>{count}</b><span>{words}" in text
    assert "below twice that error" not in text
