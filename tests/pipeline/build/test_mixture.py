"""Several sources in one build: each as it would be alone, brought together, and told apart in whatever is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from command import refused
from folders import contents, write_rows

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, UserError, build, load_feedback, load_pairs, validate
from mmpo.pipeline.build.mixture import draw_position
from mmpo.pipeline.build.options import OF_A_SOURCE
from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.pipeline.storage import read_manifest

RATED = [
    {"prompt": f"Question {i}?", "completion": f"Answer {j} to {i}.", "score": 1 + (3 * i + 2 * j) % 9, "rater": rater}
    for i in range(40)
    for j in range(3)
    for rater in ("ann", "ben")
]
"""Forty prompts with three answers, graded from 1 to 9 by two raters who agree."""
COMPARED = [
    {"prompt": f"Other question {i}?", "response_0": f"Yes {i}.", "response_1": f"No {i}.", "better_response_id": i % 2,
     "safer_response_id": 1, "is_response_0_safe": True, "is_response_1_safe": True}
    for i in range(30)
]  # fmt: skip
"""Thirty comparisons in the layout of pku-saferlhf: the first reply is better where i is even."""
SHAPE = ("prompt_id", "chosen_id", "rejected_id", "score_chosen", "score_rejected", "quality_margin", "margin_se", "raters")


def sources(folder: Path, **second: Any) -> list[dict[str, Any]]:
    """The two sources above; second: what is said of the compared one."""
    rated, compared = write_rows(folder / "rated.jsonl", RATED), write_rows(folder / "compared.jsonl", COMPARED)
    return [
        {"name": "people", "inputs": str(rated), "format": "jsonl", "scale": [1, 9], "kind": "human"},
        {"inputs": [str(compared)], "format": "pku-saferlhf", **second},
    ]


def mixed(folder: Path, given: list[dict[str, Any]], out: str = "mixed", **options: Any) -> dict[str, Any]:
    return build((), folder / out, options=BuildOptions(sources=tuple(given), **options))


def rows(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return sorted(zip(*(table[name].to_pylist() for name in names), strict=True), key=repr)


def test_each_source_is_built_as_it_would_be_alone(tmp_path: Path) -> None:
    """Ratings beside comparisons, the one normalised and the other not: the rows are those of two builds, under the sources' names."""
    given = sources(tmp_path, normalise="zscore")
    summary = mixed(tmp_path, given)
    for own in given:
        options = {key: value for key, value in own.items() if key not in ("name", "inputs")}
        build(own["inputs"], tmp_path / f"alone {own['format']}", options=BuildOptions(**options))
    together, people = load_pairs(tmp_path / "mixed"), load_pairs(tmp_path / "alone jsonl")
    compared = load_pairs(tmp_path / "alone pku-saferlhf")
    assert rows(together, *SHAPE) == sorted(rows(people, *SHAPE) + rows(compared, *SHAPE), key=repr)
    assert {name: one["pairs"] for name, one in summary["by_source"].items()} == {"people": 120, "pku-saferlhf": 30}
    assert [together["source"].to_pylist().count(name) for name in ("people", "pku-saferlhf")] == [120, 30]
    for split in ("train", "test"):  # and on the same sides
        alone = [pa.concat_tables([load_pairs(tmp_path / f"alone {one['format']}", split).select(SHAPE)]) for one in given]
        assert rows(load_pairs(tmp_path / "mixed", split), "chosen_id") == rows(pa.concat_tables(alone), "chosen_id")
    assert validate(tmp_path / "mixed")["ok"]


def test_what_is_said_of_sources_is_what_their_pairs_show(tmp_path: Path) -> None:
    summary = mixed(tmp_path, sources(tmp_path, weight=2.5), split=(1, 0, 0))
    table, manifest = load_pairs(tmp_path / "mixed"), read_manifest(tmp_path / "mixed")
    margin, source = np.array(table["quality_margin"]), np.array(table["source"].to_pylist())
    for name, one in summary["by_source"].items():
        mine = margin[source == name]
        assert one["mean_margin"] == pytest.approx(mine.mean())
        assert one["ties"] == (mine == 0).sum()
        assert one["gamma_auto"] == pytest.approx(gamma_for_mean_target(mine))
    assert summary["gamma_auto"] == pytest.approx(gamma_for_mean_target(margin))
    assert manifest["by_source"] == summary["by_source"] and summary["by_source"]["pku-saferlhf"]["weight"] == 2.5
    assert (manifest["evidence"], manifest["mixture"]["people"]["evidence"]) == ("by source", "ratings")
    assert [one["source"] for one in manifest["inputs"]] == ["people", "pku-saferlhf"]
    assert "| pku-saferlhf | 2.5 | 1 | none | 30 | 30 | 0 | 1 |" in (tmp_path / "mixed/README.md").read_text()


