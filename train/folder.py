"""The output folder of a run: whose it is, where to go on from, and `mmpo.json`, which says how the model was made."""

import json
import shutil
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.train.options import TrainOptions

__all__ = ["RECORD", "RunFolder", "read_record"]

RECORD = "mmpo.json"
_FREE = {"out", "resume", "save_steps", "logging_steps", "report_to", "reference_cache"}
"""What may change between a run and its resumption without changing the result."""


class RunFolder:
    """The folder `options.out`; creating this object checks it and writes nothing.

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
        for given, what in ((options.model, "model"), (options.reference, "reference"), (options.data, "data")):
            if given and Path(given).resolve() == self.path.resolve():
                raise UserError(f"--out {self.path} is --{what} as well and would be overwritten: give another folder")
        self.record = read_record(self.path)
        if self.record is None:
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"{self.path} exists and holds something else than a training run; give another folder")
        elif options.resume:
            self._same_run(self.record)

    def _same_run(self, record: dict[str, Any]) -> None:
        now = json.loads(json.dumps({**self.options.as_dict(), "data_digest": self.digest}))
        then = {**record.get("options", {}), "data_digest": record.get("data_digest")}
        changed = [f"{k} {then.get(k)!r} -> {now[k]!r}" for k in now if k not in _FREE and then.get(k) != now[k]]
        if changed:
            raise UserError(
                f"{self.path} holds a run with other options ({'; '.join(changed)}): give another folder, the same "
                "options to go on, or switch resume off to start again"
            )

    def same_model(self, identity: dict[str, Any]) -> None:
        """Takes down what the model is. UserError where the run that is to go on here had another one.

        The options only name a folder or a Hub name; what lies there may have changed since.
        """
        then = (self.record or {}).get("identity", {}) if self.options.resume else {}
        changed = [name for name in identity if name in then and then[name] != identity[name]]
        if changed:
            said = "; ".join(f"{name} {_short(then[name])}, now {_short(identity[name])}" for name in changed)
            raise UserError(
                f"{self.path} holds a run of another model ({said}): --model {self.options.model} or its chat template has changed since. "
                "Give another --out, bring the model back, or --no-resume to start again"
            )
        self.identity = identity

    @property
    def finished(self) -> bool:
        """Whether the same run has ended here already."""
        return bool(self.options.resume and self.record and self.record.get("finished"))

    def start(self) -> None:
        """Makes the folder ours; without `resume`, what an earlier run left there is removed."""
        if self.record is not None and not self.options.resume:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        if self.record is None or not self.options.resume:
            self.write({"finished": False})

    def abandon(self) -> None:
        """Takes back what `start` made, where nothing has been trained yet."""
        if self.record is None and self.last_checkpoint() is None:
            self._clear()
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def _clear(self) -> None:
        """Removes what a run leaves behind and nothing else that may lie there."""
        for pattern in ("checkpoint-*", "reference", "reference.parquet", "*.safetensors*", "adapter_*", RECORD):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def last_checkpoint(self) -> str | None:
        """The newest complete checkpoint; trainer_state.json is the last file that the Trainer writes into one."""
        found = []
        for folder in self.path.glob("checkpoint-*"):
            try:
                found.append((int(json.loads((folder / "trainer_state.json").read_text())["global_step"]), folder))
            except (OSError, ValueError, KeyError):
                shutil.rmtree(folder)  # half-written when the run was killed
        return str(max(found)[1]) if found else None

    def write(self, values: dict[str, Any]) -> None:
        """`mmpo.json`, whole or not at all, with kind, options and the digest of the data."""
        head = {"kind": self.options.kind, "options": self.options.as_dict(), "data_digest": self.digest, "identity": self.identity}
        sibling = self.path / (RECORD + ".part")
        sibling.write_text(json.dumps({**head, **values}, indent=1, allow_nan=False) + "\n")
        sibling.replace(self.path / RECORD)


def _short(value: Any) -> str:
    """A digest's first digits say enough."""
    return value[:8] if isinstance(value, str) and len(value) == 32 else str(value)


def read_record(path: str | Path) -> dict[str, Any] | None:
    """`mmpo.json` of a model folder; None where there is none or it is not ours."""
    try:
        record = json.loads((Path(path) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "kind" in record else None
