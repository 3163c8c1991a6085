"""22,992 real replies of judges against what their own pipelines read in them (`expected`). Run with -s for the table.

`expected` is taken as it is and every difference counts as one, although nearly all are errors of the original parsers: 139 of 159 come
from LLMBar's, which looks for "Output (a)" anywhere before it looks for "Output (b)". Each difference is given its reason below, by a
rule and not by its row.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from mmpo.annotate.replies import ParsedReply, Unparsable, parse_reply
from mmpo.annotate.scales import Scale, numbers

Row = dict[str, Any]
ASPECTS = ("helpfulness", "clarity", "factuality", "depth", "engagement")
TEN, FIVE, A_OR_B = numbers(1, 10), numbers(1, 5), Scale({"a": 1.0, "b": 0.0})


def one(found: ParsedReply, row: Row) -> Any:
    return found.values["grade"]


def letter(found: ParsedReply, row: Row) -> Any:
    return "a" if found.values["grade"] == 1.0 else "b"


def pair(found: ParsedReply, row: Row) -> Any:
    return [found.values["first"], found.values["second"]]


def every(found: ParsedReply, row: Row) -> Any:
    return {name: found.values.get(name) for name in (ASPECTS if row["format"] == "json_aspects" else ("safety",))}


def preference(found: ParsedReply, row: Row) -> Any:
    """1 or 2, of the outputs before AlpacaEval swapped some: by a coin whose seed is the instruction."""
    first, second = found.values.values()
    swapped = random.Random(f"is_switched_outputs{row['prompt']}0").choices([False, True])[0]
    return 1.5 if first == second else 1.0 + ((first > second) != swapped)


class How(NamedTuple):
    """How a format of the file is read: our format, the scale, what is graded, and what `expected` calls it."""

    format: str
    scale: Scale
    names: tuple[str, ...]
    convert: Callable[[ParsedReply, Row], Any]


HOW = {
    "rating_double_bracket": How("double-bracket", TEN, ("grade",), one),
    "choice_output_a_b": How("output-choice", A_OR_B, ("grade",), letter),
    "score_0_9": How("grade", numbers(0, 9), ("grade",), one),
    "two_scores_first_line": How("two-scores", numbers(1, 10, decimals=True), ("first", "second"), pair),
    "json_aspects": How("aspects-json", FIVE, ASPECTS, every),
    "json_safety": How("aspects-json", FIVE, ("safety",), every),
    "json_cot_ordered_models": How("ranking", FIVE, ("m", "M"), preference),
    "json_ordered_models": How("ranking", FIVE, ("m", "M"), preference),
    "python_list_ranking": How("ranking", FIVE, ("model_1", "model_2"), preference),
    "feedback_without_score": How("grade", FIVE, ("grade",), one),
}
# Where a reply begins a line with it, or says anywhere that it is better: LLMBar's two patterns, (a) tried first.
TRIED = (r"(?:^|\n) ?Output \({}\)", r"Output \({}\) is better")


def a_by_order(row: Row) -> bool:
    """Whether LLMBar's parser would have found (b) as well, had it not stopped at (a)."""
    both = (all(re.search(pattern.format(label), row["reply"]) for label in "ab") for pattern in TRIED)
    return row["source"] == "llmbar" and row["expected"] == '"a"' and any(both)


def line_taken(row: Row) -> bool:
    """Whether a sentence about (a) begins a line and none about (b) does, which LLMBar's first pattern takes for (a)."""
    begins = [re.search(TRIED[0].format(label), row["reply"]) is not None for label in "ab"]
    return row["source"] == "llmbar" and row["expected"] == '"a"' and begins == [True, False] and not a_by_order(row)


REASONS: dict[str, Callable[[Row, Any], bool]] = {
    "(b) is the verdict, (a) was looked for first": lambda row, ours: a_by_order(row) and ours == "b",
    "a line that begins with Output (a) taken for a choice": lambda row, ours: line_taken(row) and ours == "b",
    '"neither ... nor Output (b) is better" read as (b)': lambda row, ours: row["expected"] == '"b"' and ours == "no_verdict",
    'answers to sub-questions, "Output (a): Yes", no verdict': lambda row, ours: row["expected"] == '"a"' and ours == "no_verdict",
    "first line (b), conclusion (a)": lambda row, ours: row["expected"] == '"b"' and ours == "a",
    "tied ranks, the label listed first was taken": lambda row, ours: ours == 1.5,
    "cut off before its rating": lambda row, ours: row["source"] == "arena_bench" and ours == "no_verdict",
    "other scores than the reply states": lambda row, ours: row["format"] == "two_scores_first_line" and isinstance(ours, list),
}


@pytest.fixture(scope="module")
def rows(real_data: Path) -> list[Row]:
    """All replies; AlpacaEval's with their instruction."""
    found = pq.read_table(real_data / "judge_replies.parquet").to_pylist()
    prompts = pq.read_table(real_data / "alpaca_eval2_pref.parquet", columns=["prompt_id", "prompt"]).to_pylist()
    by_id = {row["prompt_id"][:8]: row["prompt"] for row in prompts}
    return [{**row, "prompt": by_id.get(row["item_id"].partition("#")[2], "")} for row in found]


