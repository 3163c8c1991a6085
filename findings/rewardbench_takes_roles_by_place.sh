#!/bin/sh
# rewardbench 0.1.4: of a prompt that is a list of messages it reads the contents and not the roles: the first is the user's, the second the assistant's, and so
# on. A system message becomes the user's, what the user asked becomes the assistant's words, and the reply is scored in a conversation that nobody had, without
# a word. Where the number of messages is even (a system message and a question) an AssertionError without a message ends the run.
# Seen: [user]Be brief.[assistant]Hi[user]Hi.[assistant]A colour?[user]Please.[assistant]Red. for system, user, assistant, user, user; and AssertionError
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q transformers==4.51.0 datasets==3.6.0 torch==2.13.0
"$folder/venv/bin/python" -m pip install -q --no-deps rewardbench==0.1.4 fschat==0.2.36 shortuuid==1.0.13 markdown2==2.5.5 trl==0.17.0 accelerate==1.15.0 sentencepiece==0.2.3 rich==15.0.0
HF_HOME="$folder" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys

import datasets
from rewardbench.utils import load_and_process_dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

datasets.disable_progress_bars()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def shown(*prompt):
    """How rewardbench shows a row with this prompt, (role, content) each."""
    row = {"prompt": [{"role": role, "content": text} for role, text in prompt], "chosen": "Red.", "rejected": "A dog."}
    path = f"{sys.argv[1]}/{len(prompt)}.jsonl"
    open(path, "w").write(json.dumps(row))
    return load_and_process_dataset(path, json=True, tokenizer=tokenizer)[0]["text_chosen"]


system, question = ("system", "Be brief."), ("user", "A colour?")
text = shown(system, ("user", "Hi"), ("assistant", "Hi."), question, ("user", "Please."))
print(text)
assert text == "[user]Be brief.[assistant]Hi[user]Hi.[assistant]A colour?[user]Please.[assistant]Red."
try:
    shown(system, question)
except AssertionError:
    print("a system message and a question: AssertionError")
else:
    raise SystemExit("a system message and a question are shown")
PYTHON
