"""`check_host`: hosts that keep the rules pass, and each broken one is told by its rule."""

from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import LSN_A

from bbcache import BbcacheError, Lsn, TenantShardId
from bbcache.testing import HostRuleError, MemoryHost, check_host, host_rules, make_tarball

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTenant, MemoryTimeline


def test_the_host_in_memory_keeps_the_rules() -> None:
    """So does one with tenants that are not attached, not active, or other shards."""
    host = MemoryHost()
    host.tenants[TenantShardId.from_str("de200bd42b49cc1814412c7e592dd6e9")] = None
    tenant = host.add_tenant()
    tenant.add_timeline(LSN_A)
    check_host(host)


def _swallow(timeline: MemoryTimeline) -> None:
    def send(writer: TarballWriter, lsn: Lsn) -> None:
        with contextlib.suppress(OSError):
            writer.write(timeline.tarball(lsn))

    timeline.on_send = send


def _keep_writing(timeline: MemoryTimeline) -> None:
    def send(writer: TarballWriter, lsn: Lsn) -> None:
        def later() -> None:
            with contextlib.suppress(ValueError):
                while True:
                    time.sleep(0.005)
                    writer.write(b"")

        writer.write(timeline.tarball(lsn))
        threading.Thread(target=later).start()

    timeline.on_send = send


def _differ(timeline: MemoryTimeline) -> None:
    lsns = iter(range(1, 1 << 30))
    timeline.tarball = lambda _: make_tarball(timeline.timeline_id, Lsn(next(lsns)))


def _share(timeline: MemoryTimeline) -> None:
    """Basebackups that are made at the same time get into one another."""
    under_way: list[int] = []

    def tarball(lsn: Lsn) -> bytes:
        under_way.append(1)
        time.sleep(0.05)
        data = make_tarball(timeline.timeline_id, lsn, size_bytes=100 * len(under_way))
        under_way.pop()
        return data

    timeline.tarball = tarball


def _write_twice(timeline: MemoryTimeline) -> None:
    def tarball(_: Lsn) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for _twice in range(2):
                tar.addfile(tarfile.TarInfo("PG_VERSION"))
        return buffer.getvalue()

    timeline.tarball = tarball


def _spin(_lsn: Lsn, timeout: float) -> None:
    deadline_s = time.thread_time() + timeout
    while time.thread_time() < deadline_s:
        pass
    raise TimeoutError


def _give_up(_lsn: Lsn, _timeout: float) -> None:
    raise TimeoutError


def _wrong_error(_lsn: Lsn, timeout: float) -> None:
    time.sleep(timeout)
    raise KeyError("timeout")


def _only_unreached(wait: Callable[[Lsn, float], None]) -> Callable[[Lsn, float], None]:
    return lambda lsn, timeout: None if lsn == LSN_A else wait(lsn, timeout)


