"""A tokenizer that merges across the prompt's end: the completion begins at the first token that differs, in every layout.

The template ends in a space, and byte-level BPE has tokens that begin with one: "Assistant:" + " the" instead of
"Assistant:" + " " + "the".
"""

import pytest
import torch
from folders import pairs_folder, read_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmpo.train.model import choose_plan, tiny_model

TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else 'Assistant: ' }}{{ m['content'] }}"
    "{{ '<|end|>' if m['role'] == 'assistant' else '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
# The last one begins with a space of its own, so that its first token is the prompt's last.
REPLIES = ["the cat sat there", "the cat sat on the mat", "a dog", "the", " no, never", "12 cats"]
QUESTIONS = ["Who sat where?", "Is the cat on the mat or on the sofa now?"]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"User: {question}\nAssistant: {reply}" for question in QUESTIONS for reply in REPLIES] * 5
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE)


@pytest.fixture
def table(tmp_path):
    """All pairs of six replies to two questions."""
    rows = [{"prompt": question, "completions": REPLIES, "scores": [*range(len(REPLIES))]} for question in QUESTIONS]
    return read_table(pairs_folder(tmp_path / "pairs", rows, split=(1.0, 0.0, 0.0)) / "train")


def defined(model, tokenizer, question, reply):
    """log π of a reply as DESIGN.md §7 defines it, in float64, from one plain row; and where the reply begins."""
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": reply}
    prompt = tokenizer(tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True))["input_ids"]
    whole = tokenizer(tokenizer.apply_chat_template([user, assistant], tokenize=False))["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    with torch.no_grad():
        logs = model(torch.tensor([whole])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logs[i - 1, whole[i]]) for i in range(start, len(whole))), start - len(prompt)


@pytest.mark.parametrize("layout", ["packed", "tree", "rows"])
def test_log_probabilities_are_those_of_the_definition(layout, table, tokenizer, trainer_of):
    model, plain = (tiny_model("policy", tokenizer, size=32, layers=2) for _ in range(2))
    with torch.no_grad():
        for each in (model, plain):
            torch.manual_seed(0)
            for value in each.parameters():
                value.add_(0.2 * torch.randn_like(value))
    layout_option = "rows" if layout == "rows" else "auto"
    trainer = trainer_of(model=model, data=table, processing_class=tokenizer, layout=layout_option)
    if layout == "tree":
        trainer.execution_plan = choose_plan(model, "policy", max(prompt.length for prompt in trainer.prompts), device="cuda")
    assert trainer.execution_plan.layout == layout
    found = trainer.predict_pairs(trainer.prompts)
    for side in ("chosen", "rejected"):
        texts = zip(table["prompt"].to_pylist(), table[side].to_pylist(), strict=True)
        known, shifts = zip(*[defined(plain, tokenizer, prompt[0]["content"], reply[0]["content"]) for prompt, reply in texts])
        assert found[f"logps/{side}"] == pytest.approx(known, abs=1e-4)
        assert set(shifts) == {-1, 0}  # it really merges, and not always
    starts = [{item.start for item in prompt.completions} for prompt in trainer.prompts]
    assert all(len(each) == 2 for each in starts)
