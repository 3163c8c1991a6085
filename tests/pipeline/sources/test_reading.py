"""What spreadsheets, people and other tools write: numbers, names, winners and gaps in cells, one column a rater, columns inside columns,
chats and turns in texts, roles and parts, and what is left out but said."""

import gzip
import json
from decimal import Decimal
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import pairs_folder, write_rows
from source_cases import add, collected, reasons

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build, load_pairs, read_feedback
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SOURCES, BadRow, FormatSample
from mmpo.pipeline.sources.cells import MEDIA

SHEET = "question;answer, final;score;rater\nQ;A;4,5;tom\nQ;B;N/A; Tom\nQ;C;4/5; tom\nQ;D;3;Tom \n;;;\n"
NAMED = {"columns": {"prompt": "question", "completion": "answer, final"}}
MENDED = {**NAMED, "decimal": ",", "na": ("N/A",), "scale": (1.0, 5.0)}


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def grades(path: Path, format: str = "csv", **options: Any) -> list[tuple[str, str, float]]:
    """Completion, rater and score of every rating of a file."""
    rows = collected(path, format, **options).feedback.to_pylist()
    return [(row["completions"][one["completion"]]["text"], one["rater"], one["score"]) for row in rows for one in row["ratings"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_spreadsheet_is_read_with_its_marks(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "sheet.csv", SHEET.encode(encoding))
    assert grades(path, **MENDED) == [("A", "tom", 4.5), ("C", "tom", 4.0), ("D", "Tom", 3.0)]
    assert reasons(collected(path, "csv", **MENDED)) == {"no_grade": 1}


def test_what_can_not_be_read_names_the_option_that_would(tmp_path: Path) -> None:
    path = written(tmp_path, "sheet.csv", SHEET)
    told = [json.loads(text)["hint"] for text in collected(path, "csv", **NAMED).rejects["evidence"].to_pylist()]
    assert told == ["--decimal , reads it", "--na N/A reads it as no grade", "--scale LOW:5 reads it as 4"]
    path = written(tmp_path, "latin.csv", "prompt,completion,score\nQ,é,1\n".encode("cp1252"))
    [reject] = collected(path, "csv").rejects.to_pylist()
    assert reject["reason"] == "invalid_utf8" and "--encoding" in reject["evidence"]
    [row] = read_feedback(path, "csv", encoding="cp1252").to_pylist()
    assert row["completions"][0]["text"] == "é"


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("4/5", {"scale": (1.0, 5.0)}, 4.0),
        ("4 / 5", {"scale": (1.0, 5.0)}, 4.0),
        ("80%", {"scale": (0.0, 100.0)}, 80.0),
        ("4,5/5", {"scale": (1.0, 5.0), "decimal": ","}, 4.5),
        ("4/10", {"scale": (1.0, 5.0)}, None),
        ("1.5", {"decimal": ","}, None),
        ("1_0", {}, None),
        ("−2", {}, -2.0),
        ("-", {"na": ("-",)}, "no_grade"),
        ("nan", {}, None),
    ],
)  # fmt: skip
def test_numbers_in_cells(text: str, options: dict[str, Any], value: Any) -> None:
    row = {"prompt": "Q", "completion": "A", "score": text}
    if value is None:
        with pytest.raises(BadRow, match="score_not_a_number"):
            add("csv", row, **options)
    elif value == "no_grade":
        assert add("csv", row, **options).rejects == [("grade", "no_grade")]
    else:
        assert [one[4] for one in add("csv", row, **options).ratings] == [value]


def test_a_refusal_shows_the_first_line_of_the_reason_that_leads(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "A", "score": score} for score in (None, "N/A", "N/A", "N/A", 1)]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "", "completion": "A", "score": 1}])
    with pytest.raises(UserError, match=r"score_not_a_number 3, empty_prompt 1\. First: .*line 2: .*'N/A'.*: --na N/A reads it"):
        read_feedback(path, "jsonl", decimal=".")
    assert read_feedback(write_rows(tmp_path / "few.jsonl", rows[1:]), "jsonl", na=("N/A",)).num_rows == 1


