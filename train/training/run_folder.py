"""The output folder of a run: whose it is, where to go on from, and what `mmpo.json` keeps of the run: curves, evaluations, the
summary. Those are read from the trainer's log, which its checkpoints carry over a resumption.
"""

import json
import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerState

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import atomic_file, file_lock
from mmpo.train.objective import parse_terms, write_options
from mmpo.train.options import TrainOptions
from mmpo.train.record import RECORD, read_record
from mmpo.train.training.callbacks import Log, displacement_of, ended_early

LOCK = f"{RECORD}.lock"
_BEGINNINGS = (f"{RECORD}.part", f".{RECORD}.part-", LOCK)
"""Of the names that a killed process leaves where it wrote a record (0.1.0's, and `atomic_file`'s), and of its lock."""
_MAY_CHANGE = {
    "out",
    "resume",
    "save_steps",
    "logging_steps",
    "report_to",
    "reference_cache",
    "tokens_per_batch",
    "gradient_checkpointing",
    "more_steps",
    "sample",
    "sample_tokens",
}
"""What may change between a run and its resumption without changing the result, but for rounding."""
_NEW_REFERENCE = "reference.new"
_EVAL = "eval_"


class RunFolder:
    """The folder `options.out`; creating this object checks it and writes nothing. `goes_on`: whether this run does what is
    left of the one that it holds. One that has neither ended nor left a checkpoint has done nothing, and another may take
    its place.

    Raises UserError if the folder holds something else than a run of ours, or a run with other options or data.
    """

    def __init__(self, options: TrainOptions, digest: str) -> None:
        self.path = Path(options.out)
        self.options, self.digest = options, digest
        self.identity: dict[str, Any] = {}
        if not options.out:
            raise UserError("no output folder given: name one with --out")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a folder to write the model to")
        model = None if options.model == "tiny" else options.model  # which is built, never read from a folder
        for given, what in ((model, "model"), (options.reference, "reference"), (options.data, "data")):
            if given and Path(given).resolve() == self.path.resolve():
                # a name of the Hub too: the folder would be read in its place as soon as it is there
                raise UserError(f"--out {self.path} is --{what} as well and would be overwritten: give another folder")
        self.record = read_record(self.path)
        # a run that was killed while it wrote the first record has left that one's beginning and nothing else
        if (
            self.record is None
            and self.path.exists()
            and any(not file.name.startswith(_BEGINNINGS) for file in self.path.iterdir())
        ):
            raise UserError(f"{self.path} exists and holds something else than a training run; give another folder")
        has_work = self.record is not None and (bool(self.record.get("finished")) or bool(self._checkpoints()[0]))
        self.goes_on = options.resume and has_work
        self._claimed, self._lock = False, ExitStack()
        self.had_more: int = ((self.record or {}).get("options", {}).get("more_steps") or 0) if self.goes_on else 0
        if self.record is not None and self.goes_on:
            self._same_run(self.record)
            self._check_more(self.record)

    def _same_run(self, record: dict[str, Any]) -> None:
        now = json.loads(json.dumps({**self.options.as_dict(), "data_digest": self.digest}))
        # what a run had that is older than an option
        older = TrainOptions(self.options.kind, thinking="keep", graded_part="all").as_dict()
        then = {**older, **record.get("options", {}), "data_digest": record.get("data_digest")}
        then["loss_options"] = write_options(parse_terms(then["loss"]), then["loss_options"])
        changed = {k: f"{k} {then.get(k)!r} -> {now[k]!r}" for k in now if k not in _MAY_CHANGE and then.get(k) != now[k]}
        had = record.get("summary", {}).get("steps", 0) - self.had_more
        ended = record.get("finished") and then.get("max_steps") in (None, had)
        if set(changed) == {"max_steps"} and ended and (now["max_steps"] or 0) > had:
            before = f"--max-steps {had}" if then.get("max_steps") else "no --max-steps"
            raise UserError(
                f"{self.path} holds a run that has ended, of {had} steps ({changed['max_steps']}): to go on to {now['max_steps']} steps "
                f"give {before} as before and --more-steps {now['max_steps'] - had}; or another folder, or switch resume off to start again"
            )
        if changed:
            raise UserError(
                f"{self.path} holds a run with other options ({'; '.join(changed.values())}): give another folder, the same "
                "options to go on, or switch resume off to start again"
            )

    def _check_more(self, record: dict[str, Any]) -> None:
        """Raises UserError where a run is on its way to more steps than are asked for now, and where one that has ended can't go on."""
        asked = self.options.more_steps or 0
        if not record.get("finished") and asked < self.had_more:
            raise UserError(
                f"{self.path} holds a run on its way to {self.had_more} more steps: give --more-steps {self.had_more}, or more, or "
                "--no-resume to start again"
            )
        if not self.extends:
            return
        patience, whole = self.options.early_stopping, self._checkpoints()[0]
        if not whole:
            raise UserError(
                f"{self.path} holds a run that has ended and no checkpoint to go on from (they were deleted): train its model further in "
                f"another folder, --model {self.path} --out DIR, which begins with a new optimizer and a new schedule"
            )
        if ended_early(TrainerState.load_from_json(str(max(whole)[1] / "trainer_state.json")).log_history, patience):
            raise UserError(
                f"{self.path} holds a run that ended early: its held-out loss had not fallen for {patience} evaluations; "
                "more steps would not change that. Leave out --more-steps, or give another --out with a larger --early-stopping"
            )

    def same_model(self, identity: dict[str, Any]) -> None:
        """Takes down what the model is, or its reference. UserError where the run that is to go on here had another one.

        The options only name a folder or a Hub name; what lies there may have changed since.
        """
        then = (self.record or {}).get("identity", {}) if self.goes_on else {}
        changed = [name for name in identity if name in then and then[name] != identity[name]]
        if changed:
            message = "; ".join(f"{name} {_short(then[name])}, now {_short(identity[name])}" for name in changed)
            reference = f", --reference {self.options.reference}" if self.options.reference else ""
            raise UserError(
                f"{self.path} holds a run of another model ({message}): --model {self.options.model}{reference} or its chat template has "
                "changed since. "
                "Give another --out, bring the model back, or --no-resume to start again"
            )
        self.identity |= identity

    @property
    def finished(self) -> bool:
        """Whether the same run has ended here already, with all the steps that are asked for."""
        return self._ended and not self.extends

    @property
    def extends(self) -> bool:
        """Whether a run that has ended here is to go on to more steps."""
        return self._ended and (self.options.more_steps or 0) > self.had_more

    @property
    def _ended(self) -> bool:
        return bool(self.goes_on and self.record and self.record.get("finished"))

    def claim(self) -> None:
        """Locks the folder until `release` and makes it ours if it is new; what an earlier run left in it stays, until this one is known
        to work. Raises UserError where another process trains into it, or has since it was looked at, and where it can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            place = self.path / LOCK
            holder = place.read_text() if place.exists() else ""
            taken = (
                f"{self.path}: another training run ({holder or 'just started'}) writes into it; wait for it, or give another --out"
            )
            lock = self._lock.enter_context(file_lock(place, taken, optional=True))
            if lock is not None:
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}; give another --out") from error
        if read_record(self.path) != self.record:
            raise UserError(f"{self.path}: another training run wrote into it meanwhile; start again to see what is left to do")
        shutil.rmtree(self.path / _NEW_REFERENCE, ignore_errors=True)
        if self.record is None:
            self.write({"finished": False})
            self._claimed = True

    def release(self) -> None:
        """Lets others at the folder."""
        self._lock.close()

    def start(self) -> None:
        """Called when nothing but training is left: of an earlier run that does not go on, what it left is removed."""
        if not (self.goes_on or self._claimed):
            cache = self.options.reference_cache
            self._clear(keep=Path(cache).resolve() if cache else None)
        if not self.goes_on:
            self.write({"finished": False})
        if (self.path / _NEW_REFERENCE).is_dir():
            shutil.rmtree(self.path / "reference", ignore_errors=True)
            (self.path / _NEW_REFERENCE).rename(self.path / "reference")

    def keep_reference(self, *parts: Any) -> None:
        """Saves the model as it is before training and its tokenizer, unless they are there; `start` puts them in their place."""
        if not (self.goes_on and (self.path / "reference" / "config.json").is_file()):
            for part in parts:
                part.save_pretrained(self.path / _NEW_REFERENCE)

    def abandon(self) -> None:
        """Takes back what was made since `claim`."""
        shutil.rmtree(self.path / _NEW_REFERENCE, ignore_errors=True)
        if self._claimed:
            self._clear()
            (self.path / LOCK).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def _clear(self, keep: Path | None = None) -> None:
        """Removes what a run leaves behind and nothing else that may lie there. keep: a cache that the new run uses."""
        for pattern in (
            "checkpoint-[0-9]*",
            "reference",
            "reference.parquet",
            "reference.sqlite*",
            "*.safetensors*",
            "adapter_*",
            "samples.jsonl",
            RECORD,
        ):
            for path in self.path.glob(pattern):
                if keep in (path.resolve(), path.resolve().with_suffix(".parquet")):
                    continue  # a cache that is named .parquet lies beside, in SQLite
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def last_checkpoint(self) -> str | None:
        """The newest complete checkpoint; those that are not complete are removed."""
        found, broken = self._checkpoints()
        for folder in broken:
            shutil.rmtree(folder)
        return str(max(found)[1]) if found else None

    def _checkpoints(self) -> tuple[list[tuple[int, Path]], list[Path]]:
        """The complete checkpoints with their steps, and those that were half-written when the run was killed.

        trainer_state.json is the last file that the Trainer writes into one. Raises UserError where it is there and can't be
        read: that says nothing against the checkpoint.
        """
        found, broken = [], []
        for folder in self.path.glob("checkpoint-[0-9]*"):
            if not folder.is_dir() or folder.is_symlink():
                continue
            try:
                found.append((int(json.loads((folder / "trainer_state.json").read_text())["global_step"]), folder))
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                broken.append(folder)
            except OSError as error:
                raise UserError(
                    f"{folder}/trainer_state.json can't be read: {error}; make it readable, or give another --out"
                ) from error
        return found, broken

    def write(self, values: dict[str, Any]) -> None:
        """`mmpo.json`, whole or not at all, with kind, options and the digest of the data."""
        head = {"kind": self.options.kind, "options": self.options.as_dict(), "data_digest": self.digest, "identity": self.identity}
        with atomic_file(self.path / RECORD) as file:
            file.write_text(json.dumps({**head, **values}, indent=1, allow_nan=False) + "\n")


def _short(value: Any) -> str:
    """A digest's first digits say enough."""
    return value[:8] if isinstance(value, str) and len(value) == 32 else str(value)


