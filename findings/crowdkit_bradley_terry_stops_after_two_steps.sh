#!/bin/sh
# crowd-kit 1.4.2: BradleyTerry stops after two of its steps, whatever n_iter is, and calls that converged. It compares its new scores with the old ones, which are
# the same array by then, so that the change is 0. With tol=0, as a change of 0 is not below it, all steps are made and the scores are what they should be.
# Scores are drawn together where wins are passed along a chain of answers, and order changes: b and c, who beat one another twice each, come out as
# far apart as .13 and .33, because b's other games were against the best and c's against the worst. loss_history_ is empty in any case.
# Seen: n_iter 2 and 10000: a .481, b .132, c .334, d .053; with tol=0: a .766, b .109, c .109, d .016
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q crowd-kit==1.4.2 numpy==2.4.6 pandas==2.3.3
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pandas as pd
from crowdkit.aggregation import BradleyTerry

games = [("a", "b", 7, 1), ("b", "c", 2, 2), ("c", "d", 7, 1)]  # left, right, and how often each of them won
rows = [(left, right, won) for left, right, *wins in games for won, n in zip((left, right), wins) for _ in range(n)]
votes = pd.DataFrame(rows, columns=["left", "right", "label"])
two, many, zero = (BradleyTerry(**options).fit_predict(votes) for options in ({"n_iter": 2}, {"n_iter": 10000}, {"n_iter": 10000, "tol": 0}))


def said(scores):
    return ", ".join(f"{item} {score:.3f}" for item, score in scores.sort_index().items()).replace(" 0.", " .")


print(f"n_iter 2 and 10000: {said(many)}; with tol=0: {said(zero)}")
assert two.equals(many)
assert said(many) == "a .481, b .132, c .334, d .053", said(many)
assert said(zero) == "a .766, b .109, c .109, d .016", said(zero)
assert abs(zero["a"] / zero["b"] - 7) < 1e-6 and abs(zero["b"] / zero["c"] - 1) < 1e-6  # of a chain: the odds that were seen
PYTHON
