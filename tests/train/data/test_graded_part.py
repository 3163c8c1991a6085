"""Grades of the answer alone: the thinking before it is read, and only the answer's tokens count."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmpo.pipeline.tables import PAIRS
from mmpo.train.data import Renderer, prepare
from mmpo.train.inference import predict_values
from mmpo.train.model import choose_plan, tiny_model

PROMPT = [{"role": "user", "content": "Where is the cat?"}]
REPLIES = ["<think>rain</think>on a mat", "<think>rain over hills</think>on a mat", "<think>rain</think>in trees", "on a mat"]


@pytest.mark.parametrize("layout", ["tree", "rows"])
@pytest.mark.parametrize("part", ["answer", "all"])
def test_an_answers_log_probability_is_that_of_its_tokens_behind_the_thinking(part, layout, tokenizer):
    """Σ log π(token | all before it) over the answer and the end of the turn, from the model's own logits."""
    sides = [(i, j) for i in range(4) for j in range(i)]
    rows = [
        {"prompt_id": "p", "prompt": PROMPT, "quality_margin": 1.0, "source": "s"}
        | {f"{side}_id": str(place) for side, place in zip(("chosen", "rejected"), pair, strict=True)}
        | {side: [{"role": "assistant", "content": REPLIES[i]}] for side, i in zip(("chosen", "rejected"), pair, strict=True)}
        for pair in sides
    ]
    model = tiny_model("policy", tokenizer, size=32, layers=2)
    renderer = Renderer(tokenizer, 200, 100, graded_part=part)
    (prompt,) = prepare(pa.Table.from_pylist(rows, schema=PAIRS), np.full(6, 0.7), renderer).prompts
    texts = [
        tokenizer.decode(item.ids[item.start :]).removesuffix("<|end|>\n").removesuffix("<|end|>") for item in prompt.completions
    ]
    assert texts == [reply.split("</think>")[-1] if part == "answer" else reply for reply in REPLIES]
    plan = choose_plan(model, "policy", prompt.length, layout)
    (values,) = predict_values(model, "policy", [prompt], tokens=4096, pad_token=0, device="cpu", plan=plan)
    for item, value in zip(prompt.completions, values, strict=True):
        ids = torch.tensor(item.ids.astype(np.int64))
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        by_hand = sum(float(logprobs[place - 1, ids[place]]) for place in range(item.start, len(ids)))
        assert value == pytest.approx(by_hand, abs=1e-3)
