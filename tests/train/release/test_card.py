"""A run's card: a head that the Hub reads, the base by its real name, data with their digest, figures with intervals, no machine's path."""

import hashlib
import json
import re
from typing import Any

import pytest
import torch
from command import graded
from folders import pairs_folder
from huggingface_hub import ModelCard
from training_cases import save_model

from mmpo.train import merge
from mmpo.train.model import load_pretrained, tiny_model
from mmpo.train.release import origin_of

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A dataset with a manifest."""
    return pairs_folder(tmp_path_factory.mktemp("built") / "grades", graded(60), split=(0.6, 0.4, 0))


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A folder of a model that says by its configuration what it is on the Hub."""
    folder = save_model(tmp_path_factory.mktemp("base") / "base", tiny_model("policy", tokenizer, size=32, layers=1), tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "some/base"}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def test_a_runs_card_says_what_it_is(built, base, train_tiny, record_of, tmp_path):
    out = tmp_path / "mine"
    train_tiny("policy", built, out, model=str(base), lora=3, loss="mmpo=1,sft=0.1", max_steps=3, learning_rate=1e-2)
    card, record = ModelCard.load(out / "README.md"), record_of(out)
    head = card.data.to_dict()
    assert (head["library_name"], head["pipeline_tag"], head["license"]) == ("peft", "text-generation", "mit")
    assert (head["base_model"], head["base_model_relation"]) == ("some/base", "adapter")
    assert {"mmpo", "policy", "lora"} <= set(head["tags"])
    digest = hashlib.sha256((built / "manifest.json").read_bytes()).hexdigest()
    source = json.loads((built / "manifest.json").read_text())["inputs"][0]
    for said in (
        digest,
        "grades.jsonl",
        source["digest"],
        f"γ = {record['gamma']:.4g}",
        "mmpo=1,sft=0.1",
        "rank 3, alpha 6",
        "0.01 at its peak",
    ):
        assert said in card.text
    metrics, bounds = record["summary"]["metrics"], record["summary"]["metrics_95"]
    low, high = bounds["cross_entropy"]
    assert low < metrics["cross_entropy"] < high
    assert f"| cross_entropy | {metrics['cross_entropy']:.3f} | {low:.3f} to {high:.3f} |" in card.text
    assert str(tmp_path.parent.parent) not in card.content and str(base.parent) not in card.content
    train_tiny("policy", built, out, model=str(base), lora=3, loss="mmpo=1,sft=0.1", max_steps=3, learning_rate=1e-2, more_steps=1)
    longer = ModelCard.load(out / "README.md")
    assert (
        longer.data.to_dict() == head and "| steps | 4 of" in longer.text and "PEFT" not in longer.text
    )  # peft adds to a card that is there
    merge(out, tmp_path / "whole")
    merged = ModelCard.load(tmp_path / "whole" / "README.md")
    assert merged.data.to_dict() == {**head, "library_name": "transformers", "base_model_relation": "finetune"}
    assert "This is the adapter `mine`" in merged.text and digest in merged.text and 'from_pretrained("whole")' in merged.text


