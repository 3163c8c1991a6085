#!/bin/sh
# distilabel 1.5.3: QualityScorer reads a judge's reply line by line and gives the first line to the first response, whatever number the judge wrote before the
# score. A judge that grades "[2]" before "[1]" has its scores swapped, the list as long as ever and without a null; one opening sentence gives the first
# response's score to the second and none to the first; 4.5 is read as 4. Only the raw output (distilabel_metadata) still says whose score is whose.
# Seen: "as asked: [5.0, 1.0]; [2] first: [1.0, 5.0]; behind an opening sentence: [None, 5.0]; 4.5: [4.0, 1.0]".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q distilabel==1.5.3 requests
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
from distilabel.models.llms.base import LLM
from distilabel.steps.tasks import QualityScorer


class Nobody(LLM):
    @property
    def model_name(self):
        return "nobody"

    def load(self):
        pass

    def generate(self, *args, **kwargs):
        return []


task = QualityScorer(llm=Nobody())
task.load()
replies = {
    "as asked": "[1] Score: 5\n[2] Score: 1",
    "[2] first": "[2] Score: 1\n[1] Score: 5",
    "behind an opening sentence": "Here are the scores:\n[1] Score: 5\n[2] Score: 1",
    "4.5": "[1] Score: 4.5\n[2] Score: 1",
}
row = {"instruction": "q", "responses": ["good", "bad"]}
print("; ".join(f"{name}: {task.format_output(reply, row)['scores']}" for name, reply in replies.items()))
PYTHON
