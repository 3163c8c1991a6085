#!/bin/sh
# torch 2.13.0 (CPU): mixed precision (float32 weights, autocast to bfloat16) of a checkpoint that was *saved* in bfloat16 learns later than of the same
# weights off that grid. Weights that bfloat16 holds exactly sit in the middle between two places where their cast changes, so that an optimizer's
# step of less than half a spacing (1e-4 is, for weights above .05) changes no output at all until several have added up; of any other weights a few cross
# such a place at every step, and on average outputs move as much as in float32. Most checkpoints that one fine-tunes are saved in bfloat16, and rates
# for all weights are that small: a short run, or the first steps of a warm-up, do nothing there, without any sign of it. LoRA's weights are off the grid.
# Seen: "steps of 1e-4, the output's change over float32's: on the grid 0.00, off the grid 1.0; steps of 1e-3: 1.0, 1.0" (rounded).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def share(weight, rate):
    """How much of the change of the output after one step of Adam is seen under autocast, against float32."""
    layer = torch.nn.Linear(512, 512, bias=False)
    layer.weight.data.copy_(weight)
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)

    def output(low):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return (layer(states).float() * direction).sum()

    before = {low: output(low).item() for low in (False, True)}
    output(False).backward()
    optimizer.step()
    return (output(True).item() - before[True]) / (output(False).item() - before[False])


torch.manual_seed(0)
states, direction = torch.ones(4, 512), torch.ones(4, 512)
off = torch.empty(512, 512).uniform_(0.1, 0.2)
on = off.bfloat16().float()
small, large = [[share(weight, rate) for weight in (on, off)] for rate in (1e-4, 1e-3)]
print(
    "steps of 1e-4, the output's change over float32's: on the grid {:.2f}, off the grid {:.1f}; steps of 1e-3: {:.1f}, {:.1f}".format(*small, *large)
)
assert abs(small[0]) < 0.02
assert 0.7 < small[1] < 1.3
assert 0.7 < large[0] < 1.3
PYTHON
