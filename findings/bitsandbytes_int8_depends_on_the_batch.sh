#!/bin/sh
# bitsandbytes 0.50.2, LLM.int8() with its default threshold of 6: what a row gives depends on the other rows of its batch. A column of the inputs is computed
# apart, in 16 bits, where any row of the batch has a value above the threshold in it; alone, the same row has that column quantised with the others. In
# SmolLM2-135M-Instruct (transformers 5.23.0, load_in_8bit) a token's log-probability moves by up to 1.2 nats between a batch of four texts and a text alone: log-ratios to a
# reference that was computed in other batches are noise. With llm_int8_threshold=0.0 rows are independent; what large values cost is then paid everywhere.
# Seen: threshold 6: alone and beside a row with large values differ by 0.014; threshold 0: by 0.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import bitsandbytes as bnb
import torch

torch.manual_seed(0)
weight, rows = torch.randn(64, 64) / 8, 2 * torch.randn(2, 64).clamp(-2.9, 2.9)
rows[1, ::4] = 20.0  # large values in another row, in a quarter of the columns
off = {}
for threshold in (6.0, 0.0):
    layer = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    with torch.no_grad():
        off[threshold] = float((layer(rows)[0] - layer(rows[:1])[0]).abs().max())
print(f"threshold 6: alone and beside a row with large values differ by {off[6.0]:.2g}; threshold 0: by {off[0.0]}")
assert off[6.0] > 1e-3 and off[0.0] == 0.0
PYTHON
