"""Arguments of a wrong type: every method says in the same words what to pass instead."""

from __future__ import annotations

import datetime as dt
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import LSN_A, Harness, samples
from support.helpers import LSN, TENANT, TIMELINE

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    BbcacheError,
    FillTimeoutError,
    Lsn,
    TenantId,
    TenantShardId,
    TenantTimelineId,
    TimelineId,
)
from bbcache.arguments import seconds
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHARD = TenantShardId(TENANT)
TEXT = str(TENANT)
WRONG_IDS: list[tuple[str, object, str, str]] = [
    ("tenant_id", SHARD, "must be a TenantId, not a TenantShardId", "tenant_shard_id.tenant_id."),
    ("tenant_id", TEXT, f"must be a TenantId, not the str '{TEXT}'", "TenantId.from_str(text)."),
    ("tenant_id", bytes(16), "must be a TenantId, not the bytes b'", "TenantId(data)."),
    ("tenant_id", TIMELINE, "must be a TenantId, not a TimelineId", "before the timeline's."),
    ("tenant_id", TenantTimelineId(TENANT, TIMELINE), "not a TenantTimelineId", "its tenant_id."),
    ("tenant_id", None, "must be a TenantId, not None", ""),
    ("tenant_id", [1], "must be a TenantId, not a list", ""),
]
WRONG_SHARDS: list[tuple[str, object, str, str]] = [
    ("tenant_shard_id", TENANT, "a TenantShardId, not a TenantId", "TenantShardId(tenant_id)."),
    ("tenant_shard_id", TEXT, "a TenantShardId, not the str '", "TenantShardId.from_str(text)."),
    ("tenant_shard_id", TIMELINE, "not a TimelineId", "before the timeline's."),
    ("tenant_shard_id", {}, "a TenantShardId, not a dict", ""),
]
WRONG_PLACES: list[tuple[str, object, str, str]] = [
    ("timeline_id", str(TIMELINE), "a TimelineId, not the str '", "TimelineId.from_str(text)."),
    ("timeline_id", TENANT, "a TimelineId, not a TenantId", "before the timeline's."),
    ("timeline_id", TenantTimelineId(TENANT, TIMELINE), "not a Tenant", "its timeline_id."),
    ("timeline_id", 5, "a TimelineId, not the int 5", ""),
    ("lsn", "0/16B5A50", "an Lsn, not the str '0/16B5A50'", "Lsn.from_str(text)."),
    ("lsn", 4711, "an Lsn, not the int 4711", "Lsn(number)."),
    ("lsn", 1.5, "an Lsn, not the float 1.5", ""),
    ("lsn", True, "an Lsn, not True", ""),
    ("lsn", Lsn, "an Lsn, not the class Lsn", ""),
    ("lsn", None, "an Lsn, not None", ""),
]


class _NumPyLike:
    """An integer that is no int, as those of NumPy."""

    def __index__(self) -> int:
        return 5


def test_an_integer_that_is_no_int_is_told_the_way() -> None:
    """The hint works also where `Lsn` itself was called."""
    with pytest.raises(TypeError, match=r"must be an int, not a _NumPyLike\nhint: .*int\(number\)"):
        Lsn(_NumPyLike())  # type: ignore[arg-type]


RIGHT = {"tenant_id": TENANT, "tenant_shard_id": SHARD, "timeline_id": TIMELINE, "lsn": LSN}


def check_text(error: object, name: str, text: str, hint: str) -> None:
    """The text names the argument and its type, and the hint what to pass instead."""
    lines = str(error).split("\n")
    assert lines[0].startswith(f"{name} must be ")
    assert text in lines[0]
    assert len(lines) == (2 if hint else 1)
    assert lines[-1].endswith(hint)
    assert lines[1:] == [] or lines[1].startswith("hint: ")


def refused(call: Callable[..., object], *arguments: object, **named: object) -> TypeError:
    """The exception of a call: a TypeError and a BbcacheError."""
    with pytest.raises(TypeError) as caught:
        call(*arguments, **named)
    assert isinstance(caught.value, BbcacheError)
    return caught.value


@pytest.fixture(name="harness")
def make_harness(tmp_path: Path) -> Iterator[Harness]:
    """A cache that holds one entry."""
    with Harness(tmp_path) as harness:
        harness.prepared()
        yield harness


@pytest.mark.parametrize("life", ["open", "closed", "disabled"])
@pytest.mark.parametrize("method", ["get", "get_held"])
@pytest.mark.parametrize(("name", "value", "text", "hint"), WRONG_IDS + WRONG_PLACES)
def test_a_get_says_which_argument_is_wrong(
    harness: Harness, life: str, method: str, name: str, value: object, text: str, hint: str
) -> None:
    """If there is no entry, in any state of the cache; it does not count as a miss."""
    cache = harness.cache
    if life == "closed":
        cache.close()
    elif life == "disabled":
        cache = BasebackupCache.spawn(harness.dir, None, harness.host)
    arguments = {key: RIGHT[key] for key in ("tenant_id", "timeline_id", "lsn")} | {name: value}
    check_text(refused(getattr(cache, method), **arguments), name, text, hint)
    assert harness.reads == {}


