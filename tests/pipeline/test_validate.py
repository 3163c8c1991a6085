"""A good dataset changed in each way that docs/data-contract.md forbids: the check for it fails, and no other does.

After each change the manifest's figures and digests are made to fit again, so that nothing but the change can be noticed; digests and
figures have changes of their own.
"""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import pairs_folder

from mmpo.pipeline import completion_id, prompt_id, validate
from mmpo.pipeline.pairs.splits import split_position
from mmpo.pipeline.storage.files import file_digest
from mmpo.pipeline.tables import SPLITS

Rows = list[dict[str, Any]]
Parts = dict[str, Rows]
NAN = float("nan")


def grades() -> Rows:
    """Forty prompts with four replies, graded by two people; the same grade twice makes ties, an empty reply a reject."""
    rows = [
        {
            "prompt": f"Question {p}?",
            "completion": f"Answer {c} to {p}" + "." * (1 + (5 * p + 3 * c) % 7),
            "model": f"m{c}",
            "rater": rater,
            "score": 1 + (p + c * (c - 1)) % 7 + r * (c == 3) * (p % 2),
        }
        for p in range(40)
        for c in range(4)
        for r, rater in enumerate(("ann", "ben"))
    ]
    return [*rows, {**rows[0], "completion": " "}]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("good")
    for name in ("pairs", "feedback"):
        options = {
            "kind": "human",
            "scale": (1, 9),
            "split": (0.6, 0.2, 0.2),
            "max_rejects": 0.1,
            "feedback_only": name == "feedback",
        }
        pairs_folder(made / name, grades(), **options)
    return made


class Folder:
    """A copy to change: `parts` by split as rows, written back by `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = json.loads((path / "manifest.json").read_text())
        self.files = {part.parent.name: part for part in sorted(path.glob("*/part-00000.parquet"))}
        for part in path.glob("*/part-*.parquet"):  # one part a split is enough
            assert part.name == "part-00000.parquet" or part.unlink() is None
        self.schema = pq.read_schema(next(iter(self.files.values())))
        self.kept = {b"mmpo": self.schema.metadata[b"mmpo"]}

    def table(self, rows: Rows) -> pa.Table:
        return pa.Table.from_pylist(rows, self.schema.with_metadata(self.kept))

    def sign(self, rows: dict[str, int] | None = None, prompts: int | None = None) -> None:
        """Make rows, counts and digests of the manifest fit."""
        if rows is not None:
            more = sum(rows.values()) - sum(self.manifest["rows"].values())
            self.manifest |= {"rows": rows, "prompts": prompts}
            for stage, name in product(("pair", "filter", "split"), ("created", "in", "out")):
                if stage in self.manifest["counts"] and name != ("in" if stage == "pair" else "created"):
                    self.manifest["counts"][stage]["pair"][name] += more
        files = [file for file in self.path.rglob("*") if file.is_file() and file.name != "manifest.json"]
        self.manifest["files"] = {file.relative_to(self.path).as_posix(): file_digest(file) for file in files}
        self.save()

    def save(self) -> None:
        (self.path / "manifest.json").write_text(json.dumps(self.manifest))


def read(path: Path) -> tuple[Folder, Parts]:
    tables = {
        split: pa.concat_tables([pq.ParquetFile(one).read() for one in sorted((path / split).glob("*.parquet"))])
        for split in ("feedback", *SPLITS)
        if list((path / split).glob("*.parquet"))
    }
    return Folder(path), {split: table.to_pylist() for split, table in tables.items()}


def write(folder: Folder, parts: Parts, change: Callable[[pa.Table], pa.Table] = lambda table: table) -> None:
    for split, rows in parts.items():
        pq.write_table(change(folder.table(rows)), folder.files[split])
    ids = {row["prompt_id"] for rows in parts.values() for row in rows}
    margins: dict[str, float] = {}
    for row in (row for rows in parts.values() for row in rows if "quality_margin" in row):
        if row["quality_margin"] < float("inf"):
            margins[row["prompt_id"]] = max(margins.get(row["prompt_id"], -1.0), row["quality_margin"])
    if "examples" in folder.manifest:  # not what the changes are about
        folder.manifest["examples"] = [{"margin": one} for one in sorted(margins.values(), reverse=True)[:2]]
        folder.manifest["unwitnessed"] = sum(row["raters"] == 0 for rows in parts.values() for row in rows)
    folder.sign({split: len(parts.get(split, [])) for split in folder.manifest["rows"]}, len(ids))


def outcome(path: Path) -> dict[str, str]:
    """The checks that fail or warn."""
    return {check["name"]: check["status"] for check in validate(path)["checks"] if check["status"] in ("fail", "warn")}


def sides(row: dict[str, Any], *names: str) -> None:
    """Exchange the two sides of a pair."""
    for name in names:
        one, other = name.format("chosen"), name.format("rejected")
        row[one], row[other] = row[other], row[one]


TEXTS = ("{}", "{}_id", "{}_model")


def tie(rows: Rows) -> dict[str, Any]:
    return next(row for row in rows if row["quality_margin"] == 0)


def winner(rows: Rows) -> dict[str, Any]:
    """A pair with a winner that is not its prompt's first."""
    return next(row for before, row in zip(rows, rows[1:]) if row["quality_margin"] > 0 and before["prompt_id"] == row["prompt_id"])


