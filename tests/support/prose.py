"""A lint of prose: words and turns of phrase at which a reader stops.

`python tests/support/prose.py [PATH...]` lists them with file and line. The prose of a Python file
is its comments and its strings; the prose of a page is its text without blocks of code.
"""

from __future__ import annotations

import ast
import bisect
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
OWN: Final = (Path(__file__), ROOT / "tests/test_docs.py")  # have the words that are refused

_START: Final = r"(?:^|(?<=[.:;|(] )|(?<=^- )|(?<=^\*\*))"  # of a sentence or of a cell of a table
_NOUN: Final = "name the noun, such as `a caller that` or `an entry that`"
RULES: Final = {
    "anew": "write `again`",
    "lest": "write `so that ... not`",
    "who(?:so)?ever|whomever": _NOUN,
    "in the midst": "write `while` or `in the middle`",
    "be it": "write `whether ... or`",
    "(?:has|have|had) come": "write `arrived`, or use the present tense",
    "would have": "use the present tense",
    "at something": "name the thing",
    "that which|those who|all who": _NOUN,
    "(?:for|of|to|by|with|from|and|but|than) who": _NOUN,
    f"{_START}who": _NOUN,
    "what (?:is|was) held": "write `an entry`",
    f"{_START}what (?:is|are|was|were|has|had|can|cannot|does|did|no|will|would|comes)": _NOUN,
    "(?<!there )(?:is|are) no (?!longer|more|less)": "write `is not a`",
    "for sure|at the most|in call|by way of": "use a plainer word",
    r"so seldom|not unlike|not un\w+ly": "say it without a negation",
}
_RULES: Final = [
    (re.compile(rf"(?<!\w)(?:{rule})(?!\w)", re.IGNORECASE | re.MULTILINE), hint)
    for rule, hint in RULES.items()
]


class Finding(NamedTuple):
    """A place where the prose breaks a rule."""

    path: str
    line: int
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: `{self.text}`: {self.hint}"


class Chunk(NamedTuple):
    """A text of one kind, with the number of its first line."""

    line: int
    text: str


def prose_of(path: Path) -> Iterator[Chunk]:
    """The prose of a Python file or of a page."""
    source = path.read_text()
    if path.suffix == ".md":
        blank = re.sub(r"^```.*?^```$", _blank, source, flags=re.DOTALL | re.MULTILINE)
        yield Chunk(1, re.sub(r"`[^`\n]+`", "`code`", blank))
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Chunk(node.lineno, node.value)
    yield from _comments(source)


def _blank(block: re.Match[str]) -> str:
    return "\n" * block[0].count("\n")


def _comments(source: str) -> Iterator[Chunk]:
    """The comments; those on lines that follow each other are one text."""
    first, last, lines = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield Chunk(first, "\n".join(lines))
                first, lines = token.start[0], []
            last = token.start[0]
            lines.append(token.string.lstrip("# "))
    yield Chunk(first, "\n".join(lines))


def _unwrap(chunk: Chunk) -> tuple[str, list[int], list[int]]:
    """The text with each paragraph on one line; offsets, and the lines that start there."""
    text, offsets, lines = "", [], []
    stripped = map(str.strip, chunk.text.splitlines())
    for line, part in enumerate(stripped, chunk.line):
        is_new = not part or part.startswith(("- ", "|", "#")) or not text
        text += "\n" if is_new and text else "" if not text else " "
        offsets.append(len(text))
        lines.append(line)
        text += part
    return text, offsets, lines


def check(path: Path) -> Iterator[Finding]:
    """All that is wrong with the prose of a file."""
    for chunk in prose_of(path):
        text, offsets, lines = _unwrap(chunk)
        for rule, hint in _RULES:
            for found in rule.finditer(text):
                if not _is_question(text, found.end()):
                    line = lines[bisect.bisect(offsets, found.start()) - 1]
                    where = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
                    yield Finding(where, line, found[0], hint)


def _is_question(text: str, offset: int) -> bool:
    end = re.search(r"[.?!](?:\s|$)|$|\n", text[offset:])
    return end is not None and end[0].startswith("?")


def files() -> list[Path]:
    """All files whose prose is checked."""
    found = [*(ROOT / "bbcache").rglob("*.py"), *(ROOT / "docs").glob("*")]
    found += [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    found += [*(ROOT / "examples").rglob("*"), *(ROOT / name for name in PAGES)]
    return sorted(path for path in found if path.suffix in {".py", ".md"} and path not in OWN)


def main(names: Iterable[str]) -> int:
    """List what is wrong with these files, or with all."""
    paths = [Path(name).absolute() for name in names] or files()
    findings = [finding for path in paths for finding in check(path)]
    for finding in findings:
        print(finding)  # noqa: T201 - what a command does
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
