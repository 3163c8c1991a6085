"""The one door to Argilla: every request goes through here, with finite retries, and every failure becomes a sentence.

    UserError            address, key, rights, names, or a server that never answered       exit 2
    └── Unreachable      no answer in spite of retries; push and pull make it PartialResult where something is done already
    └── Refused          the server understood and said no (422); .detail is its reason

The `argilla` package connects and checks the key; records travel through its HTTP client as plain JSON, because its own classes spend more
time on a record than the network does. What Argilla answers is data of others: it reaches messages through `printable` only.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import orjson

from mmpo.annotate.argilla.display import printable
from mmpo.annotate.client import public_url, retry_after
from mmpo.pipeline.errors import UserError

__all__ = ["Client", "Refused", "Unreachable", "api_url_of", "connect"]

DEFAULT_URL = "http://127.0.0.1:6900"
KEY = "ARGILLA_API_KEY"
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries of a request that a fault of the network or the server cut short."""
CONNECT_PAUSES = (0.5, 1.0)
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0
TIMEOUT = 120


class Unreachable(UserError):
    """Argilla did not answer, however often it was asked."""


class Refused(UserError):
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
    import httpx
    from argilla import Argilla

    url, key = api_url_of(api_url), _key()
    for pause in (*CONNECT_PAUSES, None):
        try:
            return Client(Argilla(api_url=url, api_key=key, timeout=TIMEOUT, retries=0), url)
        except httpx.TransportError as error:
            if pause is None:
                raise Unreachable(_nobody(url, error)) from None
        except Exception as error:
            _raise_known(error, url)
            passing = getattr(error, "status_code", None) in PASSING
            if passing and pause is None:
                raise Unreachable(
                    f"Argilla at {url} is not ready: {printable(_first_line(error))}. Try again in a moment"
                ) from None
            if not passing:
                raise UserError(f"{url} answers, but not as Argilla does: {printable(_first_line(error))}") from None
        time.sleep(pause)
    raise AssertionError("the loop returns or raises")


def _nobody(url: str, error: Exception) -> str:
    return (
        f"no Argilla answers at {url} ({printable(_first_line(error) or type(error).__name__)}). Is it running? "
        "`mmpo argilla serve --home DIR` starts one on this machine; --api-url or ARGILLA_API_URL names another"
    )


def _raise_known(error: Exception, url: str) -> None:
    """Raise what an error of the SDK at the first request means, where that is known."""
    from json import JSONDecodeError

    name = type(error).__name__
    if name in ("ArgillaCredentialsError", "UnauthorizedError"):
        raise UserError(f"Argilla at {url} does not know the key in {KEY}: copy it again from its page (My settings)") from None
    if isinstance(error, JSONDecodeError) or name in ("NotFoundError", "ValidationError", "UnsupportedProtocol", "InvalidURL"):
        raise UserError(f"{url} is no Argilla: give the address that its page has, without a path; {printable(name)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


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
        """The JSON that Argilla answers. Raises Unreachable, Refused or UserError; 404 gives None, 409 raises Refused."""
        import httpx

        content = None if body is None else orjson.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        failure = ""
        for pause in (*PAUSES, None):
            wait = pause or 0.0
            try:
                response = self._http.request(method, f"/api/v1/{path}", content=content, params=params, headers=headers)
            except httpx.TransportError as error:
                failure = _first_line(error) or type(error).__name__
            else:
                if response.status_code not in PASSING:
                    return self._read(response, method, path)
                failure = f"status {response.status_code}: {response.text[:200]}"
                wait = max(wait, min(retry_after(response.headers) or 0.0, LONGEST_PAUSE))
            if pause is not None:
                time.sleep(wait)
        raise Unreachable(f"Argilla at {self.url} did not answer {len(PAUSES) + 1} times in a row: {printable(failure)}")

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
            raise Refused(printable(_detail(response.content), 400))
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
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        return f"{'.'.join(map(str, detail[0].get('loc', ())))}: {detail[0].get('msg', '')}"
    if isinstance(detail, dict):
        params = detail.get("params") or {}
        errors = params.get("errors") if isinstance(params, dict) else None
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            return f"{'.'.join(map(str, errors[0].get('loc', ())))}: {errors[0].get('msg', '')}"
        return str(params.get("detail") or detail.get("code") or detail) if isinstance(params, dict) else str(detail)
    return str(detail)