def test_a_share_is_of_prompts_and_a_larger_one_holds_the_smaller(tmp_path: Path) -> None:
    found = {}
    for share in (0.2, 0.5, 1.0):
        given = sources(tmp_path)
        given[0]["share"] = share
        summary = mixed(tmp_path, given, f"share {share}")
        table = load_pairs(tmp_path / f"share {share}")
        found[share] = set(table.filter(pa.compute.equal(table["source"], "people"))["prompt_id"].to_pylist())
        assert summary["by_source"]["people"]["prompts"] + summary["rejected"].get("not_drawn", 0) == 40
        assert summary["by_source"]["pku-saferlhf"]["prompts"] == 30
        assert validate(tmp_path / f"share {share}")["ok"]
    assert found[0.2] < found[0.5] < found[1.0]
    assert found[0.5] == {one for one in found[1.0] if draw_position(0, one) < 0.5}
    positions = [draw_position(0, f"{i:032x}") for i in range(2000)]
    assert np.histogram(positions, 4, (0, 1))[0] == pytest.approx([500] * 4, abs=80)


def opposed(folder: Path) -> list[dict[str, Any]]:
    """Two sources with one prompt in common: of its replies the first prefers a to b, the second b to a, and a to c."""
    one = [
        {"prompt": "Same?", "chosen": "a", "rejected": "b", "margin": 2},
        {"prompt": "P", "chosen": "x", "rejected": "y", "margin": 1},
    ]
    two = [
        {"prompt": "Same?", "chosen": "b", "rejected": "a", "margin": 9},
        {"prompt": "Same?", "chosen": "a", "rejected": "c", "margin": 4},
    ]
    files = [write_rows(folder / f"{name}.jsonl", found) for name, found in (("one", one), ("two", two))]
    return [{"name": path.stem, "inputs": str(path), "format": "jsonl"} for path in files]


def test_a_pair_that_two_sources_have_is_the_first_ones(tmp_path: Path) -> None:
    given = opposed(tmp_path)
    summary = mixed(tmp_path, given)
    table = load_pairs(tmp_path / "mixed")
    texts = [[side[0]["content"] for side in table[name].to_pylist()] for name in ("chosen", "rejected")]
    assert sorted(zip(*texts, table["quality_margin"].to_pylist(), table["source"].to_pylist(), strict=True)) == [
        ("a", "b", 2.0, "one"), ("a", "c", 4.0, "two"), ("x", "y", 1.0, "one"),
    ]  # fmt: skip
    assert summary["rejected"] == {"in_earlier_source": 1} and summary["shared"] == {"prompts": 1, "pairs": 1, "opposed": 1}
    assert any("1 pairs are in more than one source" in line and "of 1 the later" in line for line in summary["warnings"])
    assert validate(tmp_path / "mixed")["ok"]
    mixed(tmp_path, given[::-1], "turned")
    turned = load_pairs(tmp_path / "turned")
    assert sorted(turned["quality_margin"].to_pylist()) == [1.0, 4.0, 9.0]


def test_a_prompt_is_written_as_the_first_source_writes_it(tmp_path: Path) -> None:
    """Two writings of one call have one id: its random name and the order of its arguments are no part of what is said."""

    def asked(call: str, arguments: dict[str, int], *replies: str) -> dict[str, Any]:
        calls = [{"id": call, "type": "function", "function": {"name": "add", "arguments": arguments}}]
        prompt = [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "3", "tool_call_id": call},
        ]
        chosen, rejected = ({"role": "assistant", "content": reply, "tool_calls": calls} for reply in replies)
        return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected], "margin": 1}

    rows = asked("x1", {"a": 1, "b": 2}, "three", "four"), asked("y2", {"b": 2, "a": 1}, "three", "five")
    files = [write_rows(tmp_path / f"{place}.jsonl", [row]) for place, row in enumerate(rows)]
    given = [{"name": path.stem, "inputs": str(path), "format": "trl"} for path in files]
    summary = mixed(tmp_path, given)
    table = load_pairs(tmp_path / "mixed")
    assert (summary["prompts"], table.num_rows, len(set(table["prompt_id"].to_pylist()))) == (1, 2, 1)
    assert {str(prompt) for prompt in table["prompt"].to_pylist()} == {str(table["prompt"][0].as_py())}
    assert "x1" in str(table["chosen"].to_pylist()) and "y2" not in str(table["chosen"].to_pylist())
    assert validate(tmp_path / "mixed")["ok"]


