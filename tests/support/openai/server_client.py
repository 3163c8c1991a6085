"""What the tests of the server share: prompts as the simulated judge reads them, and the real openai client."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai_server import Server

__all__ = ["ask", "block", "pair", "using"]

NONCE = "0badc0de77"
T = TypeVar("T")


def block(name: str, text: str) -> str:
    """A candidate between its delimiters."""
    return f"<{name}-{NONCE}>\n{text}\n</{name}-{NONCE}>\n"


def pair(first: str, second: str, instruction: str = "Answer with one letter from A to G.") -> str:
    """A pairwise prompt."""
    return "Which reply is better?\n" + block("first", first) + block("second", second) + instruction


def using(server: Server, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, T]], **options: Any) -> T:
    """Runs work with a client of this server; no retries unless asked for."""

    async def run() -> T:
        async with AsyncOpenAI(base_url=server.base_url, api_key="key-1", **{"max_retries": 0, "timeout": 10, **options}) as client:
            return await work(client)

    return asyncio.run(run())


def ask(server: Server, prompt: str, **request: Any) -> ChatCompletion:
    """One chat request at temperature 0 to the model judge-a, unless the request says otherwise."""
    body: dict[str, Any] = {"model": "judge-a", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **request}
    return using(server, lambda client: client.chat.completions.create(**body))
