"""A dataset goes to the Hub whole or not at all, is what `load_dataset` and `mmpo pull` find there, and nothing private gets out."""

import json
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from command import environment, graded, mmpo, stopped
from folders import contents, feedback_folder, pairs_folder, write_rows
from hub_server import TOKEN, Hub, Repository

from mmpo.pipeline import BuildOptions, build, load_pairs, validate
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.hub import pull_dataset, push_dataset

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")
NAME = "me/pairs"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return pairs_folder(tmp_path / "pairs", graded(40))


def test_pushed_and_pulled_is_the_same_folder(served: Hub, pairs: Path, tmp_path: Path) -> None:
    done = push_dataset(pairs, NAME)
    assert done.private and done.changed and done.revision == served.repositories[NAME].commits[-1][0]
    found = pull_dataset(f"{NAME}@{done.revision}", tmp_path / "again")
    before, after = contents(pairs), contents(tmp_path / "again")
    manifest = json.loads(after.pop("manifest.json"))
    assert manifest.pop("pulled") == {"dataset": NAME, "revision": done.revision}
    assert manifest == json.loads(before.pop("manifest.json")) and after == before
    assert found["rows"] == manifest["rows"] and validate(tmp_path / "again")["ok"]
    again = push_dataset(tmp_path / "again", NAME)
    assert (again.changed, again.revision) == (False, done.revision)


def test_a_push_takes_every_name_that_a_pull_takes(served: Hub, pairs: Path, tmp_path: Path) -> None:
    revisions = {push_dataset(pairs, name).revision for name in (NAME, "hub:me/pairs", "me/pairs@main", "hub:me/pairs@main")}
    assert set(served.repositories) == {NAME} and revisions == {served.repositories[NAME].commits[-1][0]}
    assert pull_dataset("hub:me/pairs@main", tmp_path / "again")["revision"] in revisions


def test_a_new_version_takes_the_place_of_the_old_one_and_both_can_be_pulled(served: Hub, pairs: Path, tmp_path: Path) -> None:
    first = push_dataset(pairs, NAME)
    second = push_dataset(pairs_folder(tmp_path / "other", graded(30), split=(1, 0, 0)), NAME)
    assert {name for name in served.repositories[NAME].files if name.endswith(".parquet")} == {
        "train/part-00000.parquet",
        "rejects.parquet",
    }
    rows = [pull_dataset(f"{NAME}@{done.revision}", tmp_path / "pulled")["rows"] for done in (first, second, first)]
    assert rows[0] == rows[2] != rows[1]
    assert load_pairs(tmp_path / "pulled").num_rows == sum(rows[0].values())


def test_the_page_of_a_mixture_tells_its_sources_apart(served: Hub, tmp_path: Path) -> None:
    given = [
        {"name": name, "inputs": str(write_rows(tmp_path / f"{name}.jsonl", graded(20))), "format": "jsonl", "weight": weight}
        for name, weight in (("ours", 1), ("a|b", 2))
    ]
    build((), tmp_path / "mixed", options=BuildOptions(sources=tuple(given)))
    push_dataset(tmp_path / "mixed", NAME)
    page = served.repositories[NAME].files["README.md"].decode()
    assert "| ours | 1 | 1 | none | 20 | 60 |" in page and "| a\\|b | 2 | 1 | none | 0 | 0 |" in page


