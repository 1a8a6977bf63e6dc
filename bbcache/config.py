"""The settings of a cache, one row for each key; readable from TOML.

Keys, defaults and spelling of the first four are those of Neon's pageserver
(``basebackup_cache_config`` in ``libs/pageserver_api/src/config.rs``).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from bbcache.arguments import wrong_type
from bbcache.errors import ConfigError, safe_repr
from bbcache.setting_rows import (
    add_keys_to_docstring,
    bad_value,
    check_settings,
    directory,
    integer,
    one_of,
    optional,
    seconds,
    setting,
    settings_of,
)

TOML_TABLE: Final = "basebackup_cache_config"
LIMITS: Final = (  # a cache takes new ones while it runs
    "max_total_size_bytes",
    "max_size_entries",
    "max_entry_size_bytes",
    "max_unpublished_size_bytes",
)

_UNITS_S: Final = {
    unit: seconds
    for seconds, units in (
        (1e-9, "ns nsec"),
        (1e-6, "us usec"),
        (1e-3, "ms msec"),
        (1.0, "s sec secs second seconds"),
        (60.0, "m min mins minute minutes"),
        (3600.0, "h hr hrs hour hours"),
        (86400.0, "d day days"),
        (604800.0, "w wk wks week weeks"),
        (2630016.0, "M month months"),  # 30.44 days
        (31557600.0, "y yr yrs year years"),  # 365.25 days
    )
    for unit in units.split()
}
_DURATION_PART = re.compile(r"([0-9]{1,18})\s*([a-zA-Z]+)\s*")


def parse_duration_s(text: object, key: str = "duration") -> float:
    """Seconds of a humantime text such as ``60s``, ``500ms`` or ``1h 30m``.

    Args:
        text: whole numbers, each with its unit.
        key: the setting's name, for the error.

    Raises:
        ConfigError: (a `ValueError`) for anything else.
    """
    wanted = 'a duration such as "60s", "500ms" or "1h 30m"'
    if not isinstance(text, str) or not text.strip():
        raise bad_value(key, text, wanted)
    total_s, position, stripped = 0.0, 0, text.strip()
    while position < len(stripped):
        part = _DURATION_PART.match(stripped, position)
        unit_s = _UNITS_S.get(part[2]) if part else None
        if part is None or unit_s is None:
            raise bad_value(key, text, wanted)
        total_s += int(part[1]) * unit_s
        position = part.end()
    return total_s


_SECONDS: Final = seconds(parse_duration_s)
_BYTES: Final = integer(1, unit="bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasebackupCacheConfig:
    """Settings of one cache. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """

    cleanup_period: float = setting(
        _SECONDS,
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
        _SECONDS,
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

    def __post_init__(self) -> None:
        check_settings(self)

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
        top = source if isinstance(source, Mapping) else _load(os.fspath(source))
        table = top.get(TOML_TABLE, top)
        if not isinstance(table, Mapping):
            raise bad_value(TOML_TABLE, table, "a table")
        known = settings_of(cls)
        unknown = sorted(
            key if type(key) is str else safe_repr(key) for key in table if key not in known
        )
        if unknown:
            raise ConfigError(
                f"unknown key in the cache settings: {', '.join(unknown)}\n"
                f"hint: Known keys are {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {}
        for key, value in table.items():
            parse = known[key].kind.parse
            values[key] = value if parse is None else parse(value, key)
        return cls(**values)


add_keys_to_docstring(BasebackupCacheConfig)


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"the settings {path} are not TOML: {error}") from error