# --- what is kept of the trainer's log ---------------------------------------------------------------------------------------


def history_of(log: Log) -> dict[str, Any]:
    """{"history": {"steps": [...], "loss": [...], ...}, "evaluations": [{"step": n, "accuracy": ..., ...}, ...]}."""
    losses = [entry for entry in log if "loss" in entry]
    names = sorted({key for entry in losses for key in entry} - {"step", "epoch", "grad_norm", "learning_rate"})
    curves = {name: [entry.get(name) for entry in losses] for name in names}
    measured = [entry for entry in log if any(key.startswith(_EVAL) for key in entry)]
    evaluations = [{k.removeprefix(_EVAL): v for k, v in entry.items() if k.startswith(_EVAL) or k == "step"} for entry in measured]
    return {"history": {"steps": [entry["step"] for entry in losses], **curves}, "evaluations": evaluations}


def mean_loss(log: Log, fallback: float) -> float:
    """Mean loss over the whole run; the Trainer's own figure covers only what followed the last resumption."""
    entries = [entry for entry in log if "loss" in entry]
    if not entries:
        return float(fallback)
    steps = [entry["step"] - before for entry, before in zip(entries, [0, *(e["step"] for e in entries)], strict=False)]
    return float(sum(entry["loss"] * n for entry, n in zip(entries, steps, strict=True)) / sum(steps))


def summary_of(options: TrainOptions, state: TrainerState, train_loss: float, gamma: Any) -> dict[str, Any]:
    """What a run returns. train_loss: the Trainer's own figure; gamma: as JSON has it. A policy's has "displacement" (see
    `displacement_of`). With early stopping "best_step" is the step whose model was kept, and "metrics" are its.
    """
    log, best = state.log_history, state.best_global_step
    kept = [one for one in history_of(log)["evaluations"] if not options.early_stopping or best in (None, one["step"])]
    summary = {"out": options.out, "steps": state.global_step, "train_loss": mean_loss(log, train_loss), "gamma": gamma}
    summary["metrics"] = kept[-1] if kept else {}
    if options.early_stopping and best is not None:
        summary["best_step"] = best
    if options.kind == "policy":
        summary["displacement"] = displacement_of(log, options.beta)
    return summary
