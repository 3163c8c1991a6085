"""Evaluation prompts found in prompts: shares by hand, short ones, what files may hold, and what is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import pairs_folder, write_rows

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters import contaminated, read_evaluation

ASKED = "one two three four five six seven eight nine ten"


def prompts(*conversations: str | list[str]) -> pa.ListArray:
    rows = [[{"role": "user", "content": text} for text in ([one] if isinstance(one, str) else one)] for one in conversations]
    return pa.array(rows, pa.list_(pa.struct({"role": pa.string(), "content": pa.large_string()})))


def looked_at(tmp_path: Path, evaluation: list[str], *conversations: str | list[str], ngram: int = 4, share: float = 0.5) -> Any:
    path = tmp_path / "evaluation.txt"
    path.write_text("\n".join(evaluation) + "\n", encoding="utf-8")
    out, details = contaminated(prompts(*conversations), read_evaluation([str(path)], ngram), share)
    assert len(details) == out.sum()
    return out.tolist(), details


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (ASKED, 1.0),
        (f"Please: {ASKED.upper()}!", 1.0),
        ("one two three four and more", 0.4),  # one 4-gram: four of ten words
        ("one two three four five and more", 0.5),  # two 4-grams that overlap: five words
        ("one two three four x seven eight nine ten", 0.8),  # two apart: eight
        ("one two three x four five six", None),
        ("four three two one", None),
    ],
)
def test_the_share_of_an_evaluation_prompt_by_hand(tmp_path: Path, text: str, share: float | None) -> None:
    out, details = looked_at(tmp_path, ["something else that nobody asks", ASKED], text, share=0)
    assert out == [share is not None]
    assert [one["share"] for one in details] == ([] if share is None else [share])
    assert all(one["row"] == 2 and one["evaluation"] == ASKED for one in details)
    above, _ = looked_at(tmp_path, [ASKED], text)
    assert above == [share is not None and share > 0.5]


def test_the_n_gram_in_common_and_the_evaluation_prompt_of_which_most_is_there_are_told(tmp_path: Path) -> None:
    out, details = looked_at(
        tmp_path, [ASKED, "three four five six"], "nothing at all of it", ["Hi", "So: three four five six"], share=0.3
    )
    assert out == [False, True]
    assert details == [
        {
            "file": str(tmp_path / "evaluation.txt"),
            "row": 2,
            "share": 1.0,
            "ngram": "three four five six",
            "evaluation": "three four five six",
        }
    ]


def test_the_n_gram_told_is_one_of_the_evaluation_prompt_told(tmp_path: Path) -> None:
    """The prompt begins with a 4-gram of another evaluation prompt, of which it holds less."""
    _, [told] = looked_at(tmp_path, [ASKED, "a b c d e"], "one two three four, and a b c d e", share=0.3)
    assert (told["row"], told["share"], told["ngram"], told["evaluation"]) == (2, 1.0, "a b c d", "a b c d e")


def test_n_grams_do_not_run_from_one_message_into_the_next(tmp_path: Path) -> None:
    assert looked_at(tmp_path, ["a b c d"], ["a b", "c d"], "a b c d")[0] == [False, True]


def test_a_short_evaluation_prompt_is_found_as_a_whole_message_only(tmp_path: Path) -> None:
    out, details = looked_at(tmp_path, ["Who are you?"], "Who are you", "Who are you to say so?", ["Hello", "WHO ARE YOU?!"])
    assert out == [True, False, True]
    assert [(one["share"], one["ngram"]) for one in details] == [(1.0, "who are you")] * 2


def test_texts_without_spaces_are_looked_at_by_character(tmp_path: Path) -> None:
    assert looked_at(tmp_path, ["请写一首关于秋天的诗"], "老师：请写一首关于秋天的诗。", "请写一首歌")[0] == [True, False]


def test_a_batch_says_the_same_as_each_of_its_prompts(tmp_path: Path) -> None:
    asked = [" ".join(f"w{(i * 7 + j) % 40}" for j in range(5 + i % 6)) for i in range(40)]
    texts = [" ".join(f"w{(i * 5 + j * (1 + i % 2)) % 40}" for j in range(12)) for i in range(60)] + ["", "w1 w2"]
    out, details = looked_at(tmp_path, asked, *texts, share=0.4)
    alone = [looked_at(tmp_path, asked, text, share=0.4) for text in texts]
    assert out == [one[0][0] for one in alone] and 0 < sum(out) < len(out)
    assert details == [one for _, found in alone for one in found]


ROWS = [{"question": f"number {i} of the things that are asked here", "answer": "yes"} for i in range(3)]
CHAT = [{"role": "system", "content": "be good"}, {"role": "user", "content": "tell me"}, {"role": "assistant", "content": "no"}]


@pytest.mark.parametrize(
    ("name", "rows", "column", "expected"),
    [
        ("a.jsonl", ROWS, None, [row["question"] for row in ROWS]),
        ("a.parquet", ROWS, None, [row["question"] for row in ROWS]),
        ("a.csv", ROWS, None, [row["question"] for row in ROWS]),
        ("a.json", ROWS, "answer", ["yes"] * 3),
        ("a.jsonl", [{"Problem": "x", "input": "y"}], None, ["x"]),
        ("a.jsonl", [{"messages": CHAT}], None, ["tell me"]),
        ("a.parquet", [{"prompt": CHAT}], None, ["tell me"]),
        ("a.jsonl", [{"turns": ["first", "second"]}], None, ["first", "second"]),
        ("a.jsonl", [{"turns": [{"content": "first"}]}], None, ["first"]),
        (
            "a.csv",
            [{"turns": '["first", "second"]'}, {"turns": "['third', 'fourth']"}],
            None,
            ["first", "second", "third", "fourth"],
        ),
        ("a.csv", [{"question": "[1, 2] plus [3]"}, {"question": "[1, 2]"}], None, ["[1, 2] plus [3]", "[1, 2]"]),
        ("a.jsonl", [{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}], None, ["h"]),
        ("a.jsonl", [{"doc": {"q": "inside"}}], "doc.q", ["inside"]),
        ("a.jsonl", [{"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant:"}], None, ["hi", "and?"]),
        ("a.jsonl", [{"prompt": "one"}, {"question": "of another set"}], None, ["one", "of another set"]),
        ("a.parquet", [{"prompt": "one", "question": None}, {"prompt": None, "question": "two"}], None, ["one", "two"]),
        ("a.jsonl", [{"instruction": " ", "input": "all of it"}], None, ["all of it"]),
        ("a.jsonl", [{"messages": [{"role": "User", "content": [{"type": "text", "text": "in parts"}]}]}], None, ["in parts"]),
    ],
)
def test_what_files_may_hold(tmp_path: Path, name: str, rows: list[Any], column: str | None, expected: list[str]) -> None:
    found = read_evaluation([str(write_rows(tmp_path / name, rows))], column=column)
    assert found.shown == list(dict.fromkeys(expected))
    assert found.files[0]["texts"] == len(expected) and found.files[0]["digest"]


@pytest.mark.parametrize("content", ['["a b", "c [d]"]', '[\n  "a b",\n  "c [d]"\n]\n', '\ufeff["a b","c [d]"]'])
def test_an_array_of_texts_is_read_as_prompts(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    found = read_evaluation([str(tmp_path / "a.json")])
    assert found.shown == ["a b", "c [d]"] and found.names == [(str(tmp_path / "a.json"), 1), (str(tmp_path / "a.json"), 2)]


def test_dataset_folders_and_several_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "completion": text, "score": i} for i in range(3) for text in "ab"]
    folder = pairs_folder(tmp_path / "pairs", rows, kind="human", rater="x", split=(1, 0, 0))
    (tmp_path / "more.txt").write_text("one more\n\n", encoding="utf-8")
    found = read_evaluation([str(folder), str(tmp_path / "more.txt")])
    assert sorted(found.shown) == ["Question 0", "Question 1", "Question 2", "one more"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            '{"text_of_it": "x", "id": 1}\n',
            "no column prompt, question, .*it has text_of_it, id. Name the one that holds",
        ),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', "a.jsonl, line 2: .*mend the file"),
        ("a.txt", "\n \n", "a.txt: holds no prompt"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": ""}\n', r"a.jsonl, line 2: no_text \(column: prompt, .*mend the file"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": null}\n', "a.jsonl, line 3: no_text"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 7}\n', r"a.jsonl, line 2: not_text \(column: prompt, type: int\)"),
        ("a.jsonl", '{"prompt": "x"}\n{"id": 1}\n', "a.jsonl, line 2: no column prompt, .*it has id"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": 7}]}\n', r"line 1: not_text \(column: messages, type: int"),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "x"}]}\n', "line 1: no_text"),
        ("a.jsonl", '{"messages": [{"role": "asker", "content": "x"}]}\n', "line 1: unknown_role"),
        ("a.csv", "prompt,id\nx,1\n,2\n", "a.csv, line 3: no_text"),
        ("a.csv", "turns\nx\n['first' 'second']\n", "a.csv, line 3: numpys_print"),
        ("a.jsonl", '"x"\n"y"\n', "line 1: not_an_object .*one array of texts"),
        ("a.json", '["x", {"prompt": "y"}]', "line 1: not_an_object"),
        ("a.pdf", "%PDF-1.7", "is a PDF"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"--decontaminate.*{said}"):
        read_evaluation([str(tmp_path / name)])


def test_a_column_that_is_not_there_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column ask.*it has question, answer"):
        read_evaluation([str(write_rows(tmp_path / "a.jsonl", ROWS))], column="ask")
    for name in ("gone.txt", "gone.jsonl"):
        with pytest.raises(UserError, match=f"--decontaminate: no such file.*{name}"):
            read_evaluation([str(tmp_path / name)])
