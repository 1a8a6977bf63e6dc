"""The rules for hosts, as a check that embedders run on their own host."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from bbcache.arguments import is_async
from bbcache.errors import BbcacheError, NotReadyError, safe_str
from bbcache.host import Tenant, TenantManager, TenantState, Timeline
from bbcache.ids import Lsn, TenantId, TenantShardId, TimelineId

_SHORT_S: Final = 0.2  # one slice of the cache's own waits
_PATIENCE_S: Final = 60.0  # for a busy machine; a callback that takes longer hangs
_LEAST_SHARE: Final = 0.5  # of its timeout that a wait must take
_THREADS: Final = 4
_PLAIN: Final = "Make it a plain function: callbacks are called in threads, not awaited."
_UNREACHED: Final = Lsn(2**64 - 1)


class HostRuleError(BbcacheError, AssertionError):
    """A host breaks rules of `bbcache.host`.

    Attributes:
        broken: for each broken rule the observation and a hint, by its name.
    """

    def __init__(self, broken: dict[str, str]) -> None:
        listed = "\n".join(f"- {rule}: {text}" for rule, text in broken.items())
        count = f"{len(broken)} rule{'s' if len(broken) > 1 else ''}"
        super().__init__(f"the host breaks {count} of bbcache.host\n{listed}")
        self.broken = broken


class _BrokenRuleError(Exception):
    """The observation, and a hint."""


class _Subject(NamedTuple):
    """The subject of the rules: an attached and active tenant, and one of its timelines."""

    tenants: TenantManager
    shard_id: TenantShardId
    tenant: Tenant
    timeline: Timeline


_Rule = Callable[[_Subject], None]


def check_host(host: TenantManager) -> None:
    """Check that a host keeps the rules of `bbcache.host`; name every rule that it breaks.

    The host needs an attached and ACTIVE tenant (its shard zero) with a timeline at whose tip
    a basebackup can be made. The check calls the callbacks only, several at once, and makes
    a few basebackups. It takes some seconds.

    Args:
        host: the tenant manager, as for `BasebackupCache.spawn`.

    Raises:
        HostRuleError: (an `AssertionError`) it breaks a rule; the error has a hint for each.
    """
    broken: dict[str, str] = {}
    subject = _try("list", lambda: _find_subject(host), broken)
    if subject is not None:
        for name, rule in _RULES.items():
            _try(name, lambda rule=rule: rule(subject), broken)  # type: ignore[misc]
    if broken:
        raise HostRuleError(broken)


def _try(name: str, call: Callable[[], Any], broken: dict[str, str]) -> Any:
    """Return the result of a rule; record a rule that is broken."""
    try:
        return call()
    except _BrokenRuleError as error:
        broken[name] = str(error)
    except Exception as error:  # noqa: BLE001 - a host may raise anything
        broken[name] = f"it raised {safe_str(error)}"
    return None


def _broken(seen: str, hint: str) -> _BrokenRuleError:
    return _BrokenRuleError(f"{seen}\n  hint: {hint}")


def _need(is_kept: object, seen: str, hint: str) -> None:
    if not is_kept:
        raise _broken(seen, hint)


def _find_subject(host: TenantManager) -> _Subject:
    for name in ("list", "get_attached_tenant_shard"):
        method = getattr(host, name, None)
        _need(callable(method), f"there is no {name}()", "Implement it.")
        _need(not is_async(method), f"{name}() is async", _PLAIN)
    try:
        rows = list(host.list())
    except NotReadyError:
        raise _broken("it is not ready", "Call check_host once list() knows the tenants.") from None
    for row in rows:
        _need(
            isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], TenantShardId),  # noqa: PLR2004
            f"a row is {type(row).__name__} {row!r:.100}",
            "Give tuples of a TenantShardId, and the tenant or None.",
        )
    for shard_id, tenant in rows:
        if tenant is None or not shard_id.is_shard_zero:
            continue
        _check_methods(tenant, "a tenant", Tenant)
        state = tenant.current_state()
        hint = "Return a bbcache.TenantState from current_state()."
        _need(isinstance(state, TenantState), f"a tenant's state is {state!r:.100}", hint)
        if state is not TenantState.ACTIVE:
            continue
        for timeline in tenant.list_timelines():
            _check_methods(timeline, "a timeline", Timeline)
            return _Subject(host, shard_id, tenant, timeline)
    raise _broken(
        "no row has the shard zero of an ACTIVE tenant with a timeline",
        "Give the host one to check.",
    )


def _check_methods(thing: object, what: str, protocol: type) -> None:
    public = (name for name in vars(protocol) if not name.startswith("_"))
    missing = [name for name in public if not hasattr(thing, name)]
    _need(not missing, f"{what} has no {' and no '.join(missing)}", "Implement it.")
    found = [name for name in vars(protocol) if is_async(getattr(thing, name, None))]
    seen = f"{what} has async {' and '.join(found)}"
    _need(not found, seen, _PLAIN)


def _switch(subject: _Subject) -> None:
    """The switch is a bool."""
    is_on = subject.tenant.basebackup_cache_enabled()
    _need(isinstance(is_on, bool), f"the switch is {is_on!r:.100}", "Return True or False.")


def _attached(subject: _Subject) -> None:
    """A shard of `list` is found by its id."""
    tenant = subject.tenants.get_attached_tenant_shard(subject.shard_id)
    _need(
        tenant is not None and hasattr(tenant, "get_timeline"),
        f"the shard of a row of list() gave {type(tenant).__name__}",
        "Return the tenant that list() has.",
    )


def _unknown_tenant(subject: _Subject) -> None:
    """An unknown tenant raises; None is wrong."""
    unknown = TenantShardId(TenantId.generate())
    _raises(
        lambda: subject.tenants.get_attached_tenant_shard(unknown),
        "Raise for a tenant that is not attached; a None would fail later, without its name.",
    )


def _known_timeline(subject: _Subject) -> None:
    """A timeline of `list_timelines` is found by its id."""
    timeline_id = subject.timeline.timeline_id
    _need(
        isinstance(timeline_id, TimelineId),
        f"timeline_id is {timeline_id!r:.100}",
        "Make it a bbcache.TimelineId: clean-up compares it with the ids of entries.",
    )
    found = subject.tenant.get_timeline(timeline_id)
    _need(
        getattr(found, "timeline_id", None) == timeline_id,
        f"the timeline that was asked for is {found!r:.100}",
        "Return the timeline of that id.",
    )


def _unknown_timeline(subject: _Subject) -> None:
    """An unknown timeline raises; None is wrong."""
    _raises(
        lambda: subject.tenant.get_timeline(TimelineId.generate()),
        "Raise for a timeline that the tenant does not have.",
    )


def _raises(call: Callable[[], object], hint: str) -> None:
    try:
        found = call()
    except Exception:  # noqa: BLE001 - any is right
        return
    raise _broken(f"it returned {found!r:.100}", hint)


def _tip(subject: _Subject) -> None:
    """The tip is an LSN."""
    tip = subject.timeline.get_last_record_lsn()
    _need(isinstance(tip, Lsn), f"it is {tip!r:.100}", "Return a bbcache.Lsn.")


def _wait_reached(subject: _Subject) -> None:
    """A wait for an LSN that is reached returns at once."""
    tip = subject.timeline.get_last_record_lsn()
    for timeout_s in (0.0, _PATIENCE_S):
        started_s = time.monotonic()
        subject.timeline.wait_lsn(tip, timeout_s)
        took_s = time.monotonic() - started_s
        _need(
            took_s < _PATIENCE_S / 2,
            f"a wait for the tip took {took_s:.1f} s",
            "Return at once if the tip has reached the LSN.",
        )


def _wait_unreached(subject: _Subject) -> None:
    """A wait for an LSN that is not reached raises TimeoutError, in time."""
    hint = "Raise TimeoutError after `timeout` seconds: the cache waits in slices and calls again."
    started_s, started_cpu_s = time.monotonic(), time.thread_time()
    try:
        subject.timeline.wait_lsn(_UNREACHED, _SHORT_S)
    except TimeoutError:
        took_s, cpu_s = time.monotonic() - started_s, time.thread_time() - started_cpu_s
    except Exception as error:
        raise _broken(f"an LSN that is not reached gave {safe_str(error)}", hint) from error
    else:
        # A host may know that an LSN never comes, as long as it makes no basebackup there.
        try:
            subject.timeline.send_basebackup_tarball(_Writer(), _UNREACHED)
        except Exception:  # noqa: BLE001 - any is right
            return
        raise _broken("it returned, and a basebackup was made at an LSN without WAL", hint)
    early = f"a wait of {_SHORT_S} s gave up after {took_s:.3f} s"
    _need(took_s >= _LEAST_SHARE * _SHORT_S, early, "Wait for as long as `timeout` says.")
    _need(took_s < _PATIENCE_S, f"a wait of {_SHORT_S} s took {took_s:.1f} s", hint)
    spun = f"it used {cpu_s:.2f} s of processor time in {took_s:.2f} s"
    _need(cpu_s < _LEAST_SHARE * _SHORT_S, spun, "Wait on a condition rather than in a loop.")


class _Writer:
    """A writer like that of the cache: it copies, and raises after the callback has returned."""

    def __init__(self, fails_after_bytes: int | None = None) -> None:
        self.data = bytearray()
        self.failure: OSError | None = None
        self.is_over = False
        self.was_misused = threading.Event()
        self._fails_after_bytes = fails_after_bytes

    def write(self, data: Any, /) -> int:
        """Copy the data."""
        if self.is_over:
            self.was_misused.set()
            raise ValueError("the archive has ended")
        if self._fails_after_bytes is not None and len(self.data) >= self._fails_after_bytes:
            self.failure = OSError("the check refuses this write")
            raise self.failure
        with memoryview(data) as view:
            self.data += view.cast("B")
            return view.nbytes

    def flush(self) -> None:
        """Do nothing, as the cache's writer."""

    def close(self) -> None:
        """Do nothing, as the cache's writer."""


