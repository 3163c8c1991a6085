"""Where an endpoint is and how it is reached: address, key, headers and proxies, as options and the environment say, all checked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import BeforeValidator

from mmpo.annotate.client.failures import KEY_SHAPED
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import Count, Positive

if TYPE_CHECKING:
    import httpx2

OPENAI = "https://api.openai.com/v1"
CHAT = "/chat/completions"
LOCAL_KEY = "none"
"""What servers without keys are sent: the client insists on one."""
ENVIRONMENT = "env:"
"""Begins the value of a header that an environment variable holds."""
CREDENTIALS = ("authorization", "api-key", "x-api-key")
"""Headers that take the place of the key: with one of them, no other key is sent."""
SECRET = re.compile(r"auth|key|token|secret|cookie|passw|credential|signature|^sig$|^code$", re.IGNORECASE)
"""Names of headers and parameters whose values are taken for secrets."""
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OF_THE_TRANSPORT = ("connection", "content-length", "host", "transfer-encoding")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


def public_url(url: str) -> str:
    """The address without user, password and query, as it may be written down. Raises ValueError where it can't be taken apart.

    >>> public_url("https://me:secret@host:8000/v1?key=1")
    'https://host:8000/v1'
    >>> public_url("http://[::1]:6900")
    'http://[::1]:6900'
    """
    parts = urlsplit(url)
    name = parts.hostname or ""
    host = (f"[{name}]" if ":" in name else name) + (f":{parts.port}" if parts.port else "")
    return f"{parts.scheme}://{host}{parts.path}"


def _headers_in(value: Any) -> Any:
    """NAME=VALUE, or several of them in a list, as a mapping; a value may hold commas."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    wrong = next((text for text in texts if "=" not in text), None)
    if wrong is not None:
        raise ValueError(f"{wrong.partition(':')[0]!r} is not of the form NAME=VALUE or NAME=env:VARIABLE")
    return {name.strip(): text.strip() for name, _, text in (text.partition("=") for text in texts)}


Headers = Annotated[Mapping[str, str], BeforeValidator(_headers_in)]
"""Headers by name; the value env:VARIABLE stands for what the environment variable holds."""


@dataclass(frozen=True)
class EndpointSettings:
    """A model at an OpenAI-compatible endpoint, and what it bears: requests in flight, requests and tokens a minute (None: not known).

    base_url: its query goes along with every request. api_key_env: the environment variable with the key. headers: sent along with every
    request, as is extra_body. None of them holds a secret (`check_address`), so that all of them may be written down.
    """

    model: str
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: Count | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    headers: Headers = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages."""
        return self.model

    @property
    def public(self) -> str:
        """The address as it may be written down: with the query, which holds no secret."""
        query = urlsplit(self.base_url).query
        return public_url(self.base_url) + (f"?{query}" if query else "")


def base_url_of(given: str | None) -> tuple[str, str]:
    """The address of an endpoint and what named it: the option, else OPENAI_BASE_URL as OpenAI's clients have it, else OpenAI."""
    variable = os.environ.get("OPENAI_BASE_URL", "").strip()
    if given is None and variable:
        return variable, "the environment variable OPENAI_BASE_URL"
    return given or OPENAI, "base_url"