def setting(place: Callable[[Rows], dict[str, Any]], **values: Any) -> Callable[[Parts], Any]:
    return lambda parts: place(parts["train"]).update(values)


def first(rows: Rows) -> dict[str, Any]:
    return rows[0]


def reply(text: str, role: str = "assistant") -> Rows:
    return [{"role": role, "content": text}]


def replace(parts: Parts, change: Callable[[dict[str, Any], str], None]) -> None:
    """Change one reply of the first prompt wherever it stands."""
    one = parts["train"][0]["chosen_id"]
    for row in parts["train"]:
        for side in ("chosen", "rejected"):
            if row[f"{side}_id"] == one:
                change(row, side)


def emptied(parts: Parts) -> None:
    def change(row: dict[str, Any], side: str) -> None:
        row[side], row[f"{side}_id"] = reply(" "), completion_id(row["prompt_id"], " ")
        if row["quality_margin"] == 0 and row["chosen_id"] > row["rejected_id"]:
            sides(row, *TEXTS)

    replace(parts, change)


def off_the_scale(parts: Parts) -> None:
    best = max(parts["train"], key=lambda row: row["score_chosen"])
    one = best["chosen_id"]
    for row in parts["train"]:
        for side in ("chosen", "rejected"):
            if row[f"{side}_id"] == one:
                row[f"score_{side}"] = 9.5
                if side == "rejected":
                    sides(row, *TEXTS, "score_{}")
                row["quality_margin"] = row["score_chosen"] - row["score_rejected"]


def swapped_whole(parts: Parts) -> None:
    row = winner(parts["train"])
    sides(row, *TEXTS, "score_{}")
    row["quality_margin"] *= -1


def same_twice(parts: Parts) -> None:
    row = parts["train"][0]
    for name in (*TEXTS, "score_{}"):
        row[name.format("rejected")] = row[name.format("chosen")]
    row["quality_margin"] = 0.0


def moved(parts: Parts) -> None:
    one = parts["train"][0]["prompt_id"]
    parts["test"] += [row for row in parts["train"] if row["prompt_id"] == one]
    parts["train"] = [row for row in parts["train"] if row["prompt_id"] != one]


def shouted(parts: Parts) -> None:
    """The same question in capitals, where its hash sends it: another side than its own."""
    side = lambda text: SPLITS[sum(split_position(text) >= bound for bound in (0.6, 0.8))]  # noqa: E731
    row = next(row for row in parts["train"] if side(row["prompt"][0]["content"].upper()) != "train" and row["quality_margin"] > 0)
    row = deepcopy(row)
    row["prompt"][0]["content"] = row["prompt"][0]["content"].upper() + " "
    for text in (row["prompt"][0]["content"], row["prompt"][0]["content"].strip()):
        row["prompt"][0]["content"] = text
        if side(text) != "train":
            break
    row["prompt_id"] = prompt_id(row["prompt"])
    for one in ("chosen", "rejected"):
        row[f"{one}_id"] = completion_id(row["prompt_id"], row[one][0]["content"])
    parts[side(row["prompt"][0]["content"])].append(row)


