"""Filters of texts in a build: what they leave out, what they say of it, and that nothing of it depends on how the input is cut."""

import json
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from folders import contents, feedback_folder, pairs_folder, read_table, write_rows

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs, load_feedback, load_pairs, read_feedback
from mmpo.pipeline.filters.language import LANGUAGES, _detector
from mmpo.pipeline.pairs import split_position
from mmpo.pipeline.storage import read_manifest
from mmpo.pipeline.tables import SPLITS, prompt_id
from mmpo.pipeline.validate import validate

WORDS = [f"w{i}" for i in range(40)]


def run_of(low: int, high: int) -> str:
    return " ".join(WORDS[low:high])


def graded(*prompts: Any, replies: tuple[str, ...] = ("good one", "bad")) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completion": text, "score": len(replies) - place, "rater": "ann"}
        for prompt in prompts
        for place, text in enumerate(replies)
    ]


def kept(folder: Path) -> set[str]:
    return {row["prompt"][-1]["content"] for row in load_pairs(folder).to_pylist()}


def left_out(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = read_table(folder / "rejects.parquet").to_pylist()
    return [(row["reason"], {"prompt_id": row["prompt_id"], **json.loads(row["evidence"] or "{}")}) for row in rows]


def chat(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in messages]


def id_of(text: str) -> str:
    return prompt_id(chat(("user", text)))


def built(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    return pairs_folder(folder, rows, **{"kind": "human", "split": (1, 0, 0)} | options)


def by_brute_force(texts: list[str], similarity: float) -> set[str]:
    """In the order of ids each text that is like none of those that stay, by sets of runs of five words, compared each with each."""
    stay: list[tuple[str, set[tuple[str, ...]]]] = []
    for text in sorted(texts, key=id_of):
        words = text.split()
        own = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        if all(len(own & other) / len(own | other) < similarity for _, other in stay):
            stay.append((text, own))
    return {text for text, _ in stay}


def test_of_a_chain_those_stay_that_are_unlike_what_stays(tmp_path: Path) -> None:
    """24 words in a row have 20 shingles. Shifted by one, 19 of 21 are common (.905); by two, 18 of 22 (.818); by three, 17 of 23."""
    chain = [run_of(i, i + 24) for i in range(4)]
    expected = by_brute_force(chain, 0.85)
    folder = built(tmp_path / "out", graded(*chain), duplicates="prompts", similarity=0.85)
    assert kept(folder) == expected and 1 < len(expected) < 4
    for reason, details in left_out(folder):
        assert reason == "near_duplicate_prompt" and details["similarity"] == pytest.approx(19 / 21, abs=1e-4)
        assert details["near"] in {id_of(text) for text in expected}
        assert details["prompt_id"] == id_of(next(text for text in chain if text.startswith(details["text"])))
    assert kept(built(tmp_path / "all", graded(*chain), duplicates="prompts", similarity=0.95)) == set(chain)


def test_a_build_keeps_what_comparing_each_with_each_does(tmp_path: Path) -> None:
    texts = [
        " ".join(f"v{(7 * i + j + (j // 9) * (k % 5) * 13) % 97}" for j in range(30 + k % 3)) for i in range(12) for k in range(9)
    ]
    texts = list(dict.fromkeys(texts))
    expected = by_brute_force(texts, 0.7)
    assert 20 < len(expected) < len(texts) - 20
    assert kept(built(tmp_path / "out", graded(*texts), duplicates="prompts", similarity=0.7)) == expected


SAME = ["What is an LLM?", "what is an  llm", "WHAT IS AN LLM?!"]


@pytest.mark.parametrize("similarity", [0.8, 1.0])
def test_prompts_that_differ_in_case_space_and_marks(tmp_path: Path, similarity: float) -> None:
    folder = built(tmp_path / "out", graded(*SAME, "What is an LLM not?"), duplicates="prompts", similarity=similarity)
    first = min(SAME, key=id_of)
    assert kept(folder) == {first, "What is an LLM not?"}
    assert Counter(reason for reason, _ in left_out(folder)) == {"same_prompt": 2}
    assert {(one["near"], one["similarity"], one["near_text"]) for _, one in left_out(folder)} == {(id_of(first), 1.0, first)}


LONG = run_of(0, 40)
DOCUMENT, OTHER = (" ".join(f"{name}{i}" for i in range(40)) for name in "xy")


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param(("?", "!"), id="without words"),
        pytest.param(("yes", "yes no"), id="shorter than a shingle"),
        pytest.param(("🎉", "🎊"), id="emoji"),
        pytest.param((f"{run_of(0, 30)} {DOCUMENT}", f"{run_of(0, 30)} {OTHER}"), id="one instruction, two documents"),
        pytest.param(
            (chat(("system", LONG), ("user", "and now?")), chat(("system", LONG), ("user", "thank you"))), id="one long system text"
        ),
        pytest.param(
            (chat(("system", LONG), ("user", DOCUMENT)), chat(("system", OTHER), ("user", DOCUMENT))), id="two system texts"
        ),
        pytest.param((chat(("system", LONG), ("user", DOCUMENT)), chat(("user", DOCUMENT))), id="with and without a system text"),
        pytest.param(
            tuple(chat(("user", LONG), ("assistant", DOCUMENT), ("user", last)) for last in ("in French, please", "and in verse")),
            id="one conversation, two last messages",
        ),
        pytest.param((LONG, chat(("user", LONG), ("assistant", "ok"), ("user", "go on"))), id="a conversation and how it began"),
        pytest.param(("def f(x):\n    return x + 1", "def f(x):\n    return x - 1"), id="code"),
    ],
)
def test_prompts_that_are_no_duplicates(tmp_path: Path, prompts: tuple[Any, Any]) -> None:
    folder = built(tmp_path / "out", graded(*prompts), duplicates="prompts")
    assert load_pairs(folder).num_rows == 2 and left_out(folder) == []


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param(
            ("请你写一首关于秋天的诗，不要太长，也不要太短。", "请你写一首关于秋天的诗，不要太长，也不要太短吧！"), id="Chinese"
        ),
        pytest.param(
            tuple(chat(("system", LONG), ("user", DOCUMENT + end)) for end in ("", " more")), id="one system text, documents alike"
        ),
        pytest.param(
            tuple(chat(("user", LONG + end), ("assistant", DOCUMENT), ("user", OTHER)) for end in ("", " more")), id="conversations"
        ),
    ],
)
def test_prompts_that_are_duplicates(tmp_path: Path, prompts: tuple[Any, Any]) -> None:
    folder = built(tmp_path / "out", graded(*prompts), duplicates="prompts")
    assert load_pairs(folder).num_rows == 1
    assert [reason for reason, _ in left_out(folder)] == ["near_duplicate_prompt"]


