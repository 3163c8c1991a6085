"""The cache's files: what is refused or set aside, what version 0.1.0 left, places that can't be written, kills, and several processes."""

import json
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import split_folder
from training_cases import make_pairs, save_model, user_error

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import with_metadata
from mmpo.train.inference import ReferenceStore
from mmpo.train.model import Fingerprint, tiny_model

MINE = Fingerprint("1" * 32, "2" * 32, "3" * 32, "4" * 32, "full")


def keys(numbers):
    return [b"%016d" % n for n in numbers]


def add(store, numbers, value=-1.0):
    store.add(keys(numbers), [value * n for n in numbers])


def known(store, numbers):
    return store.lookup(keys(numbers)).tolist()


NOTHING = pytest.approx([float("nan")], nan_ok=True)


@pytest.fixture
def file(tmp_path):
    """A file with the values of 1 to 300."""
    add(ReferenceStore.open(tmp_path / "x.sqlite", MINE), range(1, 301))
    return tmp_path / "x.sqlite"


def write_parquet(path, numbers, fingerprint=MINE):
    """What version 0.1.0 wrote."""
    columns = [keys(numbers), ["p"] * len(numbers), [3] * len(numbers), [-1.0 * n for n in numbers]]
    fields = {"key": pa.binary(16), "prompt_id": pa.string(), "tokens": pa.int32(), "logprob": pa.float64()}
    table = pa.table(columns, schema=pa.schema(fields))
    schema = with_metadata(table.schema, {"reference_cache": fingerprint.as_dict()})
    pq.write_table(table.cast(schema), path, compression="zstd", write_page_checksum=True)


CHANGES = {
    "weights": ("9" * 32, "weights 11111111, this run's 99999999"),
    "tokenizer": ("9" * 32, "tokenizer 33333333, this run's 99999999"),
    "template": ("9" * 32, "template 44444444, this run's 99999999"),
    "precision": ("bf16", "precision full, this run's bf16"),
    "version": (2, "version 1, this run's 2"),
}


@pytest.mark.parametrize("part", CHANGES)
@pytest.mark.parametrize("suffix", [".sqlite", ".parquet"])
def test_a_stale_file_is_refused_with_the_part_that_differs(part, suffix, tmp_path):
    value, said = CHANGES[part]
    path = tmp_path / f"x{suffix}"
    write_parquet(path, [1]) if suffix == ".parquet" else add(ReferenceStore.open(path, MINE), [1])
    before = path.read_bytes()
    refused = user_error(said, ReferenceStore.open, path, replace(MINE, **{part: value}))
    assert "--reference-cache" in refused
    assert "config" not in refused
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_in_a_folder_references_live_side_by_side(tmp_path):
    stores = [ReferenceStore.open(tmp_path, replace(MINE, weights=digit * 32)) for digit in "89"]
    for value, store in zip((-1.0, -2.0), stores, strict=True):
        add(store, [1, 2], value)
    assert [known(store, [2]) for store in stores] == [[-2.0], [-4.0]]
    assert len(list(tmp_path.iterdir())) == 2


