"""The one door to Argilla: every request goes through here, with finite retries, and every failure becomes a sentence.

    UserError            address, key, rights, names, or a server that never answered       exit 2
    └── Unreachable      no answer in spite of retries; push and pull make it PartialResult where something is done already
    └── RequestRefused   the server understood and said no (422); .detail is its reason

Behind the client stands what push and pull ask for: workspaces, datasets, users, all records of a dataset, and records in batches.
Ids are Argilla's own, as text. Nothing here keeps a state: killed at any moment, the same call again finds out where things stand.

The `argilla` package connects and checks the key; records travel through its HTTP client as plain JSON, because its own classes
spend more time on a record than the network does. What Argilla answers is data of others: it reaches messages through `printable`
only.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from mmpo.annotate.client import proxy_for, public_url, retry_after
from mmpo.pipeline.errors import PartialResult, UserError, printable
from mmpo.pipeline.progress import Progress

DEFAULT_URL = "http://127.0.0.1:6900"
KEY = "ARGILLA_API_KEY"
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries of a request that a fault of the network or the server cut short."""
CONNECT_PAUSES = (0.5, 1.0)
TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0
TIMEOUT_SECONDS = 120
MAX_RECORDS_PER_REQUEST = 500
"""What Argilla takes in one request."""
MAX_BYTES_PER_REQUEST = 8 << 20
RECORDS_PER_PAGE = 1000
FULL_READS = 3
"""How often a list of records is read when its pages do not add up."""

UpsertedBatch = tuple[int, list[tuple[Mapping[str, Any], str]]]


class Unreachable(UserError):
    """Argilla did not answer, however often it was asked."""


class RequestRefused(UserError):
    """Argilla refused what was sent."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"Argilla refuses it: {detail}")
        self.detail = detail


def api_url_of(given: str | None) -> str:
    """Argilla's address: as given, else ARGILLA_API_URL, else this machine's port 6900. Raises UserError."""
    url = (given or os.environ.get("ARGILLA_API_URL") or DEFAULT_URL).rstrip("/")
    try:
        public = public_url(url)
    except ValueError:
        # Not shown: what cannot be taken apart may hold a password.
        raise UserError(
            "Argilla's address (--api-url or ARGILLA_API_URL) cannot be read: write it as http://HOST:PORT, the port from 1 to 65535"
        ) from None
    if not url.startswith(("http://", "https://")) or public != url:
        raise UserError(
            f"Argilla's address {printable(public if '://' in url else url)}: write it as http://HOST:PORT, without user, "
            f"password or query; the key comes from the environment variable {KEY}"
        )
    return url


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {KEY} is empty: set it to the API key of an owner or admin (Argilla's page: My settings; "
            "`mmpo argilla serve` prints the owner's)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {KEY} holds characters that no API key has; copy the key again")
    return key


def connect(api_url: str | None = None) -> "Client":
    """Argilla behind an address, the key checked; use it as `with connect(...) as client`.

    Raises UserError: no server, no Argilla there, wrong key.
    """
    url, key = api_url_of(api_url), _key()
    proxy_for(url)
    return _with_retries(lambda: _connected(url, key), CONNECT_PAUSES)


def _connected(url: str, key: str) -> "Client":
    import httpx
    from argilla import Argilla

    try:
        return Client(Argilla(api_url=url, api_key=key, timeout=TIMEOUT_SECONDS, retries=0), url)
    except httpx.TransportError as error:
        raise _TemporaryFault(
            f"no Argilla answers at {url} ({_first_line(error)}). Is it running? `mmpo argilla serve --home DIR` starts one on this "
            "machine; --api-url or ARGILLA_API_URL names another"
        ) from None
    except Exception as error:
        _raise_known(error, url)
        if getattr(error, "status_code", None) in TEMPORARY_STATUS:
            raise _TemporaryFault(f"Argilla at {url} is not ready: {_first_line(error)}. Try again in a moment") from None
        raise UserError(f"{url} answers, but not as Argilla does: {_first_line(error)}") from None


class _TemporaryFault(Exception):
    """A fault that may be gone at the next try; wait: seconds that the server asks for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def _with_retries(attempt: Callable[[], Any], pauses: Sequence[float]) -> Any:
    """What an attempt returns, tried again after each pause while its fault is temporary. Raises Unreachable after the last one."""
    for pause in (*pauses, None):
        try:
            return attempt()
        except _TemporaryFault as fault:
            if pause is None:
                raise Unreachable(str(fault)) from None
            time.sleep(max(pause, fault.wait))
    raise AssertionError("the loop returns or raises")


def _raise_known(error: Exception, url: str) -> None:
    """Raise what an error of the SDK at the first request means, where that is known."""
    from json import JSONDecodeError

    name = type(error).__name__
    if name in ("ArgillaCredentialsError", "UnauthorizedError"):
        raise UserError(f"Argilla at {url} does not know the key in {KEY}: copy it again from its page (My settings)") from None
    if isinstance(error, JSONDecodeError) or name in ("NotFoundError", "ValidationError", "UnsupportedProtocol", "InvalidURL"):
        raise UserError(f"{url} is no Argilla: give the address that its page has, without a path; {printable(name)}") from None


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0] or type(error).__name__)