def many(count: int, size: int = 5) -> list[str]:
    """Groups of so many prompts that are alike."""
    return [" ".join(f"g{i // size}n{j}" for j in range(30)) + f" end{i}" for i in range(count)]


def test_splits_no_longer_share_what_is_alike_and_each_keeps_its_own(tmp_path: Path) -> None:
    shares = (0.6, 0.2, 0.2)
    before = built(tmp_path / "before", graded(*many(120, 2)), split=shares)
    after = built(tmp_path / "after", graded(*many(120, 2)), split=shares, duplicates="splits")

    def groups(folder: Path) -> dict[str, list[tuple[str, str]]]:
        texts = {split: [row["prompt"][0]["content"] for row in load_pairs(folder, split).to_pylist()] for split in SPLITS}
        return {split: sorted((text.split("n")[0], text) for text in found) for split, found in texts.items()}

    old, new = groups(before), groups(after)
    held = {split: {group for group, _ in found} for split, found in new.items()}
    assert not held["train"] & (held["validation"] | held["test"]) and not held["validation"] & held["test"]
    assert new["test"] == old["test"]
    tested = {group for group, _ in old["test"]}
    assert new["validation"] == [one for one in old["validation"] if one[0] not in tested]
    validated = {group for group, _ in new["validation"]}
    assert new["train"] == [one for one in old["train"] if one[0] not in tested | validated]
    lost = left_out(after)
    assert len(lost) == sum(len(old[split]) - len(new[split]) for split in SPLITS) > 0
    order = {name: place for place, name in enumerate(SPLITS)}
    assert all(reason == "in_two_splits" and order[one["split"]] < order[one["near_split"]] for reason, one in lost)


