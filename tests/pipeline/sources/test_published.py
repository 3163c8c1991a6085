"""Published sets: every trap that a format declares, the real files, columns that are gone, and what the formats say of themselves."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import pairs_folder, write_rows
from source_cases import collected, graded_texts, reasons, ultrafeedback

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build, load_pairs
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SOURCES

GOOD, BAD = "Mars, the red one.", "The moon."
Rows = list[dict[str, Any]]
Case = tuple[Rows, list[tuple[Any, ...]], dict[str, int]]
"""Rows, what is read of them (see `graded_texts`), and how much was left out for what reason."""


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts)]


HS = dict(zip(("correctness", "coherence", "complexity", "verbosity"), (4, 4, 2, 1)))
HS2 = {"prompt": "Ask", "response_1": "a", "response_2": "b"}
HS3 = {"context": "Ask", "response1": "a", "response2": "b", "overall_preference": -2}
MARKED = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAsk\n"
STRENGTHS = [{"strength": -1, "justification": "it's a"}, {"strength": -100, "justification": "x"}, {"strength": 2}]


def helpsteer(response: str, helpfulness: Any, prompt: str = "Ask") -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **HS}


def rated(text: str, helpfulness: float, prompt: str = "Ask", rater: str = "annotators") -> list[tuple[Any, ...]]:
    return [(prompt, text, score, rater, aspect) for aspect, score in {"helpfulness": helpfulness, **HS}.items()]


HH = "\n\nHuman: Ask\n\nAssistant: "
TREE = {"role": "prompter", "text": "Ask", "message_id": "t", "parent_id": None}
SAFE = {"prompt": "Ask", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
WEBGPT = {"question": {"full_text": "Ask"}, "answer_0": "a", "answer_1": "b", "score_0": 0.25, "score_1": -0.25}
POST = {"info": {"post": "Ask"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1, "worker": "w"}
ARENA = {
    "model_a": "m",
    "model_b": "n",
    "winner": "model_a",
    "conversation_a": talk("Ask", "a"),
    "conversation_b": talk("Ask", "b"),
}
TURN = {"first_turn_prompt": "Ask", "first_turn_preferred_response": "response_b", "annotator_id": "x"}
COMMUNITY = TURN | {f"first_turn_response_{letter}": letter for letter in "abc"}
SECOND = {"second_turn_prompt": "And?", "second_turn_response_a": "d", "second_turn_response_b": "e"}
LISTS = {"id": "1", "prompt": "Ask", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Math", "domain": "math", "num_correct": 2}


def nectar(*answers: tuple[str, float]) -> Rows:
    told = [{"answer": text, "rank": rank, "model": "m"} for text, rank in answers]
    return [{"prompt": HH, "answers": told, "source": ["sharegpt"]}]


def reply(text: str, rank: int | None, *replies: dict[str, Any], role: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}


def tree(*replies: dict[str, Any]) -> Rows:
    return [{"message_tree_id": "t", "prompt": TREE | {"replies": list(replies)}}]


def prism(*history: tuple[int, str, str, Any, bool]) -> Rows:
    """Turn, role, content, score and whether it was chosen."""
    names = ("turn", "role", "content", "score", "if_chosen")
    return [{"conversation_id": "c", "user_id": "u", "conversation_history": [dict(zip(names, one)) for one in history]}]


def wins(*texts: str, rater: str = "labels", prompt: str = "Ask", gap: float = 1.0, aspect: str = "overall") -> tuple[Any, ...]:
    return (prompt, *texts, gap, rater, aspect)


def ungraded(name: str, **more: Any) -> dict[tuple[str, str], Case]:
    """Of the formats of pairs without grades, the traps that they share."""
    pair = {"chosen": talk("Ask", "a"), "rejected": talk("Ask", "b"), **more}
    other = pair | {"rejected": talk("Ask else", "b")}
    return {
        (name, "no grades"): ([pair], [wins("a", "b")], {}),
        (name, "different prompts"): ([other], [], {"different_prompts": 1}),
    }


def binarized(**more: Any) -> dict[str, Any]:
    return {"prompt": "Ask", "chosen": talk("Ask", "a"), "rejected": talk("Ask", "b"), **more}


def shp(**more: Any) -> dict[str, Any]:
    return {"history": "Ask", "human_ref_A": "a", "human_ref_B": "b", "score_A": 5, "score_B": 2, "labels": 1, **more}


def alpaca(preference: float | None, output: str = "a") -> dict[str, Any]:
    return {"instruction": "Ask", "output_1": "ref", "output_2": output, "preference": preference, "annotator": "judge"}


def scored(text: str, score: float, rater: str, aspect: str = "overall", prompt: str = "Ask") -> tuple[Any, ...]:
    return (prompt, text, score, rater, aspect)


CASES: dict[tuple[str, str], Case] = {
    ("ultrafeedback", "ten for one"): (
        [ultrafeedback(overall_score=10, annotations={"honesty": {"Rating": "1"}})], [scored("reply", 1.0, "gpt-4", "honesty")],
        {"ten_for_one": 1}),
    ("ultrafeedback", "not applicable"): (
        [ultrafeedback(annotations={"honesty": {"Rating": "N/A"}})], [scored("reply", 7.5, "gpt-4")], {"not_applicable": 1}),
    ("ultrafeedback", "two judgements"): (
        [ultrafeedback(overall_score=2, annotations={"honesty": {"Rating": "5"}})],
        [scored("reply", 5.0, "gpt-4", "honesty"), scored("reply", 2.0, "gpt-4")], {}),
    ("ultrafeedback", "benchmark"): (
        [ultrafeedback(annotations={}) | {"source": "truthful_qa"}], [scored("reply", 7.5, "gpt-4")], {}),
    ("ultrafeedback-binarized", "chosen scored lower"): (
        [binarized(score_chosen=2, score_rejected=3)], [], {"chosen_scored_lower": 1}),
    ("ultrafeedback-binarized", "two scales"): (
        [binarized(**{"chosen-rating": 6, "rejected-rating": 3})], [], {"score_out_of_scale": 1}),
    ("ultrafeedback-binarized", "different prompts"): (
        [binarized(rejected=talk("Else", "b"), score_chosen=3, score_rejected=2)], [], {"different_prompts": 1}),
    ("shp", "label"): ([shp(labels=0)], [], {"label_disagrees": 1}),
    ("shp", "deleted"): ([shp(human_ref_B="[deleted]")], [scored("a", 5.0, "votes")], {"deleted_text": 1}),
    ("alpaca-eval", "not annotated"): ([alpaca(0), alpaca(None)], [], {"not_annotated": 2}),
    ("alpaca-eval", "certainty"): ([alpaca(2)], [scored("ref", 0.0, "judge"), scored("a", 16.0, "judge")], {}),
    ("alpaca-eval", "one reference"): (
        [alpaca(1.5), alpaca(1.5, "b")],
        [scored(text, 0.0, "judge") for text in ("ref", "a", "ref", "b")], {}),
    **ungraded("hh-rlhf"), **ungraded("skywork", source="s"), **ungraded("tulu", id="1", source="s", prompt="Ask"),
    **{("wildfeedback", trap): (
        [{"conversations": [{"from": role, "value": text} for role, text in (("human", "Hi"), ("gpt", "Hello"), ("human", "Ask"))],
          "chosen": {"value": "a"}, "rejected": {"value": "b"}}], [wins("a", "b", prompt="Hi|Hello|Ask")], {})
       for trap in ("no grades", "conversation")},
    ("hh-rlhf", "empty replies"): ([{"chosen": HH, "rejected": HH + "b"}], [], {"empty_completion": 1}),
    ("hh-rlhf", "two turns in a row"): (
        [{"chosen": HH + "one\n\nAssistant: a", "rejected": HH + "one\n\nAssistant: b"}], [wins("a", "b", prompt="Ask|one")], {}),
    ("nectar", "rank"): (
        nectar(("best", 1), ("worst", 7.0)), [scored("best", 7.0, "gpt-4"), scored("worst", 1.0, "gpt-4")], {}),
    ("nectar", "turns in a reply"): (
        nectar(("a\n\nHuman: And?\n\nAssistant: x", 1), ("b", 2)), [scored("b", 6.0, "gpt-4")], {"turns_in_reply": 1}),
    ("nectar", "turns in the prompt"): (
        [nectar(("a", 1))[0] | {"prompt": HH + "x\n\nHuman: More\n\nAssistant: "}],
        [scored("a", 7.0, "gpt-4", prompt="Ask|x|More")], {}),
    ("oasst", "rank"): (
        tree(reply("best", 0), reply("worst", 2)), [scored("best", 0.0, "people"), scored("worst", -2.0, "people")], {}),
    ("oasst", "history"): (
        tree(reply("a", 0, reply("And?", None, reply("b", 0), reply("c", 1), role="prompter"))),
        [scored("a", 0.0, "people"), *(scored(text, rank, "people", prompt="Ask|a|And?") for text, rank in (("b", 0.0), ("c", -1.0)))],
        {}),
    ("oasst", "ranked prompts"): (
        tree(reply("a", 0, reply("And?", 0, role="prompter"), reply("Why?", 1, role="prompter"))), [scored("a", 0.0, "people")], {}),
    ("oasst", "deleted and unranked"): (
        tree(reply("a", 0), reply("b", 1, deleted=True), reply("c", None)), [scored("a", 0.0, "people")], {"deleted": 1, "unranked": 1}),
    ("pku-saferlhf", "id"): (
        [SAFE | {"safer_response_id": 0}], [wins("a", "b", rater="annotators"), wins("a", "b", rater="annotators", aspect="safety")], {}),
    ("pku-saferlhf", "better and safer"): (
        [SAFE], [wins("a", "b", rater="annotators"), wins("a", "b", gap=-1.0, rater="annotators", aspect="safety")], {}),
    ("pku-saferlhf", "severity"): (
        [SAFE | {"response_0_severity_level": 3, "response_1_severity_level": 0}],
        [scored("a", -3.0, "annotators", "safety"), scored("b", 0.0, "annotators", "safety"),
         wins("a", "b", rater="annotators"), wins("a", "b", gap=-1.0, rater="annotators", aspect="safety")], {}),
    ("webgpt", "relative scores"): ([WEBGPT], [wins("a", "b", gap=0.25, rater="annotators")], {}),
    ("webgpt", "not opposite"): ([WEBGPT | {"score_1": 0.5}], [], {"scores_not_opposite": 1}),
    ("summarize", "choice"): ([POST], [wins("a", "b", gap=-1.0, rater="w", prompt="POST: Ask\n\nTL;DR:")], {}),
    ("summarize", "confidence"): (
        [POST | {"extra": {"confidence": 2}}], [wins("a", "b", gap=-1.0, rater="w", prompt="POST: Ask\n\nTL;DR:")], {}),
    ("summarize", "workers"): (
        [POST, POST | {"worker": "v", "choice": 0}],
        [wins("a", "b", gap=gap, rater=rater, prompt="POST: Ask\n\nTL;DR:") for gap, rater in ((-1.0, "w"), (1.0, "v"))], {}),
    ("arena", "both bad"): (
        [ARENA | {"winner": word} for word in ("tie (bothbad)", "both_bad")], [wins("a", "b", gap=0.0, rater="votes")] * 2, {}),
    ("arena", "later evaluations"): ([ARENA | {"evaluation_order": 2}], [], {"earlier_turns_missing": 1}),
    ("arena", "own histories"): (
        [ARENA | {"conversation_a": talk("Ask", "x", "And?", "a"), "conversation_b": talk("Ask", "y", "And?", "b")}], [],
        {"several_messages": 1}),
    ("arena", "parts"): (
        [ARENA | {"conversation_a": [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": [part]}]}
         for part in ({"type": "text", "text": "a", "image": None, "mimeType": None}, {"type": "image", "image": "x"})],
        [wins("a", "b", rater="votes")], {"images": 1}),
    ("prism", "history"): (
        prism((0, "user", "Ask", None, False), (0, "model", "a", 80, True), (0, "model", "b", 20, False),
              (1, "user", "And?", None, False), (1, "model", "c", 70, True), (1, "model", "d", 60, False)),
        [scored("a", 80.0, "u"), scored("b", 20.0, "u"),
         scored("c", 70.0, "u", prompt="Ask|a|And?"), scored("d", 60.0, "u", prompt="Ask|a|And?")], {}),
    ("prism", "one rater a reply"): (
        [prism((0, "user", "Ask", None, False), (0, "model", "a", 80, True))[0] | {"user_id": user} for user in ("u", "v", None)],
        [scored("a", 80.0, "u"), scored("a", 80.0, "v")], {"no_rater": 1}),
    ("prism", "null scores"): (
        prism((0, "user", "Ask", None, False), (0, "model", "a", None, True), (0, "model", "b", 1, False)), [scored("b", 1.0, "u")],
        {"no_grade": 1}),
    ("community-alignment", "history"): (
        [COMMUNITY | SECOND | {"second_turn_preferred_response": "response_a"}],
        [wins("b", "a", rater="x"), wins("b", "c", rater="x"), wins("d", "e", rater="x", prompt="Ask|b|And?")], {}),
    ("community-alignment", "end mark"): (
        [COMMUNITY | {"first_turn_response_b": "b<|end_of_text|>"}], [wins("b", "a", rater="x"), wins("b", "c", rater="x")], {}),
    ("community-alignment", "many annotators"): (
        [COMMUNITY, COMMUNITY | {"annotator_id": "y", "first_turn_preferred_response": "response_a"}],
        [wins(*texts, rater=rater) for texts, rater in ((("b", "a"), "x"), (("b", "c"), "x"), (("a", "b"), "y"), (("a", "c"), "y"))], {}),
    ("community-alignment", "best of four"): ([COMMUNITY], [wins("b", "a", rater="x"), wins("b", "c", rater="x")], {}),
    **{(name, trap): ([LISTS], [wins("a", "c"), wins("b", "c")], {})
       for name in ("rewardbench2", "rm-bench") for trap in ("evaluation", "correct replies")},
    ("rm-bench", "styles"): (
        [LISTS | {"rejected": ["c", "d"]}], [wins("a", "c"), wins("a", "d"), wins("b", "c"), wins("b", "d")], {}),
    ("helpsteer", "marked turns"): ([helpsteer("a", 3, MARKED)], rated("a", 3.0, "Hi|Hello|Ask"), {}),
    ("helpsteer2", "marked turns"): (
        [{**HS2, "prompt": MARKED, "preference_strength": -1}], [("Hi|Hello|Ask", "a", "b", 1.0, "annotators", "overall")], {}),
    **{(name, "scattered rows"): (
        [helpsteer("a", 3), helpsteer("x", 1, "Other"), helpsteer("b", 0)],
        [*rated("a", 3.0), *rated("x", 1.0, "Other"), *rated("b", 0.0)], {})
       for name in ("helpsteer", "helpsteer2")},
    ("helpsteer2", "sign"): ([{**HS2, "preference_strength": 3}], [("Ask", "a", "b", -3.0, "annotators", "overall")], {}),
    ("helpsteer2", "neither"): (
        [{**HS2, "preference_strength": 1, "all_preferences_unprocessed": STRENGTHS}],
        [("Ask", "a", "b", 1.0, "annotator 1", "overall"), ("Ask", "a", "b", -2.0, "annotator 3", "overall")],
        {"neither_reply_fits": 1}),
    ("helpsteer2", "preferences as text"): (
        [{**HS2, "preference_strength": 1, "all_preferences_unprocessed": repr(STRENGTHS)}],
        [("Ask", "a", "b", 1.0, "annotator 1", "overall"), ("Ask", "a", "b", -2.0, "annotator 3", "overall")],
        {"neither_reply_fits": 1}),
    ("helpsteer3", "sign"): ([HS3], [("Ask", "a", "b", 2.0, "annotators", "overall")], {}),
    ("helpsteer3", "ties"): ([{**HS3, "overall_preference": 0}], [("Ask", "a", "b", 0.0, "annotators", "overall")], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_traps(tmp_path: Path, case: tuple[str, str]) -> None:
    rows, expected, left_out = CASES[case]
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), case[0])
    assert graded_texts(result) == expected
    assert reasons(result) == left_out


def test_prompts_of_a_benchmark_are_read_and_said(tmp_path: Path) -> None:
    rows = [ultrafeedback() | {"source": source} for source in ("truthful_qa", "sharegpt", "truthful_qa")]
    assert collected(write_rows(tmp_path / "rows.jsonl", rows), "ultrafeedback").noted["truthful_qa_prompts"] == 2


def test_every_trap_that_a_format_declares_has_a_test() -> None:
    declared = {(name, trap) for name, source in SOURCES.items() if source.licence for trap in source.traps}
    assert declared == set(CASES)


PUBLISHED = [name for name, source in SOURCES.items() if source.licence]


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_published_format_says_what_it_is(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = SOURCES[format]
    assert all((source.range, source.direction, source.licence, source.requires, source.samples))
    assert run(["formats", format]) == 0
    told = capsys.readouterr().out
    titles = [
        "columns needed",
        "range",
        "direction",
        "licence",
        "--score auto is",
        *(["--from auto is"] * (source.evidence != "auto")),
    ]
    assert [title for title in titles if f"{title} " not in told] == []
    assert [text for text in (source.direction, source.licence, *source.traps.values()) if text not in told] == []
    assert [sample.title for sample in source.samples if sample.title not in told] == []


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_column_that_is_gone_is_named_with_the_file(tmp_path: Path, format: str) -> None:
    """Of each layout, each column that it needs."""
    for sample in SOURCES[format].samples:
        rows = [json.loads(line) for line in sample.text.splitlines()]
        needed = next(columns for columns in SOURCES[format].requires if columns <= set().union(*rows))
        for column in sorted(needed):
            lacking = [{name: value for name, value in row.items() if name != column} for row in rows]
            if any(columns <= set().union(*lacking) for columns in SOURCES[format].requires):
                continue  # what is left is another layout
            with pytest.raises(UserError) as caught:
                collected(write_rows(tmp_path / "rows.jsonl", lacking), format)
            assert "rows.jsonl" in str(caught.value)
            assert repr(column) in str(caught.value)


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_row_without_a_column_costs_that_row_and_is_counted(tmp_path: Path, format: str) -> None:
    """Behind a whole row one row that lacks one of the texts or the grades of its layout: counted, nothing made up in their place."""
    for sample in SOURCES[format].samples:
        rows = [json.loads(line) for line in sample.text.splitlines()]
        whole = collected(write_rows(tmp_path / "rows.jsonl", rows), format)
        needed = next(columns for columns in SOURCES[format].requires if columns <= set().union(*rows))
        for column in sorted(needed):
            lacking = [*rows, {name: value for name, value in rows[0].items() if name != column}]
            found = collected(write_rows(tmp_path / "rows.jsonl", lacking), format)
            assert SOURCES[format].joined or found.lines == whole.lines + 1
            known = {(*grade[:-2], grade[-1]) for grade in graded_texts(whole)}
            made_up = [grade for grade in graded_texts(found) if (*grade[:-2], grade[-1]) not in known]
            assert not made_up
            added = found.rejects.num_rows - whole.rejects.num_rows
            assert added or len(graded_texts(found)) > len(graded_texts(whole)), f"nothing came of the row without {column!r}"
            if added and not SOURCES[format].joined:
                assert found.rejects["row"].to_pylist()[-1] == len(lacking)


@pytest.mark.parametrize(
    ("file", "format", "found"),
    [
        ("layouts/helpsteer2_train.jsonl", "helpsteer2", {"grade": 10, "prompt": 2}),
        ("layouts/helpsteer2_train.jsonl", "helpsteer", {"grade": 10, "prompt": 2}),
        ("layouts/helpsteer2_disagreements.jsonl", "helpsteer2", {"grade": 15, "prompt": 1}),
        ("layouts/helpsteer2_preference.jsonl", "helpsteer2", {"grade": 1, "prompt": 1}),
        ("layouts/summarize_from_feedback_comparisons.jsonl", "summarize", {"grade": 1, "completion": 2}),
        ("layouts/summarize_from_feedback_axis.jsonl", "summarize", {"grade": 4, "completion": 1}),
    ],
)
def test_real_files(real_data: Path, file: str, format: str, found: dict[str, int]) -> None:
    result = collected(real_data / "raw" / file, format)
    assert {name: result.counts[name] for name in found} == found
    assert result.limited == 0


def test_helpsteer2_ratings_and_preferences_take_the_score_that_fits(tmp_path: Path) -> None:
    """Ratings by the published weights: 0.65 * (3 - 0) = 1.95; preferences, which have no aspects, as they are."""
    [pair] = load_pairs(pairs_folder(tmp_path / "a", [helpsteer("a", 3), helpsteer("b", 0)], format="helpsteer2")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("a", pytest.approx(1.95))
    both = [{**HS2, "preference_strength": 3}]
    [pair] = load_pairs(pairs_folder(tmp_path / "b", both, format="helpsteer2")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("b", 3.0)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["score"]["helpfulness"] == 0.65


def test_real_hh_rlhf(real_data: Path) -> None:
    """200 pairs of harmless-base/test."""
    result = collected(real_data / "raw" / "hh-rlhf" / "harmless-base" / "test.sample200.jsonl.gz", "hh-rlhf")
    assert (result.lines, result.counts["grade"], result.noted["constant_margins"]) == (200, 199, 199)
    assert reasons(result) == {"empty_completion": 1}


def test_real_oasst_against_the_table_made_of_it(real_data: Path) -> None:
    """The trees of backend_test.jsonl: every reply with its rank stands in the table that was made of the same file by other code."""
    result = collected(real_data / "raw" / "oasst" / "backend_test.jsonl", "oasst")
    known = pq.read_table(real_data / "oasst_ranked_replies.parquet", columns=["response", "rank"]).to_pylist()
    ranks = {(row["response"], -float(row["rank"])) for row in known}
    assert result.counts["grade"] == 51
    assert [grade for grade in graded_texts(result) if (grade[1], grade[2]) not in ranks] == []


def test_messages_and_utterances_are_joined_wherever_they_stand_in_a_file(tmp_path: Path) -> None:
    """Also where the file would be read in chunks; what has no tree, or stands there twice, is told with its row."""
    rows = [
        {"message_id": f"m{i}", "parent_id": "t", "message_tree_id": "t", "role": "assistant", "text": f"reply {i}", "rank": i}
        for i in range(3)
    ]
    rows += [{**rows[0], "parent_id": None, "message_id": "t", "role": "prompter", "text": "Ask", "rank": None}, rows[1]]
    rows += [{**rows[0], "message_id": one, "parent_id": other} for one, other in (("x", "y"), ("y", "x"), ("z", "gone"))]
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), "oasst")
    assert graded_texts(result) == [("Ask", f"reply {i}", -float(i), "people", "overall") for i in range(3)]
    told = sorted((reject["row"], reject["reason"]) for reject in result.rejects.to_pylist())
    assert told == [(5, "message_twice"), (6, "parents_in_a_circle"), (7, "parents_in_a_circle"), (8, "parent_missing")]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    assert graded_texts(collected(path, "oasst")) == graded_texts(result)


def test_pairs_without_grades_are_flagged_and_read_without_any_for_a_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"chosen": HH + "a", "rejected": HH + "b"}])
    assert run(["build", str(path), "--format", "hh-rlhf", "--out", str(tmp_path / "pairs")]) == 0
    assert "1 rows say only which reply is better" in capsys.readouterr().err
    assert graded_texts(collected(path, "hh-rlhf", need_scores=False)) == []


def test_saferlhf_is_built_from_comparisons_of_which_reply_is_better(tmp_path: Path) -> None:
    """Though severities are ratings, of which a build takes those first elsewhere."""
    row = SAFE | {"response_0_severity_level": 3, "response_1_severity_level": 0}
    [pair] = load_pairs(pairs_folder(tmp_path / "out", [row], format="pku-saferlhf")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("a", 1.0)
    [pair] = load_pairs(pairs_folder(tmp_path / "safe", [row], format="pku-saferlhf", score="safety")).to_pylist()
    assert pair["chosen"][0]["content"] == "b"
    [pair] = load_pairs(
        pairs_folder(tmp_path / "rated", [row], format="pku-saferlhf", evidence="ratings", score="safety")
    ).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("b", 3.0)


def test_a_column_to_split_by_is_kept_with_every_prompt_of_a_row(tmp_path: Path) -> None:
    result = collected(write_rows(tmp_path / "rows.jsonl", CASES["prism", "history"][0]), "prism", keep=("user_id",))
    assert [json.loads(row["extra"])["user_id"] for row in result.feedback.to_pylist()] == ["u", "u"]


def test_an_answer_that_goes_on_is_cut_where_its_repair_is_asked_for(tmp_path: Path) -> None:
    rows = nectar(("a\n\nHuman: And?\n\nAssistant: x", 1))
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), "nectar", fix_known_defects=True)
    assert graded_texts(result) == [("Ask", "a", 7.0, "gpt-4", "overall")]
    assert (reasons(result), result.limited) == ({"turns_in_reply_cut": 1}, 0)


def test_ratings_beside_another_sets_comparisons_are_taken_first(tmp_path: Path) -> None:
    """One set that is built from comparisons does not take the ratings of the others away."""
    folders = [
        pairs_folder(tmp_path / name, rows, format=name, feedback_only=True)
        for name, rows in (("pku-saferlhf", [SAFE]), ("nectar", nectar(("a", 1), ("b", 2))))
    ]
    build(folders, tmp_path / "both", options=BuildOptions(format="feedback"))
    assert json.loads((tmp_path / "both" / "manifest.json").read_text())["evidence"] == "ratings"


def test_sets_whose_aspects_differ_are_refused_rather_than_left_out(tmp_path: Path) -> None:
    folders = [
        pairs_folder(tmp_path / name, rows, format=name, feedback_only=True)
        for name, rows in (("helpsteer", [helpsteer("a", 3), helpsteer("b", 0)]), ("nectar", nectar(("a", 1), ("b", 2))))
    ]
    with pytest.raises(UserError, match="no grade of helpsteer is of overall"):
        build(folders, tmp_path / "both", options=BuildOptions(format="feedback"))


@pytest.mark.parametrize(
    ("format", "row", "kept"),
    [
        ("ultrafeedback", ultrafeedback() | {"source": "truthful_qa"}, {"source": "truthful_qa", "contaminates": "truthful_qa"}),
        (
            "nectar",
            nectar(("a", 1))[0] | {"source": ["ultrafeedback"]},
            {"source": ["ultrafeedback"], "contaminates": "ultrafeedback"},
        ),
        ("nectar", nectar(("a", 1))[0], {"source": ["sharegpt"]}),
        ("rewardbench2", LISTS, {"subset": "Math", "contaminates": "rewardbench2"}),
        ("rm-bench", LISTS, {"domain": "math", "contaminates": "rm-bench"}),
        ("arena", ARENA | {"winner": "both_bad", "language": "en"}, {"language": "en", "both_bad": True}),
        ("summarize", POST | {"extra": {"confidence": 2}}, {"confidence": 2}),
    ],
)
def test_what_is_no_grade_stays_beside_the_prompt(tmp_path: Path, format: str, row: dict[str, Any], kept: dict[str, Any]) -> None:
    """What a row overlaps with, above all."""
    [found] = collected(write_rows(tmp_path / "rows.jsonl", [row]), format).feedback.to_pylist()
    assert json.loads(found["extra"]) == kept
