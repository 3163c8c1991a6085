"""RewardBench's rows: accuracy by subset and section follows from the values of every row, for both kinds of trained."""

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import read_table, write_rows
from training_cases import user_error

from mmpo.cli.main import run
from mmpo.pipeline.metrics import REWARDBENCH_COUNTS
from mmpo.train.evaluation import evaluate, rewardbench_pairs

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
    texts = rewardbench_pairs(write_rows(tmp_path / "bench.jsonl", rows))
    assert texts is not None
    assert texts == rewardbench_pairs(tmp_path / "bench.parquet")
    assert texts["prompt"].to_pylist()[0] == [{"role": "user", "content": "Question 0?"}]


def test_rows_of_several_replies_are_read_as_pairs(tmp_path, capsys):
    row = {"id": "1", "subset": "Focus", "prompt": "Q", "chosen": ["good"], "rejected": ["bad", "worse", "worst"]}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]
    pairs = rewardbench_pairs(write_rows(tmp_path / "bench.jsonl", [row, {**row, "prompt": parts}]))
    assert pairs is not None
    assert [one["rejected"][0]["content"] for one in pairs.to_pylist()] == ["bad", "worse", "worst"] * 2
    assert len(set(pairs["prompt_id"].to_pylist())) == 1 and set(pairs["source"].to_pylist()) == {"Focus"}
    assert "not best of 4" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [[{"prompt": "Q", "good": "a", "bad": "b"}], []])
def test_a_file_without_the_columns_has_them_named(rows, tmp_path):
    user_error(
        "have the columns chosen, rejected, subset and prompt", rewardbench_pairs, write_rows(tmp_path / "bench.jsonl", rows)
    )


def test_pairs_with_margins_are_no_benchmark(dataset, tmp_path):
    assert rewardbench_pairs(dataset / "test" / "part-00000.parquet") is None
    assert rewardbench_pairs(dataset) is None
    table = read_table(dataset / "test")
    pq.write_table(table.append_column("subset", pa.array(["hep-go"] * len(table))), tmp_path / "pairs.parquet")
    assert rewardbench_pairs(tmp_path / "pairs.parquet") is None


@pytest.mark.parametrize(
    ("row", "said"),
    [({"chosen": "same", "rejected": "same"}, "row 2: .*identical_texts"), ({"chosen": 5}, "row 2: no pair of RewardBench")],
)
def test_a_row_that_is_no_pair_is_named(row, said, tmp_path):
    rows = benchmark_rows(3)
    rows[1] |= row
    user_error(said, rewardbench_pairs, write_rows(tmp_path / "bench.jsonl", rows))


def test_the_command_prints_the_sections(trained, tmp_path, capsys):
    data = write_rows(tmp_path / "bench.jsonl", benchmark_rows())
    assert run(["evaluate", "reward", "--model", str(trained["reward"]), "--data", str(data), "--json"]) == 0
    shown = capsys.readouterr()
    assert "average of these" in shown.err
    assert list(orjson.loads(shown.out)["sections"]) == ["Reasoning", "Prior Sets"]


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