PAIRS: dict[str, tuple[str, Callable[[Parts], Any]]] = {
    "a null source": ("nulls", setting(winner, source=None)),
    "null scores": ("scores", setting(winner, score_chosen=None, score_rejected=None)),
    "one null score": ("scores", setting(winner, score_rejected=None)),
    "a null role": ("nulls", setting(winner, prompt=[{"role": None, "content": "Question"}])),
    "a null text": ("nulls", setting(winner, chosen=reply(None))),  # type: ignore[arg-type]
    "no messages": ("messages", setting(first, prompt=[])),
    "two messages": ("messages", lambda parts: winner(parts["train"])["chosen"].extend(reply("more"))),
    "a reply by the user": ("messages", lambda parts: winner(parts["train"])["chosen"][0].update(role="user")),
    "another prompt": ("prompt ids", setting(winner, prompt=reply("Another?", "user"))),
    "another prompt in front": ("prompt ids", setting(first, prompt=reply("Another?", "user"))),
    "another text": ("completion ids", setting(winner, chosen=reply("another"))),
    "exchanged texts": ("completion ids", lambda parts: sides(winner(parts["train"]), "{}")),
    "another id": ("completion ids", setting(winner, rejected_id="0" * 32)),
    "exchanged sides": ("one value", lambda parts: sides(winner(parts["train"]), *TEXTS)),
    "another model": ("one value", setting(winner, chosen_model="another")),
    "an empty reply": ("empty texts", emptied),
    "equal texts": ("identical texts", same_twice),
    "a pair twice": ("duplicates", lambda parts: parts["train"].insert(1, parts["train"][0])),
    "a pair apart": ("adjacent rows", lambda parts: parts["train"].append(parts["train"].pop(0))),
    "a negative margin": ("margin sign", swapped_whole),
    "no number": ("margin sign", setting(winner, quality_margin=float("nan"))),
    "an infinite margin": ("margin sign", setting(winner, quality_margin=float("inf"))),
    "a larger margin": (
        "scores",
        lambda parts: winner(parts["train"]).update(quality_margin=winner(parts["train"])["quality_margin"] + 1e-9),
    ),
    "a score off the scale": ("score range", off_the_scale),
    "a tie turned": ("order of ties", lambda parts: sides(tie(parts["train"]), *TEXTS, "score_{}")),
    "a negative error": ("standard errors", setting(winner, margin_se=-0.1)),
    "an infinite error": ("standard errors", setting(winner, margin_se=float("inf"))),
    "an error that is no number": ("standard errors", setting(winner, margin_se=NAN)),
    "scores that are no numbers": ("scores", setting(winner, score_chosen=NAN, score_rejected=NAN)),
    "more votes than raters": ("votes", setting(winner, preferring=3)),
    "votes below 0": ("votes", setting(winner, preferring=-1)),
    "an unknown kind": ("kinds", setting(winner, kind="robot")),
    "exchanged splits": ("split", lambda parts: parts.update(test=parts["validation"], validation=parts["test"])),
    "a prompt on the wrong side": ("split", moved),
    "a prompt on two sides": ("leakage", lambda parts: parts["test"].append(parts["train"][0])),
    "a prompt in capitals": ("near leakage", shouted),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_changed_row_of_pairs_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    write(folder, parts)
    assert outcome(folder.path) == {}, "the good one"
    check, change = PAIRS[name]
    change(parts)
    write(folder, parts)
    assert outcome(folder.path) == {check: "warn" if check == "near leakage" else "fail"}


def test_no_rater_of_both_sides_is_a_warning(good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    winner(parts["train"]).update(preferring=0, raters=0, margin_se=None)
    write(folder, parts)
    assert outcome(folder.path) == {"witnesses": "warn"}


def index(parts: Parts, name: str, **values: Any) -> None:
    parts["feedback"][1][name][0].update(values)


FEEDBACK: dict[str, tuple[str, Callable[[Parts], Any]]] = {
    "a null id": ("nulls", lambda parts: parts["feedback"][1].update(prompt_id=None)),
    "a null rater": ("nulls", lambda parts: index(parts, "ratings", rater=None)),
    "no messages": ("messages", lambda parts: parts["feedback"][1].update(prompt=[])),
    "another prompt": ("prompt ids", lambda parts: index(parts, "prompt", content="Another?")),
    "another text": ("completion ids", lambda parts: index(parts, "completions", text="another")),
    "an empty reply": (
        "empty texts",
        lambda parts: index(parts, "completions", text="", id=completion_id(parts["feedback"][1]["prompt_id"], "")),
    ),
    "a text twice": (
        "duplicates",
        lambda parts: parts["feedback"][1]["completions"].append(parts["feedback"][1]["completions"][0]),
    ),
    "a prompt twice": ("duplicates", lambda parts: parts["feedback"].append(parts["feedback"][0])),
    "a grade of no reply": ("grades", lambda parts: index(parts, "ratings", completion=4)),
    "a nameless rater": ("grades", lambda parts: index(parts, "ratings", rater="")),
    "a grade off its scale": ("score range", lambda parts: index(parts, "ratings", score=9.5)),
    "a grade that is no number": ("grades", lambda parts: index(parts, "ratings", score=float("nan"))),
    "an unknown kind": ("kinds", lambda parts: index(parts, "ratings", kind="robot")),
    "a scale without an end": ("score range", lambda parts: index(parts, "ratings", high=float("inf"))),
    "a scale from no number": ("score range", lambda parts: index(parts, "ratings", low=NAN)),
    "a spread that is no number": ("standard errors", lambda parts: index(parts, "ratings", spread=NAN)),
    "shares that are no numbers": ("probabilities", lambda parts: index(parts, "ratings", probabilities=[0.5, NAN])),
    "a gap that is no number": ("grades", lambda parts: parts["feedback"][1]["comparisons"].append(comparison(gap=NAN))),
    "no number for a limit": ("score range", lambda parts: parts["feedback"][1]["comparisons"].append(comparison(limit=NAN))),
    "a negative spread": ("standard errors", lambda parts: index(parts, "ratings", spread=-1.0)),
    "a gap above its limit": ("score range", lambda parts: parts["feedback"][1]["comparisons"].append(comparison(gap=4.0))),
    "a reply against itself": ("grades", lambda parts: parts["feedback"][1]["comparisons"].append(comparison(second=0))),
    "extra that is no object": ("extra", lambda parts: parts["feedback"][1].update(extra="[1]")),
}


def comparison(**values: Any) -> dict[str, Any]:
    return {"first": 0, "second": 1, "rater": "ann", "kind": "human", "aspect": "overall", "gap": 1.0, "limit": 3.0} | values


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_changed_row_of_feedback_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "feedback", tmp_path / "data")))
    write(folder, parts)
    assert outcome(folder.path) == {}, "the good one"
    check, change = FEEDBACK[name]
    change(parts)
    write(folder, parts)
    assert outcome(folder.path) == {check: "fail"}


