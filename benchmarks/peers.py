"""What bbcache is compared with, and may not be installed: a missing one is named."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any, NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the benchmark, or fail it where ``BBCACHE_REQUIRE_TOOLS=1`` asks for all peers."""
    if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
        pytest.fail(f"BBCACHE_REQUIRE_TOOLS is set, and {reason}")
    pytest.skip(reason)


def require_package(module: str, package: str) -> Any:
    """Import a module; where it is missing, name the package.

    Args:
        module: what to import.
        package: what to install for it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        missing(f"{package} is not installed: pip install {package}")


def require_tool(name: str) -> str:
    """The path of a program; where it is missing, name it."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not on PATH")
    return path
