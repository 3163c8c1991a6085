"""Datasets that can't be trained on: each is refused with what was found, what is needed and what to do, or warned of."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import changed, split_folder
from training_cases import user_error

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import FEEDBACK, PAIRS, with_metadata
from mmpo.train.data import Renderer, check_margins, check_sources, prepare, read_pairs
from mmpo.train.messages import target_warnings


def refused(said, path, split="train"):
    return user_error(said, read_pairs, path, split)


def test_files_of_another_schema_version_are_refused_naming_both(pairs, tmp_path):
    """One file, one part among others, and a folder whose manifest says so."""
    newer = pairs.replace_schema_metadata({b"mmpo": b'{"schema_version": 7}'})
    pq.write_table(newer, tmp_path / "a.parquet")
    refused(r"a\.parquet: schema version 7; this mmpo reads 1 and 2: build the dataset again", tmp_path / "a.parquet")
    for same in (pairs.replace_schema_metadata(with_metadata(PAIRS, {}).metadata), pairs.replace_schema_metadata(None)):
        pq.write_table(same, tmp_path / "a.parquet")
        assert read_pairs(tmp_path / "a.parquet", "train").num_rows == pairs.num_rows
    folder = split_folder(tmp_path / "data", train=pairs)
    pq.write_table(newer, folder / "train" / "part-00001.parquet")
    refused(r"part-00001\.parquet: schema version 7", folder)
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 0, "kind": "pairs"}))
    refused("schema version 0; this mmpo reads 1 and 2", folder)


def test_what_is_no_table_of_pairs_is_refused(pairs, tmp_path):
    """FEEDBACK, splits that are empty or missing, and other files."""
    folder = split_folder(tmp_path / "data", train=pairs, test=pairs.slice(0, 0))
    assert "test holds no pairs (0 rows)" in refused("", folder, "test")
    refused("no split 'validation'; it has: test, train", folder, "validation")
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "kind": "feedback"}))
    refused("data holds FEEDBACK", folder)
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    refused("cannot read", file)
    texts = pairs.set_column(pairs.column_names.index("prompt"), "prompt", pa.array(["a text"] * len(pairs)))
    for table, said in (
        (FEEDBACK.empty_table(), r"a\.parquet holds FEEDBACK.*mmpo build .* --format feedback"),
        (pairs.drop_columns(["quality_margin", "source"]), "lacks the columns quality_margin, source"),
        (texts, r"prompt is of type string, PAIRS has list<.*role.*content"),
    ):
        pq.write_table(table, file)
        refused(said, file)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("quality_margin", float("nan"), "have a quality_margin that is no finite number of at least 0"),
        ("quality_margin", float("inf"), "have a quality_margin that is no finite number of at least 0"),
        ("quality_margin", -0.5, "have a quality_margin that is no finite number of at least 0"),
        ("quality_margin", None, "have no quality_margin"),
        ("prompt_id", None, "have no prompt_id"),
        ("chosen", [], "have no message in chosen"),
        ("rejected", None, "have no rejected"),
        ("prompt", [{"role": "user", "content": None}], "have a message without role or text in prompt"),
    ],
)
def test_rows_that_no_run_can_use_are_counted_and_the_first_is_named(name, value, said, pairs, tmp_path):
    bad = changed(pairs, name, {3: value, 8: value})
    pq.write_table(pa.concat_tables([bad.slice(0, 5), bad.slice(5)]), tmp_path / "a.parquet", row_group_size=4)
    told = user_error("", read_pairs, tmp_path / "a.parquet", "train")
    assert f"2 of {len(pairs)} rows {said} (the first: row 3)" in told


def test_a_dataset_of_which_every_source_weighs_nothing(pairs):
    with pytest.raises(UserError, match=rf"every source of the {pairs.num_rows} pairs has weight 0 \(source-0, source-1\)"):
        check_sources(pairs, {"source-0": 0, "source-1": 0.0})
    check_sources(pairs, {"source-0": 0})


def rendered(table, tokenizer):
    return prepare(table, np.full(table.num_rows, 0.7), Renderer(tokenizer, 200, 100)).counts["pairs"]


def test_an_id_that_stands_under_two_prompts_is_named(pairs, tokenizer):
    """Row 0 is the only pair of its prompt, row 1 the first of another one's."""
    identity, names = pairs["chosen_id"][0].as_py(), pairs["prompt_id"].to_pylist()
    assert names[0] != names[1]
    for column in ("chosen_id", "rejected_id"):
        bad = changed(pairs, column, {1: identity})
        said = f"the completion {identity} stands under two prompts, {names[0]} and {names[1]} .*mmpo validate"
        user_error(said, rendered, bad, tokenizer)
    assert rendered(pairs, tokenizer) == pairs.num_rows


