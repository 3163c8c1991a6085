"""What all tests share: one thread for torch, no Hub, and the folder of larger real files."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of larger real files; skips where MMPO_REAL_DATA doesn't name one."""
    folder = os.environ.get("MMPO_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MMPO_REAL_DATA names no folder of real files")
    return Path(folder)
