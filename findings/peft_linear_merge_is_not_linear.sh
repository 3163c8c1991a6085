#!/bin/sh
# peft 0.21.2: add_weighted_adapter with combination_type="linear", as its guide merges "sft" and "dpo" at .7 and .3, is no weighted sum of what the adapters
# change. It adds up their A matrices and their B matrices apart, each by the root of its weight, so that the merged change also holds every B of one times the A of
# another. Two unrelated adapters of rank 4 on 32 x 32 weights: what is too much is .82 as large as the whole of .7 x sft + .3 x dpo; at equal weights about as large as
# the sum itself. "cat" is the sum (at the sum of the ranks), "svd" the nearest to it of one adapter's rank.
# Seen: off by, in shares of .7 x sft + .3 x dpo: linear 0.82, cat 0.00, svd 0.30
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 peft==0.21.2 transformers==5.23.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)  # random A and B, as if trained
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False)), config, "sft")
model.add_adapter("dpo", config)
layer = model.base_model.model[0]
with torch.no_grad():
    wanted = 0.7 * layer.get_delta_weight("sft") + 0.3 * layer.get_delta_weight("dpo")
    off = {}
    for kind in ("linear", "cat", "svd"):
        model.add_weighted_adapter(["sft", "dpo"], [0.7, 0.3], kind, combination_type=kind)
        off[kind] = float((layer.get_delta_weight(kind) - wanted).norm() / wanted.norm())
print("off by, in shares of .7 x sft + .3 x dpo: " + ", ".join(f"{kind} {share:.2f}" for kind, share in off.items()))
assert off["linear"] > 0.7, off
assert off["cat"] < 1e-5
assert off["svd"] < 0.5
PYTHON
