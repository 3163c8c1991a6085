"""Which chat template a tokenizer renders with: its own, a plain one, or one from a file; and what it makes of a conversation.
It is saved with the tokenizer, so that what is served is what was trained.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import Message

REFUSALS = (TemplateError, TypeError)  # TypeError: what Jinja raises where a template adds text to a missing value
_STAND_IN = "A stand-in reply."
"""Put behind each prompt to see what the template makes of the prompt once a reply follows, and writes behind that."""
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token or sep_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""`User: ...`, `Assistant: ...`, a line each, every reply closed by the end-of-text token (an encoder's: [SEP])."""
NAMED_TEMPLATES = ("tokenizer", "plain")
"""Choices that are no file."""
PINNED_DATE = datetime(2024, 7, 26)
"""Today, for templates that write it: the day that Llama 3's template falls back on where there is no clock."""


def choose_template(tokenizer: Any, choice: str = "tokenizer") -> None:
    """Gives the tokenizer the chat template that `choice` names: `tokenizer` (its own), `plain`, or a Jinja file.

    Raises UserError where the tokenizer has none of its own, the file can't be read, or the template can't be used.
    """
    if choice == "plain":
        tokenizer.chat_template = plain_template(tokenizer)
    elif choice != "tokenizer":
        tokenizer.chat_template = _from_file(Path(choice))
    check_template(tokenizer, "the chat template" if choice in NAMED_TEMPLATES else f"{choice}: the chat template")


def ask_behind(tokenizer: Any, question: str) -> None:
    """Lets the tokenizer's chat template write a user's `question` behind a conversation that ends with a reply, and then whatever calls
    for an answer. A template that asks it already stays as it is.

    Raises UserError for a question of white space alone, and where the template writes a reply otherwise once another turn follows, or no
    such turn.
    """
    question, template = question.strip(), ChatTemplate(tokenizer)
    if not question:
        raise UserError('ask: the question is empty; give one, such as "Is this a good answer?", or leave it out')
    conversation: list[Message] = [{"role": "user", "content": "A stand-in prompt."}, {"role": "assistant", "content": _STAND_IN}]
    try:
        replied = template.text(conversation)[0]
        asked = template.text([*conversation, {"role": "user", "content": question}], generation=True)[0]
    except REFUSALS as error:
        raise UserError(f"ask: the chat template refuses a question behind a reply: {error}") from error
    if question in replied.rpartition(_STAND_IN)[2]:
        return
    if not asked.startswith(replied) or question not in asked[len(replied) :]:
        raise UserError(
            "ask: the chat template writes a reply otherwise once a question follows; give --chat-template FILE with a template that asks"
        )
    behind = json.dumps(asked[len(replied) :], ensure_ascii=False)
    there = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
    tokenizer.chat_template = f"{tokenizer.get_chat_template()}{{% if {there} %}}{{{{ {behind} }}}}{{% endif %}}"


def plain_template(tokenizer: Any) -> str:
    """`PLAIN_TEMPLATE`, behind the BOS (an encoder's: [CLS]) where the tokenizer puts one before a text by itself.

    A template's text is tokenised without additions, so that a model used to a BOS gets it from the template or not
    at all.
    """
    first = (tokenizer("a")["input_ids"] or [None])[0]
    for name in ("bos_token", "cls_token"):
        if first is not None and first == getattr(tokenizer, f"{name}_id"):
            return f"{{{{ {name} }}}}{PLAIN_TEMPLATE}"
    return PLAIN_TEMPLATE


