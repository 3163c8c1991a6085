"""The Hub: names of datasets and models on it, the client, and its errors as errors of ours. The token comes from where huggingface_hub
looks for it (HF_TOKEN, or a login) and is never printed."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmpo.pipeline.errors import PartialResult, UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

Kind = Literal["dataset", "model"]
"""Of repositories on the Hub."""
NAME = re.compile(r"(?:hub:)?(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
BAD_HEAD = "Invalid metadata in README.md."
LOGIN = "set the environment variable HF_TOKEN to a token with that right, or log in by `hf auth login`"
CARD, KEPT_CARD = "README.md", "folder-README.md"
"""The dataset's page on the Hub; and the README of the folder that was pushed, which pulling puts back."""
FEEDBACK_FOLDER = "feedback-table"
"""Where the FEEDBACK folder stands beside pairs, with all its files."""


def named(given: str, *, revision: bool, kind: Kind = "dataset") -> tuple[str, str | None]:
    """OWNER/NAME and the revision, hub: before it or not. revision: whether it may be another one than main. Raises UserError."""
    found = NAME.fullmatch(given)
    if found is None or ".." in given or "--" in given:
        raise UserError(f"{given!r} names no {kind} on the Hub: it is OWNER/NAME" + ("[@REVISION]" if revision else ""))
    if not revision and found["revision"] not in (None, "main"):
        raise UserError(f"{given!r}: a push goes to main, not to {found['revision']!r}; name {found['name']}")
    return found["name"], found["revision"]


def page_of(api: "HfApi", name: str, kind: Kind) -> str:
    """The address of its page."""
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"


def hub_api() -> "HfApi":
    """The client of the Hub, or of the server that HF_ENDPOINT names."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def on_hub_name(file: str, prefix: str) -> str:
    """The name on the Hub of a file of a dataset folder; prefix: FEEDBACK_FOLDER, or "" for what stands at the top.

    >>> on_hub_name("README.md", ""), on_hub_name("README.md", FEEDBACK_FOLDER)
    ('folder-README.md', 'feedback-table/README.md')
    """
    return f"{prefix}/{file}" if prefix else KEPT_CARD if file == CARD else file


@contextmanager
def hub_errors(name: str, doing: str, *, resumes: bool = False, kind: Kind = "dataset") -> Iterator[None]:
    """Errors of the Hub as UserErrors; where the Hub or the network failed and `resumes`, as a PartialResult."""
    from huggingface_hub import errors

    try:
        with _bars_on_terminals():
            yield
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{name}: no such {kind} on the Hub, or no right to see it; check the name, or {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: the Hub has no such revision; name a branch, a tag or a commit of it") from error
    except errors.LocalEntryNotFoundError as error:
        raise _failed(name, doing, "the Hub can't be reached", resumes) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: a file of it is missing on the Hub ({_first_line(error)})") from error
    except errors.HfHubHTTPError as error:
        raise _of_status(name, doing, error, resumes) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{name}: {doing} needs a token: {LOGIN}") from error
    except (ConnectionError, TimeoutError) as error:
        raise _failed(name, doing, f"{os.environ.get('HF_ENDPOINT', 'the Hub')}: {_first_line(error)}", resumes) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name}: no name on the Hub: {_first_line(error)}") from error
    except json.JSONDecodeError as error:
        raise _failed(name, doing, "what answered is no Hub: it sent no JSON", resumes) from error
    except Exception as error:
        if str(error).startswith(BAD_HEAD):
            told = " ".join(str(error).removeprefix(BAD_HEAD).split())
            raise UserError(
                f"{name}: the Hub rejects the head of the {kind}'s page ({told}): mend --license, or the page there"
            ) from error
        if not _is_transport(error):
            raise
        inner = error.__cause__ if isinstance(error.__cause__, errors.HfHubHTTPError) else None
        raise _of_status(name, doing, inner, resumes) if inner else _failed(name, doing, _first_line(error), resumes) from error


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """huggingface_hub's bars only where they overwrite themselves, not as hundreds of lines of a log."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _is_transport(error: BaseException) -> bool:
    """Whether the network or the Hub is behind it: errors of httpx2 and of hf_xet, and what huggingface_hub raises of an upload."""
    modules = {type(one).__module__.partition(".")[0] for one in (error, error.__cause__, error.__context__) if one is not None}
    return bool(modules & {"httpx2", "httpcore2", "hf_xet"}) or str(error).startswith(("Error while uploading", "LFS batch API"))


def _of_status(name: str, doing: str, error: Any, resumes: bool) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"{name}: the Hub refuses {doing} ({status}): {LOGIN}")
    if status in (409, 412):
        return UserError(
            f"{name}: it changed on the Hub meanwhile and was left as it is ({status}); the same command again looks anew"
        )
    if status in (429, None) or status >= 500:
        return _failed(name, doing, f"the Hub answered {status}", resumes)
    return UserError(f"{name}: the Hub refuses {doing}: {_first_line(error)}")


def _failed(name: str, doing: str, why: str, resumes: bool) -> Exception:
    if resumes:
        return PartialResult(
            f"{name}: {doing} stopped ({why}); what is there is as it was, and the same command again sends what is missing"
        )
    return UserError(f"{name}: {doing} failed ({why}); try again")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def git_oid(path: Path) -> str:
    """What git calls the content of a file that is not in LFS: the SHA-1 of its size and bytes."""
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes())


def info_of(api: "HfApi", name: str, revision: str | None = None, *, kind: Kind = "dataset") -> "DatasetInfo | ModelInfo | None":
    """What the Hub says of a dataset or a model, None where there is none that the token may see."""
    from huggingface_hub import errors

    with hub_errors(name, "reading", kind=kind):
        try:
            return (api.dataset_info if kind == "dataset" else api.model_info)(name, revision=revision)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return None
