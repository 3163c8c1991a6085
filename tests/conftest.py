"""What all tests share: one thread for torch, no Hub, a cache of their own, and the folder of larger real files."""

import gc
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Started in the background by a shell, this process ignores Ctrl-C, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no finding
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
SERVER = re.compile(r"\b(argilla: Argilla|asked: Asked)\b")
"""How a test asks for the fixtures of a running Argilla."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that of several processes none has much to do when the others are done. What takes minutes is
    skipped where MMPO_WHOLE does not ask for it."""
    for item in items:
        if item.get_closest_marker("whole") and "MMPO_WHOLE" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="minutes: make whole"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported and collected is searched for cycles no more: each training asks for a search, a third of a small one."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files as units (`--dist loadfile`), and those that use Argilla's server as one: to start it takes longer than most of them."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None
    asking = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py") if SERVER.search(path.read_text("utf-8"))}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "argilla" if file in asking else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default reference cache of all these tests and of the commands that they start: a temporary folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of larger real files; skips where MMPO_REAL_DATA doesn't name one."""
    folder = os.environ.get("MMPO_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MMPO_REAL_DATA names no folder of real files")
    return Path(folder)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub that this process uses, too: huggingface_hub has read its variables already, but for the address and the token."""
    from hub_server import hub
    from huggingface_hub import constants, file_download

    with hub() as running:
        for key, value in running.environment.items():
            monkeypatch.setenv(key, value)
        path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", running.environment["HF_ENDPOINT"])
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + path, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield running
