"""`mmpo push` of a model: what loads it goes, in one commit and without a path of this machine; what nobody could load is refused."""

import json

import pytest
import torch
from command import mmpo
from hub_server import Hub
from huggingface_hub import ModelCard
from training_cases import save_model, user_error
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mmpo.pipeline.hub import push_model
from mmpo.train import merge
from mmpo.train.model import tiny_model

pytestmark = [pytest.mark.usefixtures("fresh_cache"), pytest.mark.filterwarnings("ignore:Use 'content=")]
NAME = "me/model"


def on_hub(hub: Hub, folder, name: str = NAME):
    """The newest commit of a model, as the folder that `from_pretrained` would fetch."""
    folder.mkdir()
    for file, content in hub.repositories[name].files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def adapter(dataset, tokenizer, train_tiny, tmp_path_factory):
    """A LoRA policy on a base that says its name on the Hub."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_model(folder / "base", tiny_model("policy", tokenizer, size=32, layers=1), tokenizer)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "some/base"}))
    train_tiny("policy", dataset, folder / "policy", model=str(base), lora=2, max_steps=3, save_steps=2, sample=1, sample_tokens=4)
    return folder / "policy"


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_pushed_model_is_the_one_of_the_folder(kind, served, trained, tmp_path):
    done = push_model(trained[kind], NAME, license="mit")
    assert done.private and done.changed and served.repositories[NAME].private
    again = on_hub(served, tmp_path / "again")
    loads = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    mine, theirs = (loads.from_pretrained(folder).state_dict() for folder in (trained[kind], again))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again / "tokenizer.json").is_file() and not {"training_args.bin", "mmpo.json.lock"} & {
        one.name for one in again.iterdir()
    }
    card = ModelCard.load(again / "README.md")
    assert card.data.to_dict()["license"] == "mit" and f'from_pretrained("{NAME}")' in card.text
    everything = b"".join(one.read_bytes() for one in again.iterdir() if one.suffix in (".json", ".md"))
    assert str(trained[kind].parent).encode() not in everything and str(tmp_path.parent.parent).encode() not in everything
    assert not push_model(trained[kind], NAME, license="mit").changed


def test_an_adapter_goes_with_its_bases_name_and_without_its_checkpoints(served, adapter, tmp_path):
    push_model(adapter, NAME)
    files = served.repositories[NAME].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "some/base"
    assert ModelCard(files["README.md"].decode()).data.to_dict()["base_model"] == "some/base"
    assert not [file for file in files if "checkpoint" in file or file == "samples.jsonl" or "reference" in file]
    merge(adapter, tmp_path / "whole")
    push_model(tmp_path / "whole", NAME)
    assert "adapter_config.json" not in served.repositories[NAME].files and "model.safetensors" in served.repositories[NAME].files


def test_what_nobody_could_use_is_refused_and_nothing_is_pushed(served, adapter, dataset, train_tiny, unfinished, tmp_path):
    train_tiny("policy", dataset, tmp_path / "tiny", lora=2, max_steps=1)
    user_error(f"mmpo merge {tmp_path / 'tiny'} --out DIR", push_model, tmp_path / "tiny", NAME)
    unfinished(tmp_path / "tiny")
    user_error("has not ended", push_model, tmp_path / "tiny", NAME)
    user_error("neither a dataset .* nor a model of mmpo", push_model, tmp_path, NAME)
    user_error("names no model on the Hub", push_model, adapter, "model")
    user_error("the Hub takes a licence's id", push_model, adapter, NAME, license="My own")
    for weights in (tmp_path / "tiny").glob("*.safetensors"):
        weights.unlink()
    record = json.loads((tmp_path / "tiny" / "mmpo.json").read_text())
    (tmp_path / "tiny" / "mmpo.json").write_text(json.dumps(record | {"finished": True}))
    user_error("holds no weights", push_model, tmp_path / "tiny", NAME)
    assert not served.repositories and not [asked for asked in served.asked if asked.startswith("POST")]


def test_what_others_put_there_stays(served, trained, adapter):
    push_model(trained["reward"], NAME)
    there = served.repositories[NAME]
    page = there.files["README.md"].decode().replace("tags:", "language: de\ntags:") + "\nAsk Anna.\n"
    there.commit({**there.files, "README.md": page.encode(), "notes.txt": b"mine"})
    push_model(trained["reward"], NAME)
    assert there.files["notes.txt"] == b"mine" and there.files["README.md"].decode().endswith("Ask Anna.\n")
    assert "language: de" in there.files["README.md"].decode()
    there.commit({**there.files, "config.json": b"{}"})
    assert "config.json on the Hub differs" in user_error("", push_model, trained["reward"], NAME)
    push_model(trained["reward"], NAME, overwrite=True)
    assert there.files["config.json"] == (trained["reward"] / "config.json").read_bytes()
    there.private = False
    user_error("is public: everybody could read", push_model, trained["reward"], NAME)
    push_model(trained["policy"], "me/other")
    other = served.repositories["me/other"]
    other.commit({"weights.gguf": b"theirs"})
    user_error("holds weights.gguf, which mmpo did not push", push_model, adapter, "me/other")


@pytest.mark.slow
def test_the_command_knows_a_model_from_a_dataset(served, trained, tmp_path):
    done = mmpo("push", trained["reward"], NAME, "--json")
    told = json.loads(done.stdout)
    assert (
        told["model"] == NAME
        and told["revision"] == served.repositories[NAME].commits[-1][0]
        and "private, revision" in done.stderr
    )
    assert "--feedback stands beside pairs" in mmpo("push", trained["reward"], NAME, "--feedback", tmp_path).stderr
