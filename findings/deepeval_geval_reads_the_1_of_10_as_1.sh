#!/bin/sh
# deepeval 4.3.1: G-Eval's score, 0 to 10, is the mean of the numbers that the judge might have written as the score's token, weighted by their probabilities. Tokenizers
# that cut numbers into digits (Qwen, Gemma, SmolLM and others, behind LiteLLM, a gateway or an address of one's own) begin 10 with the token 1, which is counted as the
# grade 1: the closer a judge comes to the best grade, the worse it gets. 9 where 10 was nearly as likely is .58 of 1, less than a 6; with a token for 10 it is .94.
# A judge that writes 10 is read as it wrote, without any mean, since no token equals "10".
# Seen: 9 at .6 beside a token "10" at .4: 0.94; beside a token "1" that begins 10: 0.58; a plain 6: 0.60; "1" and "0" written: 1.00
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q deepeval==4.3.1
cd "$folder"
DEEPEVAL_TELEMETRY_OPT_OUT=1 NO_PROXY=127.0.0.1 venv/bin/python -W ignore - <<'PYTHON'
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from deepeval.metrics import GEval
from deepeval.models import GPTModel
from deepeval.test_case import LLMTestCase, LLMTestCaseParams


def reply(score, first):  # tokens of a score, and what might have been the first of them
    tokens = ['{"reason"', ': "Right."', ', "score"', ": ", *score, "}"]
    tops = [{token: 1.0} if i != 4 else first for i, token in enumerate(tokens)]
    told = [{token: {"token": token, "bytes": None, "logprob": math.log(p)} for token, p in top.items()} for top in tops]
    content = [{**top[token], "top_logprobs": list(top.values())} for token, top in zip(tokens, told)]
    message = {"role": "assistant", "content": "".join(tokens)}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": content}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "gpt-4o", "choices": [choice], "usage": usage}


class Judge(BaseHTTPRequestHandler):
    body = b""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_): ...


server = HTTPServer(("127.0.0.1", 0), Judge)
threading.Thread(target=server.serve_forever, daemon=True).start()
model = GPTModel(model="gpt-4o", api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1")
case = LLMTestCase(input="2 + 2?", actual_output="4")
shown = [LLMTestCaseParams.INPUT, LLMTestCaseParams.ACTUAL_OUTPUT]
found = []
for score, first in (["9"], {"9": 0.6, "10": 0.4}), (["9"], {"9": 0.6, "1": 0.4}), (["6"], {"6": 1.0}), (["1", "0"], {"1": 1.0}):
    Judge.body = json.dumps(reply(score, first)).encode()
    judged = GEval(name="right", evaluation_steps=["Is it right?"], evaluation_params=shown, model=model, async_mode=False)
    judged.measure(case, _show_indicator=False)
    found.append(f"{judged.score:.2f}")
whole, digits, six, ten = found
print(f'9 at .6 beside a token "10" at .4: {whole}; beside a token "1" that begins 10: {digits}; a plain 6: {six}; "1" and "0" written: {ten}')
assert found == ["0.94", "0.58", "0.60", "1.00"], found
PYTHON