_UNREACHED = "wait_lsn of an LSN that is not reached"
_TAR = "send_basebackup_tarball writes a tar"
_BROKEN: list[tuple[str, str, Callable[[Any, Any, Any], object]]] = [
    ("list", "a row is", lambda host, *_: _put(host, "list", lambda: [1])),
    ("list", "no row has", lambda host, *_: host.tenants.clear()),
    ("list", "it is not ready", lambda host, *_: _put(host, "is_ready", False)),  # noqa: FBT003
    ("list", "it raised KeyError: 'x'", lambda host, *_: _put(host, "list", _raise_key)),
    ("list", "a tenant's state is 'active'", lambda _, tenant, __: _put(tenant, "state", "active")),
    ("basebackup_cache_enabled", "is 1", lambda _, tenant, __: _put(tenant, "is_cache_enabled", 1)),
    (
        "get_attached_tenant_shard of an unknown one",
        "returned None",
        lambda host, *_: _put(host, "get_attached_tenant_shard", host.tenants.get),
    ),
    (
        "get_timeline of an unknown one",
        "returned None",
        lambda _, tenant, __: _put(tenant, "get_timeline", tenant.timelines.get),
    ),
    (
        "get_timeline of a known one",
        "timeline_id is 'x'",
        lambda _, tenant, timeline: _rename(tenant, timeline, "x"),
    ),
    (
        "get_last_record_lsn",
        "it is 4096",
        lambda *all_: _put(all_[2], "get_last_record_lsn", lambda: int(LSN_A)),
    ),
    ("wait_lsn of a reached LSN", "TimeoutError", lambda *all_: _put(all_[2], "on_wait", _give_up)),
    (
        _UNREACHED,
        "it returned",
        lambda *all_: _put(all_[2], "on_wait", lambda *_: None),
    ),
    (
        _UNREACHED,
        "gave up after",
        lambda *all_: _put(all_[2], "on_wait", _only_unreached(_give_up)),
    ),
    (_UNREACHED, "processor time", lambda *all_: _put(all_[2], "on_wait", _only_unreached(_spin))),
    (
        _UNREACHED,
        "gave KeyError: 'timeout'",
        lambda *all_: _put(all_[2], "on_wait", _only_unreached(_wrong_error)),
    ),
    (_TAR, "begin b'\\x1f", lambda *a: _put(a[2], "tarball", lambda _: b"\x1f\x8b" + b"x" * 999)),
    (_TAR, "the tar has no members", lambda *a: _put(a[2], "tarball", lambda _: bytes(10240))),
    (
        _TAR,
        "no end",
        lambda *a: _put(a[2], "tarball", lambda at: make_tarball(a[2].timeline_id, at)[:1536]),
    ),
    (
        _TAR,
        "bytes after it",
        lambda *a: _put(a[2], "tarball", lambda at: make_tarball(a[2].timeline_id, at) + b"x"),
    ),
    (_TAR, "twice", lambda *all_: _write_twice(all_[2])),
    ("send_basebackup_tarball is repeatable", "differ in restart", lambda *a: _differ(a[2])),
    (
        "send_basebackup_tarball lets errors of the writer through",
        "swallowed",
        lambda *all_: _swallow(all_[2]),
    ),
    (
        "send_basebackup_tarball is done when it returns",
        "after the callback",
        lambda *all_: _keep_writing(all_[2]),
    ),
    ("callbacks in several threads at once", "differs", lambda *all_: _share(all_[2])),
]


def _put(thing: object, name: str, value: object) -> None:
    setattr(thing, name, value)


def _rename(tenant: MemoryTenant, timeline: MemoryTimeline, name: Any) -> None:
    timeline.timeline_id = name
    tenant.timelines[name] = timeline


def _raise_key() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(("rule", "seen", "spoil"), _BROKEN)
def test_a_broken_rule_is_named(
    rule: str, seen: str, spoil: Callable[[MemoryHost, MemoryTenant, MemoryTimeline], object]
) -> None:
    """With what was seen, and a hint where it is not the host's own exception."""
    host = MemoryHost()
    tenant = host.add_tenant()
    timeline = tenant.add_timeline(LSN_A)
    spoil(host, tenant, timeline)
    with pytest.raises(AssertionError) as caught:
        check_host(host)
    error = caught.value
    assert isinstance(error, HostRuleError)
    assert isinstance(error, BbcacheError)
    assert rule in error.broken
    assert seen in error.broken[rule]
    assert "hint: " in error.broken[rule] or "raised" in error.broken[rule]
    assert f"- {rule}: " in str(error)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(again), again.broken) == (str(error), error.broken)


def test_every_rule_can_be_broken() -> None:
    """The list of broken hosts has each rule but that of one that is found again."""
    rules = {*host_rules._RULES, "list"} - {"get_attached_tenant_shard of an attached one"}
    assert {rule for rule, _, _ in _BROKEN} == rules


async def _coroutine(*_: object) -> None:
    """Stands for a callback that is never awaited."""


@pytest.mark.parametrize("name", ["list", "get_timeline", "wait_lsn"])
def test_async_callbacks_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the manager, a tenant and a timeline; none of them is called."""
    host = MemoryHost()
    tenant = host.add_tenant()
    things = {"list": host, "get_timeline": tenant, "wait_lsn": tenant.add_timeline(LSN_A)}
    monkeypatch.setattr(things[name], name, _coroutine)
    with pytest.raises(HostRuleError, match=rf"{name}\(\) is async|has async {name}"):
        check_host(host)


def test_all_broken_rules_are_told_at_once() -> None:
    """So that a new host takes one run, not one for each mistake."""
    host = MemoryHost()
    timeline = host.add_tenant().add_timeline(LSN_A)
    timeline.on_wait = lambda *_: None
    timeline.tarball = lambda _: b"text"
    with pytest.raises(HostRuleError, match="breaks 2 rules") as caught:
        check_host(host)
    assert set(caught.value.broken) == {_UNREACHED, _TAR}
