"""Settings: defaults, ranges, types, TOML, durations."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.config import BasebackupCacheConfig
from bbcache.durations import parse_duration_s
from bbcache.errors import BbcacheError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS = [
    "max_total_size_bytes",
    "max_size_entries",
    "prepare_channel_size",
    "prepare_concurrency",
    "max_entry_size_bytes",
    "max_unpublished_size_bytes",
]
DURATIONS = ["cleanup_period", "wait_lsn_timeout"]
LEVELS = ["compression_level", "prepare_niceness"]
CHOICES = ["eviction", "verify_reads"]
KEYS = [*COUNTS, *DURATIONS, *LEVELS, *CHOICES, "min_free_disk_bytes", "unpublished_dir"]
GOOD: dict[str, Any] = {
    "cleanup_period": "1m 30s",
    "max_total_size_bytes": 5,
    "max_size_entries": 6,
    "prepare_channel_size": 7,
    "max_entry_size_bytes": 8,
    "max_unpublished_size_bytes": 10,
    "min_free_disk_bytes": 0,
    "eviction": "oldest",
    "unpublished_dir": "/unpublished",
    "prepare_concurrency": 9,
    "prepare_niceness": 10,
    "wait_lsn_timeout": "500ms",
    "compression_level": 3,
    "verify_reads": "always",
}
NO_INTS = [True, False, 1.0, "1", None, math.nan, math.inf, b"1", [1], Decimal(1)]
NO_SECONDS = [
    *(0, 0.0, -0.0, -1, -0.5, math.nan, math.inf, -math.inf),
    *(True, False, "60s", "60", None, b"1", [1], 1j, Decimal(1), Fraction(1, 2)),
]
BAD_DURATIONS = [
    *(
        "",
        " ",
        "60",
        "s",
        "60 s 5",
        "s60",
        "1.5s",
        "-1s",
        "+1s",
        "1e3s",
        "60S",
        "60x",
        "60ss",
        "1D",
        "1MS",
    ),
    *("1m,30s", "1:30", "0x10s", "1_0s", "60s\0", "inf", "nan", "PT60S", "s 60", "1 0 s", "1h-30m"),
    *("\u0661s", "\uff16s", "60\u0455"),
]


def check_refused(make: Callable[[], object], *named: str) -> str:
    """Check that a call raises a ConfigError that names some words; returns its text."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BbcacheError)
    text = str(caught.value)
    assert all(name in text for name in named), text
    return text


def test_defaults_are_those_of_the_design() -> None:
    """Every key has its default."""
    assert dataclasses.asdict(BasebackupCacheConfig()) == {
        "cleanup_period": 60.0,
        "max_total_size_bytes": 1 << 30,
        "max_size_entries": 10_000,
        "prepare_channel_size": 100,
        "max_entry_size_bytes": None,
        "max_unpublished_size_bytes": 1 << 30,
        "min_free_disk_bytes": None,
        "eviction": "return-rate",
        "unpublished_dir": None,
        "prepare_concurrency": min(4, os.cpu_count() or 1),
        "prepare_niceness": 0,
        "wait_lsn_timeout": 300.0,
        "compression_level": 2,
        "verify_reads": "first",
        "tier": None,
    }


def test_config_is_frozen_and_takes_names_only() -> None:
    """Settings cannot be changed, nor given by position."""
    config = BasebackupCacheConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_size_entries = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        BasebackupCacheConfig(60.0)  # type: ignore[call-arg]
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own bytes
    assert hash(config) == hash(BasebackupCacheConfig())


def test_a_changed_copy_is_checked_too() -> None:
    """A direct call validates as from_toml does."""
    config = dataclasses.replace(BasebackupCacheConfig(), max_size_entries=5)
    assert config.max_size_entries == 5
    check_refused(lambda: dataclasses.replace(config, max_size_entries=0), "max_size_entries", "0")


@pytest.mark.parametrize("key", COUNTS)
def test_counts_are_ints_of_at_least_one(key: str) -> None:
    """One is the least; zero and less are refused by key, value and range."""
    assert getattr(make(**{key: 1}), key) == 1
    assert getattr(make(**{key: 10**15}), key) == 10**15
    for value in (0, -1, -(10**30)):
        check_refused(functools.partial(make, **{key: value}), key, repr(value), "at least 1")