@pytest.mark.parametrize("column", ["chosen", "rejected", "prompt"])
def test_an_id_with_two_texts_is_named(column, pairs, tokenizer):
    """Whatever the difference is: the text, the role, or a message more; and however the rows are cut into chunks."""
    names = pairs["prompt_id" if column == "prompt" else f"{column}_id"].to_pylist()
    if column == "prompt":  # of those with one id the first row's is what counts
        row = next(i for i, name in enumerate(names) if names.index(name) < i)
        said = rf"the prompt {names[row]} has two texts \(row \d+; \d+ of {len(pairs)} rows are such\): .*mmpo build"
    else:
        everywhere = [*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist()]
        row = next(i for i, name in enumerate(names) if everywhere.count(name) > 1)
        said = rf"the completion {names[row]} has two texts \(row \d+; \d+ of {2 * len(pairs)} places"
    (message,) = pairs[column][row].as_py()
    for messages in ([{**message, "content": "another"}], [{**message, "role": "system"}], [message, message]):
        bad = changed(pairs, column, {row: messages})
        for table in (
            bad,
            pa.concat_tables([bad.slice(7), bad.slice(0, 7)]),
            pa.concat_tables([bad.slice(row), bad.slice(0, row)]),
        ):
            user_error(said, rendered, table, tokenizer)
    assert rendered(pa.concat_tables([pairs.slice(7), pairs.slice(0, 7)]), tokenizer) == pairs.num_rows


def test_an_id_with_two_prompts_is_counted_from_its_second_row_on(pairs, tokenizer):
    names = pairs["prompt_id"].to_pylist()
    row = next(i for i, name in enumerate(names) if names.index(name) < i)
    with pytest.raises(UserError, match=rf"\(row {row}; 1 of {len(pairs)} rows"):
        rendered(changed(pairs, "prompt", {row: [{"role": "user", "content": "Another?"}]}), tokenizer)
    alone = changed(pairs, "prompt", {0: [{"role": "user", "content": "The only row of its prompt"}]})
    assert names.count(names[0]) == 1
    assert rendered(alone, tokenizer) == pairs.num_rows


@pytest.mark.parametrize(
    ("terms", "target", "said"),
    [
        (["mmpo"], "plain", "every target is .5 at any gamma"),
        (["mmpo", "sft"], "noise-aware", "every target is .5 at any gamma"),
        (["dpo"], "measured", "this objective leaves ties out"),
        (["ordinal", "davidson"], "plain", "so that none says which completion is better"),
        (["dpo", "sft"], "plain", "this objective leaves ties out"),
    ],
)
def test_margins_that_are_all_zero_are_refused(terms, target, said, pairs):
    user_error(f"all 9 pairs are ties: .*{said}", check_margins, np.zeros(9), terms, target)
    check_margins(np.array([0.0, 1.0]), terms, target)
    check_margins(np.zeros(9), ["mmpo"], "measured")  # of votes there is something to learn


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def test_a_gamma_that_saturates_is_warned_of_with_numbers():
    """γ = 5: of the margins 0, ½, 1, 2 and 3 the targets are .5, .924, .9933, .99995 and 1 − 3e-7: of the four untied pairs
    three lie above .99 and two above .999. At γ = .7566 the four have the mean target .75 (checked below).
    """
    margin = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    (line,) = target_warnings(sigmoid(5 * margin), margin, 5.0, ["mmpo"], "plain")
    assert "gamma 5 saturates the targets: 75.0% of 4 untied pairs have a target above .99, 50.0% above .999" in line
    advised = float(line.split("; gamma ")[1].split()[0])
    assert sigmoid(advised * margin[1:]).mean() == pytest.approx(0.75, abs=1e-4)
    assert target_warnings(sigmoid(advised * margin), margin, advised, ["mmpo"], "plain") == []
    for terms, gamma, target in ((["dpo"], 5.0, "plain"), (["mmpo"], np.inf, "plain"), (["mmpo"], 5.0, "measured")):
        assert target_warnings(sigmoid(5 * margin), margin, gamma, terms, target) == []


def test_a_gamma_too_small_to_say_anything_is_warned_of():
    """σ(.01·3) = .5075: all within .01 of a half; at γ = .02 the largest is .515."""
    margin = np.array([0.0, 1.0, 3.0])
    (line,) = target_warnings(sigmoid(margin), margin, 1.0, ["ordinal", "sft"], "levels")
    assert line.startswith("target levels changes nothing: ordinal, sft reads no target")
    (line,) = target_warnings(sigmoid(0.01 * margin), margin, 0.01, ["rpo-fwd", "dpo"], "plain")
    assert "all 2 untied pairs have a target within .5 ± .01 (the largest: 0.5075)" in line
    assert target_warnings(sigmoid(0.02 * margin), margin, 0.02, ["mmpo"], "plain") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_targets_that_are_no_probabilities_are_refused(value):
    with pytest.raises(UserError, match=r"1 of 2 targets are no probabilities \(gamma 1, target plain\)"):
        target_warnings(np.array([0.5, value]), np.ones(2), 1.0, ["mmpo"], "plain")
