"""Types of arguments that several commands share, and what may be wrong with one."""

from __future__ import annotations

import argparse
from pathlib import Path

from bbcache.arguments import fault_of
from bbcache.errors import BbcacheError


class NoCacheError(BbcacheError):
    """The directory is not that of a cache."""


def path(text: str) -> Path:
    """Parse a path; an empty one, such as that of an unset variable, is no current directory.

    Raises:
        argparse.ArgumentTypeError: it is empty, or no system call takes it.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    if (fault := fault_of(text)) is not None:
        raise argparse.ArgumentTypeError(f"it has {fault}")
    return Path(text)