@pytest.mark.parametrize("key", [*COUNTS, *LEVELS])
@pytest.mark.parametrize("value", NO_INTS, ids=repr)
def test_counts_are_nothing_but_ints(key: str, value: object) -> None:
    """A bool is not an int, nor is a float or a text."""
    if key == "max_entry_size_bytes" and value is None:
        assert make(**{key: value}).max_entry_size_bytes is None
        return
    check_refused(lambda: make(**{key: value}), key, repr(value), "int")
    check_refused(lambda: BasebackupCacheConfig.from_toml({key: value}), key, repr(value))


def test_compression_level_is_from_zero_to_three() -> None:
    """ISA-L has four levels."""
    assert [make(compression_level=level).compression_level for level in range(4)] == [0, 1, 2, 3]
    for level in (-1, 4, 9):
        make_bad = functools.partial(make, compression_level=level)
        check_refused(make_bad, "compression_level", str(level), "at most 3")


def test_niceness_is_from_zero_to_nineteen() -> None:
    """Linux has no more, and less would take a privilege."""
    assert [make(prepare_niceness=each).prepare_niceness for each in (0, 19)] == [0, 19]
    for niceness in (-1, 20):
        make_bad = functools.partial(make, prepare_niceness=niceness)
        check_refused(make_bad, "prepare_niceness", str(niceness), "at most 19")


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", [1, 0.001, 60.0, 86400 * 365])
def test_durations_are_positive_numbers(key: str, value: float) -> None:
    """Seconds are an int or a float above zero."""
    assert getattr(make(**{key: value}), key) == value


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", NO_SECONDS, ids=repr)
def test_durations_are_nothing_else(key: str, value: object) -> None:
    """Zero, less, nan, infinity, bools and texts are refused by key, value and range."""
    check_refused(lambda: make(**{key: value}), key, repr(value), "number of seconds from")


@pytest.mark.parametrize("path", ["/x", Path("/x"), "relative", None])
def test_unpublished_dir_is_a_path(path: str | Path | None) -> None:
    """A text or a Path is taken as it is; None stands for the temporary directory."""
    assert make(unpublished_dir=path).unpublished_dir == path


@pytest.mark.parametrize("value", ["", "a\0b", b"/x", 1, True, ["/x"], {}], ids=repr)
def test_unpublished_dir_is_nothing_else(value: object) -> None:
    """No empty path, no NUL, no bytes; by key, value and what it must be."""
    check_refused(lambda: make(unpublished_dir=value), "unpublished_dir", repr(value), "path")
    table = {"unpublished_dir": value}
    check_refused(lambda: BasebackupCacheConfig.from_toml(table), "unpublished_dir", repr(value))


@pytest.mark.parametrize("mode", ["always", "first", "never"])
def test_verify_reads_is_one_of_three(mode: str) -> None:
    """Each of the three words is taken."""
    assert make(verify_reads=mode).verify_reads == mode


@pytest.mark.parametrize("value", ["", "First", "all", None, True, 1, ["first"]], ids=repr)
def test_verify_reads_is_nothing_else(value: object) -> None:
    """Any other value is refused with the three words."""
    check_refused(
        lambda: make(verify_reads=value), "verify_reads", repr(value), "always", "first", "never"
    )


def test_from_toml_reads_every_key_from_a_table() -> None:
    """A parsed table gives every setting; times are texts there."""
    config = BasebackupCacheConfig.from_toml(GOOD)
    assert BasebackupCacheConfig.from_toml(MappingProxyType(GOOD)) == config
    wanted = {**GOOD, "cleanup_period": 90.0, "wait_lsn_timeout": 0.5, "tier": None}
    assert dataclasses.asdict(config) == wanted
    assert {*GOOD, "tier"} == {*KEYS, "tier"} == {each.name for each in dataclasses.fields(config)}