def flipped(path, place=2 / 3):
    """One bit in the middle of the values."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)


def another(path, statement="CREATE TABLE meta (name TEXT, value TEXT)"):
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "one bit": flipped,
    "text": lambda path: path.write_text("no database at all, but long enough to look for a header of one in it" * 9),
    "another database": another,
    "not a file": lambda path: (path.unlink(), path.symlink_to("/dev/null")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_cache_is_refused_or_in_a_folder_set_aside(damage, file, tmp_path, capsys):
    folder = tmp_path / "folder"
    inside = folder / f"{MINE.name}.sqlite"
    folder.mkdir()
    inside.write_bytes(file.read_bytes())
    for path in (file, inside):
        DAMAGES[damage](path)
    damaged = file.read_bytes()
    with pytest.raises(UserError, match=r"x\.sqlite (can't be read \(|is no reference cache).*Delete it"):
        known(ReferenceStore.open(file, MINE), range(1, 301))
    assert file.read_bytes() == damaged
    store = ReferenceStore.open(folder, MINE)
    assert np.isnan(known(store, range(1, 301))).all()
    assert inside.with_suffix(".unreadable").read_bytes() == damaged
    assert capsys.readouterr().err.count("set aside") == 1
    add(store, [7])
    assert known(ReferenceStore.open(folder, MINE), [7]) == [-7.0]
    assert known(ReferenceStore.open(folder, MINE), [8]) == NOTHING


def test_an_empty_file_is_what_a_kill_at_the_first_save_leaves(tmp_path):
    (tmp_path / "x.sqlite").touch()
    store = ReferenceStore.open(tmp_path / "x.sqlite", MINE)
    assert known(store, [7]) == NOTHING
    add(store, [7])
    assert known(store, [7]) == [-7.0]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_the_values_of_a_parquet_file_go_on(named, killed, tmp_path, capsys):
    old = tmp_path / ("x.parquet" if named else f"{MINE.name}.parquet")
    write_parquet(old, [1, 2])
    before = old.read_bytes()
    if killed:  # at its first save
        old.with_suffix(".sqlite").touch()
    store = ReferenceStore.open(old if named else tmp_path, MINE)
    assert known(store, [2]) == [-2.0]
    assert killed or [path.name for path in tmp_path.iterdir()] == [old.name]  # nothing is written until there is something to add
    add(store, [2, 3], value=-5.0)
    assert f"{old}, of an earlier version, has 2 values" in capsys.readouterr().err
    again = ReferenceStore.open(old if named else tmp_path, MINE)
    assert known(again, [1, 2, 3]) == [-1.0, -2.0, -15.0]
    assert (again.path, old.read_bytes()) == (old.with_suffix(".sqlite"), before)
    assert capsys.readouterr().err == ""


PARQUET_DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"no Parquet at all, but long enough to look for a footer in it"),
    "another table": lambda path: pq.write_table(pa.table({"key": [b"a"], "logprob": [1.0]}), path),
    "one bit": lambda path: (write_parquet(path, range(300)), flipped(path, 1 / 3)),
}


@pytest.mark.parametrize("damage", PARQUET_DAMAGES)
def test_a_parquet_file_that_is_no_cache_is_refused_or_in_a_folder_left(damage, tmp_path, capsys):
    for old in (tmp_path / "x.parquet", tmp_path / f"{MINE.name}.parquet"):
        PARQUET_DAMAGES[damage](old)
    user_error(r"x\.parquet (can't be read \(|is no reference cache).*Delete it", ReferenceStore.open, tmp_path / "x.parquet", MINE)
    assert known(ReferenceStore.open(tmp_path, MINE), [1]) == NOTHING
    assert "left as it is" in capsys.readouterr().err


def test_places_that_are_no_cache(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is a file: a reference cache is a folder or a file whose name ends in \.sqlite"):
        ReferenceStore.open(tmp_path / "notes.txt", MINE)
    (tmp_path / "odd.parquet").mkdir()
    add(ReferenceStore.open(tmp_path / "odd.parquet", MINE), [1])
    assert (tmp_path / "odd.parquet" / f"{MINE.name}.sqlite").is_file()
    ReferenceStore.open(tmp_path / "nowhere", MINE)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cant_be_written_stops_the_run_only_if_it_was_asked_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the reference cache .*See to it, or name another"):
        add(ReferenceStore.open(tmp_path / "file" / "x.sqlite", MINE), [1])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.sqlite-journal").mkdir()  # SQLite can't begin a save
    with pytest.raises(UserError, match=r"cannot write the reference cache .*See to it, or name another"):
        add(ReferenceStore.open(tmp_path / "folder" / "x.sqlite", MINE), [1])
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / "file"))
    store = ReferenceStore.open(None, MINE)
    for number in (1, 2):
        add(store, [number])
    assert capsys.readouterr().err.count("warning: cannot write") == 1
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path / ("long" * 100)))  # it can't be looked at, as a folder of somebody else's can't
    store = ReferenceStore.open(None, MINE)
    assert known(store, [1]) == NOTHING
    add(store, [1])
    assert capsys.readouterr().err.count("warning: cannot write") == 1


def test_the_first_value_of_a_key_stays_and_both_runs_see_it(file):
    one, two = ReferenceStore.open(file, MINE), ReferenceStore.open(file, MINE)
    add(one, [301, 302])
    add(two, [302, 303], value=-5.0)
    for store in (one, two, ReferenceStore.open(file, MINE)):
        assert known(store, [300, 301, 302, 303]) == [-300.0, -301.0, -302.0, -1515.0]


def test_a_run_waits_for_the_lock_and_not_for_ever(file):
    store = ReferenceStore.open(file, MINE)
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        user_error(r"cannot read the reference cache .*locked", ReferenceStore.open, file, MINE, lock_seconds=0.1)
        start = time.monotonic()
        threading.Timer(0.3, lambda: other.execute("ROLLBACK")).start()
        add(store, [500])
        assert time.monotonic() - start > 0.2
    assert known(ReferenceStore.open(file, MINE), [500]) == [-500.0]


DRIVER = """
import json, random, signal, sqlite3, time
from contextlib import closing
from pathlib import Path
import numpy as np
from mmpo.train.data import Renderer, prepare, read_pairs
from mmpo.train.inference import cached_logprobs
from mmpo.train.model import ExecutionPlan, load_pretrained

