"""The pages: self-contained, no script but ours, text that looks like markup shown as text, and the figures that they state."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import pairs_folder, split_folder

from mmpo.pipeline import validate
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.report import longer_wins, number, read_figures, source_rows, write_comparison, write_report

MARKED = "</td><b>bold</b><made-up kind=x>\"'{{ brace }}{% raw %}$\\frac{1}"
"""Harmless members of each kind of text that must not become part of the page: tags, quotes, braces, a formula."""


class Tags(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: Path) -> str:
    """The page's visible text, after checking that nothing in it runs but our own script, and that nothing is loaded from elsewhere."""
    found = Tags(page.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in found.tags} & {"made-up", "iframe", "object", "link"}
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert scripts in ([], [{"id": "examples-data", "type": "application/json"}, {}])
    [policy] = [attributes["content"] or "" for tag, attributes in found.tags if tag == "meta" and "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; ") and ("script-src 'sha256-" in policy) == bool(scripts)
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"]
    return found.text


def messages(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def dataset(folder: Path, margins: list[float], text: str = "text") -> Path:
    rows = [
        {"prompt_id": f"{i // 2:032x}", "prompt": messages(f"prompt {text}", "user"), "source": f"{text}{i % 2}"}
        | {"chosen": messages(text * (i % 3 + 1)), "rejected": messages(text * 2), "kind": "ai", "quality_margin": margin}
        | {"chosen_id": f"{2 * i:032x}", "rejected_id": f"{2 * i + 1:032x}", "preferring": 1, "raters": 1}
        for i, margin in enumerate(margins)
    ]
    return split_folder(folder, train=rows[: len(rows) // 2], test=rows[len(rows) // 2 :])


CHECKS = [{"name": "margin sign", "status": "fail", "count": 1, "message": MARKED}]


def test_report_shows_markup_of_others_as_text(tmp_path: Path) -> None:
    page = write_report(dataset(tmp_path / "data", [0.0, 1.0, 2.0, 3.5], MARKED), tmp_path / "page.html", CHECKS, title=MARKED)
    text = harmless(page)
    assert text.count(MARKED) >= 6
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["page.html"]


def test_report_of_nothing_but_ties(tmp_path: Path) -> None:
    text = harmless(write_report(dataset(tmp_path / "data", [0.0, 0.0]), tmp_path / "page.html", []))
    assert "Every training pair is a tie" in text and "100.0%" in text


def test_report_of_a_built_dataset_runs_the_checks_itself(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{j}{MARKED}", "score": j} for i in range(12) for j in range(3)]
    pairs_folder(tmp_path / "data", rows, scale=(0, 2), workers=1, split=(0.6, 0.2, 0.2))
    text = harmless(write_report(tmp_path / "data", tmp_path / "page.html"))
    assert "No checks were run" not in text and "pass" in text and MARKED in text


def test_report_refuses_what_is_no_dataset(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no pairs")):
        with pytest.raises(UserError, match=message):
            write_report(folder, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_figures_by_hand(tmp_path: Path) -> None:
    """Chosen has 4, 8, 12, 4, 8, 12 characters against 8: of the four untied pairs one is longer, two shorter, one equal."""
    figures = read_figures(dataset(tmp_path / "data", [1.0, 2.0, 0.0, 3.0, 0.0, 5.0]))
    assert figures.prompts == 3 and figures.splits == {"train": 3, "validation": 0, "test": 3}
    assert figures.chosen_length.tolist() == [4, 8, 12, 4, 8, 12]
    assert longer_wins(figures) == {"share": pytest.approx(1 / 3), "share_95": None, "pairs": 3}
    first = source_rows(figures)[0]
    assert (first["source"], first["pairs"], first["ties"]) == ("text0", 3, pytest.approx(2 / 3))
    assert first["mean_margin"] == pytest.approx(1 / 3) and first["mean_se"] is None
    assert np.isnan(figures.margin_se).all()
    assert figures.margin[figures.training].tolist() == [1.0, 2.0, 0.0]


def run(name: str, **values: Any) -> dict[str, Any]:
    rows = [{"low": 0.0, "high": 1.0, "pairs": 9, "accuracy": 0.5, "mean_q": 0.6, "mean_p": 0.7}]
    base = {"name": name, "kind": "reward", "loss": "mmpo", "gamma": 0.3, "steps": 4, "pairs": 9, "by_margin": rows}
    return {**base, "history": {"steps": [1, 2], "loss": [0.7, 0.6]}, **values}


def test_comparison(tmp_path: Path) -> None:
    runs = [
        run(MARKED, accuracy=0.75, ece_target=0.125),
        run("plain", accuracy=0.5, ece_target=None),
        run("policy", kind="policy", accuracy=0.9, gamma="inf", by_margin=[], history=None, out=str(tmp_path / "absent")),
    ]
    page = write_comparison(runs, tmp_path / "comparison.html", "Two & <b>three</b>")
    text = harmless(page)
    assert MARKED in text and "Two & <b>three</b>" in text and "0.750" in text and "∞" in text
    html = page.read_text(encoding="utf-8")
    # best of its kind only: not the policy (alone), not a measure that one run alone has
    assert re.findall(r'<td class="number best">([^<]*)</td>', html) == ["0.750"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"comparison.html", "comparison.calibration-reward.png", "comparison.loss.png"}


def test_comparison_reads_the_loss_curve_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "mmpo.json").write_text('{"history": {"steps": [1, 2], "loss": [0.7, 0.5]}}')
    write_comparison([run("a", history=None, by_margin=None, out=str(tmp_path))], tmp_path / "p" / "c.html", "t")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"c.html", "c.loss.png"}


def test_numbers_for_readers() -> None:
    assert [number(v) for v in (0, 0.0, 1234, 0.00001234, -0.5, True, "words", float("nan"))] == [
        *("0", "0.000", "1,234", "1.23e-05", "-0.500", "True", "words", "–")
    ]


def test_replies_of_equal_length_say_nothing_of_a_length_bias(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{p}", "completion": text, "score": score} for p in range(60) for score, text in enumerate(("no", "ok"))]
    [check] = [check for check in validate(pairs_folder(tmp_path / "data", rows))["checks"] if check["name"] == "length bias"]
    assert check["status"] == "unknown" and "0 are too few to say" in check["message"]
