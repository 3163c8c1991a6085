"""Benchmarks' own rows: figures by subset and section follow from the values of every row, for both kinds of trained."""

import re

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import read_table, write_rows
from training_cases import user_error

from mmpo.cli.main import run
from mmpo.pipeline.metrics import REWARDBENCH_COUNTS, suite_scores
from mmpo.pipeline.tables import completion_id, prompt_id
from mmpo.train.evaluation import evaluate, suite_pairs

SUBSETS = ("hep-go", "math-prm", "shp", "my-own")


def benchmark_rows(count=40):
    """Rows with texts; the better one says "good", or in every fifth the worse one."""
    replies = [("a good reply", "a bad reply"), ("good", "rain fell on the hills"), ("trees", "birds and cats")]
    return [
        {
            "prompt": f"Question {n}?",
            "subset": SUBSETS[n % 4],
            "id": n,
            **dict(zip(("chosen", "rejected"), replies[n % 3][:: 1 if n % 5 else -1], strict=True)),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_sections_follow_from_the_values_of_every_row(kind, trained, tmp_path):
    data = write_rows(tmp_path / "bench.jsonl", benchmark_rows())
    found = evaluate(kind, trained[kind], data, per_pair=tmp_path / "pairs.parquet")
    values = pq.ParquetFile(tmp_path / "pairs.parquet").read().to_pandas()
    what = "score" if kind == "reward" else "ratio"
    right = values[f"{what}_chosen"] > values[f"{what}_rejected"]
    accuracy = right.groupby(values["source"]).mean()
    assert 0 < right.mean() < 1
    assert found["pairs"] == found["counts"]["pairs_in"] == 40
    assert found["accuracy"] == pytest.approx(right.mean())
    assert {row["subset"]: row["accuracy"] for row in found["subsets"]} == pytest.approx(accuracy.to_dict())
    counts = REWARDBENCH_COUNTS
    reasoning = sum(accuracy[name] * counts[name] for name in ("hep-go", "math-prm")) / (counts["hep-go"] + counts["math-prm"])
    assert found["sections"] == pytest.approx({"Reasoning": reasoning, "Prior Sets": accuracy["shp"]})
    assert found["average"] == pytest.approx((2 * reasoning + accuracy["shp"]) / 3)
    assert "cross_entropy" not in found


def test_messages_and_texts_mean_the_same(tmp_path):
    rows = benchmark_rows(6)
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    spoken = [row | {name: [{"role": role, "content": row[name]}] for name, role in roles.items()} for row in rows]
    write_rows(tmp_path / "bench.parquet", spoken)
    texts = suite_pairs(write_rows(tmp_path / "bench.jsonl", rows)).pairs
    assert texts == suite_pairs(tmp_path / "bench.parquet").pairs
    assert texts["prompt"].to_pylist()[0] == [{"role": "user", "content": "Question 0?"}]


def several(suite, count=6):
    """Rows of lists: of rewardbench2 one or two correct replies of four, Ties among them; of rm-bench three of each."""
    words = ["good", "good reply", "a very good one", "bad", "worse", "rain on the hills"]
    for n in range(count):
        given = [f"{word} {n}" for word in words]
        if suite == "rm-bench":
            yield {
                "id": n,
                "domain": ("chat", "safety-refuse")[n % 2],
                "prompt": f"Q {n}?",
                "chosen": given[:3],
                "rejected": given[3:],
            }
        else:
            name = f"{('ref', 'tied')[n % 2]}:{n // 2}" if n < 4 else str(n)
            correct = given[: 1 + n % 2] if n < 4 else given[:1]
            yield {"id": name, "subset": "Ties" if n < 4 else "Math", "prompt": f"Q {n}?", "chosen": correct, "rejected": given[3:]}


@pytest.mark.parametrize("suite", ["rewardbench2", "rm-bench"])
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_rows_of_several_replies_give_what_a_file_of_their_scores_gives(suite, kind, trained, tmp_path, capsys):
    rows = list(several(suite))
    found = evaluate(
        kind, trained[kind], write_rows(tmp_path / "rows.jsonl", rows), suite=suite, per_pair=tmp_path / "pairs.parquet"
    )
    assert found["suite"] == suite and found["rows"] == found["counts"]["rows_in"] == 6
    pairs = pq.ParquetFile(tmp_path / "pairs.parquet").read().to_pylist()
    what = "score" if kind == "reward" else "ratio"
    value = {row[f"{side}_id"]: row[f"{what}_{side}"] for row in pairs for side in ("chosen", "rejected")}
    scores = []
    for row in rows:
        ids = prompt_id([{"role": "user", "content": row["prompt"]}])
        good, bad = ([value[completion_id(ids, text)] for text in row[side]] for side in ("chosen", "rejected"))
        if suite == "rm-bench":
            scores.append({"domain": row["domain"], "score_chosen": good, "score_rejected": bad})
        else:
            scores.append({"id": row["id"], "subset": row["subset"], "num_correct": len(good), "scores": good + bad})
    of_scores = suite_scores(write_rows(tmp_path / "scores.jsonl", scores), suite)
    for name in of_scores:
        assert found[name] == of_scores[name], name
    assert "unknown" not in capsys.readouterr().err
    # by length "rain on the hills" beats all, and the other chosen replies of their own style and below beat theirs: easy 1, normal 2/3
    longest = found["longest_wins"]
    assert longest["average"] == pytest.approx((1 + 2 / 3 + 0) / 3) if suite == "rm-bench" else longest["sections"]["Math"] == 0


def test_a_row_without_a_value_for_each_completion_is_left_out_and_counted(trained, tmp_path, capsys):
    rows = list(several("rewardbench2"))
    rows[4]["prompt"] = "long " * 200
    rows[5]["rejected"] = [rows[5]["chosen"][0], "bad"]
    found = evaluate("reward", trained["reward"], write_rows(tmp_path / "rows.jsonl", rows), max_length=100, max_prompt_length=60)
    assert found["sections"].keys() == {"Ties"}
    assert (found["rows"], found["counts"]["rows_in"], found["counts"]["rows_incomplete"]) == (4, 6, 2)
    assert "2 of 6 rows were left out: a completion of theirs has no value" in capsys.readouterr().err


def test_what_rows_are_is_seen_in_the_first(tmp_path):
    for suite, rows in {
        "rewardbench": benchmark_rows(2),
        **{name: list(several(name)) for name in ("rewardbench2", "rm-bench")},
    }.items():
        found = suite_pairs(write_rows(tmp_path / f"{suite}.jsonl", rows))
        assert found.suite == suite
        assert len(found.pairs) == sum(len(row["chosen"]) * len(row["rejected"]) if suite != "rewardbench" else 1 for row in rows)


@pytest.mark.parametrize(
    ("suite", "row", "said"),
    [
        ("rm-bench", {"domain": "chat", "prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"]}, "row 1: .*lists of 3 texts"),
        ("rm-bench", {"subset": "chat", "prompt": "Q", "chosen": ["a"], "rejected": ["b"]}, "missing here: domain"),
        ("rewardbench2", {"subset": "Math", "prompt": "Q", "chosen": "a", "rejected": "b"}, "lists of several texts"),
        ("rewardbench", {"subset": None, "prompt": "Q", "chosen": "a", "rejected": "b"}, "subset is no text"),
        ("rewardbench9", {}, "unknown suite 'rewardbench9'; did you mean 'rewardbench'"),
    ],
)
def test_rows_that_are_not_the_suites_are_named(suite, row, said, tmp_path):
    assert re.search(said, user_error("", suite_pairs, write_rows(tmp_path / "rows.jsonl", [row]), suite))


def test_a_suite_of_a_folder_is_refused(dataset):
    assert "is no file: --suite rewardbench reads" in user_error("", suite_pairs, dataset, "rewardbench")


@pytest.mark.parametrize("rows", [[{"prompt": "Q", "good": "a", "bad": "b"}], []])
def test_a_file_without_the_columns_has_them_named(rows, tmp_path):
    message = user_error("", suite_pairs, write_rows(tmp_path / "bench.jsonl", rows))
    assert "have the columns chosen, rejected, subset and prompt" in message


def test_pairs_with_margins_are_no_benchmark(dataset, tmp_path):
    assert suite_pairs(dataset / "test" / "part-00000.parquet") is None
    assert suite_pairs(dataset) is None
    table = read_table(dataset / "test")
    pq.write_table(table.append_column("subset", pa.array(["hep-go"] * len(table))), tmp_path / "pairs.parquet")
    assert suite_pairs(tmp_path / "pairs.parquet") is None


@pytest.mark.parametrize(
    ("row", "said"),
    [({"chosen": "same", "rejected": "same"}, "row 2: .*identical_texts"), ({"chosen": 5}, "row 2: no row of rewardbench")],
)
def test_a_row_that_is_no_pair_is_named(row, said, tmp_path):
    rows = benchmark_rows(3)
    rows[1] |= row
    assert re.search(said, user_error("", suite_pairs, write_rows(tmp_path / "bench.jsonl", rows)))


def test_the_command_prints_the_sections(trained, tmp_path, capsys):
    data = write_rows(tmp_path / "bench.jsonl", benchmark_rows())
    assert run(["evaluate", "reward", "--model", str(trained["reward"]), "--data", str(data), "--json"]) == 0
    shown = capsys.readouterr()
    assert "average" in shown.err and "longest wins" in shown.err and "'my-own' (10 rows)" in shown.err
    assert list(orjson.loads(shown.out)["sections"]) == ["Reasoning", "Prior Sets"]


@pytest.mark.slow
def test_real_rows_balance(trained, real_data):
    """LLMBar's rows; those under RewardBench's own names are all of its section Chat Hard that is there."""
    data = real_data / "llmbar_pairs_rewardbench_format.parquet"
    found = evaluate("reward", trained["reward"], data, max_length=2048, max_prompt_length=1024)
    counts = found["counts"]
    assert counts["pairs_in"] == 953 == found["pairs"] + counts["prompt_not_rendered"]
    assert found["pairs"] > 700
    assert sum(row["pairs"] for row in found["subsets"]) == found["pairs"]
    assert list(found["sections"]) == ["Chat Hard"]
    assert found["average"] == found["sections"]["Chat Hard"]
