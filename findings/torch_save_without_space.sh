#!/bin/sh
# torch 2.13.0 (CPU): torch.save into a file that can't grow (a full disk, or a limit on the size of files) raises no OSError.
# What comes out is a RuntimeError of the archive's writer, "[enforce fail at inline_container.cc:...] . unexpected pos ...", without errno, file name or
# cause; so `except OSError` around a checkpoint does not see a full disk, and the message does not say what to do. Python's own open(...).write says
# OSError 27 (File too large) in the same place.
# Seen: "torch.save: RuntimeError, errno None, cause None; write: OSError, errno 27".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import resource
import signal
import sys

import torch

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
seen = {}
try:
    torch.save({"weights": torch.zeros(100_000)}, f"{sys.argv[1]}/model.pt")
except Exception as error:
    seen["torch.save"] = error
try:
    with open(f"{sys.argv[1]}/plain", "wb") as file:
        file.write(bytes(100_000))
except Exception as error:
    seen["write"] = error
saved, written = seen["torch.save"], seen["write"]
print(
    f"torch.save: {type(saved).__name__}, errno {getattr(saved, 'errno', None)}, cause {saved.__cause__}; "
    f"write: {type(written).__name__}, errno {written.errno}"
)
assert type(saved) is RuntimeError and "unexpected pos" in str(saved) and saved.__cause__ is None
assert isinstance(written, OSError)
PYTHON