@pytest.mark.parametrize("life", ["open", "closed", "disabled"])
@pytest.mark.parametrize(("name", "value", "text", "hint"), WRONG_SHARDS + WRONG_PLACES)
def test_get_or_prepare_says_which_argument_is_wrong(
    harness: Harness, life: str, name: str, value: object, text: str, hint: str
) -> None:
    """With the same words, before anything else, in any state of the cache."""
    cache = harness.cache
    if life == "closed":
        cache.close()
    elif life == "disabled":
        cache = BasebackupCache.spawn(harness.dir, None, harness.host)
    arguments = {k: RIGHT[k] for k in ("tenant_shard_id", "timeline_id", "lsn")} | {name: value}
    check_text(refused(cache.get_or_prepare, **arguments, timeout_s=0), name, text, hint)
    assert harness.counts() == {"ok": 1}


@pytest.mark.parametrize(("name", "value", "text", "hint"), WRONG_SHARDS + WRONG_PLACES)
def test_send_prepare_logs_which_argument_is_wrong(
    harness: Harness,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: object,
    text: str,
    hint: str,
) -> None:
    """With the same words, counted as an error, and nothing raised."""
    arguments: dict[str, Any] = {
        key: RIGHT[key] for key in ("tenant_shard_id", "timeline_id", "lsn")
    } | {name: value}
    harness.cache.send_prepare(**arguments)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    _, _, message = record.getMessage().partition(": ")
    check_text(message, name, text, hint)
    assert harness.counts() == {"ok": 1, "error": 1}


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_what_cannot_be_printed_or_hashed_is_refused_as_well(harness: Harness) -> None:
    """The error is about the argument, not about the error's own text or a look-up."""
    odd: Any
    for odd in (_Unprintable(), [], {}, object(), 10**5000, "x" * 10**6):
        text = str(refused(harness.cache.get, odd, TIMELINE, LSN))
        assert text.startswith("tenant_id must be a TenantId, not ")
        assert len(text) < 300
        harness.cache.send_prepare(odd, odd, odd)
    assert harness.counts()["error"] == 6


@pytest.mark.parametrize(
    ("make", "text", "hint"),
    [
        (lambda: Lsn("0/1"), "value of Lsn must be an int, not the str '0/1'", "Lsn.from_str"),  # type: ignore[arg-type]
        (lambda: Lsn(None), "value of Lsn must be an int, not None", ""),  # type: ignore[arg-type]
        (lambda: Lsn(value=True), "value of Lsn must be an int, not True", ""),
        (lambda: Lsn(1.0), "value of Lsn must be an int, not the float 1.0", ""),  # type: ignore[arg-type]
        (lambda: TenantId(TEXT), "value of TenantId must be 16 bytes", "TenantId.from_str"),  # type: ignore[arg-type]
        (lambda: TimelineId(TEXT), "value of TimelineId must be 16 bytes", "TimelineId.from_str"),  # type: ignore[arg-type]
        (lambda: TenantId(16), "must be 16 bytes, not the int 16", ""),  # type: ignore[arg-type]
        (lambda: TenantShardId(TEXT), "tenant_id must be a TenantId", "TenantId.from_str"),  # type: ignore[arg-type]
        (lambda: TenantShardId(SHARD), "not a TenantShardId", "tenant_shard_id.tenant_id."),  # type: ignore[arg-type]
        (lambda: TenantShardId(TENANT, "0"), "shard_number must be an int from 0 to 255", ""),  # type: ignore[arg-type]
        (lambda: TenantShardId(TENANT, shard_count=True), "shard_count must be an int from 0", ""),
        (lambda: Lsn.from_str(5), "text of Lsn.from_str must be a str, not the int 5", ""),  # type: ignore[arg-type]
        (lambda: Lsn.from_str(LSN), "must be a str, not an Lsn", "It is an Lsn already."),  # type: ignore[arg-type]
        (lambda: TenantId.from_str(TENANT), "must be a str", "It is a TenantId already."),  # type: ignore[arg-type]
        (lambda: TenantShardId.from_str(TENANT), "must be a str", "TenantShardId(tenant_id)."),  # type: ignore[arg-type]
        (lambda: BasebackupCacheConfig.from_toml(5), "source must be a path or a table", ""),  # type: ignore[arg-type]
        (lambda: BasebackupCacheConfig.from_toml(None), "source must be a path or a table", ""),  # type: ignore[arg-type]
    ],
)
def test_what_makes_ids_and_settings_refuses_wrong_types(
    make: Callable[[], object], text: str, hint: str
) -> None:
    """As a TypeError and, as everything that cannot be parsed, a ValueError."""
    error = refused(make)
    assert isinstance(error, ValueError)
    assert text in str(error)
    assert hint in str(error).partition("\nhint: ")[2]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        *(("5", "Pass an int or a float."), (True, "float."), (False, "float."), ([5], "float.")),
        (dt.timedelta(seconds=5), ".total_seconds()."),
        (object(), "Pass an int or a float."),
    ],
)
def test_a_timeout_is_a_number_of_seconds(harness: Harness, value: Any, hint: str) -> None:
    """A text, a bool or a timedelta is refused by every method that waits, by name."""
    for call, name in (
        (harness.cache.wait_initialized, "timeout"),
        (harness.cache.wait_idle, "timeout"),
        (harness.cache.close, "timeout"),
        (
            lambda timeout_s: harness.cache.get_or_prepare(SHARD, TIMELINE, LSN, timeout_s),
            "timeout_s",
        ),
    ):
        text = str(refused(call, value))
        assert text.startswith(f"{name} must be a number of seconds or None, not ")
        assert text.endswith(hint)
    assert harness.cache.entries() != [], "the close was refused as well"