def test_under_another_system_text_a_prompt_of_test_is_still_known(tmp_path: Path) -> None:
    first, second = (next(f"v{i}" for i in range(99) if (split_position(f'"v{i}"') < 0.5) == low) for low in (True, False))
    rows = [
        {**row, "half": name}
        for name, system in ((first, "Be brief."), (second, "Be kind to all."))
        for row in graded(*(chat(("system", system), ("user", text)) for text in many(40)))
    ]
    options = {"split": (0.5, 0, 0.5), "split_by": "column:half"}
    seen = built(tmp_path / "one", rows, **options)
    assert load_pairs(seen, "train").num_rows == load_pairs(seen, "test").num_rows == 40
    with pytest.raises(UserError, match="no split 'train'"):
        load_pairs(built(tmp_path / "two", rows, **options, duplicates="splits"), "train")
    assert load_pairs(built(tmp_path / "three", rows, **options, duplicates="prompts")).num_rows == 16


def test_conversations_that_begin_alike_lie_in_one_split_as_the_split_goes_by_how_they_begin(tmp_path: Path) -> None:
    """Two ways to write a first message that fall on two sides, each with two ends; by whole prompts none is like another."""
    ways = [f"how do I{space}bake a cake{mark}" for space in (" ", "  ", "\n") for mark in ("", "?", "!", "...")]
    trained, tested = (next(way for way in ways if (split_position(way) < 0.5) == low) for low in (True, False))
    ends = iter([LONG, DOCUMENT, OTHER, "go on"])
    turns = [chat(("user", way), ("assistant", "So."), ("user", next(ends))) for way in (trained, trained, tested, tested)]
    options = {"split": (0.5, 0, 0.5), "duplicates": "splits"}
    folder = built(tmp_path / "out", graded(*turns), **options)
    assert {row["prompt"][0]["content"] for row in load_pairs(folder).to_pylist()} == {tested}
    assert [(reason, one["split"], one["near_split"], one["near_text"]) for reason, one in left_out(folder)] == [
        ("in_two_splits", "train", "test", tested)
    ] * 2
    assert [check["name"] for check in validate(folder)["checks"] if check["status"] == "fail"] == []
    assert load_pairs(built(tmp_path / "prompts", graded(*turns), **options, split_by="prompt")).num_rows == 4
    both = built(tmp_path / "both", graded(*turns, *SAME), split=(0.5, 0, 0.5), duplicates="prompts,splits")
    reasons = Counter(reason for reason, _ in left_out(both))
    assert reasons["in_two_splits"] == 2 and reasons["same_prompt"] == 2
    memory = build_pairs(read_feedback(tmp_path / "both.jsonl", "jsonl", kind="human"), duplicates=["prompts"])
    assert memory.num_rows == load_pairs(both).num_rows + 2


def test_a_prompt_that_makes_no_pair_does_not_stand_for_one_that_does(tmp_path: Path) -> None:
    texts = many(5)
    alone = min(texts, key=id_of)
    rows = [row for row in graded(*texts) if row["prompt"] != alone or row["score"] == 2]
    folder = built(tmp_path / "out", rows, duplicates="prompts")
    assert kept(folder) == {min(set(texts) - {alone}, key=id_of)}
    assert Counter(reason for reason, _ in left_out(folder)) == {"near_duplicate_prompt": 3, "single_completion": 1}
    candidates = feedback_folder(tmp_path / "candidates", rows, duplicates="prompts", kind="human")
    assert load_feedback(candidates)["prompt_id"].to_pylist() == [id_of(alone)]


REPLIES = (run_of(0, 24), run_of(1, 25), run_of(20, 40))


def test_replies_that_are_alike_make_no_pair_and_pairs_that_are_alike_count_once(tmp_path: Path) -> None:
    """Of three replies the first two are alike: their pair goes by `replies`; their pairs with the third are one by `pairs`."""
    rows = graded("q", "p", replies=REPLIES)
    replies = built(tmp_path / "replies", rows, duplicates="replies")
    assert load_pairs(replies).num_rows == 4
    told = [(reason, one["similarity"], one["chosen"], one["rejected"]) for reason, one in left_out(replies)]
    assert told == [("near_duplicate_replies", 0.9048, *REPLIES[:2])] * 2
    pairs = built(tmp_path / "pairs", rows, duplicates="pairs")
    assert Counter(reason for reason, _ in left_out(pairs)) == {"duplicate_pair": 2}
    stay = {(row["chosen_id"], row["rejected_id"]) for row in load_pairs(pairs).to_pylist()}
    assert all((one["near_chosen_id"], one["near_rejected_id"]) in stay for _, one in left_out(pairs))
    both = built(tmp_path / "both", rows, duplicates="replies,pairs")
    assert load_pairs(both).num_rows == 2