def test_neither_memory_nor_cores_change_what_is_written(tmp_path: Path) -> None:
    given = sources(tmp_path, share=0.7)
    build((), tmp_path / "one", options=BuildOptions(sources=tuple(given), workers=1), partition_bytes=2000)
    build((), tmp_path / "two", options=BuildOptions(sources=tuple(given), workers=2), partition_bytes=2000, group_bytes=900)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    mixed(tmp_path, given)
    assert rows(load_pairs(tmp_path / "mixed"), "source", *SHAPE) == rows(load_pairs(tmp_path / "one"), "source", *SHAPE)


def test_margins_of_different_scales_are_said_with_what_brings_them_together(tmp_path: Path) -> None:
    """Margins of 100 beside margins of 1: the warning's own figure makes the two γ auto one."""
    far = [{"prompt": f"P{i}", "chosen": f"yes {i}", "rejected": f"no {i}", "margin": 100 + i} for i in range(20)]
    near = [{"prompt": f"Q{i}", "chosen": f"yes {i}", "rejected": f"no {i}", "margin": 1 + i / 100} for i in range(30)]
    given = [
        {"name": name, "inputs": str(write_rows(tmp_path / f"{name}.jsonl", found)), "format": "jsonl"}
        for name, found in (("far", far), ("near", near))
    ]
    summary = mixed(tmp_path, given)
    (said,) = (line for line in summary["warnings"] if "different scales" in line)
    times = float(said.rsplit("margin_times: far ", 1)[1])
    assert {check["name"]: check["status"] for check in validate(tmp_path / "mixed")["checks"]}["scales"] == "warn"
    given[0]["margin_times"] = times
    summary = mixed(tmp_path, given, "together")
    gammas = [one["gamma_auto"] for one in summary["by_source"].values()]
    assert gammas[0] == pytest.approx(gammas[1], rel=0.01) and not any("different scales" in line for line in summary["warnings"])
    assert validate(tmp_path / "together", strict=True)["checks"][-1]["name"] == "saturation"
    assert validate(tmp_path / "together")["ok"]


def test_scores_and_errors_grow_with_the_margins(tmp_path: Path) -> None:
    given = sources(tmp_path)
    mixed(tmp_path, given, "as they are")
    given[0]["margin_times"] = 0.25
    mixed(tmp_path, given)
    for name in ("quality_margin", "score_chosen", "score_rejected"):
        before, after = (
            dict(zip(zip(t["source"].to_pylist(), t["chosen_id"].to_pylist(), t["rejected_id"].to_pylist()), t[name].to_pylist()))
            for t in (load_pairs(tmp_path / "as they are"), load_pairs(tmp_path / "mixed"))
        )
        known = {key: value for key, value in before.items() if value is not None}
        assert {key: after[key] for key in known} == {
            key: value * (0.25 if key[0] == "people" else 1) for key, value in known.items()
        }
    assert validate(tmp_path / "mixed")["ok"]


def test_feedback_keeps_raters_of_one_name_apart(tmp_path: Path) -> None:
    ratings = [{"prompt": "Q", "completion": text, "score": score, "rater": "ann"} for text, score in (("a", 1), ("b", 5))]
    other = [{**row, "score": 6 - row["score"]} for row in ratings] + [{**ratings[0], "rater": "ben"}]
    given = [
        {"name": name, "inputs": str(write_rows(tmp_path / f"{name}.jsonl", found)), "format": "jsonl"}
        for name, found in (("one", ratings), ("two", other))
    ]
    mixed(tmp_path, given, feedback_only=True)
    [row] = load_feedback(tmp_path / "mixed").to_pylist()
    assert row["source"] == "one + two" and len(row["completions"]) == 2
    assert sorted({one["rater"] for one in row["ratings"]}) == ["ann@one", "ann@two", "ben"]
    assert validate(tmp_path / "mixed")["ok"]