folder, mode = Path(sys.argv[1]), sys.argv[2]
model, tokenizer = load_pretrained("policy", str(folder / "model"))
table = read_pairs(folder / "data", "train")
prompts = prepare(table, np.full(table.num_rows, .5), Renderer(tokenizer, 512, 256)).prompts
options = {"tokens": 16, "pad_token": 0, "device": "cpu", "plan": ExecutionPlan()}
cache, timed = folder / "x.sqlite", folder / "timed.sqlite"
seen = []
model.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].numel()))

def fill(part, place=cache):
    filled = cached_logprobs(model, part, place, tokenizer=tokenizer, **options)
    return np.concatenate([prompt.reference for prompt in filled])

def held(place=cache):
    with closing(sqlite3.connect(place)) as db:
        tables = db.execute("SELECT name FROM sqlite_master").fetchall()
        return dict(db.execute("SELECT key, logprob FROM logprobs")) if tables else {}

def fill_until(calls):
    seen.clear()
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL) if len(seen) == calls else None)
    fill(prompts)

def kill():
    start = time.monotonic()
    fill(prompts, folder / "timing.sqlite")
    whole, passes = time.monotonic() - start, len(seen)
    random.seed(0)
    known = {cache: {}, timed: {}}

    def ended(pid, place):
        status, now = os.waitpid(pid, 0)[1], held(place)
        assert all(now.get(key) == value for key, value in known[place].items()), "a value was lost or changed"
        known[place] = now
        return status, len(now)

    calls = [1, *random.sample(range(passes // 12, passes // 6), 5)]  # all together fewer than the passes
    by_count = [ended(child(lambda: fill_until(number)), cache) for number in calls]
    at_times = []
    for _ in range(6):
        pid = child(lambda: fill(prompts, timed))
        time.sleep(random.uniform(0, whole / 4))
        os.kill(pid, signal.SIGKILL)
        at_times.append(ended(pid, timed))
    return {"by_count": by_count, "at_times": at_times, "timed": fill(prompts, timed).tolist()}

def together():
    pids = [child(lambda part=part: fill(part)) for part in (prompts[:40], prompts[20:], prompts[:40])]
    return {"codes": [os.waitpid(pid, 0)[1] for pid in pids]}

def ranks():
    values = fill(prompts)
    torch.distributed.destroy_process_group()
    return {"shared": values.tolist(), "tokens": sum(seen)}

result = {"kill": kill, "together": together, "ranks": ranks}[mode]()
result["rows"] = len(held())
seen.clear()
result["values"] = fill(prompts).tolist()
result["computed"] = sum(seen)
seen.clear()
result["plain"] = np.concatenate([p.reference for p in cached_logprobs(model, prompts, False, **options)]).tolist()
result["whole"] = sum(seen)
print(json.dumps(result))
"""


@pytest.fixture
def drive(processes, tmp_path, tokenizer):
    """Runs the driver, which forks its children before anything else has started threads; what each process says."""
    split_folder(tmp_path / "data", train=make_pairs(60, [3]))
    save_model(tmp_path / "model", tiny_model("policy", tokenizer, size=32, layers=1), tokenizer)

    def run(mode, world=1):
        done = processes(DRIVER, str(tmp_path), mode, world=world)
        assert [one.returncode for one in done] == [0] * world, done[0].stderr[-3000:]
        results = [json.loads(one.stdout) for one in done]
        assert all(result["values"] == pytest.approx(result["plain"], abs=1e-4) for result in results)
        return results

    return run


@pytest.mark.slow
def test_killed_at_random_moments_the_next_run_completes_what_is_there(drive):
    """In a pass drawn at random, so that some is done and some left whatever the machine; and at random times, in the midst of
    a write too, where one may be killed before it has done anything, or end before it is killed.
    """
    (result,) = drive("kill")
    assert [status for status, _ in result["by_count"]] == [signal.SIGKILL] * 6
    assert {status for status, _ in result["at_times"]} <= {0, signal.SIGKILL}
    first, *counts = (count for _, count in result["by_count"])
    assert first == 0
    assert all(0 < count < 180 for count in counts)
    assert counts == sorted(set(counts))
    later = [count for _, count in result["at_times"]]
    assert later == sorted(later)
    assert result["timed"] == pytest.approx(result["plain"], abs=1e-4)
    assert 0 < result["computed"] < result["whole"]


@pytest.mark.slow
def test_runs_at_once_lose_nothing_of_each_other(drive):
    (result,) = drive("together")
    assert result["codes"] == [0, 0, 0]
    assert result["rows"] == 180
    assert result["computed"] == 0


@pytest.mark.slow
def test_two_processes_share_the_work_and_the_first_writes(drive):
    one, two = drive("ranks", world=2)
    for result in (one, two):
        assert (result["rows"], result["computed"]) == (180, 0)
        assert result["shared"] == result["values"]
    assert one["values"] == two["values"]
    assert one["tokens"] + two["tokens"] == one["whole"]
    assert abs(one["tokens"] - two["tokens"]) < 0.2 * one["whole"]