def everything(folder: Path, evaluation: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[Any, Any]:
    """What a build with all filters at once keeps and leaves out."""
    path = write_rows(folder / "rows.jsonl", rows)
    given = {
        "format": "jsonl", "kind": "human", "duplicates": "prompts,replies,pairs", "decontaminate": str(evaluation), "min_chars": 2,
        "max_chars": 2000, "split": (0.6, 0.2, 0.2),
    }  # fmt: skip
    build(path, folder / "out", options=BuildOptions(**given | options.pop("options", {})), **options)
    pairs = load_pairs(folder / "out").drop_columns(["source"]).sort_by([("prompt_id", "ascending"), ("chosen_id", "ascending")])
    return pairs.to_pylist(), sorted(map(repr, left_out(folder / "out")))


def test_nothing_depends_on_workers_partitions_order_or_files(tmp_path: Path) -> None:
    rows = graded(*many(100), *SAME, replies=(*REPLIES, "x")) + graded("a short one", replies=("yes", "no"))
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text(many(6)[5] + "\n", encoding="utf-8")
    first = everything(tmp_path / "a", evaluation, rows)
    assert Counter(one.split("'")[1] for one in first[1]) == {
        "near_duplicate_prompt": 76, "same_prompt": 2, "contaminated": 5, "near_duplicate_replies": 20, "duplicate_pair": 20,
        "too_short": 60,
    }  # fmt: skip
    assert everything(tmp_path / "b", evaluation, rows[::-1], partition_bytes=2000) == first
    assert everything(tmp_path / "c", evaluation, rows, partition_bytes=2000, options={"workers": 2}) == first
    files = contents(tmp_path / "c" / "out")
    assert everything(tmp_path / "c", evaluation, rows, partition_bytes=2000, group_bytes=900) == first
    assert contents(tmp_path / "c" / "out") == files


def test_shards_without_a_prompt_are_nothing_to_compare(tmp_path: Path) -> None:
    """Much text of two prompts, which fall into two of four shards at most."""
    rows = [{**row, "completion": f"{row['completion']} {number}"} for number in range(20) for row in graded("one", "another")]
    kept, _ = everything(tmp_path, write_rows(tmp_path / "none.jsonl", [{"prompt": "x y z"}]), rows, partition_bytes=200)
    assert len({row["prompt_id"] for row in kept}) == 2


def test_a_table_in_memory_gives_what_a_build_does(tmp_path: Path) -> None:
    rows = graded(*many(30), *SAME, replies=REPLIES)
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text(many(6)[5] + "\n", encoding="utf-8")
    options: dict[str, Any] = {"duplicates": ["prompts", "replies", "pairs"], "decontaminate": [evaluation], "min_chars": 3}
    folder = built(tmp_path / "out", rows, **options)
    feedback = read_feedback(tmp_path / "out.jsonl", "jsonl", kind="human")
    assert build_pairs(feedback, **options).to_pylist() == load_pairs(folder).to_pylist()
    with pytest.raises(UserError, match="build_pairs makes no splits"):
        build_pairs(feedback, duplicates=["splits"])


def test_all_is_counted_and_stands_in_the_manifest(tmp_path: Path) -> None:
    evaluation = write_rows(tmp_path / "evaluation.jsonl", [{"prompt": many(6)[5]}])
    folder = built(tmp_path / "out", graded(*many(10)), duplicates="prompts", decontaminate=str(evaluation))
    manifest = read_manifest(folder)
    counts = manifest["counts"]["filter_prompts"]
    assert counts["prompt"] == {
        "in": 10,
        "out": 1,
        "created": 0,
        "merged": 0,
        "dropped": {"contaminated": 5, "near_duplicate_prompt": 4},
    }
    assert counts["grade"]["dropped"] == {"grade_of_dropped_prompt": 18}
    assert manifest["recipe"]["duplicates"] == ["prompts"] and manifest["recipe"]["similarity"] == 0.8
    (file,) = manifest["decontaminated_against"]
    assert (file["name"], file["texts"]) == (str(evaluation), 1) and len(file["digest"]) > 16
    assert [check["name"] for check in validate(folder)["checks"] if check["status"] == "fail"] == []


def test_lengths_are_told_with_their_limit(tmp_path: Path) -> None:
    rows = graded("a question", replies=("four words are here", "short", "tiny", "x"))
    folder = built(tmp_path / "out", rows, max_chars=18, min_chars=2)
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in load_pairs(folder).to_pylist()] == [
        ("short", "tiny")
    ]
    told = Counter(
        (reason, *(one.get(name) for name in ("longest", "shortest", "characters", "limit"))) for reason, one in left_out(folder)
    )
    assert told == {("over_long", "chosen", None, 19, 18): 3, ("too_short", None, "rejected", 1, 2): 2}