def test_a_file_of_sources_a_recipe_and_python_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sources(tmp_path, share=0.5)
    paths = [{**one, "inputs": Path(one["inputs"]) if isinstance(one["inputs"], str) else tuple(one["inputs"])} for one in given]
    mixed(tmp_path, paths, seed=3)
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(given))
    assert run(["build", "--sources", str(tmp_path / "mix.yaml"), "--seed", "3", "--out", str(tmp_path / "command")]) == 0
    recipe = {"out": str(tmp_path / "run"), "build": {"sources": given, "seed": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["run", str(tmp_path / "recipe.yaml")]) == 0
    tables = [load_pairs(folder) for folder in (tmp_path / "mixed", tmp_path / "command", tmp_path / "run/pairs")]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def test_a_look_at_several_sources_is_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(sources(tmp_path)))
    assert run(["build", "--sources", str(tmp_path / "mix.yaml"), "--peek", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sources"]
    assert {name: one["lines"] for name, one in found.items()} == {"people": 240, "pku-saferlhf": 30}


def test_what_a_dataset_says_of_its_sources_is_checked(tmp_path: Path) -> None:
    mixed(tmp_path, sources(tmp_path))
    path = tmp_path / "mixed/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["by_source"]["people"]["pairs"] += 1
    path.write_text(json.dumps(manifest))
    checks = {check["name"]: check for check in validate(tmp_path / "mixed")["checks"]}
    assert (
        checks["sources"]["status"] == "fail"
        and "people: the manifest says 121 pairs, the parts hold 120" in checks["sources"]["message"]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weigth": 2}, "sources[1] (pku-saferlhf): unknown key 'weigth'; did you mean 'weight'?"),
        ({"from": "ratings"}, "the key 'from' is called 'evidence' here"),
        ({"seed": 1}, "seed is of the whole build: give it once, beside `sources`"),
        ({"share": 1.5}, "share: 1.5 is not 1 or less"),
        ({"share": 0}, "share: 0 is not above 0"),
        ({"weight": -1}, "weight: -1 is not above 0"),
        ({"name": "people"}, "another source is called 'people' as well"),
        ({"name": "a,b"}, "name: 'a,b' is not of the form of people or judge"),
        ({"inputs": []}, "inputs: it is empty"),
        ({"format": "pku"}, "unknown format 'pku'"),
        ({"scale": [1, 5]}, "format 'pku-saferlhf' has a scale of its own"),
        ({"normalise": "rank"}, "source 'pku-saferlhf': --normalise rank is for scores; the grades are comparisons"),
        ({"scale": 70}, "scale: 70 is one number: write [1, 10], or '1:10' in quotes"),
        ({"inputs": "nowhere.jsonl"}, "source 'pku-saferlhf': no such file or folder: nowhere.jsonl"),
    ],
)
def test_what_is_wrong_of_a_source_is_said_with_its_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        mixed(tmp_path, sources(tmp_path, **changes))
    assert said in str(error.value)
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("key", ["name", "inputs", "weight", "share", "margin_times", *OF_A_SOURCE])
def test_whatever_stands_in_a_source_is_taken_or_refused_with_its_place(tmp_path: Path, key: str) -> None:
    for value in (None, "", 0, -1, 1.5, True, [], {}, [1, 2], "a", {"a": 1}, [[1]], float("nan"), "\ud800", 10**30, b"x"):
        try:
            BuildOptions(sources=({"inputs": "rows.jsonl", "format": "jsonl", key: value},))
        except UserError as error:
            assert "sources" in str(error)


def test_rejects_are_counted_by_source(tmp_path: Path) -> None:
    """Three of ten lines of one source are bad, and of both together fewer than a tenth: the source says how many it allows."""
    bad = write_rows(tmp_path / "bad.jsonl", [*COMPARED[:7], *({"prompt": "?"} for _ in range(3))])
    given = sources(tmp_path, inputs=str(bad))
    with pytest.raises(UserError, match=r"source 'pku-saferlhf': 3 of 10 lines \(30.0%\) are unreadable"):
        mixed(tmp_path, given, max_rejects=0.1)
    given[1]["max_rejects"] = 0.3
    assert mixed(tmp_path, given, max_rejects=0.1)["by_source"]["pku-saferlhf"]["pairs"] == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["FILE", "--sources", "mix.yaml"], "sources are named twice"),
        (["--sources", "none.yaml"], "--sources: none.yaml can't be read as YAML"),
        (["--sources", "deep.yaml"], "--sources: deep.yaml can't be read as YAML"),
        (
            ["--sources", "rated.jsonl"],
            "but found '{' in line 2. It is a file with a list of sources, each with its inputs and format; a file of data is named "
            "without --sources",
        ),
        (["--sources", "text.yaml"], "holds no list of sources; write one such as"),
        (["--sources", "seeded.yaml"], "seeded.yaml holds seed beside `sources`: give that as flags, or make it a recipe"),
        ([], "nothing is named to build from"),
        (["--sources", "weighted.yaml", "--feedback-only"], "weight, margin_times and normalise are about pairs"),
    ],
)
def test_what_is_wrong_with_a_file_of_sources_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(sources(tmp_path)))
    (tmp_path / "weighted.yaml").write_text(yaml.safe_dump(sources(tmp_path, weight=2)))
    (tmp_path / "seeded.yaml").write_text(yaml.safe_dump({"sources": sources(tmp_path), "seed": 1}))
    (tmp_path / "text.yaml").write_text("inputs: a.jsonl\n")
    (tmp_path / "deep.yaml").write_text("[" * 2000)
    monkeypatch.chdir(tmp_path)
    message = refused(["build", *words, "--out", "out"], tmp_path, capsys)
    assert said in message
