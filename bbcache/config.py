"""The settings of a cache: frozen, validated, readable from TOML.

Keys, defaults and spelling of the first four are those of Neon's pageserver
(``basebackup_cache_config`` in ``libs/pageserver_api/src/config.rs``).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self

from bbcache.arguments import wrong_type
from bbcache.errors import ConfigError, safe_repr

TOML_TABLE: Final = "basebackup_cache_config"
VERIFY_READS: Final = ("always", "first", "never")

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
_DURATIONS: Final = ("cleanup_period", "wait_lsn_timeout")
_MAX_LEVEL: Final = 3
_LEAST_S: Final = 1e-9
_MOST_S: Final = 1e9  # 31 years; what no clock of the system can wait for starts above


def _default_concurrency() -> int:
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BasebackupCacheConfig:
    """Settings of one cache. Immutable, hence thread-safe.

    Attributes:
        cleanup_period: seconds between two clean-up steps, > 0.
        max_total_size_bytes: bytes that all files of the cache may take, >= 1.
        max_size_entries: files that the cache may hold, >= 1.
        prepare_channel_size: prepares that may wait at once, >= 1.
        max_entry_size_bytes: bytes that one archive may have; None means that
            only the total limits it.
        max_unpublished_size_bytes: bytes that archives may take, beside the total, which
            `BasebackupCache.get_or_prepare` hands out without publishing them, >= 1.
        unpublished_dir: an existing directory where `BasebackupCache.get_or_prepare` has an
            archive built, in a file without a name, when the disk of the cache fails;
            None for the system's temporary directory.
        prepare_concurrency: basebackups built at once, >= 1; by default the
            number of CPUs, at most 4.
        wait_lsn_timeout: seconds that a prepare waits for its LSN, > 0.
        compression_level: ISA-L level, 0 to 3. Level 2 is the best for nearly
            every basebackup; level 3 is slower and often larger.
        verify_reads: when the digest of an archive is checked: at its ``first``
            open in this life of the cache, at every (``always``) or ``never``.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """

    cleanup_period: float = 60.0
    max_total_size_bytes: int = 1024**3
    max_size_entries: int = 10_000
    prepare_channel_size: int = 100
    max_entry_size_bytes: int | None = None
    max_unpublished_size_bytes: int = 1024**3
    unpublished_dir: str | os.PathLike[str] | None = None
    prepare_concurrency: int = _default_concurrency()
    wait_lsn_timeout: float = 300.0
    compression_level: int = 2
    verify_reads: Literal["always", "first", "never"] = "first"

    def __post_init__(self) -> None:
        for key in _DURATIONS:
            _check_seconds(key, getattr(self, key))
        for key in (
            "max_total_size_bytes",
            "max_size_entries",
            "prepare_channel_size",
            "max_unpublished_size_bytes",
            "prepare_concurrency",
        ):
            _check_int(key, getattr(self, key), least=1)
        if self.max_entry_size_bytes is not None:
            _check_int("max_entry_size_bytes", self.max_entry_size_bytes, least=1)
        if self.unpublished_dir is not None:
            _check_directory("unpublished_dir", self.unpublished_dir)
        _check_int("compression_level", self.compression_level, least=0, most=_MAX_LEVEL)
        if self.verify_reads not in VERIFY_READS:
            raise _bad_value("verify_reads", self.verify_reads, "one of always, first, never")

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Read the table ``basebackup_cache_config``, or the top level without it.

        Args:
            source: the path of a TOML file, or a table already parsed. Times are
                humantime strings there (``"60s"``, ``"1m 30s"``).

        Raises:
            ConfigError: (a `ValueError`) for a file that cannot be read or
                parsed, an unknown key or a bad value, each by name.
            ArgumentError: (a `TypeError`) for a source that is neither.
        """
        if not isinstance(source, str | os.PathLike | Mapping):
            raise wrong_type("source", source, "a path or a table")
        top = source if isinstance(source, Mapping) else _load(os.fspath(source))
        table = top.get(TOML_TABLE, top)
        if not isinstance(table, Mapping):
            raise _bad_value(TOML_TABLE, table, "a table")
        known = {field.name for field in fields(cls)}
        unknown = sorted(
            key if type(key) is str else safe_repr(key) for key in table if key not in known
        )
        if unknown:
            raise ConfigError(
                f"unknown key in the cache settings: {', '.join(unknown)}\n"
                f"hint: Known keys are {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {
            key: parse_duration_s(value, key) if key in _DURATIONS else value
            for key, value in table.items()
        }
        return cls(**values)


def parse_duration_s(text: object, key: str = "duration") -> float:
    """Seconds of a humantime text such as ``60s``, ``500ms`` or ``1h 30m``.

    Args:
        text: the text; each part is a whole number and a unit.
        key: the setting's name, for the error.

    Raises:
        ConfigError: (a `ValueError`) for anything else.
    """
    wanted = 'a duration such as "60s", "500ms" or "1h 30m"'
    if not isinstance(text, str) or not text.strip():
        raise _bad_value(key, text, wanted)
    total_s, position, stripped = 0.0, 0, text.strip()
    while position < len(stripped):
        part = _DURATION_PART.match(stripped, position)
        unit_s = _UNITS_S.get(part[2]) if part else None
        if part is None or unit_s is None:
            raise _bad_value(key, text, wanted)
        total_s += int(part[1]) * unit_s
        position = part.end()
    return total_s


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"the settings {path} are not TOML: {error}") from error


def _check_seconds(key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and _LEAST_S <= value <= _MOST_S):
        raise _bad_value(key, value, f"a number of seconds from {_LEAST_S:g} to {_MOST_S:g}")


def _check_int(key: str, value: Any, *, least: int, most: int | None = None) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not (is_int and least <= value and (most is None or value <= most)):
        upper = "" if most is None else f" and at most {most}"
        raise _bad_value(key, value, f"an int of at least {least}{upper}")


def _check_directory(key: str, value: Any) -> None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not (isinstance(path, str) and path and "\0" not in path):
        raise _bad_value(key, value, "the path of a directory, neither empty nor with a NUL")


def _bad_value(key: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{key} is {safe_repr(value)}, but must be {wanted}")