def _tarball(subject: _Subject) -> bytes:
    writer = _Writer()
    subject.timeline.send_basebackup_tarball(writer, subject.timeline.get_last_record_lsn())
    writer.is_over = True
    return bytes(writer.data)


def _basebackup(subject: _Subject) -> None:
    """The basebackup is one whole, uncompressed tar with members."""
    data = _tarball(subject)
    hint = "Write one tar, uncompressed: headers, files and the two blocks of zeros at its end."
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            names = tar.getnames()
            end = tar.offset  # where no header follows
    except tarfile.TarError as error:
        raise _broken(f"{len(data)} bytes that begin {data[:16]!r}: {error}", hint) from error
    _need(names, "the tar has no members", hint)
    _need(len(names) == len(set(names)), "a name is in the tar twice", "Write each file once.")
    rest = data[end:]
    is_ended = len(rest) >= 2 * tarfile.BLOCKSIZE and not rest.strip(b"\0")
    _need(is_ended, "the tar has no end, or bytes after it", hint)


def _repeatable(subject: _Subject) -> None:
    """Two basebackups at one LSN have the same files."""
    first, second = _members(_tarball(subject)), _members(_tarball(subject))
    different = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    _need(
        not different,
        f"two basebackups at one LSN differ in {', '.join(different[:3])}",
        "Make the files of the LSN alone: the cache serves one basebackup to many.",
    )


