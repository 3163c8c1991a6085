"""Thinking inside a text: blocks between <think> and </think> and their relatives, for judges' replies and for training alike."""

import re

_TAG = re.compile(r"<\s{0,3}(/?)\s{0,3}(?:think|thinking|thought|reasoning)\s{0,3}>|◁(/?)think▷", re.IGNORECASE)
"""An opening or a closing tag: <think>, <thinking>, <thought>, <reasoning>, ◁think▷."""


def holds_thinking(text: str) -> bool:
    """Whether the text opens or closes a thinking block."""
    return _TAG.search(text) is not None


def thinking_spans(text: str) -> list[tuple[int, int]] | None:
    """The thinking blocks of a text, [start, end) with their tags, in order and apart; None where the text ends inside one.

    A closing tag that nothing opened (templates open it in the prompt) ends a block that began with the text.

    >>> thinking_spans("<think>2+2</think> 4"), thinking_spans("2+2</think> 4"), thinking_spans("<think>2+"), thinking_spans("4")
    ([(0, 18)], [(0, 11)], None, [])
    """
    opened: int | None = None
    blocks: list[tuple[int, int]] = []
    for tag in _TAG.finditer(text):
        if tag[1] or tag[2]:
            blocks.append((opened or 0, tag.end()))
            opened = None
        elif opened is None:
            opened = tag.start()
    if opened is not None:
        return None
    # A closing tag that nothing opened takes all before it, also what stood between earlier blocks.
    stray = max((end for start, end in blocks if start == 0), default=0)
    return [*([(0, stray)] if stray else []), *(block for block in blocks if block[0] >= stray)]


def without_thinking(text: str) -> str | None:
    """What is left of a text without its thinking blocks and the white space before it; the text itself where it has none, and None
    where it ends inside a block.

    >>> without_thinking("<think>a fruit?</think>\\n\\napple")
    'apple'
    """
    spans = thinking_spans(text)
    if not spans:
        return None if spans is None else text
    kept = [
        text[end:start]
        for end, start in zip([0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)], strict=True)
    ]
    return "".join(kept).lstrip()


def parted(text: str) -> tuple[str, str] | None:
    """What a text says, and what it thinks in its blocks, tags apart; the text itself and "" where it has none, and None where it ends
    inside a block.

    >>> parted("<think>a fruit?</think>\\n\\napple"), parted("apple"), parted("<think>a fr")
    (('apple', 'a fruit?'), ('apple', ''), None)
    """
    spans, said = thinking_spans(text), without_thinking(text)
    if spans is None or said is None:
        return None
    return said, "\n".join(_TAG.sub("", text[start:end]).strip() for start, end in spans)