def check_address(endpoint: EndpointSettings, where: str = "base_url") -> None:
    """Raises UserError for an address that is none, or one with a secret in it; for headers likewise. where: what named the address."""
    address = endpoint.base_url
    if (bare := address.strip()) != address:
        before, _, after = address.partition(bare)
        raise UserError(f"{where} {before + _shown(bare) + after!r} begins or ends with white space; write it without")
    parts = _parts(address)
    if parts is None or parts.scheme not in ("http", "https"):
        shown = _shown(endpoint.base_url) and f" {_shown(endpoint.base_url)!r}"
        raise UserError(f"{where}{shown} is no address; write it as http://HOST:PORT/v1, for example http://127.0.0.1:8000/v1")
    if parts.username or parts.password or any(SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise UserError(
            f"{where} {public_url(endpoint.base_url)}: an address with a password or a key in it would end up in files; give the key "
            f"by the environment variable {endpoint.api_key_env}, or as a header by --header NAME=env:VARIABLE"
        )
    for name, value in endpoint.headers.items():
        if not HEADER_NAME.fullmatch(name) or name.lower() in OF_THE_TRANSPORT:
            raise UserError(
                f"--header {name}: no header that can be given; write NAME=VALUE, for example api-key=env:AZURE_API_KEY"
            )
        if not value.startswith(ENVIRONMENT) and (SECRET.search(name) or KEY_SHAPED.search(value)):
            raise UserError(
                f"--header {name}: keys come from the environment only; put it into a variable and write {name}={ENVIRONMENT}VARIABLE"
            )


def _parts(url: str) -> SplitResult | None:
    """The parts of an address with a host and a possible port; None where it has none."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 and url.isprintable() and " " not in url else None
    except ValueError:
        return None


def api_key(judge: EndpointSettings) -> str:
    """The key from the judge's environment variable; servers other than OpenAI's may do without. Raises UserError."""
    key = os.environ.get(judge.api_key_env, "").strip()
    if not key and judge.base_url.rstrip("/") == OPENAI:
        raise UserError(
            f"{judge.name}: the environment variable {judge.api_key_env} is not set; export the API key there, "
            "or name another endpoint by --base-url or another variable by --api-key-env"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{judge.name}: the key in {judge.api_key_env} holds characters that no key has (line breaks, letters beyond ASCII); "
            "export it again"
        )
    given_headers(judge)
    return key or LOCAL_KEY


def given_headers(judge: EndpointSettings) -> dict[str, str]:
    """The judge's own headers as they are sent, values from the environment filled in. Raises UserError."""
    found = {}
    for name, given in judge.headers.items():
        variable = given.removeprefix(ENVIRONMENT)
        value = os.environ.get(variable, "").strip() if variable != given else given
        if not value or not (value.isascii() and value.isprintable()):
            what = f"the environment variable {variable}" if variable != given else "its value"
            why = "holds characters that no header has" if value else "is not set" if variable != given else "is empty"
            raise UserError(f"{judge.name}: header {name}: {what} {why}")
        found[name] = value
    return found


def http_client(judge: EndpointSettings, timeout: float) -> "httpx2.AsyncClient":
    """The client of the connections to an endpoint. Raises UserError for what the environment says of proxies and certificates."""
    import httpx2
    import openai

    variable, proxy = proxy_for(judge.base_url)
    # A redirect to another host would take headers along that are keys.
    follow = not any(value.startswith(ENVIRONMENT) for value in judge.headers.values())
    try:
        transport = httpx2.AsyncHTTPTransport(proxy=proxy, limits=openai.DEFAULT_CONNECTION_LIMITS)
    except OSError as error:
        named = " or ".join(f"{name}={os.environ[name]}" for name in CERTIFICATES if os.environ.get(name))
        raise UserError(
            f"the file of certificates that the environment names can't be read: {named} ({error.strerror or error})"
        ) from None
    except (ImportError, ValueError) as error:
        raise _bad_proxy(variable, proxy, " needs the package socksio" if isinstance(error, ImportError) else "") from None
    return openai.DefaultAsyncHttpxClient(
        transport=transport, timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)), follow_redirects=follow
    )


def proxy_for(url: str) -> tuple[str, str | None]:
    """The variable of the environment that names a proxy for an address, and the proxy; "" and None: it goes direct. Raises UserError."""
    parts, found = urlsplit(url), getproxies()
    scheme = next((name for name in (parts.scheme, "all") if found.get(name)), None)
    host = parts.hostname or ""
    if scheme is None or proxy_bypass(host) or (parts.port and proxy_bypass(f"{host}:{parts.port}")):
        return "", None
    variable = next((name for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY") if os.environ.get(name)), f"{scheme}_proxy")
    value = found[scheme]
    proxy = value if "://" in value else f"http://{value}"
    given = _parts(proxy)
    if given is None or ("://" not in value and not given.port):
        raise _bad_proxy(variable, value)
    if given.scheme.startswith("socks") and find_spec("socksio") is None:
        raise _bad_proxy(variable, value, " needs the package socksio")
    return variable, proxy


def _bad_proxy(variable: str, value: str | None, why: str = "") -> UserError:
    shown = f"={_shown(value)}" if value and _shown(value) else ""
    return UserError(
        f"the environment variable {variable}{shown}{why or ' is no proxy that can be used'}; write http://HOST:PORT, unset it, or name "
        "the endpoint's host in NO_PROXY"
    )


def _shown(url: str) -> str:
    """An address for a message, "" where it can't be taken apart and may hold a password."""
    try:
        return public_url(url) if "://" in url else "" if "@" in url else url
    except ValueError:
        return "" if "@" in url else url
