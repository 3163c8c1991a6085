"""`mmpo evaluate --out` and `--against`: the folder of an evaluation, two models on the same pairs, and what can't be compared."""

import json
import re
import shutil

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import refused
from folders import changed, read_table
from training_cases import make_pairs, user_error

from mmpo.cli.main import run
from mmpo.pipeline import write_dataset
from mmpo.pipeline.metrics import METRICS
from mmpo.train.evaluation import evaluate
from mmpo.train.record import trained_on

FILES = ["evaluation.json", "page.html", "pairs.parquet"]


@pytest.fixture(scope="module")
def rival(dataset, train_tiny, tmp_path_factory):
    """A reward model that hardly learned."""
    out = tmp_path_factory.mktemp("rival") / "model"
    train_tiny("reward", dataset, out, max_steps=1, learning_rate=1e-4, seed=5)
    return out


def test_a_model_and_the_folder_of_its_evaluation_give_the_same_differences(trained, rival, dataset, tmp_path):
    evaluate("reward", rival, dataset, out=tmp_path / "theirs", bootstrap=0)
    found = [evaluate("reward", trained["reward"], dataset, against=given) for given in (rival, tmp_path / "theirs")]
    by_model, by_folder = ({**one["against"], "other": None} for one in found)
    assert by_model == by_folder
    assert (by_model["pairs"], by_model["prompts"], by_model["this_alone"], by_model["other_alone"]) == (48, 8, 0, 0)
    rows = {row["measure"]: row for row in by_model["raw"]}
    assert set(rows) == set(METRICS) - {"ece_vote"} == {row["measure"] for row in by_model["scaled"]}
    assert rows["accuracy"]["this"] == found[0]["accuracy"] and rows["cross_entropy"]["this"] == found[0]["cross_entropy"]
    low, high = rows["cross_entropy"]["difference_95"]
    assert low < rows["cross_entropy"]["difference"] < high < 0


@pytest.mark.parametrize("prompts", [1, 2])
def test_two_models_on_a_handful_of_prompts_have_a_page(prompts, trained, rival, tmp_path):
    data = write_dataset(make_pairs(prompts, [2]), tmp_path / "few", split=(0, 0, 1))["out"]
    evaluate("reward", rival, data, out=tmp_path / "theirs")
    found = evaluate("reward", trained["reward"], data, against=tmp_path / "theirs", out=tmp_path / "ours")
    assert found["against"]["pairs"] == prompts and ("scaled" in found["against"]) == (prompts > 1)
    page = (tmp_path / "ours" / "page.html").read_text()
    assert f"On {prompts} pairs of {prompts} prompts that both measured" in page
    assert ("Each at its own temperature" in page) == (prompts > 1)


def test_other_models_are_measured_by_our_targets(trained, rival, dataset, tmp_path):
    found = evaluate("reward", trained["reward"], dataset, gamma=2.0, against=rival)
    alone = evaluate("reward", rival, dataset, gamma=2.0)
    [row] = [row for row in found["against"]["raw"] if row["measure"] == "cross_entropy"]
    assert row["other"] == pytest.approx(alone["cross_entropy"], abs=1e-9)


def test_pairs_that_one_model_alone_has_are_counted(trained, dataset, tmp_path):
    evaluate("reward", trained["reward"], dataset, per_pair=tmp_path / "pairs.parquet", bootstrap=0)
    table = read_table(tmp_path / "pairs.parquet")
    strange = changed(table.slice(0, 1), "prompt_id", {0: "f" * 32})
    pq.write_table(pa.concat_tables([table.slice(6), strange]), tmp_path / "some.parquet")
    found = evaluate("reward", trained["reward"], dataset, against=tmp_path / "some.parquet", bootstrap=0)["against"]
    assert (found["pairs"], found["this_alone"], found["other_alone"]) == (42, 6, 1)
    assert {row["difference"] for row in found["raw"]} == {0} and {row["difference_95"] for row in found["raw"]} == {None}
    pq.write_table(strange, tmp_path / "none.parquet")
    ours = (evaluate, "reward", trained["reward"], dataset)
    user_error("none of its 1 pairs is among the 48 measured", *ours, against=tmp_path / "none.parquet")
    pq.write_table(table.drop_columns(["z"]), tmp_path / "lacks.parquet")
    user_error("unknown column in .* 'z'", *ours, against=tmp_path / "lacks.parquet")


def test_a_policy_that_says_nothing_of_itself_is_run_as_the_measured_one(train_tiny, dataset, tmp_path):
    policy, other = tmp_path / "ours", tmp_path / "theirs"
    how = {"beta": 0.7, "length_normalised": True, "max_length": 26, "max_prompt_length": 25}
    train_tiny("policy", dataset, policy, max_steps=2, learning_rate=3e-3, **how)
    shutil.copytree(policy, other, ignore=shutil.ignore_patterns("mmpo.json", "reference", "checkpoint-*"))
    found = evaluate("policy", policy, dataset, against=other, bootstrap=0)
    assert found["counts"]["completion_truncated"] > 0
    assert {row["difference"] for row in found["against"]["raw"]} == {0}


@pytest.mark.parametrize("name", ["typo", "some/where/typo", "./typo"])
def test_a_name_that_nothing_has_is_refused_before_anything_is_computed(name, trained, dataset):
    said = user_error("there is no such folder or file", evaluate, "reward", trained["reward"], dataset, against=name)
    assert f"--against {name}: " in said and "a folder that --out wrote" in said and "(owner/name)" in said


