"""A pretrained model on real grades: an adapter learns at the default rate, says what it writes, and is merged to the same logits."""

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from training_cases import user_error
from transformers import AutoModelForCausalLM

from mmpo.pipeline import BuildOptions, build
from mmpo.train import TrainOptions, merge, train_policy

ROOT = Path(__file__).resolve().parents[3]
MODEL = Path(os.environ.get("MMPO_MODELS") or ROOT / "models") / "smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh_cache"),
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="make models has not been run"),
]


def test_an_adapter_of_a_pretrained_policy_learns_writes_and_is_merged(tmp_path, capsys):
    build(
        ROOT / "data" / "arena_demo.jsonl.gz", tmp_path / "pairs", options=BuildOptions("jsonl", scale=(1, 10), split=(0.9, 0.1, 0))
    )
    how = {
        "data": str(tmp_path / "pairs"),
        "model": str(MODEL),
        "lora": 16,
        "max_length": 72,
        "max_prompt_length": 56,
        "pairs_per_step": 6,
    }
    said = user_error(
        "no linear module", train_policy, TrainOptions("policy", out=str(tmp_path / "x"), lora_targets="qkv_proj", **how)
    )
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in said
    train_policy(TrainOptions("policy", out=str(tmp_path / "out"), max_steps=6, eval_steps=6, sample=1, sample_tokens=8, **how))
    out = capsys.readouterr().err
    assert "sample at step 6: " in out and "still near 0" not in out
    history = json.loads((tmp_path / "out" / "mmpo.json").read_text())["history"]
    assert history["rewards/margins_abs"][-1] > 0.01
    merge(tmp_path / "out", tmp_path / "whole")
    tokens = torch.randint(0, 40_000, (2, 24), generator=torch.Generator().manual_seed(0))
    base, whole = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (MODEL, tmp_path / "whole"))
    with torch.no_grad():
        before = base.eval()(tokens).logits
        both = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()(tokens).logits
        assert torch.allclose(whole.eval()(tokens).logits, both, atol=1e-3) and (both - before).abs().max() > 0.01
