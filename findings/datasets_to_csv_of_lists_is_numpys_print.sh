#!/bin/sh
# datasets 5.2.0: to_csv writes a column of lists as numpy prints arrays, and says nothing. There are no commas, so that whoever reads the cell as a Python
# list (ast.literal_eval) gets texts that stand side by side as one: two raters become one. Of more than 1,000 values the middle is gone, "..." in its
# place: a list of token ids or scores can't be had back. to_json and to_parquet keep both.
# Seen: "['anna' 'ben']", read as a list: ['annaben']; of 2,000 numbers 6 are left: [   0    1    2 ... 1997 1998 1999]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q datasets==5.2.0
HF_HOME="$folder" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import ast
import csv
import re
import sys

import datasets

datasets.disable_progress_bars()


def cell(values):
    """The one cell of a column whose one value is this list."""
    path = f"{sys.argv[1]}/out.csv"
    datasets.Dataset.from_dict({"column": [values]}).to_csv(path)
    [row] = csv.DictReader(open(path))
    return row["column"]


raters, numbers = cell(["anna", "ben"]), cell(list(range(2000)))
left = re.findall(r"\d+", numbers)
print(f'"{raters}", read as a list: {ast.literal_eval(raters)}; of 2,000 numbers {len(left)} are left: {numbers}')
assert ast.literal_eval(raters) == ["annaben"] and len(left) == 6 and "..." in numbers
PYTHON