def read(row: Row) -> Any:
    """What `expected` would be by our parser, or the reason why there is none."""
    how = HOW[row["format"].partition("/")[0]]
    # One of AlpacaEval's formats was asked for under both pairs of names.
    names = ("model_1", "model_2") if how.format == "ranking" and "model_1" in row["reply"] else how.names
    try:
        found = parse_reply(row["reply"], how.format, how.scale, names)
    except Unparsable as error:
        return error.reason
    assert all(0 <= start < end <= len(row["reply"]) for start, end in found.spans.values())
    return how.convert(found, row)


def differences(rows: list[Row]) -> Iterator[tuple[Row, Any, bool]]:
    for row in rows:
        if row["expected"] is not None:
            ours = read(row)
            yield row, ours, ours == json.loads(row["expected"])


def test_agreement_with_what_the_pipelines_read(rows: list[Row]) -> None:
    formats: dict[str, list[bool]] = {}
    reasons: Counter[str] = Counter()
    by_order: list[bool] = []
    others: list[bool] = []
    for row, ours, same in differences(rows):
        formats.setdefault(row["format"].replace("/parsed_object", ""), []).append(same)
        (by_order if a_by_order(row) else others).append(same)
        if not same:
            [reason] = [name for name, holds in REASONS.items() if holds(row, ours)]
            reasons[reason] += 1
    print(f"\n{'format':<40}{'replies':>8}{'agree':>8}{'share':>9}")
    for name, agreed in [*sorted(formats.items()), ("all", by_order + others), ("all where the order of (a), (b) is free", others)]:
        print(f"{name:<40}{len(agreed):>8}{sum(agreed):>8}{sum(agreed) / len(agreed):>9.4f}")
    print(f"\ndifferences: {sum(reasons.values())}")
    print("\n".join(f"{count:>5}  {reason}" for reason, count in reasons.most_common()))
    assert sum(by_order + others) / len(by_order + others) >= 0.992
    assert sum(others) / len(others) >= 0.999
    for name, agreed in formats.items():
        assert sum(agreed) / len(agreed) >= (0.93 if name.startswith("choice") else 0.997), name


def test_ratings_that_the_original_parser_lost_are_read(rows: list[Row]) -> None:
    """`[[rating: 2]]`: 46 of the 49 Chinese replies of GPT-4 that were scored −1. The other three say `"[[rating]]": 2`, which the
    format `grade` reads."""
    lost = [row for row in rows if row["original_parser"] == "failed"]
    written = {row["item_id"]: re.findall(r"rating: ?(\d+)\]\]", row["reply"]) for row in lost}
    assert Counter(len(found) for found in written.values()) == {1: 46, 0: 3}
    for row in lost:
        [expected] = written[row["item_id"]] or ["no_verdict"]
        assert read(row) == (float(expected) if expected.isdigit() else expected)
    rest = [parse_reply(row["reply"], "grade", TEN).values["grade"] for row in lost if not written[row["item_id"]]]
    assert rest == [2.0, 1.0, 2.0]


def test_no_verdict_is_found_where_there_is_none(rows: list[Row]) -> None:
    none = {name: [row for row in rows if row["expected"] is None and row["format"].startswith(name)] for name in HOW}
    # 34 replies were cut short ("[[1" among them); two hold half marks, [[9.5]] and [[7.5]], which the scale did not offer.
    cut = [row for row in none["rating_double_bracket"] if row["source"] == "arena_bench"]
    assert Counter(read(row) for row in cut) == {"no_verdict": 34, "out_of_scale": 2}
    # Ratings of 0 to 9 that say 10, and an empty reply.
    assert Counter(read(row) for row in none["score_0_9"]) == {"out_of_scale": 3, "empty": 1}
    # The source took the scores out of Prometheus' feedback, and overlooked three at its end ("[RESULT] Score: 1.").
    feedback = Counter(read(row) for row in none["feedback_without_score"])
    assert feedback == {"no_verdict": 1473, 4.0: 2, 1.0: 1}


def test_what_llmbar_called_unparsable(rows: list[Row]) -> None:
    """Read by eye: 52 replies, of which 48 hold no verdict. They were cut off while comparing (or while repeating the prompt), call both
    outputs equal or both wrong, refuse to answer, are empty, or say "e5". Four do hold one, which the original's patterns missed."""
    none = [row for row in rows if row["expected"] is None and row["format"].startswith("choice")]
    found = {row["reply"]: ours for row in none if (ours := read(row)) in ("a", "b")}
    begins = [("a", "# Output "), ("a", "I cannot "), ("a", "I cannot "), ("b", "I cannot ")]
    assert len(none) == 52 and sorted((ours, reply[:9]) for reply, ours in found.items()) == begins
    assert all(re.search(r"I must (select|choose) Output|^# Output \(a\) is better", reply) for reply in found)
    assert all(read(row) in ("no_verdict", "empty") for row in none if row["reply"] not in found)


def test_the_general_format_reads_ratings_alike(rows: list[Row]) -> None:
    """`grade` and `double-bracket` agree on every rating."""
    rated = [row for row in rows if row["format"] == "rating_double_bracket" and row["expected"]]
    own = [(row["reply"], ours) for row in rated if isinstance(ours := read(row), float)]
    assert len(own) == 6222 and all(parse_reply(reply, "grade", TEN).values["grade"] == ours for reply, ours in own)