def test_a_timeout_that_is_no_number_of_seconds(harness: Harness) -> None:
    """Nan is a ValueError, a negative time does not wait, and a huge one waits without limit."""
    with pytest.raises(ValueError, match="timeout must be a number of seconds or None, not nan"):
        harness.cache.wait_idle(math.nan)
    assert (seconds("t", -5), seconds("t", -(10**400)), seconds("t", 0)) == (0.0, 0.0, 0)
    assert (seconds("t", math.inf), seconds("t", 10**400), seconds("t", None)) == (None,) * 3
    assert seconds("t", 2) == 2
    timeline = harness.timeline()
    with pytest.raises(FillTimeoutError):
        harness.cache.get_or_prepare(harness.shard_of(timeline), timeline.timeline_id, LSN_A, -1.0)
    assert harness.cache.wait_idle(math.inf)
    assert harness.cache.wait_idle(10**400)


def test_go_on_must_be_callable(harness: Harness) -> None:
    """It is refused at once, not after a wait."""
    held = harness.prepared()
    arguments: list[Any] = [harness.shard_of(held), held.timeline_id, LSN_A, None, 5]
    assert str(refused(harness.cache.get_or_prepare, *arguments)) == (
        "check_cancelled must be a function without arguments, not the int 5"
    )


class _AsyncHost(MemoryHost):
    async def list(self) -> Any:  # type: ignore[override]
        return []


class _HalfAHost:
    """A host without one of the methods."""

    def list(self) -> list[object]:
        """No tenants."""
        return []


@pytest.mark.parametrize(
    ("place", "value", "text", "hint"),
    [
        ("data_dir", 5, "data_dir must be a str or a path, not the int 5", ""),
        ("data_dir", b"/tmp", "a str or a path, not the bytes b'/tmp'", "os.fsdecode(data_dir)."),
        ("data_dir", None, "data_dir must be a str or a path, not None", ""),
        ("config", {}, "a BasebackupCacheConfig or None, not a dict", "from_toml for a table"),
        ("config", "x.toml", "or None, not the str 'x.toml'", "or the path of a file."),
        (
            "config",
            BasebackupCacheConfig,
            "not the class BasebackupCacheConfig",
            "BasebackupCacheConfig(...)",
        ),
        ("tenant_manager", None, "a bbcache.TenantManager, not None", "list and get_attached_ten"),
        ("tenant_manager", _HalfAHost(), "not a _HalfAHost", "method get_attached_tenant_shard."),
        ("tenant_manager", MemoryHost, "not the class MemoryHost", "MemoryHost(...)."),
        ("tenant_manager", _AsyncHost(), "not a _AsyncHost", "method list plain, not async."),
        ("registry", {}, "CollectorRegistry or None, not a dict", "register and unregister."),
        ("registry", CollectorRegistry, "not the class CollectorRegistry", "Registry(...)."),
    ],
)
def test_spawn_refuses_wrong_arguments_at_once(
    tmp_path: Path, place: str, value: object, text: str, hint: str
) -> None:
    """With the names of missing methods; nothing is made or locked."""
    data_dir = tmp_path / "cache"
    arguments: dict[str, Any] = {
        "data_dir": data_dir,
        "config": BasebackupCacheConfig(),
        "tenant_manager": MemoryHost(),
        "registry": CollectorRegistry(),
        place: value,
    }
    error = str(refused(BasebackupCache.spawn, **arguments))
    assert error.startswith(f"{place} must be ")
    assert text in error
    assert hint in error.partition("\nhint: ")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_disabled_cache_needs_no_host(tmp_path: Path) -> None:
    """Without settings nothing is done, so nothing is asked for."""
    nothing: Any = None
    cache = BasebackupCache.spawn(tmp_path, None, nothing)
    assert not cache.is_enabled


def test_a_registry_of_ones_own_kind_is_taken(tmp_path: Path) -> None:
    """An object with the methods is a registry, as for prometheus_client."""

    class Registry(CollectorRegistry):
        """A user's own."""

    registry = Registry()
    with BasebackupCache.spawn(tmp_path, BasebackupCacheConfig(), MemoryHost(), registry):
        assert "pageserver_basebackup_cache_entries_total" in samples(registry)