def test_the_option_for_numbers_in_text_is_named_where_it_would_read_them(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": text, "score": text} for text in ("4", "3,5", "4/5", "good")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    told = [json.loads(text)["hint"] for text in collected(path, "jsonl").rejects["evidence"].to_pylist()]
    numbers = "reads numbers that are written as text"
    assert told == [
        f"--decimal . {numbers}",
        f"--decimal , {numbers}",
        "--decimal . with --scale LOW:5 reads it as 4",
        "words and stars are no grades: write numbers into the file in their place; where it stands for none, --na good",
    ]


@pytest.mark.parametrize("scores", [[3, 4], "[3, 4]"])
def test_several_grades_in_a_cell_are_told_where_they_belong(tmp_path: Path, scores: object) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A", "score": scores}])
    [told] = collected(path, "jsonl", decimal=".").rejects.to_pylist()
    assert told["reason"] == "score_not_a_number" and "(--rater-name NAME)" in told["evidence"]


def test_lines_in_other_encodings(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "Q", "completion": "é", "score": 1}, ensure_ascii=False)
    for name, text, options in (
        ("marked.jsonl", f"{row}\n{row}\n".encode("utf-16"), {}),
        ("array.json", f"[{row}]".encode("utf-16"), {}),
        ("little.jsonl", f"{row}\n{row}\n".encode("utf-16-le"), {"encoding": "utf-16-le"}),
        ("western.jsonl.gz", gzip.compress(f"{row}\n".encode("cp1252")), {"encoding": "cp1252"}),
        ("excel.csv", "sep=|\nprompt|completion|score\nQ|é|1\n".encode("utf-16"), {}),
        ("unicode.txt", "prompt\tcompletion\tscore\nQ\té\t1\n".encode("utf-16"), {}),
    ):
        format = "csv" if name in ("excel.csv", "unicode.txt") else "jsonl"
        [found] = read_feedback(written(tmp_path, name, text), format, **options).to_pylist()
        assert found["completions"][0]["text"] == "é"


def test_the_separator_is_found_or_named(tmp_path: Path) -> None:
    for name, text, options in (
        ("a.csv", "prompt;completion;score;a,b\nQ;A;1;x\n", {}),
        ("b.csv", "prompt|completion|score\nQ|A|1\n", {"sep": "|"}),
        ("c.csv", "prompt\tcompletion\tscore\nQ\tA\t1\n", {"sep": "tab"}),
    ):
        assert read_feedback(written(tmp_path, name, text), "csv", **options)["ratings"].to_pylist()[0][0]["score"] == 1.0
    named = written(tmp_path, "e.csv", 'prompt;"answer, long";score\nQ;A;1\n')  # a comma in a name is no end of it
    command = ["build", str(named), "--format", "csv", "--columns", "completion=answer, long,score=score", "--feedback-only"]
    assert run([*command, "--out", str(tmp_path / "named")]) == 0
    broken = written(tmp_path, "d.csv", "prompt,completion,score\nQ,A, or B,1\n")
    assert "--sep" in collected(broken, "csv").rejects["evidence"].to_pylist()[0]


def test_a_column_a_rater(tmp_path: Path) -> None:
    path = written(tmp_path, "wide.csv", "prompt,completion,anna,ben,cem\nQ,A,1,2,3\nQ,B,3,,1\n")
    wanted = [("A", "anna", 1.0), ("A", "ben", 2.0), ("A", "cem", 3.0), ("B", "anna", 3.0), ("B", "cem", 1.0)]
    assert grades(path, columns={"score": "anna+ben+cem"}) == wanted
    gaps = add("jsonl", {"prompt": "Q", "first": "a", "second": "b", "anna": 1, "ben": -2}, columns={"gap": "anna+-ben"}).gaps
    assert [(gap[2], gap[4]) for gap in gaps] == [(1.0, "anna"), (2.0, "ben")]
    plus = add("jsonl", {"prompt": "Q", "completion": "a", "a+b": 1}, columns={"score": "a+b"})
    assert plus.ratings[0][1] == "people"
    aspects = add("jsonl", {"prompt": "Q", "completion": "a", "x": 1, "y": 2, "rater": "z"}, columns={"score": "x+y"})
    assert [(rating[1], rating[3], rating[4]) for rating in aspects.ratings] == [("z", "x", 1.0), ("z", "y", 2.0)]
    with pytest.raises(UserError, match="'rater' and 'aspect' are named already"):
        add("jsonl", {"prompt": "Q", "completion": "a", "x": 1, "y": 2, "rater": "z", "aspect": "s"}, columns={"score": "x+y"})
    with pytest.raises(UserError, match="Did you mean 'anna' for 'ana"):
        add("jsonl", {"prompt": "Q", "completion": "a", "anna": 1, "ben": 2}, columns={"score": "ana+ben"})


