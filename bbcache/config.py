"""The settings of a cache, one row for each key; readable from TOML.

Keys, defaults and spelling of the first four are those of Neon's pageserver
(``basebackup_cache_config`` in ``libs/pageserver_api/src/config.rs``).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from bbcache.arguments import check_passable, wrong_type
from bbcache.durations import DURATION
from bbcache.errors import ConfigError
from bbcache.setting_rows import (
    add_keys_to_docstring,
    bad_value,
    check_settings,
    directory,
    integer,
    one_of,
    optional,
    read_table,
    setting,
)
from bbcache.tier_config import TIER, TierConfig

TOML_TABLE: Final = "basebackup_cache_config"
_MOST_DOCUMENT_BYTES: Final = 1 << 20  # of a TOML file
LIMITS: Final = (  # a cache takes new ones while it runs
    "max_total_size_bytes",
    "max_size_entries",
    "max_entry_size_bytes",
    "max_unpublished_size_bytes",
    "min_free_disk_bytes",
)

_BYTES: Final = integer(1, unit="bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasebackupCacheConfig:
    """Settings of one cache. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """

    cleanup_period: float = setting(
        DURATION,
        60.0,
        "time between two clean-up steps; the first comes one period after the start",
    )
    max_total_size_bytes: int = setting(_BYTES, 1024**3, "size of everything in the directory")
    max_size_entries: int = setting(integer(1, unit="files"), 10_000, "files in the directory")
    prepare_channel_size: int = setting(
        integer(1, unit="timelines"),
        100,
        "timelines whose prepares may wait for a worker, and requests that may wait for their LSNs",
    )
    max_entry_size_bytes: int | None = setting(
        optional(_BYTES), None, "size of one archive", "none: only the total limits it"
    )
    max_unpublished_size_bytes: int = setting(
        _BYTES,
        1024**3,
        "size, beside the total, of the archives that `get_or_prepare` returns without "
        "publishing them",
    )
    min_free_disk_bytes: int | None = setting(
        optional(integer(0, unit="bytes")),
        None,
        "space on the file system of the directory that is left to others: while less is free, "
        "nothing new is published, and each clean-up removes entries; 0 leaves none",
        "1 GiB or 5 % of the file system, whichever is less",
    )
    eviction: Literal["return-rate", "oldest", "none"] = setting(
        one_of("return-rate", "oldest", "none"),
        "return-rate",
        "what a full cache evicts for a new entry: the entry that is least likely to be asked for "
        "again (`return-rate`), the `oldest`, or `none`, which skips the new one",
    )
    unpublished_dir: str | os.PathLike[str] | None = setting(
        optional(directory()),
        None,
        "an existing directory, on another disk than the cache, where `get_or_prepare` has an "
        "archive built when the disk of the cache fails",
        "the system's temporary directory",
    )
    prepare_concurrency: int = setting(
        integer(1, unit="basebackups"),
        min(4, os.cpu_count() or 1),
        "basebackups built at once",
        "the number of CPUs, at most 4",
    )
    prepare_niceness: int = setting(
        integer(0, 19),
        0,
        "by how much the threads that build are nicer than the process: other threads get a "
        "processor before them, and callers wait longer for a build on a busy machine",
    )
    wait_lsn_timeout: float = setting(
        DURATION,
        300.0,
        "time that a prepare waits for its LSN, from its first look at the timeline; it holds "
        "no worker while it waits",
    )
    compression_level: int = setting(
        integer(0, 3),
        2,
        "level of ISA-L; level 3 is slower than 2 and often gives larger archives",
    )
    verify_reads: Literal["always", "first", "never"] = setting(
        one_of("always", "first", "never"),
        "first",
        "when the digest of an archive is checked: at every open (`always`), at its `first` open "
        "in this life of the cache, or `never`; only `always` finds later damage",
    )
    tier: TierConfig | None = setting(
        optional(TIER),
        None,
        "the second tier, in object storage",
        "none",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def with_limits_of(self, other: BasebackupCacheConfig) -> Self:
        """These settings with the limits of others: what a cache takes while it runs."""
        return replace(self, **{key: getattr(other, key) for key in LIMITS})

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Read the table ``basebackup_cache_config``, or the top level without it.

        Args:
            source: the path of a TOML file, or a parsed table. Times are humantime strings
                (``"60s"``, ``"1m 30s"``).

        Raises:
            ConfigError: (a `ValueError`) for a file that cannot be read or
                parsed, an unknown key or a bad value, each by name.
            ArgumentError: (a `TypeError`) for any other source.
        """
        if not isinstance(source, str | os.PathLike | Mapping):
            raise wrong_type("source", source, "a path or a table")
        top = source if isinstance(source, Mapping) else read_document(os.fspath(source))
        table = top.get(TOML_TABLE, top)
        if not isinstance(table, Mapping):
            raise bad_value(TOML_TABLE, table, "a table")
        return read_table(cls, table, "the cache settings")


add_keys_to_docstring(BasebackupCacheConfig)


def read_document(path: str) -> dict[str, Any]:
    """Return the whole document of a TOML file; raises `ConfigError` if it cannot be read."""
    check_passable("the path of the settings", path, ConfigError)
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}") from error
    if len(text) > _MOST_DOCUMENT_BYTES:
        raise ConfigError(f"the settings {path} have more than {_MOST_DOCUMENT_BYTES} bytes")
    try:
        return tomllib.loads(text.decode())
    # Not TOML, not UTF-8, a number of thousands of digits, or thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the settings {path} are not TOML: {error}") from error
