"""Types of arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def path(text: str) -> Path:
    """Parse a path; an empty one, such as that of an unset variable, is no current directory.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)
