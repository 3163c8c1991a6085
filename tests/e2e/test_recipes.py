"""Two shipped recipes end to end with reduced sizes: tables, pages, datasets, judges; what stands in the place of stages."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import mmpo
from demo import GRADES, JUDGES
from openai_server import serving

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"max_steps": 2, "pairs_per_step": 32, "max_length": 128, "max_prompt_length": 64}
SIZES |= {"model": "tiny", "layers": "null", "tiny_size": 32, "tiny_layers": 2, "tiny_vocab": 400}
SMALL = [
    "evaluate.bootstrap=50",
    *(f"training.{name}={size}" for name, size in SIZES.items()),
    "build.max_per_prompt=4",
]


def run_small(out: Path, *more: str) -> tuple[dict[str, Any], str]:
    overrides = [part for value in (*SMALL, f"out={out}", *more) for part in ("--set", value)]
    done = mmpo("run", "recipes/quickstart.yaml", "--json", *overrides, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_quickstart_from_ratings_to_a_page(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    start = time.monotonic()
    summary, messages = run_small(out)
    first = time.monotonic() - start
    assert set(summary["runs"]) == {"mmpo", "bradley-terry", "matched-smoothing", "shuffled-margins"}
    for measures in summary["runs"].values():
        assert 0 <= measures["accuracy"] <= 1
        assert 0 <= measures["ece_target"] <= 1
        assert measures["cross_entropy"] > 0
        assert measures["pairs"] > measures["ties"] >= 0
    for name, measures in summary["runs"].items():
        page = (out / "evaluation" / name / "page.html").read_text(encoding="utf-8")
        assert "Against" in page if name != "mmpo" else "against" not in measures
        low, high = measures["accuracy_95"]
        assert low <= measures["accuracy"] <= high
    page = Path(summary["page"]).read_text(encoding="utf-8")
    assert "bradley-terry" in page and "data:image/png" in page
    assert "default-src 'none'" in page and "<script" not in page
    assert (out / "dataset.html").is_file() and (out / "summary.json").is_file()
    assert str(out / "pairs") in messages
    assert "mmpo − shuffled-margins" in messages and (out / "comparison.calibration-reward.png").is_file()
    assert max(map(len, messages[messages.index("Quickstart: test pairs") :].splitlines()[1:7])) <= 100

    import datasets

    loaded = datasets.load_dataset(str(out / "pairs"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    assert "quality_margin" in loaded["train"].column_names

    models = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.safetensors")}
    assert models
    start = time.monotonic()
    again, messages = run_small(out)
    assert again["runs"] == summary["runs"]
    assert messages.count("unchanged since it was made") == 9
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert time.monotonic() - start < max(first / 2, 30)

    _, messages = run_small(out, "runs.mmpo.seed=5")
    assert "[train-bradley-terry] unchanged" in messages
    assert "[train-mmpo] unchanged" not in messages


@pytest.mark.slow
def test_the_recipe_from_candidates_to_a_model(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with serving({"models": JUDGES}, grades=GRADES) as server:
        sets = {"out": out, "judge.base_url": server.base_url, "judge.limit": 8, "judge.pairs": "random:8", "training.max_steps": 2}
        recipe = (root / "recipes" / "ai-feedback.yaml").read_text().replace("data/", f"{root}/data/")
        (tmp_path / "recipe.yaml").write_text(recipe)
        flags = [part for pair in sets.items() for part in ("--set", "=".join(map(str, pair)))]
        command = ["run", str(tmp_path / "recipe.yaml"), *flags]
        # A judge that is not there: the other one's answers are safe, and the run says how to go on.
        server.plan({"models": {"careful": JUDGES["careful"]}})
        assert run(command) == 2
        server.plan({"models": JUDGES})
        assert run([*command, "--json"]) == 0
        before = server.counts()["requests"]
        assert run(command) == 0
        assert server.counts()["requests"] == before
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert set(summary["runs"]) == {"reward-mmpo", "reward-mmpo-noise-aware"}
    pairs = load_pairs(out / "pairs")
    assert pairs.num_rows == 64 and set(pairs["raters"].to_pylist()) == {2} and pairs["margin_se"].null_count == 0
    manifest = json.loads((out / "pairs" / "manifest.json").read_text())
    assert set(manifest["rater_effects"]) == {"careful", "hasty"}
    assert manifest["rater_effects"]["hasty"]["scale"] > manifest["rater_effects"]["careful"]["scale"]
    assert (out / "comparison.html").is_file() and pq.read_table(out / "judged" / "rejects.parquet").num_rows == 0
