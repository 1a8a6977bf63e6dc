"""File systems of a test's own, where one can be mounted."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.helpers import tool

if TYPE_CHECKING:
    from pathlib import Path


def mount(*arguments: str | Path) -> None:
    """Run mount; the test is skipped where that is not permitted, or fails where it must be."""
    done = subprocess.run([tool("mount"), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        refuse = pytest.fail if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1" else pytest.skip
        refuse(f"nothing can be mounted: {done.stderr}")


def fill_disk(directory: Path) -> None:
    """Write a file ``filler`` until nothing fits any more, not even one byte."""
    with (directory / "filler").open("ab", buffering=0) as file:
        for size_bytes in (65536, 1):
            try:
                while file.write(bytes(size_bytes)):
                    pass
            except OSError:
                continue


def remount(options: str, path: Path) -> None:
    """Change the options of a mount of the test's own."""
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