def about(**values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        kept = json.loads(table.schema.metadata[b"mmpo"]) | values
        return table.replace_schema_metadata({b"mmpo": json.dumps(kept).encode()})

    return change


TABLES: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "a column gone": ("schema", lambda table: table.drop_columns(["kind"])),
    "another type": (
        "schema",
        lambda table: table.set_column(table.schema.names.index("raters"), "raters", table["raters"].cast("int64")),
    ),
    "a column margin": ("other columns", lambda table: table.append_column("margin", table["quality_margin"])),
    "other scales": ("metadata", about(scales=[[1, 5]])),
    "no metadata": ("metadata", lambda table: table.replace_schema_metadata(None)),
    "damaged metadata": ("metadata", lambda table: table.replace_schema_metadata({b"mmpo": b"{"})),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    check, change = TABLES[name]
    write(folder, parts, change)
    assert outcome(folder.path) == {check: "fail"}


def ties_drop(folder: Folder) -> None:
    folder.manifest["recipe"]["ties"] = "drop"
    for part in folder.path.glob("*/*.parquet"):
        pq.write_table(about(recipe=folder.manifest["recipe"])(pq.ParquetFile(part).read()), part)


def rejects(change: Callable[[pa.Table], pa.Table]) -> Callable[[Folder], None]:
    def work(folder: Folder) -> None:
        path = folder.path / "rejects.parquet"
        pq.write_table(change(pq.ParquetFile(path).read()), path)

    return work


def edit(name: str, *more: str, by: Any) -> Callable[[Folder], None]:
    def work(folder: Folder) -> None:
        place = folder.manifest
        for key in (name, *more[:-1]):
            place = place[key]
        place[more[-1]] += by

    return work


def card_of(folder: Folder) -> str:
    return (folder.path / "README.md").read_text()


def card(folder: Folder) -> None:
    (folder.path / "README.md").write_text(card_of(folder).replace("split: test", "split: testing"))


SIGNED: dict[str, tuple[str, Callable[[Folder], Any]]] = {
    "ties that the recipe drops": ("left out", ties_drop),
    "rows edited": ("row counts", lambda folder: (edit("rows", "train", by=-1)(folder), edit("rows", "test", by=1)(folder))),
    "prompts edited": ("row counts", lambda folder: folder.manifest.update(prompts=3)),
    "nobody's margins edited": ("row counts", lambda folder: folder.manifest.update(unwitnessed=2)),
    "rounded ties edited": ("row counts", lambda folder: folder.manifest.update(rounded_ties=10**6)),
    "an example edited": ("row counts", lambda folder: folder.manifest["examples"][1].update(margin=99.0)),
    "counts that do not balance": ("counts", edit("counts", "merge", "prompt", "merged", by=1)),
    "counts that do not go on": ("counts", lambda f: [edit("counts", "score", "grade", one, by=1)(f) for one in ("in", "out")]),
    "no card": ("card", lambda folder: (folder.path / "README.md").unlink()),
    "a card of other splits": ("card", card),
    "no rejects": ("rejects", lambda folder: (folder.path / "rejects.parquet").unlink()),
    "a reject less": ("rejects", rejects(lambda table: table.slice(1))),
    "a reject more": ("rejects", rejects(lambda table: pa.concat_tables([table, table]))),
    "rejects of other columns": ("rejects", rejects(lambda table: table.drop_columns(["reason"]))),
    "a part cut short": ("parts", lambda folder: folder.files["test"].write_bytes(folder.files["test"].read_bytes()[:-9])),
}


@pytest.mark.parametrize("name", SIGNED)
def test_a_changed_folder_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    write(folder, parts)
    check, change = SIGNED[name]
    change(folder)
    folder.sign()
    assert outcome(folder.path) == {check: "fail"}


def rewritten(folder: Folder) -> None:
    table = pq.ParquetFile(folder.files["test"]).read()
    pq.write_table(table, folder.files["test"], compression="gzip")


UNSIGNED: dict[str, tuple[str, Callable[[Folder], Any]]] = {
    "a part written anew": ("digests", rewritten),
    "a card with more words": ("digests", lambda folder: (folder.path / "README.md").write_text(card_of(folder) + "more\n")),
    "another digest": ("digests", lambda folder: folder.manifest["files"]["README.md"].update(sha256="0" * 64)),
    "another size": ("digests", lambda folder: folder.manifest["files"]["README.md"].update(bytes=1)),
    "a part gone": ("parts", lambda folder: folder.files["test"].unlink()),
    "a part too many": ("parts", lambda f: shutil.copy(f.files["test"], f.files["test"].with_name("part-00009.parquet"))),
    "a file too many": ("files", lambda folder: (folder.path / "train/notes.txt").write_text("mine")),
}


@pytest.mark.parametrize("name", UNSIGNED)
def test_what_is_not_as_it_was_written_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    write(folder, parts)
    check, change = UNSIGNED[name]
    change(folder)
    folder.save()
    assert outcome(folder.path) == {check: "fail"}


def test_of_a_folder_without_digests_they_are_unknown(good: Path, tmp_path: Path) -> None:
    folder, parts = read(Path(shutil.copytree(good / "pairs", tmp_path / "data")))
    write(folder, parts)
    folder.manifest["files"] = sorted(folder.manifest["files"])
    folder.save()
    [check] = [check for check in validate(folder.path, strict=True)["checks"] if check["name"] == "digests"]
    assert check["status"] == "unknown" and "0.1.0" in check["message"]
    assert validate(folder.path, strict=True)["ok"]


def test_splits_that_stay_empty_are_warned_of_with_the_reason(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": f"Q{p}"},
            ],
            "completion": f"A{c}",
            "score": c,
        }
        for p in range(60)
        for c in range(2)
    ]
    checks = {check["name"]: check for check in validate(pairs_folder(tmp_path / "hi", rows, scale=(0, 1)))["checks"]}
    assert checks["empty splits"]["status"] == "warn"
    assert "hold no pairs: the 60 prompts have 1 different first user messages" in checks["empty splits"]["message"]


