"""Peers that may not be installed; an error names the missing one."""

from __future__ import annotations

import importlib
import shutil
from typing import TYPE_CHECKING, Any

from bbcache.errors import BbcacheError, PostgresError

if TYPE_CHECKING:
    from bbcache.postgres.server.cluster import PostgresBinaries


class PeerMissingError(BbcacheError):
    """A peer is not installed; the hint says how to install it."""


def require_package(module: str, package: str) -> Any:
    """Import a module of a Python package.

    Args:
        module: its name.
        package: the package that has it.

    Raises:
        PeerMissingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PeerMissingError(
            f"{package} is not installed\n"
            f"hint: Install it with `pip install {package}`, or all with `pip install "
            "'bbcache[bench]'`."
        ) from error


def require_tool(name: str, package: str) -> str:
    """Return the path of a program.

    Args:
        name: the program.
        package: Debian's package that has it.

    Raises:
        PeerMissingError: it is not on PATH.
    """
    path = shutil.which(name)
    if path is None:
        raise PeerMissingError(
            f"{name} is not on PATH\nhint: Install it (Debian: `apt install {package}`)."
        )
    return path


def require_postgres_tool(binaries: PostgresBinaries, name: str) -> str:
    """Return the path of a program of a PostgreSQL installation.

    Raises:
        PeerMissingError: it is not among them.
    """
    try:
        return str(binaries.tool(name))
    except PostgresError as error:
        raise PeerMissingError(str(error)) from error