def test_from_toml_takes_the_table_before_the_top_level() -> None:
    """With the table there, other keys of the file are the host's own."""
    top = {"listen_pg_addr": "x", "max_size_entries": 1, "basebackup_cache_config": GOOD}
    assert BasebackupCacheConfig.from_toml(top) == BasebackupCacheConfig.from_toml(GOOD)


def test_from_toml_takes_an_empty_table_for_the_defaults() -> None:
    """Keys that are left out have their defaults."""
    tables: list[dict[str, Any]] = [{}, {"basebackup_cache_config": {}}]
    for table in tables:
        assert BasebackupCacheConfig.from_toml(table) == BasebackupCacheConfig()


def test_from_toml_reads_a_file(tmp_path: Path) -> None:
    """The path may be a str or a Path; table and top level both work."""
    path = tmp_path / "pageserver.toml"
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in GOOD.items())
    path.write_text("id = 1\n[basebackup_cache_config]\n" + lines)
    flat = tmp_path / "flat.toml"
    flat.write_text(lines)
    wanted = BasebackupCacheConfig.from_toml(GOOD)
    for source in (path, str(path), flat, str(flat)):
        assert BasebackupCacheConfig.from_toml(source) == wanted


def test_from_toml_reads_neons_spelling(tmp_path: Path) -> None:
    """The table as it stands in a pageserver.toml of Neon."""
    path = tmp_path / "pageserver.toml"
    path.write_text(
        "[basebackup_cache_config]\n"
        'cleanup_period = "60s"\n'
        "max_total_size_bytes = 1073741824\n"
        "max_size_entries = 10000\n"
        "prepare_channel_size = 100\n"
    )
    assert BasebackupCacheConfig.from_toml(path) == BasebackupCacheConfig()


def test_a_file_without_an_end_is_refused() -> None:
    """Settings are not read into memory without a bound."""
    with pytest.raises(ConfigError, match="the settings /dev/zero have more than 1048576 bytes"):
        BasebackupCacheConfig.from_toml("/dev/zero")


def test_from_toml_names_unknown_keys() -> None:
    """Every unknown key is named, and the known ones are offered."""
    text = check_refused(
        lambda: BasebackupCacheConfig.from_toml({"max_size_entrys": 1, "b": 2, **GOOD}),
        "max_size_entrys",
        "b",
        "unknown key",
    )
    assert all(key in text.partition("hint: ")[2] for key in KEYS)


def test_from_toml_without_the_table_knows_no_foreign_key() -> None:
    """Another table at the top level is an unknown key."""
    check_refused(lambda: BasebackupCacheConfig.from_toml({"pageserver": {}}), "pageserver")


@pytest.mark.parametrize("value", [1, "x", [GOOD], None, True])
def test_from_toml_wants_a_table(value: object) -> None:
    """The table's name must not hold anything else."""
    check_refused(
        lambda: BasebackupCacheConfig.from_toml({"basebackup_cache_config": value}),
        "basebackup_cache_config",
        repr(value),
        "table",
    )


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("value", [60, 60.0, True, None, [], *BAD_DURATIONS], ids=repr)
def test_from_toml_wants_durations_as_humantime(key: str, value: object) -> None:
    """A bare number, a wrong unit, a sign or a fraction is refused by key and value."""
    check_refused(
        lambda: BasebackupCacheConfig.from_toml({key: value}), key, repr(value), "duration"
    )


@pytest.mark.parametrize("key", DURATIONS)
@pytest.mark.parametrize("text", ["0s", "0ms 0h"])
def test_from_toml_refuses_a_duration_of_nothing(key: str, text: str) -> None:
    """Zero seconds are out of range."""
    check_refused(lambda: BasebackupCacheConfig.from_toml({key: text}), key, "from")


@pytest.mark.parametrize("digits", [400, 5000])
def test_from_toml_refuses_a_duration_past_all_range(digits: int) -> None:
    """A number too long for a float, or for int(), is a bad value like any other."""
    check_refused(
        lambda: BasebackupCacheConfig.from_toml({"cleanup_period": "9" * digits + "s"}),
        "cleanup_period",
    )