def test_names_that_became_numbers_or_have_spaces() -> None:
    for given, rater in ((7.0, "7"), (7, "7"), (" Tom ", "Tom"), (float("nan"), "people"), ("  ", "people"), (7.5, "7.5")):
        assert add("jsonl", {"prompt": "Q", "completion": "a", "score": 1, "rater": given}).ratings[0][1] == rater


def test_a_winner_in_words_and_a_sign_turned() -> None:
    row = {"prompt": "Q", "first": "a", "second": "b", "winner": "Right"}
    words = {"columns": {"gap": "winner"}, "gap_of": {"left": 1, "right": -1, "tie": 0}}
    assert add("jsonl", row, **words).gaps[0][2:4] == (-1.0, 1.0)
    assert add("jsonl", {**row, "winner": 1.0}, columns={"gap": "winner"}, gap_of={"1": 2, "2": -2}).gaps[0][2] == 2.0
    assert add("jsonl", row, columns={"gap": "-winner"}, gap_of=words["gap_of"]).gaps[0][2] == 1.0
    with pytest.raises(BadRow, match="unknown_winner"):
        add("jsonl", {**row, "winner": "both"}, **words)
    with pytest.raises(UserError, match="--gap-of reads the winner"):
        add("jsonl", {"prompt": "Q", "completion": "a", "score": 1}, gap_of={"left": 1})
    assert add("jsonl", {**row, "winner": -2}, columns={"gap": "-winner"}, scale=(-3.0, 3.0)).gaps[0][2] == 2.0