@pytest.mark.parametrize(
    ("kind", "lora", "own"), [("policy", 2, False), ("policy", 2, True), ("policy", None, False), ("reward", 2, False)]
)
def test_what_a_card_says_to_load_the_model_with_does(kind, lora, own, built, base, train_tiny, tmp_path, monkeypatch):
    """Also an adapter above a base that only its own folder has, or only this machine; and how much of the data it saw."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(base.parent)
    how = {"lora": lora, "max_steps": 3, "pairs_per_step": 2, "learning_rate": 1e-2}
    train_tiny(kind, built, tmp_path / "runs" / "t1", model=base.name if own else "tiny", **how)
    card = (tmp_path / "runs" / "t1" / "README.md").read_text()
    seen, pairs, prompts, of = map(int, re.search(r"pairs trained on \| (\d+) of (\d+), in (\d+) of (\d+) prompts", card).groups())
    manifest = json.loads((built / "manifest.json").read_text())
    assert 6 <= seen < pairs == manifest["rows"]["train"] and 1 <= prompts <= 3 < of
    held_out = re.search(r"Figures on (\d+) held-out pairs of (\d+) prompts", card)
    assert int(held_out[1]) == manifest["rows"]["validation"] > int(held_out[2]) > 1
    expected, _ = load_pretrained(kind, str(tmp_path / "runs" / "t1"))
    assert ("mmpo merge t1 --out t1-whole" in card) == own
    if own:
        merge(tmp_path / "runs" / "t1", tmp_path / "runs" / "t1-whole")
    monkeypatch.chdir(tmp_path / "runs")
    found: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], found)
    ids = found["tokenizer"]("Question 1?", return_tensors="pt")
    assert torch.allclose(found["model"].eval()(**ids).logits, expected.eval()(**ids).logits, atol=1e-6)


def test_a_reward_model_a_control_and_what_a_person_wrote(built, train_tiny, tmp_path):
    out = tmp_path / "control"
    how = {"control": "matched", "epochs": 1, "eval_split": None}
    train_tiny("reward", built, out, **how)
    card = ModelCard.load(out / "README.md")
    head = card.data.to_dict()
    assert head["pipeline_tag"] == "text-classification" and "base_model" not in head and "license" not in head
    assert "This is a control (matched)" in card.text and "a tiny model built from the data" in card.text
    assert "Nothing was measured" in card.text
    page = (out / "README.md").read_text()
    (out / "README.md").write_text(page.replace("tags:", "language: de\ntags:") + "\nAsk Anna.\n")
    train_tiny("reward", built, out, **how | {"epochs": 2, "resume": False})
    again = ModelCard.load(out / "README.md")
    assert again.data.to_dict()["language"] == "de" and again.text.rstrip().endswith("Ask Anna.")
    assert again.text.count("| objective |") == 1 and again.text.replace("Ask Anna.", "").strip() != card.text.strip()


def test_where_z_is_nothing_there_is_no_accuracy(built, base, train_tiny, tmp_path):
    train_tiny("policy", built, tmp_path / "out", model=str(base), max_steps=1, learning_rate=1e-12)
    assert "| accuracy | – | – |" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_from_a_run_says_by_way_of_which_and_a_page_that_cannot_be_read_stays(
    built, base, train_tiny, record_of, tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    how = {"max_steps": 1, "eval_split": None}
    train_tiny("policy", built, first, model=str(base), **how)
    train_tiny("policy", built, second, model=str(first), **how)
    assert "some/base, by way of `first`" in (second / "README.md").read_text()
    assert record_of(second)["origin"] == {"name": "some/base", "called": "base", "license": "mit", "by_way_of": "first"}
    (second / "README.md").write_text("---\ntags: [a\n---\nmine\n")
    capsys.readouterr()
    train_tiny("policy", built, second, model=str(first), resume=False, **how)
    assert (second / "README.md").read_text().endswith("mine\n") and record_of(second)["finished"]
    assert "no model card was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "name", "license"),
    [
        ({"config.json": {"_name_or_path": "org/model"}}, "org/model", None),
        ({"config.json": {"_name_or_path": "/home/anna/model"}}, None, None),
        ({"config.json": {}}, None, None),
        ({"adapter_config.json": {"base_model_name_or_path": "org/base"}, "config.json": {"_name_or_path": "org/other"}}, "org/base", None),
        ({"origin.json": {"model": "org/fetched", "license": "apache-2.0"}, "config.json": {}}, "org/fetched", "apache-2.0"),
        ({"mmpo.json": {"kind": "policy", "origin": {"name": "org/first", "called": "x", "license": "mit"}}}, "org/first", "mit"),
        ({"config.json": "no JSON", "README.md": "---\nlicense: [a\n---\n"}, None, None),
        ({"config.json": {}, "README.md": "---\nlicense: gpl-3.0\n---\n"}, None, "gpl-3.0"),
    ],
)  # fmt: skip
def test_the_base_is_called_by_its_name_on_the_hub_or_not_at_all(files, name, license, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "a model"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    found = origin_of(str(folder))
    assert (found.name, found.license) == (name, license)
    assert found.called == ("x" if "mmpo.json" in files else "a model")


def test_a_folder_of_the_hubs_cache_and_a_name_are_called_by_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--org--model" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    assert origin_of(str(snapshot)).name == "org/model"
    assert origin_of("org/another").name == "org/another"
    assert origin_of("tiny").name is None


def test_two_adapters_that_name_one_another_have_no_name(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / other)}))
    assert origin_of(str(tmp_path / "a")).name is None
