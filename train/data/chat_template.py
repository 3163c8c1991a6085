"""Which chat template a tokenizer renders with: its own, a plain one, or one from a file. It is saved with the
tokenizer, so that what is served is what was trained.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from mmpo.pipeline.errors import UserError

__all__ = ["PINNED_DATE", "PLAIN_TEMPLATE", "check_template", "choose_template", "pad_token", "plain_template", "with_pinned_date"]

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token or sep_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""`User: ...`, `Assistant: ...`, a line each, every reply closed by the end-of-text token (an encoder's: [SEP])."""
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
    check_template(tokenizer)


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


def check_template(tokenizer: Any) -> None:
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
        raise UserError(f"the chat template is no valid Jinja, line {error.lineno}: {error.message}") from error
    except ValueError as error:
        raise UserError(f"the chat template can't be used: {error} Give --chat-template FILE with one of them") from error
    except (TemplateError, TypeError):
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
