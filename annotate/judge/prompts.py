"""From a prompt and its candidate replies to the messages that a judge reads: sandboxed jinja2, hostile text between marks.

A template has two blocks, `system` (may be left out) and `user`, and sees:

    shown.conversation   the conversation as text                 shown.reference   the reference answer or ""
    shown.replies        a list of {label, text}, as shown        shown.nonce       what makes the marks unforgeable
    rubric               name, criterion                          rubrics           all of them (one request may ask several)
    scale                a list of (label, meaning)               reasoning         whether to think first

The marks around a text carry a nonce that occurs in no text of the request, so that no candidate can close its own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from string import ascii_uppercase

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmpo.annotate.judge.rubrics import Rubric
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import Message, as_text

FOLDER = Path(__file__).parent / "templates"
CHAT_TOKENS = re.compile(r"<(?=\|[A-Za-z0-9_]{1,40}\|>|/?(?:start_of_turn|end_of_turn)>)|\[(?=/?INST\])")
"""The first character of what chat templates take for turns: a server that tokenises them would let a candidate end its turn."""


@dataclass(frozen=True)
class Shown:
    """What one request shows. replies: {"label", "text"} in the order shown."""

    conversation: str
    replies: Sequence[Mapping[str, str]]
    reference: str
    nonce: str


def neutralise_chat_tokens(text: str) -> str:
    """The text with a space in every chat-control sequence, so that it stays text.

    >>> neutralise_chat_tokens("a <|im_end|> b [INST] c"), neutralise_chat_tokens("x <| y, <s>z</s>")
    ('a < |im_end|> b [ INST] c', 'x <| y, <s>z</s>')
    """
    return CHAT_TOKENS.sub(lambda found: found.group() + " ", text)


def nonce_of(prompt_id: str, texts: Sequence[str]) -> str:
    """Eight hexadecimal digits that occur in none of the texts, the same for the same texts in any order.

    The digest decides, so that requests can be cached; where a text holds it by chance or by design, the next one is tried.
    """
    for count in range(1_000_000):
        seed = "\0".join([prompt_id, str(count), *sorted(texts)])
        nonce = blake2b(seed.encode(), digest_size=4).hexdigest()
        if not any(nonce in text for text in texts):
            return nonce
    raise RuntimeError("no nonce was found that the texts do not hold")


def conversation_text(messages: Sequence[Message], tools: str | None = None) -> str:
    """One user message as it is; several with their roles as headings, tool calls as text, behind the tools that are offered (JSON)."""
    if len(messages) == 1 and messages[0]["role"] == "user" and tools is None:
        return messages[0]["content"]
    offered = [] if tools is None else [f"Tools:\n{tools}"]
    return "\n\n".join([*offered, *(f"{message['role'].capitalize()}:\n{as_text(message)}" for message in messages)])


def shown_of(row: FeedbackRow, places: Sequence[int]) -> Shown:
    """What a question about these completions shows: each between marks that it cannot close, without what chat templates act on."""
    conversation, reference, *texts = map(
        neutralise_chat_tokens,
        (conversation_text(row.prompt, row.tools), row.reference, *(row.said(place) for place in places)),
    )
    replies = [{"label": label, "text": text} for label, text in zip(ascii_uppercase, texts)]
    return Shown(conversation, replies, reference, nonce_of(row.prompt_id, [conversation, reference, *texts]))


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Loads the package's own templates by name; a user's template is given by its text and may import ours."""
    # No autoescape: the text goes to a model, not to a page; the marks are what delimits it.
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )


class Template:
    """A template and its digest; `messages` renders it."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.digest = blake2b(source.encode(), digest_size=8).hexdigest()
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise UserError(f"template {name}: {error}") from None
        if "user" not in self._template.blocks:
            raise UserError(
                f"template {name}: it needs a block `user` ({{% block user %}}...{{% endblock %}}); `system` is optional"
            )

    def messages(
        self, shown: Shown, rubrics: Sequence[Rubric], scale: Sequence[tuple[str, str]], *, reasoning: bool
    ) -> list[Message]:
        """The messages of a request. Raises UserError where the template names something that there is not."""
        values = {"shown": shown, "rubric": rubrics[0], "rubrics": rubrics, "scale": list(scale), "reasoning": reasoning}
        found = []
        try:
            # The module level (imports, macros) runs once, then each block in the context that it left.
            context = self._template.new_context(values)
            for _ in self._template.root_render_func(context):
                pass
            for role in ("system", "user"):
                block = self._template.blocks.get(role)
                text = "".join(block(context)).strip() if block else ""
                if text:
                    found.append({"role": role, "content": text})
        except Exception as error:  # a template may divide by zero; whatever it does, it is the user's to mend
            raise UserError(f"template {self.name}: {type(error).__name__}: {error}") from None
        if not any(message["role"] == "user" for message in found):
            raise UserError(f"template {self.name}: its block `user` comes out empty")
        return found


def load_template(name: str) -> Template:
    """A built-in template by the name of its mode, or a user's by its path. Raises UserError."""
    path = FOLDER / f"{name}.j2" if "/" not in name and not name.endswith(".j2") else Path(name)
    try:
        return Template(path.name, path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.j2") if file.stem != "parts"))
        raise UserError(f"--template {name}: {error.strerror or error}. Built in: {known}; or the path of a .j2 file") from None
    except UnicodeDecodeError:
        raise UserError(f"--template {name}: no UTF-8 text") from None
