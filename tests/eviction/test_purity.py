"""The room of eviction is arithmetic: whatever drives it, it decides the same."""

from __future__ import annotations

import ast
from pathlib import Path

import bbcache.eviction

ALLOWED = {
    *("__future__", "bisect", "collections", "dataclasses", "enum", "heapq", "itertools"),
    *("math", "struct", "typing", "xxhash", "zlib"),
}


def test_the_policies_are_pure() -> None:
    """They import no lock, no clock, no disk, no log, and no other room."""
    folder = Path(bbcache.eviction.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                is_own = name.startswith("bbcache.eviction")
                assert is_own or name.partition(".")[0] in ALLOWED, f"{path.name}: {name}"