def test_tokens_are_counted_by_the_tokenizer_whatever_it_cuts_or_adds(tmp_path: Path) -> None:
    """The prompt has two words, replies 5, 3 and 1; the file itself would cut at two and add one."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = graded("two words", replies=("one two three four five", "one two three", "one"))
    folder = built(tmp_path / "out", rows, max_tokens=5, tokenizer=tmp_path)
    assert [row["rejected"][0]["content"] for row in load_pairs(folder).to_pylist()] == ["one"]
    told = [(reason, one["prompt_tokens"], one["reply_tokens"], one["limit"]) for reason, one in left_out(folder)]
    assert told == [("too_many_tokens", 2, 5, 5)] * 2
    assert load_pairs(built(tmp_path / "all", rows, max_tokens=7, tokenizer=tmp_path / "tokenizer.json")).num_rows == 3
    file = tmp_path / "tokenizer.json"
    digest = blake2b(file.read_bytes(), digest_size=32).hexdigest()
    for name in ("out", "all"):  # named by its folder, and as the file
        assert read_manifest(tmp_path / name)["tokenizers"] == [{"name": str(file), "digest": digest}]


ENGLISH, GERMAN = "What is the best way to learn a language quickly?", "Wie lernt man am besten und am schnellsten eine Sprache?"


def test_languages(tmp_path: Path) -> None:
    """What is no language (numbers, emoji) and what can't be told stays."""
    rows = graded(ENGLISH, GERMAN, "12 + 3 = ?", "🎉", "请问怎样学习语言最快？", replies=(ENGLISH, GERMAN, "42"))
    folder = built(tmp_path / "prompts", rows, languages="en")
    assert kept(folder) == {ENGLISH, "12 + 3 = ?", "🎉"}
    told = {one["text"]: (reason, one["language"], one["probability"] > 0.5) for reason, one in left_out(folder)}
    assert told == {GERMAN: ("other_language", "de", True), "请问怎样学习语言最快？": ("other_language", "zh", True)}
    folder = built(tmp_path / "all", rows, languages="en", language_of="all")
    replies = {row[side][0]["content"] for row in load_pairs(folder).to_pylist() for side in ("chosen", "rejected")}
    assert replies == {ENGLISH, "42"}
    found = [one for reason, one in left_out(folder) if reason == "reply_in_other_language"]
    assert len(found) == 6 and {(one["language"], one["text"]) for one in found} == {("de", GERMAN)}
    assert kept(built(tmp_path / "both", rows, languages="de,zh", language_confidence=1)) == {row["prompt"] for row in rows}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 5}, "--max-tokens needs --tokenizer beside it"),
        ({"tokenizer": "x"}, "--tokenizer needs --max-tokens beside it"),
        ({"max_tokens": 5, "tokenizer": "x"}, "--tokenizer x: no such file"),
        ({"languages": "en,english"}, "unknown language (--language, codes of ISO 639) 'english'"),
        ({"languages": "EN"}, "unknown language (--language, codes of ISO 639) 'EN'; did you mean 'en'?"),
        ({"languages": "qqqqq"}, "'qqqqq'; name them by their codes, such as en, de, fr, es, zh or ja"),
        ({"duplicates": "prompt"}, "'prompt' is not 'prompts', 'splits', 'replies' or 'pairs'"),
        ({"duplicates": "prompts", "similarity": 0}, "similarity: 0 is not 0.1 or more"),
        ({"duplicates": "prompts", "similarity": 0.09}, "similarity: 0.09 is not 0.1 or more"),
        (
            {"decontaminate_column": "x"},
            "--decontaminate-column does nothing without --decontaminate; give --decontaminate as well",
        ),
        (
            {"decontaminate": "a.txt,b.txt.gz", "decontaminate_column": "x"},
            "--decontaminate-column x does nothing: a .txt has a prompt a line and no columns; leave it out",
        ),
        ({"duplicates": "splits", "split": (1, 0, 0)}, "--duplicates splits does nothing with --split 1,0,0: all is one split"),
        ({"similarity": 0.9}, "--similarity does nothing without --duplicates"),
        ({"language_of": "all"}, "--language-of does nothing without --language;"),
        ({"decontaminate": "gone.jsonl"}, "--decontaminate: no such file or folder: gone.jsonl"),
        (
            {"feedback_only": True, "duplicates": "splits"},
            "--duplicates splits: with --feedback-only there are no pairs and no splits",
        ),
        *(
            ({"feedback_only": True} | given, f"{flag}: with --feedback-only there are no pairs and no splits yet")
            for given, flag in (
                ({"min_chars": 3}, "--min-chars"),
                ({"max_chars": 1}, "--max-chars"),
                ({"max_tokens": 1, "tokenizer": "x"}, "--max-tokens"),
                ({"min_margin": 5}, "--min-margin"),
                ({"min_raters": 2}, "--min-raters"),
                ({"max_per_prompt": 2}, "--max-per-prompt"),
                ({"strategy": "best-worst"}, "--strategy"),
                ({"ties": "drop"}, "--ties"),
                ({"agree_between": "a,b"}, "--agree-between"),
                ({"kinds": "human"}, "--kind"),
                ({"raters": "ann"}, "--rater"),
                ({"aspects": "overall"}, "--aspect"),
                ({"evidence": "ratings"}, "--from"),
                ({"normalise": "zscore"}, "--normalise"),
                ({"score": "mean"}, "--score"),
                ({"merge_raters": "median"}, "--raters"),
                ({"one_order": "keep"}, "--one-order"),
                ({"language_of": "all", "languages": "en"}, "--language-of"),
            )
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_read(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    if "tokenizer" in options:
        pytest.importorskip("tokenizers")
    with pytest.raises(UserError) as caught:
        build(tmp_path / "rows.jsonl", tmp_path / "out", options=BuildOptions("jsonl", **options))
    assert said in str(caught.value)


def test_sources_that_are_mixed_are_looked_at_together(tmp_path: Path) -> None:
    """Each of two sources has the same groups of prompts that are alike, with other replies to a prompt that both have."""
    texts = many(20)
    own = {"people": graded(*texts[::2]), "judge": graded(*texts[1::2], texts[0], replies=("better", "worse", "worst"))}
    sources = [
        {"inputs": str(write_rows(tmp_path / f"{name}.jsonl", rows)), "format": "jsonl", "name": name, "kind": "human"}
        for name, rows in own.items()
    ]
    options = BuildOptions(sources=sources, duplicates="prompts", split=(1, 0, 0))
    build([], tmp_path / "out", options=options)
    stay = {min(texts[place : place + 5], key=id_of) for place in range(0, 20, 5)}
    assert kept(tmp_path / "out") == stay
    assert [check["name"] for check in validate(tmp_path / "out")["checks"] if check["status"] == "fail"] == []
    pairs = sum(
        1 if source == "people" else 3 for source, rows in own.items() for text in {r["prompt"] for r in rows} if text in stay
    )
    assert load_pairs(tmp_path / "out").num_rows == pairs


def test_the_languages_that_may_be_named_are_those_of_the_model() -> None:
    texts = [
        "hello world",
        "",
        "это",
        "日本語",
        "ѣ",
        "ă â î",
        "Labas rytas",
        "सलाम",
        "ไทย",
        "the of",
        "粵語係一種語言嚟㗎，佢哋講嘅嘢",
    ]
    found = {one["lang"] for text in texts for one in _detector().detect(text, model="lite", k=1000)}
    assert len(found) > 170 and found <= LANGUAGES and len(LANGUAGES) == 176
