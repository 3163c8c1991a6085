#!/bin/sh
# fschat 0.2.36 (FastChat, MT-bench's own judge): the grade of an answer is the *first* [[number]] of the judgment, and where there is none the first
# [number] anywhere. So a judge that quotes the form before it grades is read by the quotation; in a judgment about code a list's index becomes
# the grade, also when the reply broke off before any grade or gives it as [[rating: 7]] or [[7/10]]; and 0 or 97 are grades like others, all in the
# published mean. Only what has no number in brackets at all is -1, which the mean leaves out.
# Seen: a plain grade 7; the form quoted first 5; an index before [[rating: 7]] 0; broken off after an index 12; [[7/10]] -1; [[97]] 97
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --no-deps fschat==0.2.36
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import types

# What its module of judges imports and this use of it never calls: two clients, and the templates of models (which need torch).
for name in ("openai", "anthropic", "fastchat.model", "fastchat.model.model_adapter"):
    sys.modules[name] = types.ModuleType(name)


class Conversation:
    roles = ("user", "assistant")

    def set_system_message(self, text): ...

    def append_message(self, role, text): ...


adapter = sys.modules["fastchat.model.model_adapter"]
adapter.get_conversation_template = lambda model: Conversation()
adapter.OPENAI_MODEL_LIST, adapter.ANTHROPIC_MODEL_LIST = ["judge"], []

from fastchat.llm_judge import common

judgments = {
    "a plain grade": "Right and clear. Rating: [[7]]",
    "the form quoted first": "Asked for a grade such as [[5]], I give this answer Rating: [[7]]",
    "an index before [[rating: 7]]": "The loop reads row[0] twice, else fine. [[rating: 7]]",
    "broken off after an index": "The program fails at board[12], because the",
    "[[7/10]]": "Right and clear. [[7/10]]",
    "[[97]]": "Right and clear. Rating: [[97]]",
}
found = {}
template = {"system_prompt": "", "prompt_template": "{question} {answer}", "output_format": "[[rating]]"}
for name, text in judgments.items():
    common.chat_completion_openai = lambda *_, **__: text
    answer = {"choices": [{"turns": ["An answer."]}]}
    found[name] = common.run_judge_single({"turns": ["A question."]}, answer, common.Judge("judge", template), None)[0]
print("; ".join(f"{name} {grade}" for name, grade in found.items()))
assert list(found.values()) == [7, 5, 0, 12, -1, 97], found
PYTHON
