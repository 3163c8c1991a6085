#!/bin/sh
# scikit-learn 1.9.1: cohen_kappa_score with weights="linear" or "quadratic" weighs a disagreement by how far apart the two grades stand among those that occur, sorted
# as Python sorts them; its documentation says neither. Words go by the alphabet (bad, good, ok): a judge who mixes up bad and ok gets 0, and one who mixes
# up bad and good .75, the wrong way round; "10" stands beside "1". Numbers are not taken as numbers: where only 1, 2 and 5 were given, 5 is as far from 2
# as 2 from 1, so that kappas of two judges or two data sets aren't on one scale. labels= with all grades in their order mends both.
# Seen: bad and ok mixed up 0.00, bad and good mixed up 0.75; in order 0.75 and 0.00; grades 1, 2, 5: 0.55, of 1 to 5: 0.63
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PYTHON'
from sklearn.metrics import cohen_kappa_score

person = ["bad"] * 10 + ["ok"] * 10 + ["good"] * 10
one_step = ["bad", "ok"] * 5 + ["bad", "ok"] * 5 + ["good"] * 10
two_steps = ["bad", "good"] * 5 + ["ok"] * 10 + ["bad", "good"] * 5


def kappa(one, other, labels=None):
    return f"{cohen_kappa_score(one, other, weights='quadratic', labels=labels) + 1e-9:.2f}"


words = [kappa(person, judge, labels) for labels in (None, ["bad", "ok", "good"]) for judge in (one_step, two_steps)]
grades = [1, 1, 2, 2, 5, 5, 1, 5], [1, 2, 2, 2, 5, 5, 1, 1]
numbers = [kappa(*grades, labels) for labels in (None, [1, 2, 3, 4, 5])]
shown = "bad and ok mixed up {}, bad and good mixed up {}; in order {} and {}; grades 1, 2, 5: {}, of 1 to 5: {}"
print(shown.format(*words, *numbers))
assert words == ["0.00", "0.75", "0.75", "0.00"], words
assert numbers == ["0.55", "0.63"], numbers
PYTHON
