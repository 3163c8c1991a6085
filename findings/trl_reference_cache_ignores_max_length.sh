#!/bin/sh
# trl 1.16.0 with datasets 5.2.0: DPOTrainer keeps what precompute_ref_log_probs computed in the cache of the dataset, under a key of the untruncated rows and the
# reference model. Rows are cut to max_length only afterwards, in the collator. With truncation_mode="keep_end" a second run of another max_length finds the
# first one's file and takes its log-probabilities, of other tokens: a policy equal to its reference begins with a chosen reward of -8.2 and a loss of 8.2
# instead of 0 and ln 2, and goes on against a wrong reference, without a word. With "keep_start" a filter of too long prompts happens to make
# the keys differ (with any other option too, so that a new learning rate computes all again).
# Seen: chosen reward of the first step: max_length 16 0.0, then 32 -8.2; 32 without precomputing 0.0; keep_start: 0.0, 0.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 trl==1.16.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 TQDM_DISABLE=1 venv/bin/python -W ignore - <<'PYTHON'
import json
import random
from pathlib import Path

import torch
from datasets import disable_progress_bars, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

disable_progress_bars()
words = ["<pad>", "<eos>"] + [f"w{i}" for i in range(60)]
plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
draw = random.Random(0)
lengths = {"prompt": 6, "chosen": 40, "rejected": 10}
pairs = [{name: " " + " ".join(draw.choices(words[2:], k=n)) for name, n in lengths.items()} for _ in range(4)]
Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=62, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.3, **sizes))


def first_step(mode, max_length, precompute=True):
    cut = {"truncation_mode": mode, "max_length": max_length, "precompute_ref_log_probs": precompute, "per_device_train_batch_size": 4}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "max_steps": 1}
    options = DPOConfig("out", use_cpu=True, bf16=False, gradient_checkpointing=False, **cut, **quiet)
    rows = load_dataset("json", data_files="pairs.jsonl", split="train")
    trainer = DPOTrainer(model(), model(), args=options, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return round(float(trainer.state.log_history[0]["rewards/chosen"]), 1) + 0.0


end = [first_step("keep_end", 16), first_step("keep_end", 32), first_step("keep_end", 32, precompute=False)]
start = [first_step("keep_start", 16), first_step("keep_start", 32)]
print("chosen reward of the first step: max_length 16 {}, then 32 {}; 32 without precomputing {}; keep_start: {}, {}".format(*end, *start))
assert end[0] == end[2] == start[0] == start[1] == 0
assert end[1] < -5, end
PYTHON
