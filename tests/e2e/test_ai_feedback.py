"""The recipe of AI feedback, run by the command against simulated judges, in small: stages, what stands in their place, resuming."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from demo import GRADES, JUDGES
from openai_server import serving

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs


@pytest.mark.slow
def test_the_recipe_from_candidates_to_a_model(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with serving({"models": JUDGES, "any_model": False}, grades=GRADES) as server:
        sets = {"out": out, "judge.base_url": server.base_url, "judge.limit": 8, "judge.pairs": "random:8", "training.max_steps": 2}
        recipe = (root / "recipes" / "ai-feedback.yaml").read_text().replace("data/", f"{root}/data/")
        (tmp_path / "recipe.yaml").write_text(recipe)
        command = [
            "run",
            str(tmp_path / "recipe.yaml"),
            *[part for key, value in sets.items() for part in ("--set", f"{key}={value}")],
        ]
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