OBJECTS = [{"text": "a", "score": 1, "model": "m"}, {"text": "b", "score": 2}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Q", "completions": OBJECTS}, {}),
        ({"prompt": "Q", "completions": [*OBJECTS], "scores": [1, 2]}, {}),
        ({"q": {"text": "Q"}, "many": OBJECTS},
         {"prompt": "q.text", "completion": "many[].text", "score": "many[].score", "model": "many[].model"}),
        ({"prompt": "Q", "many": json.dumps([OBJECTS])},
         {"completions": "many[0][].text", "scores": "many[0][].score"}),
        ({"prompt": "Q", "completions": [{"t": {"x": "a"}, "s": 1}, {"t": {"x": "b"}, "s": 2}]},
         {"completions": "completions[].t.x", "scores": "completions[].s"}),
    ],
)  # fmt: skip
def test_candidates_that_are_objects(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        assert [one[::2] for one in grades(write_rows(tmp_path / name, [row]), "jsonl" if name.endswith("l") else "parquet",
                                           columns=columns)] == [("a", 1.0), ("b", 2.0)]  # fmt: skip


def test_what_candidates_hold_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completions": [{"t": "a", "s": 1}]}])
    with pytest.raises(UserError, match=r"inside: 'completions\[\].s', 'completions\[\].t'"):
        collected(path, "jsonl")
    with pytest.raises(UserError, match=r"completions\[\].x"):
        collected(path, "jsonl", columns={"completions": "completions[].t", "scores": "completions[].x"})


CHAT = [{"role": "user", "content": "Q"}]


@pytest.mark.parametrize(
    "prompt",
    [
        json.dumps(CHAT),
        str(CHAT),
        json.dumps({"messages": CHAT}),
        [{"from": "human", "value": "Q"}],
        [{"role": "Human", "content": [{"type": "text", "text": "Q"}]}],
        [{"role": "user", "content": ["Q", ""]}],
        "\n\nHuman: Q\n\nAssistant:",
    ],
)
def test_chats_in_texts_and_of_others_are_messages(prompt: Any) -> None:
    assert add("jsonl", {"prompt": prompt, "completion": "a", "score": 1}).row["prompt"] == CHAT


@pytest.mark.parametrize("prompt", ['[{"a": 1}]', "[{not a chat", "Human: is it?", '{"x": 1}', "Here: [1]", '"a": "b"'])
def test_texts_that_are_no_chat_stay_texts(prompt: str) -> None:
    assert add("jsonl", {"prompt": prompt, "completion": "a", "score": 1}).row["prompt"][0]["content"] == prompt


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt": '[{"role": "user", "content": "Q"'}, "malformed_messages"),
        ({"prompt": [{"role": "robot", "content": "Q"}]}, "unknown_role"),
        ({"prompt": [{"role": "user", "content": IMAGE}]}, "images"),
        ({"tools": [1]}, "malformed_tools"),
        *(({name: ["x"]}, name) for name in MEDIA),
        ({"system": "Be kind", "prompt": [{"role": "system", "content": "Be rude"}, *CHAT]}, "two_system_messages"),
        ({"score": 1.7e308}, "score_too_large"),
        ({"completion": [{"role": "user", "content": "x"}]}, "last_message_not_assistant"),
        ({"completion": json.dumps([*CHAT, {"role": "assistant", "content": "a"}])}, "several_messages"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        add("jsonl", {"prompt": "Q", "completion": "a", "score": 1, **changed})
    assert caught.value.reason == reason


@pytest.mark.parametrize("system", ["Be kind", None, "", "null"])
def test_a_system_text_is_the_first_message(system: Any) -> None:
    added = add(
        "jsonl", {"system": system, "prompt": "Q", "completion": "a", "score": 1, "tools": "[]", "images": [], "audio": None}
    )
    first = [{"role": "system", "content": "Be kind"}] if system == "Be kind" else []
    assert added.row["prompt"] == first + CHAT
    same = [*first, *CHAT]
    assert add("jsonl", {"system": system, "prompt": same, "completion": "a", "score": 1}).row["prompt"] == same


def turns(*texts: str) -> str:
    return "".join(f"\n\n{'Assistant' if place % 2 else 'Human'}: {text}" for place, text in enumerate(texts))


def test_turns_in_texts_are_messages_and_replies_whole() -> None:
    pair = {"chosen": turns("fruit?", "I would say apple, yes"), "rejected": turns("fruit?", "I would say apply, no"), "margin": 1}
    added = add("trl", pair)
    assert added.row["prompt"] == [{"role": "user", "content": "fruit?"}]
    assert added.told()["texts"] == ["I would say apple, yes", "I would say apply, no"]
    longer = add("trl", {"chosen": turns("a", "b", "c", "x"), "rejected": turns("a", "b", "c", "y"), "margin": 1})
    assert [message["role"] for message in longer.row["prompt"]] == ["user", "assistant", "user"]
    for changed, reason in (
        ({"chosen": turns("other?", "x")}, "different_prompts"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "no_prompt"),
        ({"chosen": turns("fruit?", "x", "more")}, "last_message_not_assistant"),
        ({"chosen": turns("fruit?", "")}, "empty_completion"),
    ):
        with pytest.raises(BadRow) as caught:
            add("trl", {**pair, **changed})
        assert caught.value.reason == reason


def test_a_build_says_what_it_left_out_or_did_not_read(tmp_path: Path) -> None:
    thought = [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    other = [{"role": "assistant", "content": "b", "reasoning_content": ""}]
    rows = [{"prompt": "Q", "chosen": thought, "rejected": other, "margin": 1, "id": 7, "seed": 1}]
    summary = build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions("trl"))
    said = "\n".join(summary["warnings"])
    assert "1 replies carry their thinking apart" in said
    assert said.count("columns that are not read: 'id', 'seed'") == 1
    asked = [{"role": "user", "content": "Q", "tool_calls": [{"id": "1"}]}]
    rows = [{"prompt": asked, "chosen": [{**thought[0], "reasoning_details": [1]}], "rejected": other, "margin": 1}]
    said = build(write_rows(tmp_path / "keys.jsonl", rows), tmp_path / "keys", options=BuildOptions("trl"))["warnings"]
    assert "of 2 messages keys were left out" in "\n".join(said)
    rows = [{"prompt": "Q", "completion": text, "score": 1, "System_Prompt": "Be brief"} for text in "ab"]
    said = build(write_rows(tmp_path / "named.jsonl", rows), tmp_path / "named", options=BuildOptions("jsonl"))["warnings"]
    assert "--columns system=System_Prompt puts it before the prompt" in "\n".join(said)
    options = BuildOptions("jsonl", columns={"system": "System_Prompt"})
    build(tmp_path / "named.jsonl", tmp_path / "read", options=options)
    assert load_pairs(tmp_path / "read")["prompt"][0].as_py()[0] == {"role": "system", "content": "Be brief"}
    lists = [{"prompt": f"Q{i}", "completions": ["a", "b", "c"], "scores": [None, 1, 2]} for i in range(3)]
    summary = build(write_rows(tmp_path / "lists.jsonl", lists), tmp_path / "lists", options=BuildOptions("jsonl"))
    assert "in 3 rows a null stands before scores" in "\n".join(summary["warnings"])
    marked = "<|im_start|>user\nQ<|im_end|>"
    pairs = [{"prompt": marked, "chosen": f"{marked} a", "rejected": f"{marked} b", "margin": 1}]
    said = build(write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "pairs", options=BuildOptions("jsonl"))["warnings"]
    assert [line[:24] for line in said[1:]] == ["in 1 rows both replies b", "1 prompts begin with the"]


def test_alpaca_eval_is_clipped_at_sixteen_and_counted(tmp_path: Path) -> None:
    row = {"instruction": "Q", "output_1": "r", "annotator": "j", "generator_1": "g", "generator_2": "m"}
    rows = [{**row, "output_2": f"o{p}", "preference": p} for p in (1.00001, 1.0001, 1.001, 1, 2)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    summary = build(path, tmp_path / "out", options=BuildOptions("alpaca-eval", ties="drop"))
    assert sum(summary["pairs"].values()) == 15
    assert "alpaca-eval: 2 of 10 grades were clipped" in "\n".join(summary["warnings"])
    scores = {text: score for text, _, score in grades(path, "alpaca-eval")}
    assert scores["o1.001"] == pytest.approx(log(0.001 / 0.999)) and (scores["o1"], scores["o2"]) == (-16, 16)
    assert min(score for *_, score in grades(path, "alpaca-eval", clip=3)) == -3
    summary = build(path, tmp_path / "open", options=BuildOptions("alpaca-eval", clip=None))
    assert summary["rejected"] == {"infinite_log_odds": 2} and not any("clipped" in line for line in summary["warnings"])
    assert summary["saturated"] == {"alpaca-eval": {"grades": 6, "at_ends": None, "transform": None}}
    with pytest.raises(UserError, match="--clip is for alpaca-eval"):
        collected(path, "jsonl", clip=3)


def test_helpsteer3_says_better_below_zero(tmp_path: Path) -> None:
    context = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]
    row = {"domain": "d", "language": "e", "context": context, "response1": "a", "response2": "b", "overall_preference": -2}
    people = [{"score": -3, "reasoning": "r"}, {"score": -2, "reasoning": "s"}, {"score": None, "reasoning": "t"}]
    added = add("helpsteer3", {**row, "individual_preference": people})
    assert [(gap[2], gap[3], gap[4]) for gap in added.gaps] == [(3.0, 3.0, "annotator 1"), (2.0, 3.0, "annotator 2")]
    assert added.row["prompt"] == CHAT
    assert [gap[2:5] for gap in add("helpsteer3", {**row, "context": "Q"}).gaps] == [(2.0, 3.0, "annotators")]
    tie = add("helpsteer3", {**row, "individual_preference": [{"score": 0}]}).gaps[0][2]
    assert tie == 0 and not np.signbit(tie)
    [pair] = load_pairs(pairs_folder(tmp_path / "out", [{**row, "individual_preference": people}], format="helpsteer3")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("a", 2.5)


def test_cells_of_parquet_that_nothing_reads_may_hold_anything(tmp_path: Path) -> None:
    table = pa.table({
        "prompt": ["Q", "Q"],
        "completion": pa.array(["a", "b"]),
        "score": pa.array([1, 2], pa.decimal128(5, 2)),
        "when": pa.array([2**62, 0], pa.timestamp("us")),
        "raw": pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"], pa.binary()).buffers()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    assert grades(tmp_path / "rows.parquet", "parquet") == [("a", "rows", 1.0), ("b", "rows", 2.0)]
    result = collected(tmp_path / "rows.parquet", "parquet", columns={"completion": "raw"})
    assert (reasons(result), result.feedback.num_rows) == ({"unreadable_cell": 1}, 1)


def test_decimals_are_numbers_in_every_format() -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "annotator": "j", "preference": Decimal("1.75")}
    assert add("alpaca-eval", row).ratings[1][4] == pytest.approx(log(3))
    with pytest.raises(BadRow, match="score_not_a_number"):
        add("alpaca-eval", {**row, "preference": 10**400})
    pair = {"context": "Q", "response1": "a", "response2": "b", "overall_preference": Decimal(-2)}
    assert add("helpsteer3", pair).gaps[0][2] == 2.0
    post = {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "score_A": Decimal(3), "score_B": Decimal(2), "labels": 0}
    with pytest.raises(BadRow, match="label_disagrees"):
        add("shp", post)


def test_single_precision_is_read_as_the_decimals_it_was_written_from(tmp_path: Path) -> None:
    """Averages of 1.1 and 1.3 and of 1.2 twice are a tie, which the error of single precision would make a win by 6e-8."""
    single = pa.float32()
    rated = {
        "prompt": ["Q"] * 4,
        "completion": ["a", "a", "b", "b"],
        "rater": ["x", "y"] * 2,
        "score": pa.array([1.1, 1.3, 1.2, 1.2], single),
    }
    listed = {"prompt": ["Q"], "completions": [["a", "b"]], "scores": pa.array([[1.1, None]], pa.list_(single))}
    for name, table in (("rated", rated), ("listed", listed)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    assert grades(tmp_path / "listed.parquet", "parquet") == [("a", "listed", 1.1)]
    build(tmp_path / "rated.parquet", tmp_path / "out", options=BuildOptions("parquet"))
    assert load_pairs(tmp_path / "out")["quality_margin"].to_pylist() == [0.0]


def test_single_precision_inside_others_and_half_precision_are_decimals_too(tmp_path: Path) -> None:
    single, half, texts = pa.float32(), pa.float16(), {"prompt": ["Q"], "completions": [["a", "b"]]}
    inside = {
        "fixed": texts | {"scores": pa.array([[1.1, None]], pa.list_(single, 2))},
        "object": texts | {"scores": pa.array([{"at": [1.1, None]}], pa.struct({"at": pa.list_(single)}))},
        "objects": {"prompt": ["Q"], "all": pa.array([[{"t": "a", "s": 1.1}, {"t": "b"}]], pa.list_(pa.struct({"t": "str", "s": single})))},
        "half": {"prompt": ["Q"] * 3, "completion": ["a", "b", "c"], "score": pa.array([1.1, None, float("nan")], half)},
        "halves": texts | {"scores": pa.array([[1.1, None]], pa.list_(half))},
        "object of halves": texts | {"scores": pa.array([{"at": [1.1, None], "n": 1}], pa.struct({"at": pa.list_(half), "n": "i8"}))},
    }  # fmt: skip
    named = {
        "object": {"scores": "scores.at"},
        "object of halves": {"scores": "scores.at"},
        "objects": {"completions": "all[].t", "scores": "all[].s"},
    }
    for name, table in inside.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        found = grades(tmp_path / f"{name}.parquet", "parquet", columns=named.get(name, {}))
        assert found == [("a", name, 1.1)], name


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"PK\x03\x04", "ZIP archive"),
        (b"\xd0\xcf\x11\xe0", "old Excel workbook"),
        (b"\x1f\x8b\x08", "its name must end in .jsonl.gz"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs", "Git LFS"),
    ],
)
def test_files_that_hold_no_rows_are_called_what_they_are(tmp_path: Path, start: bytes, told: str) -> None:
    for name, format in (("sheet.xlsx", "csv"), ("rows.jsonl", "jsonl"), ("data", "trl")):
        with pytest.raises(UserError, match=f"{told}|is no readable workbook" if name == "sheet.xlsx" else told):
            collected(written(tmp_path, name, start + bytes(40)), format)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encoding": "klingon"}, "unknown encoding: klingon"),
        ({"encoding": "utf-16"}, "is not written in utf-16"),
        ({"sep": ";;"}, "one character"),
        ({"decimal": ";"}, "the decimal mark is one of"),
    ],
)
def test_options_of_files_are_checked(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    path = written(tmp_path, "rows.csv", "prompt,completion,score\nQ,A,1\n")
    with pytest.raises(UserError, match=told):
        read_feedback(path, "csv", **options)


def test_options_of_text_mean_nothing_elsewhere(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "Q", "completion": "A", "score": 1}])
    for option in ({"encoding": "cp1252"}, {"sep": ";"}):
        with pytest.raises(UserError, match="holds Parquet"):
            read_feedback(path, "parquet", **option)
    with pytest.raises(UserError, match="takes no --gap-of"):
        collected(path, "shp", gap_of={"a": 1})