def test_load_dataset_opens_both_tables_with_their_splits(served: Hub, tmp_path: Path) -> None:
    """In a process of its own, as a user of `datasets` does."""
    pairs, feedback = pairs_folder(tmp_path / "pairs", graded(40)), feedback_folder(tmp_path / "feedback", graded(40))
    push_dataset(pairs, NAME, feedback=feedback, license="cc-by-4.0")
    code = (
        "import datasets, json\n"
        f"found = [datasets.load_dataset({NAME!r}), datasets.load_dataset({NAME!r}, 'feedback')]\n"
        "print(json.dumps([{split: [rows.num_rows, rows.column_names] for split, rows in one.items()} for one in found]))"
    )
    env = environment(**served.environment, HF_HOME=str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pair_splits, feedback_splits = json.loads(done.stdout.splitlines()[-1])
    rows = json.loads((pairs / "manifest.json").read_text())["rows"]
    assert {split: count for split, (count, _) in pair_splits.items()} == rows
    assert "quality_margin" in pair_splits["train"][1] and "completions" in feedback_splits["train"][1]
    assert feedback_splits["train"][0] == 40
    again = pull_dataset(NAME, tmp_path / "again", feedback=True)
    assert again["kind"] == "feedback" and validate(tmp_path / "again")["ok"]
    card = served.repositories[NAME].files["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\n") and "| train |" in card


def test_what_people_wrote_on_the_page_stays(served: Hub, pairs: Path) -> None:
    push_dataset(pairs, NAME)
    repository = served.repositories[NAME]
    page = repository.files["README.md"].decode()
    ours = (
        page.replace("---\ntags:", "---\nlicense: mit\nlanguage: [de]\ntags:").replace("| train |", "| spoilt |") + "\nAsk Anna.\n"
    )
    repository.commit(repository.files | {"README.md": ours.encode(), "picture.png": b"png"})
    push_dataset(pairs, NAME)
    assert yaml.safe_load(repository.files["README.md"].decode().split("---")[1])["language"] == ["de"]
    assert repository.files["README.md"].decode().split("---\n", 2)[2] == page.split("---\n", 2)[2] + "\nAsk Anna.\n"
    assert repository.files["picture.png"] == b"png"


@pytest.mark.slow
def test_a_killed_push_leaves_the_dataset_as_it_was_and_goes_on(served: Hub, pairs: Path, tmp_path: Path) -> None:
    """Killed while the second of four files is on its way: no commit; the same command uploads the others, none twice."""
    go_on = threading.Event()
    env = environment(**served.environment, HF_HOME=str(tmp_path / "home"))
    first_upload = threading.Lock()

    def one_at_a_time(method: str, path: str) -> None:
        if method == "PUT" and not first_upload.acquire(blocking=False):
            go_on.wait(30)

    served.before = one_at_a_time
    killed = stopped("push", pairs, NAME, when=lambda: len(served.uploaded) == 1, env=env)
    assert killed.returncode == -9 and list(served.repositories[NAME].files) == [".gitattributes"]
    before = list(served.uploaded)
    served.before = lambda method, path: None
    done = mmpo("push", pairs, NAME, "--json", env=env)
    assert done.returncode == 0, done.stderr
    again = [oid for oid in served.uploaded[len(before) :] if oid in before]
    go_on.set()
    assert not again and len(served.uploaded) >= 3
    assert json.loads(done.stdout)["revision"] == served.repositories[NAME].commits[-1][0]


def test_ctrl_c_does_not_wait_for_a_file_on_its_way(served: Hub, pairs: Path, tmp_path: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT":
            arrived.set()
            go_on.wait(60)

    served.before = hold
    began = time.monotonic()
    done = stopped(
        "push",
        pairs,
        NAME,
        when=arrived.is_set,
        by=signal.SIGINT,
        env=environment(**served.environment, HF_HOME=str(tmp_path / "home")),
    )
    took = time.monotonic() - began
    go_on.set()
    assert done.returncode == 130 and took < 30 and "interrupted" in done.stderr
    assert list(served.repositories[NAME].files) == [".gitattributes"]


def test_xet_uploads_too_where_it_is_installed(served: Hub, pairs: Path, tmp_path: Path) -> None:
    """By hf_xet itself, as it is by default, into a storage on disk; nothing goes by LFS."""
    pytest.importorskip("hf_xet")
    if int(version("huggingface_hub").split(".")[0]) < 1:
        pytest.skip("clients before 1.0 take LFS here")
    served.cas, served.pushed = tmp_path / "cas", pairs
    done = mmpo("push", pairs, NAME, "--json", env=environment(**served.environment, HF_HOME=str(tmp_path / "home")))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cas").rglob("xorbs/*")) and not any("/objects/batch" in one for one in served.asked)
    assert any("/xet-write-token/" in one for one in served.asked)
    part = "train/part-00000.parquet"
    assert served.repositories[NAME].files[part] == (pairs / part).read_bytes()


FAULTS = {
    "the Hub fails at the commit": (
        "commit",
        503,
        PartialResult,
        "the Hub answered 503.*the same command again sends what is missing",
    ),
    "too many requests": ("commit", 429, PartialResult, "the Hub answered 429"),
    "no right": ("preupload", 403, UserError, "the Hub refuses pushing.*HF_TOKEN"),
    "a head that it rejects": ("validate-yaml", 400, UserError, "the Hub rejects the head of the dataset's page.*mend --license"),
    "it changed meanwhile": ("commit", 412, UserError, "it changed on the Hub meanwhile"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_where_the_hub_fails_nothing_is_committed(fault: str, served: Hub, pairs: Path) -> None:
    where, status, error, told = FAULTS[fault]
    push_dataset(pairs, NAME)
    served.before = lambda method, path: status if f"/{where}" in path else None
    commits = len(served.repositories[NAME].commits)
    with pytest.raises(error, match=told):
        push_dataset(pairs, NAME, license="mit")
    assert len(served.repositories[NAME].commits) == commits


def test_somebody_elses_commit_between_is_not_lost(served: Hub, pairs: Path) -> None:
    push_dataset(pairs, NAME)
    repository = served.repositories[NAME]

    def commit(method: str, path: str) -> None:
        if "/preupload/" in path:
            repository.commit(repository.files | {"theirs.txt": b"theirs"})

    served.before = commit
    with pytest.raises(UserError, match=r"it changed on the Hub meanwhile.*the same command again looks anew"):
        push_dataset(pairs, NAME, license="mit")
    assert repository.files["theirs.txt"] == b"theirs" and b"license: mit" not in repository.files["README.md"]


REFUSED: dict[str, tuple[Repository | None, str, str]] = {
    "public": (Repository(False, [("a" * 40, {})]), NAME, "me/pairs is public.*Say --public"),
    "another project's": (
        Repository(True, [("a" * 40, {"data/train.csv": b"a"})]),
        NAME,
        "holds data/train.csv, which mmpo did not push",
    ),
    "another tool's": (
        Repository(True, [("a" * 40, {"manifest.json": b'{"files": ["data.csv"]}', "data.csv": b"a"})]),
        NAME,
        "holds manifest.json, data.csv, which mmpo did not push",
    ),
    "no text": (Repository(True, [("a" * 40, {"manifest.json": b"\xff"})]), NAME, "me/pairs: manifest.json there is no UTF-8 text"),
    "a page that is none": (Repository(True, [("a" * 40, {"README.md": b"caf\xe9"})]), NAME, "README.md there is no UTF-8 text"),
    "no right": (None, "others/pairs", "the Hub refuses making a dataset.*HF_TOKEN"),
    "too long": (None, "me/" + "x" * 200, "no name on the Hub"),
    "no name": (None, "pairs", "names no dataset on the Hub: it is OWNER/NAME"),
    "a revision": (None, "me/pairs@v2", "'me/pairs@v2': a push goes to main, not to 'v2'; name me/pairs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_not_be_pushed_is_refused(case: str, served: Hub, pairs: Path) -> None:
    there, name, told = REFUSED[case]
    if there is not None:
        served.repositories[NAME] = there
    before = {name: list(one.commits) for name, one in served.repositories.items()}
    with pytest.raises(UserError, match=told):
        push_dataset(pairs, name)
    assert {name: one.commits for name, one in served.repositories.items()} == before


@pytest.mark.parametrize("license", ["foo bar", "CC-BY-4.0", "mit\nother: x", "", "-mit", "mit-"])
def test_what_is_no_licences_id_is_refused_before_the_hub_is_asked(license: str, served: Hub, pairs: Path) -> None:
    with pytest.raises(UserError, match=r"--license .*: the Hub takes a licence's id in small letters.*such as cc-by-4\.0"):
        push_dataset(pairs, NAME, license=license)
    assert served.asked == []


@pytest.mark.parametrize("license", ["cc-by-4.0", "mit", "llama3.1", "c-uda"])
def test_a_licence_stands_in_the_head_of_the_page(license: str, served: Hub, pairs: Path) -> None:
    push_dataset(pairs, NAME, license=license)
    assert yaml.safe_load(served.repositories[NAME].files["README.md"].decode().split("---")[1])["license"] == license


def test_a_wrong_token_is_told_by_what_to_do(served: Hub, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(
        UserError, match=r"the Hub refuses making a dataset \(401\): set the environment variable HF_TOKEN"
    ) as refused:
        push_dataset(pairs, NAME)
    assert "hf_of_nobody" not in str(refused.value)


@pytest.mark.parametrize("file", ["train/part-00000.parquet", "folder-README.md", "rejects.parquet"])
def test_what_somebody_changed_on_the_hub_is_overwritten_only_where_that_is_said(file: str, served: Hub, pairs: Path) -> None:
    """In LFS or not; files that others put beside ours stay."""
    push_dataset(pairs, NAME)
    repository = served.repositories[NAME]
    ours, theirs = repository.files[file], {"own.txt": b"own", "notes/a.parquet": b"PAR1"}
    repository.commit(repository.files | theirs | {file: b"edited"})
    commits = len(repository.commits)
    with pytest.raises(UserError, match=rf"me/pairs: {file} on the Hub differs from what was pushed.*--overwrite"):
        push_dataset(pairs, NAME)
    assert len(repository.commits) == commits and repository.files[file] == b"edited"
    push_dataset(pairs, NAME, overwrite=True)
    assert repository.files[file] == ours and theirs.items() <= repository.files.items()


def test_what_is_pushed_already_by_other_means_is_not_taken_for_a_change(served: Hub, pairs: Path, tmp_path: Path) -> None:
    """Somebody put a file of the new version there by hand; a file that somebody removed comes back."""
    push_dataset(pairs, NAME)
    repository, other = served.repositories[NAME], pairs_folder(tmp_path / "other", graded(30))
    part = "train/part-00000.parquet"
    files = repository.files | {part: (other / part).read_bytes()}
    del files["folder-README.md"]
    repository.commit(files)
    push_dataset(other, NAME)
    assert repository.files["folder-README.md"] == (other / "README.md").read_bytes()
    assert repository.files[part] == (other / part).read_bytes()


def test_a_file_that_would_be_read_as_rows_is_refused(served: Hub, pairs: Path) -> None:
    push_dataset(pairs, NAME)
    repository = served.repositories[NAME]
    repository.commit(repository.files | {"train/more.parquet": b"PAR1"})
    with pytest.raises(UserError, match=r"holds train/more.parquet, which mmpo did not push"):
        push_dataset(pairs, NAME)


def test_names_of_files_that_a_push_shows_are_told(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether rows or evaluation prompts were read from them; relative names do not tell where."""
    monkeypatch.chdir(tmp_path)
    for name, evaluation in (("relative", "asked.txt"), ("absolute", str(tmp_path / "asked.txt"))):
        Path("asked.txt").write_text("what nobody asks of them\n")
        build(write_rows(Path(f"{name}.jsonl"), graded(4)), name, options=BuildOptions("jsonl", decontaminate=(evaluation,)))
        found = [line for line in push_dataset(name, NAME).warnings if "by their paths on this machine" in line]
        assert [f"1 input files by their paths on this machine, such as {evaluation}:" in line for line in found] == (
            [True] if name == "absolute" else []
        )


def test_a_folder_that_validate_rejects_never_gets_to_the_hub(served: Hub, pairs: Path) -> None:
    (pairs / "README.md").write_text("changed since")
    with pytest.raises(UserError, match=r"does not pass `mmpo validate` and is not pushed: digests \(.*README.md"):
        push_dataset(pairs, NAME)
    assert served.asked == []


def test_files_that_the_hub_leaves_out_are_noticed(served: Hub, pairs: Path) -> None:
    """As those that a .gitignore of the dataset names."""
    served.ignored = r"train/.*\.parquet"
    with pytest.raises(PartialResult, match=r"does not hold train/part-00000.parquet as pushed; a .gitignore"):
        push_dataset(pairs, NAME)


def test_a_pull_takes_nothing_that_is_not_what_the_manifest_says(served: Hub, pairs: Path, tmp_path: Path) -> None:
    push_dataset(pairs, NAME)
    repository, out = served.repositories[NAME], tmp_path / "out"
    manifest = json.loads(repository.files["manifest.json"])
    part = "train/part-00000.parquet"
    outside = {**manifest, "files": {**manifest["files"], "../../outside.parquet": manifest["files"][part]}}
    for change, told in (
        ({part: repository.files[part] + b" "}, r"train/part-00000.parquet is not what its manifest says"),
        ({"manifest.json": json.dumps(outside).encode()}, r"names the file '../../outside.parquet', which is none inside a folder"),
        ({"manifest.json": b"{"}, r"^me/pairs@[0-9a-f]{40}/manifest.json can't be read"),
        ({"manifest.json": b"[1]"}, r"^me/pairs@[0-9a-f]{40}: schema version None"),
        ({"manifest.json": b'{"schema_version": 2}'}, r"its manifest says kind None; a dataset of mmpo holds pairs or feedback"),
        ({"manifest.json": None}, r"has no manifest.json: `mmpo push` did not make it. mmpo build hub:me/pairs@"),
        ({part: None}, r"lacks train/part-00000.parquet, which its manifest names"),
    ):
        files = repository.files
        repository.commit({name: content for name, content in (files | change).items() if content is not None})
        with pytest.raises(UserError, match=told):
            pull_dataset(NAME, out)
        repository.commit(files)
        assert not out.exists() and not (tmp_path / "outside.parquet").exists()
    for name, told in ((f"{NAME}@nowhere", "the Hub has no such revision"), ("me/none", "no such dataset on the Hub")):
        with pytest.raises(UserError, match=told):
            pull_dataset(name, out)


@pytest.mark.slow
def test_the_token_is_in_nothing_that_is_said_or_written(served: Hub, pairs: Path, tmp_path: Path) -> None:
    env = environment(**served.environment, HF_HOME=str(tmp_path / "home"), HF_DEBUG="1")
    done, refused = (mmpo("push", pairs, name, env=env) for name in (NAME, "others/pairs"))
    assert (done.returncode, refused.returncode) == (0, 2)
    assert TOKEN not in done.stdout + done.stderr + refused.stdout + refused.stderr
    written = [content for content in contents(tmp_path).values() if content] + list(served.repositories[NAME].files.values())
    assert not any(TOKEN.encode() in content for content in written)
    assert f"{served.url}/datasets/{NAME}: private, revision {served.repositories[NAME].commits[-1][0]}" in done.stderr