class Client:
    """Argilla as the owner of the key sees it; `url` is its address, `me` the id, username and role behind the key."""

    def __init__(self, client: Any, url: str) -> None:
        self.url = url
        self._http = client.http_client
        self.me: dict[str, str] = {"id": str(client.me.id), "username": client.me.username, "role": str(client.me.role.value)}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON that Argilla answers. Raises Unreachable, RequestRefused or UserError; 404 gives None, 409 raises
        RequestRefused."""
        sent = {} if body is None else {"content": orjson.dumps(body), "headers": {"Content-Type": "application/json"}}
        return _with_retries(lambda: self._request_once(method, path, {**sent, "params": params}), PAUSES)

    def _request_once(self, method: str, path: str, sent: Mapping[str, Any]) -> Any:
        import httpx

        failed = f"Argilla at {self.url} did not answer {len(PAUSES) + 1} times in a row: "
        try:
            response = self._http.request(method, f"/api/v1/{path}", **sent)
        except httpx.TransportError as error:
            raise _TemporaryFault(failed + _first_line(error)) from None
        if response.status_code in TEMPORARY_STATUS:
            wait = min(retry_after(response.headers) or 0.0, LONGEST_PAUSE)
            raise _TemporaryFault(f"{failed}status {response.status_code}: {printable(response.text[:200])}", wait)
        return self._read(response, method, path)

    def _read(self, response: Any, method: str, path: str) -> Any:
        status = response.status_code
        if status == 404:
            return None
        if status in (401, 403):
            raise UserError(
                f"the key in {KEY} belongs to {printable(self.me['username'])!r}, {self.me['role']}, who may not do this "
                f"({method} {path.partition('?')[0].split('/')[-1]}): use the key of an owner or of an admin of the workspace"
            )
        if status in (400, 409, 422):
            raise RequestRefused(printable(_detail(response.content), 400))
        if status >= 300:
            raise UserError(f"Argilla at {self.url} answers with status {status}: {printable(response.text[:200])}")
        try:
            return orjson.loads(response.content) if response.content else {}
        except orjson.JSONDecodeError:
            raise UserError(f"{self.url} answers, but not as Argilla does: {printable(response.text[:100])}") from None


def _detail(content: bytes) -> str:
    """What a refusal says, without the input that it echoes."""
    try:
        detail = orjson.loads(content)["detail"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
    params = detail.get("params") if isinstance(detail, dict) else None
    errors = params.get("errors") if isinstance(params, dict) else detail
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return f"{'.'.join(map(str, errors[0].get('loc', ())))}: {errors[0].get('msg', '')}"
    said = params.get("detail") if isinstance(params, dict) else None
    return str(said or (detail.get("code") if isinstance(detail, dict) else None) or detail)


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


def members_of(client: Client, workspace: str) -> list[str]:
    """The ids of the annotators that belong to a workspace, as far as the key may see them. Raises UserError, Unreachable."""
    if client.me["role"] == "annotator":
        return [client.me["id"]]
    found = client.request("GET", f"workspaces/{workspace}/users")["items"]
    return [one["id"] for one in found if one["role"] == "annotator"]


def records_of(
    client: Client, dataset: str, include: Sequence[str], progress: Progress | None = None, stage: str = "reading"
) -> list[dict[str, Any]]:
    """All records of a dataset, as JSON; include: "responses", "suggestions". Raises UserError, Unreachable, PartialResult.

    The list is complete before anybody looks at it: Argilla pages by offset, in the order of time stamps that may be equal, so
    pages read while others work can repeat or skip records. Repeats are merged by id; where the total says that some were skipped,
    all is read again.
    """
    for _ in range(FULL_READS):
        found, total, shrunk = _pages(client, dataset, include, progress, stage)
        if len(found) >= total and not shrunk:
            return list(found.values())
    raise PartialResult(
        f"Argilla lists {len(found):,} of {total:,} records, {FULL_READS} times in a row: somebody changes the dataset right now. Nothing "
        "was changed here; run the same command again"
    )


def _pages(
    client: Client, dataset: str, include: Sequence[str], progress: Progress | None, stage: str
) -> tuple[dict[str, dict[str, Any]], int, bool]:
    """The records by id, how many there are by the last page, and whether that became fewer: a deletion shifts what follows."""
    found: dict[str, dict[str, Any]] = {}
    offset, total, shrunk = 0, 0, False
    while True:
        params = {"offset": offset, "limit": RECORDS_PER_PAGE, **({"include": list(include)} if include else {})}
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


def upsert(client: Client, dataset: str, records: Iterable[Mapping[str, Any]]) -> Iterator[UpsertedBatch]:
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
    except RequestRefused as error:
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
        if batch and (len(batch) == MAX_RECORDS_PER_REQUEST or size + own > MAX_BYTES_PER_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += own
    if batch:
        yield batch