SAMPLES = [(name, sample) for name, source in SOURCES.items() for sample in source.samples]


@pytest.mark.parametrize(("format", "sample"), SAMPLES, ids=[f"{name}: {sample.title}" for name, sample in SAMPLES])
def test_every_sample_makes_the_pair_that_it_shows(tmp_path: Path, format: str, sample: FormatSample) -> None:
    path = written(tmp_path, "sample.csv" if format == "csv" else "sample.jsonl", sample.text)
    assert run(["build", str(path), "--format", format, "--out", str(tmp_path / "out"), *sample.options.split()]) == 0
    [pair] = load_pairs(tmp_path / "out").to_pylist()
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Mars, the red one.", "The moon.")


def test_raters_that_compare_equal_keep_their_names_from_row_to_row(tmp_path: Path) -> None:
    raters = ["1", 1, True, 1.0, None, " 1 ", "ann", "ann"]
    rows = [{"prompt": "q", "completion": f"c{i}", "score": i, "rater": rater} for i, rater in enumerate(raters)]
    found = collected(write_rows(tmp_path / "rows.jsonl", rows), "jsonl").feedback["ratings"].combine_chunks().flatten()
    assert found.field("rater").to_pylist() == ["1", "1", "True", "1", "rows", "1", "ann", "ann"]