@pytest.mark.parametrize("key", [*COUNTS, *DURATIONS, *LEVELS, "verify_reads"])
def test_numbers_that_cannot_be_printed_are_bad_values_like_any_other(
    tmp_path: Path, key: str
) -> None:
    """Python does not write an int of thousands of digits; TOML has them in hexadecimal."""
    check_refused(lambda: make(**{key: -(10**5000)}), key, "an unprintable int")
    path = tmp_path / "long.toml"
    path.write_text(f"{key} = [0x{'f' * 5000}]")
    check_refused(lambda: BasebackupCacheConfig.from_toml(path), key, "an unprintable list")


def test_a_key_that_cannot_be_printed_is_an_unknown_key() -> None:
    """A table made in Python may have keys of any type."""
    table: dict[Any, Any] = {10**5000: 1, "b": 2}
    check_refused(lambda: BasebackupCacheConfig.from_toml(table), "an unprintable int, b")


def test_from_toml_tells_of_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named, with the system's reason."""
    path = tmp_path / "no.toml"
    check_refused(
        lambda: BasebackupCacheConfig.from_toml(path), str(path), os.strerror(2), "cannot read"
    )


def test_from_toml_tells_of_a_directory(tmp_path: Path) -> None:
    """A directory cannot be read as a file."""
    check_refused(lambda: BasebackupCacheConfig.from_toml(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"max_size_entries = ",
        b"[basebackup_cache_config\n",
        b"a = 1\na = 2\n",
        b"\xff\xfe",
        b"max_size_entries = 'x",
        b"max_size_entries = " + b"9" * 5000,
        b"max_size_entries = " + b"[" * 5000,
    ],
    ids=[
        *("no value", "no bracket", "twice", "no utf-8", "no quote", "number too long"),
        "nested too deep",
    ],
)
def test_from_toml_tells_of_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    """The file is named, whatever is wrong in it."""
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    check_refused(lambda: BasebackupCacheConfig.from_toml(path), str(path), "not TOML")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("60s", 60),
            ("1m", 60),
            ("1min", 60),
            ("2 hours", 7200),
            ("1h 30m", 5400),
            ("1d", 86400),
        ),
        *(("500ms", 0.5), ("1s500ms", 1.5), ("1h30m15s", 5415), ("10us", 1e-5), ("5ns", 5e-9)),
        *(("1 day 1 hour 1 minute 1 second", 90061), (" 60s ", 60), ("60  s", 60), ("0s", 0)),
        *(("1msec", 1e-3), ("2secs", 2), ("3seconds", 3), ("1hr", 3600), ("2hrs", 7200)),
        *(("2mins", 120), ("2minutes", 120), ("2days", 172800), ("1usec", 1e-6), ("1nsec", 1e-9)),
        *(("1w", 604800), ("2weeks", 1209600), ("1week 1d", 691200), ("1M", 30.44 * 86400)),
        *(("1m 1M", 2630076), ("2months", 5260032), ("1y", 365.25 * 86400), ("2years", 63115200)),
    ],
)
def test_durations_are_read_as_humantime(text: str, seconds: float) -> None:
    """Whole numbers with units, one or several, with or without blanks."""
    assert parse_duration_s(text) == pytest.approx(seconds, rel=1e-12)


@given(parts=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))))
def test_durations_add_up(parts: list[tuple[int, str]]) -> None:
    """The parts of a duration are added."""
    text = " ".join(f"{number}{unit}" for number, unit in parts)
    if not parts:
        check_refused(lambda: parse_duration_s(text))
        return
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    total_s = sum(number * units[unit] for number, unit in parts)
    assert parse_duration_s(text) == pytest.approx(total_s)


@given(text=st.text(alphabet="0123456789 smhdunecy.+-\n", max_size=12))
def test_durations_are_finite_or_refused(text: str) -> None:
    """Whatever the text, the result is a finite number of seconds or a ConfigError."""
    try:
        seconds = parse_duration_s(text)
    except ConfigError:
        return
    assert 0 <= seconds < math.inf


def make(**settings: Any) -> BasebackupCacheConfig:
    """Settings of any types, to try the checks."""
    return BasebackupCacheConfig(**settings)
