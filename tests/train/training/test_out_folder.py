"""What a run may write to: a folder of its own, whatever its name, and one that a kill left half begun."""

import pytest

from mmpo.cli.main import run
from mmpo.pipeline.errors import UserError
from mmpo.train.options import TrainOptions
from mmpo.train.training.run_folder import RECORD, RunFolder, read_record


def folder(out, **changes):
    return RunFolder(TrainOptions(**{"kind": "reward", "data": "pairs", "out": str(out), **changes}), "digest")


@pytest.mark.parametrize("name", ["tiny", "./tiny"])
def test_the_model_that_is_built_is_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = folder(name, model="tiny")
    own.claim()
    assert read_record(tmp_path / "tiny") is not None
    folder(name, model="tiny")  # and once more, now that it is there
    for what in ("data", "reference"):
        with pytest.raises(UserError, match=f"--out tiny is --{what} as well"):
            folder(name, kind="policy", model="tiny", **{what: "tiny"})


def test_a_name_of_the_hub_is_refused_as_out(tmp_path, monkeypatch):
    """Once there, the folder would be read in place of that model: by a resumption, an adapter, an evaluation."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out owner/name is --model as well"):
        folder("owner/name", model="owner/name")


def test_a_kill_while_the_first_record_is_written_leaves_a_folder_to_begin_in(tmp_path):
    (tmp_path / f"{RECORD}.part").write_text('{"kind": "rew')
    own = folder(tmp_path)
    assert own.record is None
    own.claim()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    own.abandon()
    assert not tmp_path.exists()


def test_beside_something_else_that_beginning_proves_nothing(tmp_path):
    (tmp_path / f"{RECORD}.part").write_text("{")
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="holds something else than a training run"):
        folder(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None])
def test_a_seed_that_numpy_does_not_take_is_refused(seed):
    with pytest.raises(UserError, match=rf"seed: {seed} is not"):
        TrainOptions("reward", seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_so_it_is_on_the_command_line(seed, tmp_path, capsys):
    command = ["train", "reward", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seed", str(seed)]
    assert run(command) == 2
    assert f"error: --seed: '{seed}' is not" in capsys.readouterr().err
