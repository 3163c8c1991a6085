"""Token ids kept beside a dataset: rendered once, read again by whoever comes after, and never trusted where anything has changed."""

import copy
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_cases import user_error

from mmpo.train.data import Renderer, TokenStore, prepare, read_pairs, text_batches
from mmpo.train.data.token_store import KEPT


@pytest.fixture
def data(pairs, tmp_path):
    """The pairs in the folder of a dataset, in two parts, their rows in no order."""
    order = np.random.default_rng(1).permutation(len(pairs))
    (tmp_path / "data" / "train").mkdir(parents=True)
    for part, rows in enumerate(np.array_split(order, 2)):
        pq.write_table(pairs.take(pa.array(rows)), tmp_path / "data" / "train" / f"{part}.parquet", row_group_size=5)
    return tmp_path / "data"


class Reading:
    """The texts of a dataset, and how often they were read."""

    def __init__(self, data: Path) -> None:
        self.data, self.times = data, 0

    def __call__(self):
        self.times += 1
        return text_batches(self.data, "train")


def prepared(data, tokenizer, reading=None, length=60, digest="0" * 32, **how):
    """What `prepare` gives with a store, and its renderer."""
    renderer = Renderer(tokenizer, length, 30, **how)
    table = read_pairs(data, "train", texts=False)
    store = TokenStore(data, tuple(sorted(data.glob("train/*.parquet"))), digest)
    found = prepare(table, np.full(len(table), 0.7), renderer, texts=reading or Reading(data), store=store)
    return found, renderer


def values(found, renderer):
    """All that training reads of prompts, and all that is said of them."""
    prompts = [
        (one.prompt_id, [(item.ids.tolist(), item.start, item.truncated) for item in one.completions],
         one.chosen.tolist(), one.rejected.tolist(), one.margin.tolist(), one.scores.tolist())
        for one in found.prompts
    ]  # fmt: skip
    said = (
        renderer.counts,
        renderer.prompts,
        renderer.completions,
        sorted(renderer.too_long),
        renderer.unwritten,
        renderer.trimmed,
    )
    return prompts, found.counts, found.largest, said


def test_ids_are_those_of_rendering_in_memory_and_texts_are_read_once(data, tokenizer):
    table, renderer = read_pairs(data, "train"), Renderer(tokenizer, 60, 30)
    plain = values(prepare(table, np.full(len(table), 0.7), renderer), renderer)
    reading = Reading(data)
    first, second = (values(*prepared(data, tokenizer, reading)) for _ in range(2))
    assert first == second == plain and len(plain[0]) > 3
    assert plain[2] == max(max(ids) for prompt in plain[0] for ids, _, _ in prompt[1])
    assert reading.times == 1
    assert read_pairs(data, "train", texts=False).equals(table.drop_columns(["prompt", "chosen", "rejected"]))


def test_what_the_renderer_left_out_is_said_again_by_those_who_read(data, tokenizer):
    first, second = (prepared(data, tokenizer, length=24)[1] for _ in range(2))
    assert first.counts == second.counts and first.counts["completion_truncated"] > 0
    assert (second.prompts, second.completions) == (first.prompts, first.completions) != (0, 0)


def changed_template(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("content", "content", 1) + "{# another #}"
    return other


def newer(data):
    part = data / "train" / "0.parquet"
    os.utime(part, (1, 1))


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (None, {"length": 50}),
        (None, {"digest": "1" * 32}),
        (None, {"thinking": "drop"}),
        (None, {"graded_part": "answer"}),
        ("template", {}),
        (newer, {}),
    ],
)
def test_ids_of_another_tokenizer_template_limit_or_text_are_others(change, how, data, tokenizer):
    reading = Reading(data)
    prepared(data, tokenizer, reading)
    if callable(change):
        change(data)
    prepared(data, changed_template(tokenizer) if change == "template" else tokenizer, reading, **how)
    assert reading.times == 2


@pytest.mark.parametrize("name", ["ids.bin", "rows.npy", "about.json"])
@pytest.mark.parametrize("damage", ["a byte", "the end", "all"])
def test_what_is_damaged_is_rendered_again(name, damage, data, tokenizer, capsys):
    whole = values(*prepared(data, tokenizer))
    [path] = Path(f"{data}.tokens").glob(f"*/{name}")
    content = path.read_bytes()
    place = len(content) - 6 if name != "about.json" else content.index(b"checksum") + 12
    cut = {"a byte": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], "the end": content[:-6], "all": b""}[
        damage
    ]
    path.write_bytes(cut)
    reading = Reading(data)
    assert values(*prepared(data, tokenizer, reading)) == whole and reading.times == 1
    assert "can't be used" in capsys.readouterr().err
    assert values(*prepared(data, tokenizer, reading)) == whole and reading.times == 1


def test_where_nothing_can_be_written_the_run_goes_on_and_says_so(data, tokenizer, capsys):
    Path(f"{data}.tokens").write_text("a file")
    reading = Reading(data)
    first, second = (values(*prepared(data, tokenizer, reading)) for _ in range(2))
    assert first == second and reading.times == 2
    assert "token ids are not kept in" in capsys.readouterr().err


def test_of_several_at_once_one_renders(data, tokenizer):
    reading, found = Reading(data), []
    threads = [threading.Thread(target=lambda: found.append(values(*prepared(data, tokenizer, reading)))) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 4 and all(one == found[0] for one in found)
    assert reading.times == 1


def test_a_dataset_keeps_the_keys_that_were_used_last(data, tokenizer):
    for length in range(40, 41 + KEPT):
        prepared(data, tokenizer, length=length)
    reading = Reading(data)
    prepared(data, tokenizer, reading, length=40 + KEPT)
    assert reading.times == 0 and len(list(Path(f"{data}.tokens").glob("*/ids.bin"))) == KEPT
    shutil.rmtree(f"{data}.tokens")
    prepared(data, tokenizer, reading, length=40 + KEPT)
    assert reading.times == 1


def test_an_id_with_two_texts_far_apart_is_refused(pairs, data, tokenizer):
    """Each text stands in a part of its own, which is read apart from the other."""
    _, part = sorted(data.glob("train/*.parquet"))
    table = pq.read_table(part)
    other = [[{"role": "user", "content": "another prompt"}]] * len(table)
    pq.write_table(table.set_column(table.schema.get_field_index("prompt"), table.schema.field("prompt"), [other]), part)
    said = user_error("", prepared, data, tokenizer)
    assert "has two texts" in said and "`mmpo validate` lists such pairs" in said


def test_what_killed_processes_left_goes_with_the_next_key(data, tokenizer):
    """A process of this number is not alive; that of another machine may be."""
    tokens = Path(f"{data}.tokens")
    gone, elsewhere = (tokens / f".{'0' * 32}.part-{host}-2147483647-1" for host in (socket.gethostname(), "elsewhere"))
    for folder in (gone, elsewhere):
        folder.mkdir(parents=True)
        (folder / "ids.bin").write_bytes(b"half")
    prepared(data, tokenizer)
    assert not gone.exists() and elsewhere.exists()
