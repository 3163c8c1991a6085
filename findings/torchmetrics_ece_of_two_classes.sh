#!/bin/sh
# torchmetrics 1.9.0: the expected calibration error of the same two-class predictions depends on which class one calls them by.
# binary_calibration_error bins P(class 1); multiclass_calibration_error with num_classes=2 bins the larger of the two probabilities. So a reward
# model that says .4 where .2 is true and .6 where .4 is true, .2 too high everywhere, has a binary error of .2 and a two-class one of 0: above
# one half it is as much too sure as it is too unsure below. "ECE" in papers on preference models is usually the second.
# Seen: "binary 0.200, two classes 0.000".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 torchmetrics==1.9.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

p = torch.tensor([0.4] * 10 + [0.6] * 10)
y = torch.tensor([1] * 2 + [0] * 8 + [1] * 4 + [0] * 6)
binary = float(binary_calibration_error(p, y, n_bins=15))
two = float(multiclass_calibration_error(torch.stack([1 - p, p], 1), y, num_classes=2, n_bins=15))
print(f"binary {binary:.3f}, two classes {two:.3f}")
assert abs(binary - 0.2) < 1e-6
assert two < 1e-6
PYTHON
