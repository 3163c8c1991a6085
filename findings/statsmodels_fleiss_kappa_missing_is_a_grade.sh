#!/bin/sh
# statsmodels 0.15.0: aggregate_raters, which fleiss_kappa's documentation names for raw data, takes NaN (nobody graded) for a grade like any other: its counts have
# one column more, and raters who left out the same item agree on it. Four raters who toss coins for half of the items and have not reached the other half
# have a kappa of .61, substantial agreement by the usual words, where it is 0 on what they graded. The function asserts that all items have equally many ratings, so
# that counts made by hand of partly graded items are refused; filled up with NaN by this way they pass.
# Seen: on the graded half 0.01; with the half that nobody reached 0.61; grades counted: 1, 2, nan
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q statsmodels==0.15.0 numpy==2.4.6 pandas==2.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

graded = np.random.default_rng(0).integers(1, 3, (200, 4)).astype(float)  # items by raters
unreached = np.full((200, 4), np.nan)
half = fleiss_kappa(aggregate_raters(graded)[0])
counts, grades = aggregate_raters(np.concatenate([graded, unreached]))
whole = fleiss_kappa(counts)
print(f"on the graded half {half:.2f}; with the half that nobody reached {whole:.2f}; grades counted: {', '.join(f'{grade:g}' for grade in grades)}")
assert abs(half) < 0.05, half
assert whole > 0.6, whole
assert len(grades) == 3
assert np.isnan(grades[2])
PYTHON
