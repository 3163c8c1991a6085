"""What push and pull ask of Argilla: workspaces, datasets, users, all records of a dataset, and records in batches.

Ids are Argilla's own, as text. Nothing here keeps a state: killed at any moment, the same call again finds out where things stand.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from mmpo.annotate.argilla.client import Client, Refused
from mmpo.annotate.argilla.display import printable
from mmpo.pipeline.errors import PartialResult, UserError

__all__ = ["dataset_of", "datasets_of", "records_of", "settings_of", "upsert", "users_of", "workspace_of"]

MOST_RECORDS = 500
"""What Argilla takes in one request."""
MOST_BYTES = 8 << 20
PAGE = 1000
READS = 3
"""How often a list of records is read when its pages do not add up."""

Progress = Callable[[str, int, int], None]
Sent = tuple[int, list[tuple[Mapping[str, Any], str]]]


def workspace_of(client: Client, name: str | None) -> dict[str, Any]:
    """The workspace of a name, or the only one. Raises UserError naming those that are there."""
    found = client.request("GET", "me/workspaces")["items"]
    names = ", ".join(sorted(printable(one["name"]) for one in found)) or "none"
    if name is None:
        if len(found) != 1:
            raise UserError(f"name a workspace by --workspace; {printable(client.me['username'])!r} sees: {names}")
        return found[0]
    chosen = next((one for one in found if one["name"] == name), None)
    if chosen is None:
        raise UserError(
            f"no workspace {printable(name)!r} at {client.url} for {printable(client.me['username'])!r}; there are: {names}. Make it "
            "on Argilla's page (an owner can), or name another by --workspace"
        )
    return chosen


def datasets_of(client: Client, workspace: str) -> list[dict[str, Any]]:
    """The datasets of a workspace."""
    return [one for one in client.request("GET", "me/datasets")["items"] if one["workspace_id"] == workspace]


def dataset_of(client: Client, workspace: str, name: str) -> dict[str, Any] | None:
    """The dataset of a name, None where there is none."""
    return next((one for one in datasets_of(client, workspace) if one["name"] == name), None)


def settings_of(client: Client, dataset: str) -> dict[str, list[dict[str, Any]]]:
    """{"fields", "questions", "metadata-properties"} of a dataset. Raises UserError where it is gone."""
    result = {}
    for what in ("fields", "questions", "metadata-properties"):
        path = f"me/datasets/{dataset}/{what}" if what == "metadata-properties" else f"datasets/{dataset}/{what}"
        found = client.request("GET", path)
        if found is None:
            raise UserError("the dataset was deleted from Argilla a moment ago; push it again")
        result[what] = found["items"]
    return result


def users_of(client: Client, workspace: str) -> dict[str, str]:
    """User name by user id, of all users that the key may see."""
    path = "users" if client.me["role"] == "owner" else f"workspaces/{workspace}/users"
    # Argilla sends every user's API key along: only the names are kept.
    found = {one["id"]: one["username"] for one in client.request("GET", path)["items"]}
    return {**found, client.me["id"]: client.me["username"]}


def records_of(
    client: Client, dataset: str, include: Sequence[str], progress: Progress | None = None, stage: str = "reading"
) -> list[dict[str, Any]]:
    """All records of a dataset, as JSON; include: "responses", "suggestions". Raises UserError, Unreachable, PartialResult.

    The list is complete before anybody looks at it: Argilla pages by offset, in the order of time stamps that may be equal, so pages
    read while others work can repeat or skip records. Repeats are merged by id; where the total says that some were skipped, all is
    read again.
    """
    for _ in range(READS):
        found, total, shrunk = _pages(client, dataset, include, progress, stage)
        if len(found) >= total and not shrunk:
            return list(found.values())
    raise PartialResult(
        f"Argilla lists {len(found):,} of {total:,} records, {READS} times in a row: somebody changes the dataset right now. Nothing "
        "was changed here; run the same command again"
    )


def _pages(
    client: Client, dataset: str, include: Sequence[str], progress: Progress | None, stage: str
) -> tuple[dict[str, dict[str, Any]], int, bool]:
    """The records by id, how many there are by the last page, and whether that became fewer: a deletion shifts what follows."""
    found: dict[str, dict[str, Any]] = {}
    offset, total, shrunk = 0, 0, False
    while True:
        params = {"offset": offset, "limit": PAGE, **({"include": list(include)} if include else {})}
        page = client.request("GET", f"datasets/{dataset}/records", params=params)
        if page is None:
            raise UserError("the dataset was deleted from Argilla while it was read; nothing was changed here")
        shrunk |= page["total"] < total
        items, total = page["items"], page["total"]
        found.update((one["id"], one) for one in items)
        offset += len(items)
        if progress is not None:
            progress(stage, min(offset, total), total)
        if not items or offset >= total:
            return found, total, shrunk


def upsert(client: Client, dataset: str, records: Iterable[Mapping[str, Any]]) -> Iterator[Sent]:
    """Send records in batches; after each: how many were taken, and those refused with the reason. Raises UserError, Unreachable.

    One record that Argilla refuses makes it refuse the batch: the batch is halved until that record stands alone.
    """
    for batch in _batches(records):
        refused: list[tuple[Mapping[str, Any], str]] = []
        _send(client, dataset, batch, refused)
        yield len(batch) - len(refused), refused


def _send(client: Client, dataset: str, batch: Sequence[Mapping[str, Any]], refused: list[tuple[Mapping[str, Any], str]]) -> None:
    try:
        if client.request("PUT", f"datasets/{dataset}/records/bulk", body={"items": batch}) is None:
            raise UserError(
                "the dataset was deleted from Argilla while records were sent; run the same command again to make it anew"
            )
    except Refused as error:
        if len(batch) == 1:
            refused.append((batch[0], error.detail))
            return
        middle = len(batch) // 2
        _send(client, dataset, batch[:middle], refused)
        _send(client, dataset, batch[middle:], refused)


def _batches(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size = 0
    for record in records:
        own = len(orjson.dumps(record))
        if batch and (len(batch) == MOST_RECORDS or size + own > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += own
    if batch:
        yield batch