def _members(data: bytes) -> dict[str, bytes | None]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            files = ((each, tar.extractfile(each)) for each in tar)
            return {each.name: None if file is None else file.read() for each, file in files}
    except tarfile.TarError:  # a separate rule
        return {"its bytes": data}


def _writer_errors(subject: _Subject) -> None:
    """An exception of the writer leaves the callback."""
    tip = subject.timeline.get_last_record_lsn()
    writer = _Writer(fails_after_bytes=0)
    hint = "Let the writer's exceptions through: they end the build."
    try:
        subject.timeline.send_basebackup_tarball(writer, tip)
    except Exception as error:  # noqa: BLE001 - a host may wrap it
        _need(_has_cause(error, writer.failure), f"it became {safe_str(error)}", hint)
        return
    _need(writer.failure is None, "an exception of the writer was swallowed", hint)
    raise _broken("nothing was written", hint)


def _has_cause(error: BaseException | None, cause: BaseException | None) -> bool:
    while error is not None:
        if error is cause:
            return True
        error = error.__cause__ or error.__context__
    return False


def _writer_lifetime(subject: _Subject) -> None:
    """The writer is not used once the callback has returned."""
    writer = _Writer()
    subject.timeline.send_basebackup_tarball(writer, subject.timeline.get_last_record_lsn())
    writer.is_over = True
    _need(
        not writer.was_misused.wait(_SHORT_S),
        "the writer was used after the callback had returned",
        "Return only when all is written; join threads of your own first.",
    )


def _concurrency(subject: _Subject) -> None:
    """All callbacks work in several threads at once."""
    expected = _members(_tarball(subject))

    def call_all(_: int) -> bool:
        list(subject.tenants.list())
        tenant = subject.tenants.get_attached_tenant_shard(subject.shard_id)
        timeline = tenant.get_timeline(subject.timeline.timeline_id)
        timeline.wait_lsn(timeline.get_last_record_lsn(), _PATIENCE_S)
        list(tenant.list_timelines())
        return _members(_tarball(subject._replace(timeline=timeline))) == expected

    with ThreadPoolExecutor(_THREADS, "check-host") as pool:
        are_same = all(list(pool.map(call_all, range(2 * _THREADS))))
    _need(
        are_same,
        f"a basebackup made in {_THREADS} threads at once differs from one made alone",
        "Callbacks come from several threads at once: guard what they share.",
    )


def _rules() -> Iterator[tuple[str, _Rule]]:
    yield "basebackup_cache_enabled", _switch
    yield "get_attached_tenant_shard of an attached one", _attached
    yield "get_attached_tenant_shard of an unknown one", _unknown_tenant
    yield "get_timeline of a known one", _known_timeline
    yield "get_timeline of an unknown one", _unknown_timeline
    yield "get_last_record_lsn", _tip
    yield "wait_lsn of a reached LSN", _wait_reached
    yield "wait_lsn of an LSN that is not reached", _wait_unreached
    yield "send_basebackup_tarball writes a tar", _basebackup
    yield "send_basebackup_tarball is repeatable", _repeatable
    yield "send_basebackup_tarball lets errors of the writer through", _writer_errors
    yield "send_basebackup_tarball is done when it returns", _writer_lifetime
    yield "callbacks in several threads at once", _concurrency


_RULES: Final = dict(_rules())
