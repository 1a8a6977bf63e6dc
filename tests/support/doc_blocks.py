"""The code blocks of a page of docs/, to be run in order."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of Python, and the text block behind it, which says what it prints."""

    source: str
    output: str


def blocks(page: str, language: str) -> list[str]:
    """All blocks of a language."""
    return [text for name, text in _BLOCK.findall(page) if name == language]


def python_blocks(page: str) -> list[Block]:
    """All blocks of Python. A block without a text block behind it prints nothing."""
    found = _BLOCK.findall(page)
    followers = [*found[1:], ("", "")]
    return [
        Block(text, followers[number][1] if followers[number][0] == "text" else "")
        for number, (name, text) in enumerate(found)
        if name == "python"
    ]


def matches(output: str, expected: str) -> bool:
    """Whether an output is as expected, where `...` stands for any text of a line."""
    pattern = re.escape(expected).replace(re.escape("..."), ".+")
    return re.fullmatch(pattern, output) is not None
