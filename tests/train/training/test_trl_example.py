"""The example of docs/trl.md, as it stands there, in TRL's own trainer: its loss is ours on TRL's batch."""

import copy
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from folders import pairs_folder, split_folder, write_rows
from out_cases import graded

from mmpo.annotate.exports import ExportOptions, export
from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.margins import target_probability
from mmpo.train.batches import BATCHES, micro_batch
from mmpo.train.data import Renderer, prepare
from mmpo.train.model import ExecutionPlan, completion_values, tiny_model
from mmpo.train.objective import LOSSES

trl = pytest.importorskip("trl")
PAGE = Path(__file__).parents[3] / "docs" / "trl.md"


@pytest.mark.filterwarnings("ignore")
def test_the_fifteen_lines_train_trl_on_soft_targets(pairs, tokenizer, tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    names: dict = {}
    exec(code, names)
    gamma, rows = 0.8, pairs.slice(0, 8)
    data = datasets.Dataset(rows.replace_schema_metadata(None))
    data = data.add_column("p", target_probability(np.array(data["quality_margin"]), gamma))
    model, other = (tiny_model("policy", tokenizer, size=32, layers=1, seed=seed) for seed in (0, 5))
    sizes = {"per_device_train_batch_size": 8, "max_steps": 1, "bf16": False, "gradient_checkpointing": False}
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    args = trl.DPOConfig(str(tmp_path), remove_unused_columns=False, beta=0.3, max_length=1024, **sizes, **quiet)
    collator = names["SoftCollator"](pad_token_id=tokenizer.pad_token_id, max_length=1024)
    trainer = names["SoftDPOTrainer"](
        model, ref_model=other, args=args, train_dataset=data, processing_class=tokenizer, data_collator=collator
    )
    batch = next(iter(trainer.get_train_dataloader()))
    found = trainer.compute_loss(trainer.model, batch).item()
    prompts = prepare(rows, np.array(data["p"]), Renderer(tokenizer, 1024, 512)).prompts
    part = BATCHES["rows"].build([prompt.completions for prompt in prompts], tokenizer.pad_token_id)
    ours = micro_batch(prompts, (part,))
    with torch.no_grad():
        mine, theirs = (completion_values(each, "policy", part, ExecutionPlan()) for each in (model, other))
    ratio = mine - theirs
    z = 0.3 * (ratio[ours.chosen] - ratio[ours.rejected])
    assert found == pytest.approx(float(LOSSES["mmpo"].per_pair(z, ours.p, ours.margin).mean()), abs=1e-4)
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.lm_head.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_trl_trains_on_the_export_of_a_dataset_with_tools(kind, tokenizer, tmp_path):
    call = [{"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"day": "today"}}}]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Rain {i}?"}],
            "tools": [{"type": "function", "function": {"name": "rain"}}],
            "chosen": [{"role": "assistant", "content": "", "tool_calls": call}],
            "rejected": [{"role": "assistant", "content": "No."}],
            "margin": 1,
        }
        for i in range(4)
    ]
    build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "pairs", options=BuildOptions("trl", split=(1, 0, 0)))
    export(tmp_path / "pairs", f"trl-{kind}", tmp_path / "out")
    data = datasets.load_dataset("json", data_dir=str(tmp_path / "out" / "train"), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    sizes = {"per_device_train_batch_size": 4, "max_steps": 1, "bf16": False, "gradient_checkpointing": False, "max_length": 1024}
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    trainer, config = (trl.DPOTrainer, trl.DPOConfig) if kind == "dpo" else (trl.RewardTrainer, trl.RewardConfig)
    model, other = (tiny_model("policy" if kind == "dpo" else "reward", tokenizer, size=32, layers=1) for _ in range(2))
    more = {"ref_model": other} if kind == "dpo" else {}
    run = trainer(
        model, args=config(str(tmp_path / "run"), **sizes, **quiet), train_dataset=data, processing_class=tokenizer, **more
    )
    text = tokenizer.decode(run.train_dataset[0]["chosen_ids"])
    assert text.endswith('[rain {"day": "today"}]<|end|>')
    run.train()


SIZES = {"per_device_train_batch_size": 8, "max_steps": 1, "bf16": False, "gradient_checkpointing": False, "max_length": 1024}
QUIET = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_trl_subtracts_an_exported_margin_of_gamma_times_the_quality_margin(gamma, pairs, tokenizer, tmp_path):
    """Worked out by hand from the rewards of the batch: −log σ(r_w − r_l − γ·m), and without γ no margin at all."""
    data = split_folder(tmp_path / "pairs", train=pairs.slice(0, 8))
    export(data, "trl-reward", tmp_path / "out", ExportOptions(gamma=gamma))
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    model = tiny_model("reward", tokenizer, size=32, layers=1)
    run = trl.RewardTrainer(
        model, args=trl.RewardConfig(str(tmp_path / "run"), **SIZES, **QUIET), train_dataset=rows, processing_class=tokenizer
    )
    batch = next(iter(run.get_train_dataloader()))
    model.eval()
    with torch.no_grad():
        found = run.compute_loss(model, dict(batch))
        chosen, rejected = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1).chunk(2)
    wanted = (gamma or 0.0) * torch.tensor(rows["quality_margin"], dtype=torch.float32)
    given = batch.get("margin", torch.zeros(len(rows)))
    assert sorted(given.tolist()) == pytest.approx(sorted(wanted.tolist())) and wanted.any() == (gamma is not None)
    assert float(found) == pytest.approx(float(-torch.nn.functional.logsigmoid(chosen - rejected - given).mean()), rel=1e-5)
    run.train()


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_a_policy_on_the_exported_conversations(tokenizer, tmp_path):
    """System messages, several turns, a prompt that ends in the assistant's words: TRL's tokens are those of the template, no more."""
    pairs = pairs_folder(tmp_path / "pairs", graded(1), split=(1, 0, 0))
    export(pairs, "trl-dpo", tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    model, other = (tiny_model("policy", tokenizer, size=32, layers=1) for _ in range(2))
    run = trl.DPOTrainer(
        model,
        ref_model=other,
        args=trl.DPOConfig(str(tmp_path / "run"), **SIZES, **QUIET),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert len(run.train_dataset) == len(rows)
    for row in run.train_dataset:
        whole = tokenizer.apply_chat_template(row["prompt"] + row["rejected"], tokenize=True, return_dict=True)["input_ids"]
        assert row["prompt_ids"] + row["rejected_ids"] == whole
    run.train()


@pytest.mark.filterwarnings("ignore")
def test_a_judge_is_tuned_on_the_exported_rows(pairs, tokenizer, tmp_path):
    """SFTTrainer takes a step on them; and the soft verdicts are what a judge's next token is fitted to."""
    data = split_folder(tmp_path / "pairs", train=pairs.slice(0, 8))
    export(data, "judge", tmp_path / "out", ExportOptions(gamma=0.5))
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 16
    config = trl.SFTConfig(str(tmp_path / "run"), **SIZES | {"max_length": 2048}, **QUIET)
    run = trl.SFTTrainer(
        tiny_model("policy", tokenizer, size=32, layers=1), args=config, train_dataset=rows, processing_class=tokenizer
    )
    run.train()
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    assert [len(ids) for ids in letters] == [1, 1]
    targets = torch.tensor([[row["verdicts"]["A"], row["verdicts"]["B"]] for row in rows])
    margins = torch.tensor(pairs.slice(0, 8)["quality_margin"].to_pylist(), dtype=torch.float32)
    assert torch.allclose(targets[::2, 0], torch.sigmoid(0.5 * margins)) and torch.allclose(targets[1::2, 1], targets[::2, 0])