def test_a_dataset_is_no_rival(trained, dataset):
    said = user_error("that is a dataset, no model", evaluate, "reward", trained["reward"], dataset, against=dataset)
    assert f"--against {dataset}: " in said and "a folder that --out wrote" in said


def test_a_control_is_named_wherever_its_figures_are(trained, dataset, train_tiny, tmp_path, capsys):
    """In the summary, the table, the page, and beside the model that it is held against."""
    control = tmp_path / "model"
    train_tiny("reward", dataset, control, max_steps=1, control="shuffled", gamma=1.0)
    command = ["evaluate", "reward", "--data", str(dataset), "--bootstrap", "0", "--json"]
    assert run([*command, "--model", str(control), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    trained_on = {"loss": "mmpo", "loss_options": {}, "target": "plain", "gamma": 1.0, "control": "shuffled"}
    assert (
        orjson.loads(said.out)["trained_on"]
        == json.loads((tmp_path / "out" / "evaluation.json").read_text())["trained_on"]
        == trained_on
    )
    assert "trained on: mmpo, target plain, γ 1.000, control shuffled" in said.err
    assert "this model (control shuffled)" in said.err
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "trained on: mmpo, target plain, γ 1.000, control shuffled" in page and "this model (control shuffled)" in page
    for other in (control, tmp_path / "out"):
        assert run([*command, "--model", str(trained["reward"]), "--against", str(other)]) == 0
        said = capsys.readouterr()
        found = orjson.loads(said.out)
        assert found["against"]["other_trained_on"] == trained_on and found["trained_on"]["control"] is None
        assert "this model (control" not in said.err
        assert "(mmpo, target plain, γ 1.000, control shuffled)" in " ".join(said.err.split())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"loss": "mmpo", "target": "levels"}, {"loss": "mmpo", "target": "levels", "gamma": None}),
        ({"loss": {"dpo": 1}}, {"loss": "dpo", "target": None, "gamma": None}),
        ({"loss": "cdpo", "loss_options": {"epsilon": 0.1}}, {"loss": "cdpo", "loss_options": {"epsilon": 0.1}, "target": None}),
    ],
)
def test_what_a_model_was_trained_on_is_what_its_loss_reads(options, found):
    assert trained_on({"kind": "reward", "gamma": 1.5, "options": options}).items() >= found.items()
    assert trained_on(None) is None


def test_the_command_writes_a_folder_with_a_page_that_needs_nothing_else(trained, rival, dataset, tmp_path, capsys):
    out = tmp_path / "evaluation"
    command = [
        "evaluate",
        "reward",
        "--model",
        str(trained["reward"]),
        "--data",
        str(dataset),
        "--against",
        str(rival),
        "--out",
        str(out),
    ]
    for _ in range(2):  # an earlier evaluation is replaced
        assert run([*command, "--bootstrap", "200", "--json"]) == 0
        said = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == FILES
    found, kept = orjson.loads(said.out), json.loads((out / "evaluation.json").read_text())
    assert {name: kept[name] for name in found} == found
    assert kept["model"] == str(trained["reward"]) and len(read_table(out / "pairs.parquet")) == found["pairs"]
    for words in ("at temperature", "longest wins", "says ½", "rank correlation with length", "each at its temperature"):
        assert words in said.err, words
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)
    low, high = found["accuracy_95"]
    assert f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]" in page
    for words in ("Against", "Calibration", "longest wins", "says ½", "cross-fitted"):
        assert words in page, words


def test_a_benchmarks_rows_have_their_figures_on_the_page(trained, tmp_path):
    texts = {"chosen": ["good", "a good one", "so good"], "rejected": ["bad", "so bad", "worse"]}
    rows = [{"id": n, "domain": ("chat", "safety-refuse")[n % 2], "prompt": f"Q{n}?", **texts} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate("reward", trained["reward"], tmp_path / "rows.jsonl", out=tmp_path / "out", bootstrap=100)
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert f"is easy ({found['styles']['easy']:.3f})" in page and ">markdown<" in page and "Against the targets" not in page
    assert found["temperature_from"].startswith("cross-fitted") and found["scaled"]["accuracy"] == found["accuracy"]


def test_a_folder_of_something_else_is_left_alone(trained, dataset, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    command = ["evaluate", "reward", "--model", str(trained["reward"]), "--data", str(dataset)]
    said = refused([*command, "--out", str(tmp_path / "mine")], tmp_path, capsys)
    assert "holds notes.txt, which no evaluation wrote" in said
    refused([*command, "--bootstrap", "-1"], tmp_path, capsys, "--bootstrap -1: must be a whole number from 0 up")


def test_a_split_of_ties_alone_has_no_accuracy_and_still_a_page(trained, tmp_path):
    table = make_pairs(6, [7], seed=9)
    pq.write_table(table.filter(pa.compute.equal(table["quality_margin"], 0.0)), tmp_path / "ties.parquet")
    found = evaluate("reward", trained["reward"], tmp_path / "ties.parquet", out=tmp_path / "out", bootstrap=50)
    assert found["accuracy"] is None and found["accuracy_95"] is None and found["length"]["longest_wins"] is None
    assert (tmp_path / "out" / "page.html").is_file()