def test_a_list_in_a_text_is_read_and_what_is_no_reply_is_told(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    rows = [
        {"prompt": "q1", "completions": '["a", "b"]', "scores": "[1, 2]"},
        {"prompt": "q2", "completions": "a, b", "scores": [1, 2]},
        {"prompt": "q3", "completions": [turns, "b"], "scores": [1, 2]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert [(text, score) for text, _, score in grades(path, "jsonl")] == [("a", 1.0), ("b", 2.0), ("b", 2.0)]
    told = {reject["reason"]: json.loads(reject["evidence"]) for reject in collected(path, "jsonl").rejects.to_pylist()}
    assert told["not_a_list"]["completions"] == "'a, b'"
    assert (
        told["several_messages"]["completion"] == "a list of 2: user, assistant"
        and "one message by the assistant" in told["several_messages"]["hint"]
    )


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("1,234", "write 1234 where the comma parts thousands or, where the comma is the decimal mark, --decimal , reads 1.234"),
        ("1,234,567", "write 1234567 where the comma parts thousands"),
        ("0,234", "--decimal , reads it"),
    ],
)
def test_a_comma_that_may_part_thousands_is_told_with_both_readings(tmp_path: Path, cell: str, hint: str) -> None:
    path = written(tmp_path, "sheet.csv", f'prompt,completion,score\nq,a,"{cell}"\nq,b,2\n')
    [reject] = collected(path, "csv").rejects.to_pylist()
    assert json.loads(reject["evidence"])["hint"] == hint