def check_template(tokenizer: Any, named: str = "the chat template") -> None:
    """Raises UserError where the tokenizer has no chat template, several without a default, or one that is no Jinja.

    A template that only refuses some conversations passes: those are counted one by one.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, so that nobody knows how its model marks whose turn it is: give "
            "--chat-template plain (lines `User: ...` and `Assistant: ...`), --chat-template FILE (a Jinja template), or "
            "an instruction-tuned model, which brings its own"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        raise UserError(f"{named} is no valid Jinja, line {error.lineno}: {error.message}") from error
    except ValueError as error:
        raise UserError(f"{named} can't be used: {error} Give --chat-template FILE with one of them") from error
    except REFUSALS:
        return


def pad_token(tokenizer: Any) -> int:
    """A token id to fill rows with; the attention mask hides it, so that any will do."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def with_pinned_date(template: str) -> str:
    """The template with `PINNED_DATE` for today: else token ids would change at midnight, and with them a resumed run and
    every key of a reference cache.

    >>> with_pinned_date("{{ messages }}")
    '{{ messages }}'
    """
    if "strftime_now" not in template:
        return template
    known = "".join(f" | replace('%{sign}', '{PINNED_DATE.strftime('%' + sign)}')" for sign in "aAbBdHIjmMpSyY")
    # A macro hides the global function of that name; transformers lets no function of ours through. Of the line break
    # nothing is written (trim_blocks), and the template still begins a line (lstrip_blocks).
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{known} }}}}{{%- endmacro %}}\n{template}"


class ChatTemplate:
    """Conversations as text, as a tokenizer's own template writes them, with `PINNED_DATE` for today.

    `closes`: whether it wrote anything but white space behind the last reply that was looked at. `tools`: what the template is offered
    with the conversations that follow. Raises UserError where the
    tokenizer has no template, or one that can't be used (`choose_template` gives one); its methods raise one of REFUSALS
    where the template refuses a conversation.
    """

    def __init__(self, tokenizer: Any) -> None:
        check_template(tokenizer)
        self.tokenizer, self.closes = tokenizer, False
        self.tools: list[dict[str, Any]] | None = None
        template = tokenizer.get_chat_template()
        pinned = with_pinned_date(template)
        self._options: dict[str, Any] = {} if pinned == template else {"chat_template": pinned}
        self._unwritten: dict[tuple[tuple[str, str | None, bool], ...], list[int]] = {}

    def text(self, prompt: Sequence[Message], reply: Sequence[Message] = (), *, generation: bool = False) -> tuple[str, bool]:
        """The text, with the generation prompt if asked for; and whether the template refused the system message, which then
        stands in the first user turn. A reply goes on with the assistant's turn that the prompt ends with.
        """
        messages = [{name: value for name, value in m.items() if value is not None} for m in followed(prompt, reply)]
        try:
            return self._apply(messages, generation), False
        except REFUSALS:
            merged = merge_system(messages)
            if merged is None:
                raise
            return self._apply(merged, generation), True

    def prompt(self, prompt: Sequence[Message]) -> tuple[str, bool]:
        """The text of a prompt up to where its reply begins: with the generation prompt, or to the place where the assistant's turn that
        it ends with goes on; and whether the system message was refused, as `text` says it.
        """
        if not goes_on(prompt):
            return self.text(prompt, generation=True)
        answered, merged = self.text(prompt, [{"role": "assistant", "content": _STAND_IN}])
        before, _, behind = answered.rpartition(_STAND_IN)
        self.closes = bool(before and behind.strip())
        return before, merged

    def changes(self, prompt: Sequence[Message], text: str) -> bool:
        """Whether the template writes the prompt, of which `prompt` made the `text`, otherwise before a reply."""
        if goes_on(prompt):
            return False  # the text was taken from before a reply
        try:
            answered, _ = self.text(prompt, [{"role": "assistant", "content": _STAND_IN}])
            _, found, behind = answered.rpartition(_STAND_IN)
            self.closes = bool(found and behind.strip())
            same = common_prefix(text, answered)
            if same >= len(text.rstrip()):
                return False
            alone, _ = self.text(prompt)
        except REFUSALS:
            return False  # its replies are refused as well, one by one
        # What both ways of ending the prompt share is the prompt itself. Behind its last words a template may put what
        # depends on the turn being the last one.
        shared = text[: common_prefix(text, alone)]
        words = prompt[-1]["content"].strip()
        place = shared.rfind(words) if words else -1
        return same < (place + len(words) if place >= 0 else len(shared.rstrip()))

    def unwritten(self, prompt: Sequence[Message]) -> list[int]:
        """The places of the prompt's messages of which the template writes nothing whatever they say, since it does not know their role
        there. Found once for all prompts of the same roles and calls; nothing is known of roles that it refuses.
        """
        kind = tuple(
            (one["role"], repr(calls) if (calls := one.get("tool_calls")) else None, bool(one["content"])) for one in prompt
        )
        if kind not in self._unwritten:
            # Beside calls a template may write no text, and where there is none nothing is lost.
            messages = [
                {**one, "content": f"Stand-in ({place})." if one["content"] or not one.get("tool_calls") else ""}
                for place, one in enumerate(prompt)
            ]
            try:
                text, _ = self.prompt(messages)
            except REFUSALS:
                text = "".join(message["content"] for message in messages)
            self._unwritten[kind] = [place for place, message in enumerate(messages) if message["content"] not in text]
        return self._unwritten[kind]

    def lost(self, prompt: Sequence[Message], reply: Sequence[Message], text: str, *, moved: bool = False) -> str:
        """What the template leaves out of a conversation of which it made the `text`: "tools" that are offered, "tool_calls", or ""."""
        prompt = (merge_system(prompt) or prompt) if moved else prompt
        whole = followed(prompt, reply)
        if self.tools is not None and reply == ():
            offered, self.tools = self.tools, None
            try:
                if self.prompt(prompt)[0] == text:
                    return "tools"
            finally:
                self.tools = offered
        places = range(len(whole)) if not reply else range(len(whole) - len(reply), len(whole))
        for place in [place for place in places if whole[place].get("tool_calls")]:
            other = [*whole[:place], {**whole[place], "tool_calls": _renamed(whole[place]["tool_calls"])}, *whole[place + 1 :]]
            if (self.text(other)[0] if reply else self.prompt(other)[0]) == text:
                return "tool_calls"
        return ""

    def moved(self, prompt: Sequence[Message]) -> str | None:
        """The prompt with its system message in the first user turn, or None where there is none or that changes too."""
        merged = merge_system(prompt)
        if merged is None:
            return None
        try:
            text, _ = self.prompt(merged)
        except REFUSALS:
            return None
        return None if self.unwritten(merged) or self.changes(merged, text) else text

    def _apply(self, messages: list[Message], generation: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, tools=self.tools, **self._options
        )
        if not isinstance(text, str):
            raise UserError("the chat template did not give one text; name a tokenizer with a single chat template")
        return text


