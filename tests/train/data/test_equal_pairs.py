"""Pairs that no model can tell apart, because both completions are the same tokens: left out and counted, in train and evaluate alike."""

import copy

import pyarrow as pa
import pytest
from folders import split_folder
from training_cases import save_model, user_error

from mmpo.pipeline.tables import PAIRS, completion_id, prompt_id
from mmpo.train.data import read_pairs
from mmpo.train.evaluation import evaluate
from mmpo.train.model import tiny_model

TRIMS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS = TRIMS.replace("| trim", ".split('</think>')[-1]").replace("m['content'] .split", "m['content'].split")
THOUGHTS = ["<think>rain</think>on a mat", "<think>birds, hills</think>on a mat", "in trees"]
WHITE = ["on a mat", "on a mat\n", "in trees"]
LONG = ["the cat sat on " * 8 + "a mat", "the cat sat on " * 8 + "hills", "in trees"]
SHORT = {"max_length": 30, "max_prompt_length": 16}


def rows(replies: list[str], last: int) -> list[dict[str, object]]:
    """Pairs of the first reply with all others, and of the second with the last one, of a few prompts."""
    found = []
    for number in range(4):
        prompt = [{"role": "user", "content": f"Where? {number}"}]
        identity = prompt_id(prompt)
        for better, worse, margin in ((0, 1, 3.0), (0, 2, 2.0), (1, 2, 1.0))[:last]:
            sides = {"chosen": replies[better], "rejected": replies[worse]}
            pair = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
            ids = {f"{name}_id": completion_id(identity, text) for name, text in sides.items()}
            found.append({"prompt_id": identity, "prompt": prompt, "quality_margin": margin, "source": "s", **ids, **pair})
    return found


@pytest.mark.parametrize(
    ("template", "replies", "options", "name", "said"),
    [
        (TRIMS, WHITE, {}, "equal_after_rendering", "4 pairs were left out: the chat template writes both completions alike"),
        (DROPS, THOUGHTS, {}, "equal_after_rendering", "4 pairs were left out: the chat template writes both completions alike"),
        (TRIMS, LONG, SHORT, "truncated_to_equal", "4 pairs were left out: their completions are equal up to --max-length 30"),
    ],
)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_pairs_of_the_same_tokens_are_left_out_and_counted(
    kind, template, replies, options, name, said, train_tiny, record_of, tokenizer, tmp_path, capsys
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    model = save_model(tmp_path / "model", tiny_model(kind, tokenizer, size=16, layers=1), tokenizer)
    data = split_folder(tmp_path / "data", train=rows(replies, 3), test=rows(replies, 3), validation=rows(replies, 3))
    out = tmp_path / "out"
    train_tiny(kind, data, out, model=str(model), max_steps=2, **options)
    counts = record_of(out)["counts"]
    assert (counts["pairs_in"], counts["pairs"], counts[name]) == (12, 8, 4)
    printed = capsys.readouterr().err
    assert f"warning: {said}" in printed
    assert f"warning: validation: {said}" in printed
    measured = evaluate(kind, out, data)
    assert (measured["pairs"], measured["counts"][name]) == (8, 4)
    assert f"warning: {said}" in capsys.readouterr().err
    only = split_folder(tmp_path / "only", train=rows(replies, 1), test=rows(replies, 1))
    message = user_error(
        r"no pair of .*only \(train\) is left\. [^{]*$", train_tiny, kind, only, tmp_path / "none", model=str(model), **options
    )
    assert said in message


def test_pairs_that_only_the_end_of_a_turn_tells_apart_are_kept(train_tiny, record_of, tokenizer, tmp_path):
    """A prefix of another reply is another reply."""
    data = split_folder(tmp_path / "data", train=rows(["on a mat", "on a mat and", "in trees"], 3))
    train_tiny("reward", data, tmp_path / "out", max_steps=1, eval_split=None)
    assert record_of(tmp_path / "out")["counts"]["pairs"] == 12


def test_fields_of_messages_that_are_not_read_are_named(tmp_path, capsys):
    table = pa.Table.from_pylist(rows(WHITE, 3), schema=PAIRS)
    message = {"role": "assistant", "content": "on a mat", "name": "cat"}
    chosen = pa.array([[message]] * table.num_rows)
    data = split_folder(tmp_path, train=table.set_column(table.column_names.index("chosen"), "chosen", chosen))
    assert read_pairs(data, "train").schema.equals(PAIRS)
    assert "(train): messages carry name, which is left out" in capsys.readouterr().err