@pytest.mark.parametrize(
    ("scales", "status"),
    [([(1, 5)], "pass"), ([None], "unknown"), ([(1, 5), None], "warn")],
    ids=["declared", "undeclared", "some"],
)
def test_scales_that_are_not_known_do_not_pass(scales: list[Any], status: str, tmp_path: Path) -> None:
    folder = pairs_folder(
        tmp_path / "data", [{"prompt": "q", "completion": f"a{c}", "score": c + 1} for c in range(3)], scale=scales[0]
    )
    if len(scales) > 1:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["scales"].append([None, None])
        (folder / "manifest.json").write_text(json.dumps(manifest))
    [check] = [check for check in validate(folder)["checks"] if check["name"] == "scales"]
    assert check["status"] == status


def test_raters_whose_undeclared_scales_are_apart_are_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{p}", "completion": f"a{c}", "rater": rater, "score": top * c / 2}
        for p in range(9) for c in range(3) for rater, top in (("five", 5), ("hundred", 100))
    ]  # fmt: skip
    folder = pairs_folder(tmp_path / "data", rows)
    [check] = [check for check in validate(folder)["checks"] if check["name"] == "scales"]
    assert check["status"] == "warn"
    assert check["message"].endswith("overall: 'five' 0 to 5, 'hundred' 0 to 100")