def goes_on(prompt: Sequence[Message]) -> bool:
    """Whether the prompt ends with an assistant's turn, which its replies continue."""
    return prompt[-1]["role"] == "assistant"


def followed(prompt: Sequence[Message], reply: Sequence[Message]) -> list[Message]:
    """The messages of a prompt and its reply, whose first one continues the assistant's turn that the prompt ends with.

    >>> followed([{"role": "assistant", "content": "I would say"}], [{"role": "assistant", "content": " apple"}])
    [{'role': 'assistant', 'content': 'I would say apple'}]
    """
    if not (reply and goes_on(prompt) and reply[0]["role"] == "assistant"):
        return [*prompt, *reply]
    return [*prompt[:-1], {**prompt[-1], **reply[0], "content": prompt[-1]["content"] + reply[0]["content"]}, *reply[1:]]


def _renamed(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**call, "function": {**call["function"], "name": f"{call['function']['name']}_stand_in"}} for call in calls]


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many tokens, or characters, two sequences of one type share from their beginning.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    same, most = 0, min(len(first), len(second))
    while same < most:
        middle = (same + most + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


def merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with a leading system message put before the first user turn; None where that cannot be done."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]


def _from_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--chat-template {path}: {reason}. Allowed are tokenizer (its own template), plain, or a file with a Jinja template"
        ) from error
    if not text.strip():
        raise UserError(f"--chat-template {path}: the file is empty; it must hold a Jinja template")
    return text
