"""Where an endpoint is, by options and environment: what is wrong is said with the option's or the variable's name, and shows no secret."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from raw_endpoint import CHAT, chat, raw_endpoint

from mmpo.annotate.argilla import connect
from mmpo.annotate.client import OPENAI, Answer, Endpoint, EndpointSettings, Failure, base_url_of, check_address, proxy_for
from mmpo.annotate.judge import Judge, JudgeOptions, judges_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import options_from

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *(name.upper() for name in PROXIES), "OPENAI_BASE_URL", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def opened(base_url: str = "http://127.0.0.1:9/v1") -> None:
    async def run() -> None:
        async with Endpoint(EndpointSettings("m", base_url), 5.0):
            pass

    asyncio.run(run())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ALL_PROXY": "socks5://me:pass@127.0.0.1:1080"}, "ALL_PROXY=socks5://127.0.0.1:1080 needs the package socksio"),
        ({"all_proxy": "socks5h://127.0.0.1:1080"}, "all_proxy=socks5h://127.0.0.1:1080 needs"),
        ({"HTTP_PROXY": "banana"}, "HTTP_PROXY=banana is no proxy"),
        ({"HTTP_PROXY": "ftp://127.0.0.1:21"}, "HTTP_PROXY=ftp://127.0.0.1:21 is no proxy"),
        ({"HTTP_PROXY": "http://me:pass@[::1"}, "HTTP_PROXY is no proxy"),
        ({"HTTP_PROXY": "http://127.0.0.1:99999"}, "HTTP_PROXY=http://127.0.0.1:99999 is no proxy"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE=/no/such.pem"),
        ({"OPENAI_ORG_ID": "a\nb"}, "OPENAI_ORG_ID"),
    ],
)
def test_what_the_environment_says_is_checked_and_named(
    variables: Mapping[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "socksio" in said:
        monkeypatch.setattr("mmpo.annotate.client.address.find_spec", lambda name: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        opened()
    assert said in str(refused.value) and "pass@" not in str(refused.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": "banana"},
        {"HTTP_PROXY": "banana", "NO_PROXY": "127.0.0.1"},
        {"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "localhost,127.0.0.1"},
        {"HTTP_PROXY": "ftp://127.0.0.1:21", "no_proxy": "*"},
    ],
)
def test_a_proxy_that_is_not_used_is_not_looked_at(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with raw_endpoint(chat("C")) as server:
        opened(server.base_url)
        assert isinstance(answered(server.base_url), Answer)


def answered(base_url: str) -> Answer | Failure:
    async def run() -> Answer | Failure:
        async with Endpoint(EndpointSettings("m", base_url), 20.0) as endpoint:
            return await endpoint.ask(CHAT)

    return asyncio.run(run())


def test_a_proxy_that_can_be_used_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_endpoint(chat("C")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removeprefix("http://").removesuffix("/v1"))
        assert proxy_for("http://judge.example/v1")[0] == "HTTP_PROXY"
        assert isinstance(answered("http://judge.example/v1"), Answer)
        assert proxy.came[0].path == "http://judge.example/v1/chat/completions"


def test_argilla_is_reached_through_the_same_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", "owner.apikey")
    monkeypatch.setenv("HTTP_PROXY", "banana")
    with pytest.raises(UserError, match="HTTP_PROXY=banana is no proxy"):
        connect("http://127.0.0.1:9")


def test_the_address_is_the_options_else_the_environments_else_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_url_of(None) == (OPENAI, "base_url")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    [judge] = judges_of(JudgeOptions(model="m"))
    assert judge.base_url == "http://127.0.0.1:8000/v1"
    [judge] = judges_of(JudgeOptions(model="m", base_url="http://127.0.0.1:9000/v1"))
    assert judge.base_url == "http://127.0.0.1:9000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "banana")
    with pytest.raises(UserError, match="variable OPENAI_BASE_URL 'banana' is no address"):
        judges_of(JudgeOptions(model="m"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_url": "http://[::1/v1"}, "base_url 'http://[::1/v1' is no address"),
        ({"base_url": "http://me:pass@[::1/v1"}, "base_url is no address"),
        ({"base_url": "127.0.0.1:8000/v1"}, "is no address"),
        ({"base_url": "http://127.0.0.1:0/v1"}, "is no address"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "is no address"),
        ({"base_url": "http://a b/v1"}, "is no address"),
        ({"base_url": "http://me:pass@host/v1"}, "would end up in files"),
        ({"base_url": "https://host/v1?api-key=secret"}, "--header NAME=env:VARIABLE"),
        ({"headers": {"api-key": "secret"}}, "--header api-key: keys come from the environment only"),
        ({"headers": {"x-own": "sk-0123456789abcdef"}}, "--header x-own: keys come from the environment only"),
        ({"headers": {"Content-Length": "3"}}, "--header Content-Length"),
        ({"headers": {"two words": "3"}}, "--header two words"),
    ],
)
def test_addresses_and_headers_that_can_not_be_are_refused_and_secrets_are_not_shown(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_address(EndpointSettings("m", **settings))
    assert said in str(refused.value)
    assert not any(secret in str(refused.value) for secret in ("pass@", "=secret", "sk-0123"))


def test_a_query_is_kept_and_may_be_written_down() -> None:
    azure = EndpointSettings("m", "https://me.openai.azure.com/openai/deployments/judge?api-version=2024-10-21")
    check_address(azure)
    assert azure.public == azure.base_url


def test_headers_are_given_one_by_one_or_as_a_mapping_and_values_may_hold_commas() -> None:
    given = options_from(JudgeOptions, {"headers": ["x-title=a, b=c", "api-key=env:AZURE_KEY"]}).headers
    assert given == {"x-title": "a, b=c", "api-key": "env:AZURE_KEY"} == JudgeOptions(headers=given).headers
    with pytest.raises(UserError, match="'api-key' is not of the form NAME=VALUE"):
        options_from(JudgeOptions, {"headers": "api-key: secret"})


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_KEY", raising=False)

    async def run() -> None:
        async with Endpoint(EndpointSettings("m", "http://127.0.0.1:9/v1", headers={"api-key": "env:AZURE_KEY"}), 5.0):
            pass

    with pytest.raises(UserError, match="header api-key: the environment variable AZURE_KEY is not set"):
        asyncio.run(run())


def test_a_judge_that_is_made_already_is_taken_as_it_is() -> None:
    made = Judge(model="a", rater="anna", headers={"X-Team": "one"})
    [found] = judges_of(JudgeOptions(base_url="http://127.0.0.1:9/v1"), [made])
    assert (found.model, found.rater, found.headers) == ("a", "anna", {"X-Team": "one"})
    assert found.base_url == "http://127.0.0.1:9/v1"  # the run's, where it names none
