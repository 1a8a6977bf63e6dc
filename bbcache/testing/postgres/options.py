"""The options of servers for tests; the pytest options of the same names set them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bbcache.arguments import check_passable
from bbcache.errors import ConfigError

_SIZE: Final = re.compile(r"(\d{1,12})(B|KiB|MiB|GiB|TiB)", re.ASCII)
_SHIFTS: Final = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
MAX_SIZE_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class PostgresOptions:
    """How servers for tests are made. Immutable, so thread-safe.

    Attributes:
        bin: a directory of PostgreSQL programs; None finds one.
        major: take only this major version.
        settings: server settings, over those of the snapshot.
        run_dir: where data directories are; None prefers memory to disk.
        cache_dir: where snapshots are kept; None is ``$BBCACHE_TESTING_DIR``, else
            ``$XDG_CACHE_HOME/bbcache/testing``.
        max_size_bytes: how much of snapshots is kept, those of the last use first.
        pool: how many databases are made ahead of need.
        spares: how many restored data directories are kept ready for each snapshot, in memory
            only.
        lean: whether the databases template0 and template1 are left out of snapshots: they
            restore faster, and ``CREATE DATABASE`` needs ``TEMPLATE app``.
        tcp: whether servers listen on 127.0.0.1, with a password, as well as on a socket.
        rebuild_before_s: snapshots that are older than this time (seconds since 1970) are
            made again.
        keep: whether servers and databases are left running at the end.

    Raises:
        ConfigError: a path has a NUL.
    """

    bin: str | None = None
    major: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    run_dir: str | None = None
    cache_dir: str | None = None
    max_size_bytes: int = MAX_SIZE_BYTES
    pool: int = 2
    spares: int = 2
    lean: bool = False
    tcp: bool = False
    rebuild_before_s: float = 0.0
    keep: bool = False

    def __post_init__(self) -> None:
        for name in ("bin", "run_dir", "cache_dir"):
            check_passable(name, getattr(self, name) or "", ConfigError)


def parse_size(text: str, name: str) -> int:
    """Return the bytes of a size such as ``512MiB``.

    Args:
        text: the size.
        name: of the option, for the error.

    Raises:
        ConfigError: it is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{name}: {text!r} is not a size such as 512MiB or 1GiB")
    return int(match[1]) << _SHIFTS[match[2]]
