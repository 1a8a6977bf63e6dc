"""The source of the archives: a host and its cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NamedTuple, Protocol, runtime_checkable

from bbcache.cache import BasebackupCache
from bbcache.errors import (
    BackingOffError,
    BrokenError,
    CacheFullError,
    ClosingError,
    FillError,
    NotReadyError,
    PrepareError,
)
from bbcache.host import (
    Tenant,
    TenantManager,
    TenantState,
    Timeline,
    attached_shards_zero,
    wait_for_lsn,
)
from bbcache.ids import Lsn, TenantId, TenantShardId, TimelineId
from bbcache.outcomes import Source
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.errors import (
    CommandError,
    NoRoomError,
    NotFoundError,
    PageServiceError,
    ShutdownError,
    plain_text,
)
from bbcache.page_service.protocol.command import BasebackupCommand
from bbcache.page_service.uncached_build import UncachedBuilder

_WAIT_SLICE_S: Final = 0.2
_TIP_TRIES: Final = 3  # of a tip that goes on while it is built

log = logging.getLogger(__name__)


class OpenBasebackup(NamedTuple):
    """An open archive, whose file the receiver closes.

    Attributes:
        file: a file of one gzip member on disk, open at its start.
        size_bytes: its size.
        origin: ``bbcache_source`` in the log and the metrics.
        is_unpublished: whether it counts against `max_unpublished_size_bytes` until it is
            closed.
        must_close: tells whether another tenant needs the place that it holds, given how many
            bytes were sent.
    """

    file: BinaryIO
    size_bytes: int
    origin: Source
    is_unpublished: bool = False
    must_close: Callable[[int], bool] = lambda _: False


class BasebackupSource(Protocol):
    """Gives archives to a service. Thread-safe."""

    def open(
        self, command: BasebackupCommand, check_cancelled: Callable[[], None]
    ) -> OpenBasebackup:
        """Open the archive that a command asks for, complete.

        Args:
            command: the command, which the client may give.
            check_cancelled: to be called about five times a second during a wait; it raises
                where the client does not wait any more.

        Raises:
            NotFoundError: the tenant or timeline is not here.
            NoRoomError: the archive cannot be published, and has no room besides.
            PageServiceError: the archive cannot be had; the client is told why.
        """
        ...


@runtime_checkable
class PositionNaming(Protocol):
    """An optional method of a host's timeline, if LSNs can have two names."""

    def canonical_lsn(self, lsn: Lsn) -> Lsn:
        """Return the name that the host itself uses for a position."""
        ...


@runtime_checkable
class BrokenKnowing(Protocol):
    """Optional methods of a host that knows which timelines it cannot serve."""

    def check_usable(self, tenant_id: TenantId, timeline_id: TimelineId) -> None:
        """Raise `BrokenError` if the tenant or timeline cannot be served; never waits."""
        ...

    def check_sound(self, tenant_id: TenantId, timeline_id: TimelineId) -> None:
        """Raise `BrokenError` also if the last build has found it damaged; never waits."""
        ...


class CacheSource:
    """Archives from a cache, which builds what it does not have. Thread-safe.

    A command without LSN is for the timeline's tip. A replica's archive is a primary's:
    a host's tarball has one form. The host builds a ``fullbackup`` each time, and
    everything if the cache is disabled.

    The cache waits for an LSN that is not reached yet; for archives that the cache does not
    build, this class does.

    Args:
        tenant_manager: the host.
        cache: its cache.
        config: the settings of the service.
        build_dir: the directory for archives that the cache does not build; None for the
            system's temporary directory. Two are built or sent at once.
    """

    def __init__(
        self,
        tenant_manager: TenantManager,
        cache: BasebackupCache,
        config: PageServiceConfig,
        *,
        build_dir: str | None = None,
    ) -> None:
        self._tenant_manager = tenant_manager
        self._knower = tenant_manager if isinstance(tenant_manager, BrokenKnowing) else None
        self._cache = cache
        self._wait_lsn_timeout_s = config.wait_lsn_timeout_s
        self._uncached_builder = UncachedBuilder(config.max_fullbackup_size_bytes, build_dir)

    @property
    def uncached_size_bytes(self) -> int:
        """Bytes of the archives that are built or sent beside the cache; reads memory only."""
        return self._uncached_builder.size_bytes

    def _open_held(self, command: BasebackupCommand) -> OpenBasebackup | None:
        """Open an archive that the cache holds and the command names exactly.

        The host is asked one thing only: whether it knows the timeline to be broken.
        """
        if command.is_full or command.lsn is None:
            return None
        if self._knower is not None:
            with _refusing():
                self._knower.check_usable(command.tenant_id, command.timeline_id)
        file = self._cache.get_held(command.tenant_id, command.timeline_id, command.lsn)
        return None if file is None else OpenBasebackup(file, file.size_bytes, Source.HIT)

    def open(
        self, command: BasebackupCommand, check_cancelled: Callable[[], None]
    ) -> OpenBasebackup:
        """See `BasebackupSource.open`."""
        held = self._open_held(command)
        if held is not None:
            return held
        shard_id, tenant = self._tenant(command.tenant_id)
        timeline = _timeline(tenant, command)
        make = self._build if command.is_full or not self._cache.is_enabled else self._fill
        if command.lsn is not None:
            return make(shard_id, timeline, _canonical(timeline, command.lsn), check_cancelled)
        for _ in range(_TIP_TRIES - 1):
            lsn = _tip(timeline)
            try:
                return make(shard_id, timeline, lsn, check_cancelled)
            except CommandError:
                if _tip(timeline) == lsn:
                    raise
        return make(shard_id, timeline, _tip(timeline), check_cancelled)

    def _tenant(self, tenant_id: TenantId) -> tuple[TenantShardId, Tenant]:
        try:
            for shard_id, tenant in attached_shards_zero(self._tenant_manager):
                if shard_id.tenant_id == tenant_id:
                    return shard_id, tenant
        except NotReadyError as error:
            raise CommandError("the tenants are not known yet\nhint: Try again soon.") from error
        raise NotFoundError(f"shard zero of tenant {tenant_id} is not attached here")

    def _fill(
        self,
        shard_id: TenantShardId,
        timeline: Timeline,
        lsn: Lsn,
        check_cancelled: Callable[[], None],
    ) -> OpenBasebackup:
        """Get the archive from the cache, which has it or builds it once for all clients."""
        check_cancelled = self._until_timeout(timeline, lsn, check_cancelled)
        try:
            file = self._cache.get_or_prepare(
                shard_id, timeline.timeline_id, lsn, check_cancelled=check_cancelled
            )
        except ClosingError as error:
            raise ShutdownError("the cache is closing") from error
        except BackingOffError as error:  # what the cause says may be for the log alone
            if self._knower is not None:
                with _refusing():
                    self._knower.check_sound(shard_id.tenant_id, timeline.timeline_id)
            raise CommandError(
                f"the basebackup is not tried before {error.until}: it has failed "
                f"{error.failure_count} times in a row\n"
                f"hint: Ask again in {error.retry_after_s:.1f} s; the log has the cause."
            ) from None
        except FillError as error:
            cause = error.__cause__ or error
            if isinstance(cause, CacheFullError):
                raise NoRoomError(_what_failed(cause, timeline, lsn)) from cause
            raise CommandError(_what_failed(cause, timeline, lsn)) from cause
        return OpenBasebackup(file, file.size_bytes, Source(file.source), file.is_unpublished)

    def _build(
        self,
        shard_id: TenantShardId,
        timeline: Timeline,
        lsn: Lsn,
        check_cancelled: Callable[[], None],
    ) -> OpenBasebackup:
        """Have the host build the archive for this client alone."""
        still_waits = self._until_timeout(timeline, lsn, check_cancelled)
        slice_s = min(_WAIT_SLICE_S, self._wait_lsn_timeout_s)
        try:
            while not wait_for_lsn(timeline, lsn, slice_s):
                still_waits()
            file = self._uncached_builder.build(shard_id.tenant_id, timeline, lsn, check_cancelled)
        except PageServiceError:
            raise
        except Exception as error:
            log.exception("cannot build a basebackup of timeline %s", timeline.timeline_id)
            raise CommandError(_what_failed(error, timeline, lsn)) from error
        return OpenBasebackup(file, file.place.size_bytes, Source.BUILT, must_close=file.must_close)

    def _until_timeout(
        self, timeline: Timeline, lsn: Lsn, check_cancelled: Callable[[], None]
    ) -> Callable[[], None]:
        """Make `check_cancelled` raise also when the LSN is not reached in time."""
        deadline_s = time.monotonic() + self._wait_lsn_timeout_s

        def still_waits() -> None:
            check_cancelled()
            if time.monotonic() >= deadline_s and (tip := _tip(timeline)) < lsn:
                raise CommandError(
                    f"timed out after {self._wait_lsn_timeout_s:g} s of waiting for LSN {lsn}; "
                    f"the timeline is at {tip}"
                )

        return still_waits


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell the client why a tenant or timeline is broken."""
    try:
        yield
    except BrokenError as error:
        raise CommandError(plain_text(error)) from None


def _timeline(tenant: Tenant, command: BasebackupCommand) -> Timeline:
    try:
        with _refusing():
            return tenant.get_timeline(command.timeline_id)
    except CommandError:
        raise
    except Exception as error:
        state = tenant.current_state()
        if state is not TenantState.ACTIVE:
            raise CommandError(f"tenant {command.tenant_id} is {state.value}") from error
        raise NotFoundError(
            f"timeline {command.tenant_id}/{command.timeline_id} is not here"
        ) from error


def _tip(timeline: Timeline) -> Lsn:
    try:
        return _canonical(timeline, timeline.get_last_record_lsn())
    except Exception as error:
        raise CommandError("where the timeline stands is not known") from error


def _canonical(timeline: Timeline, lsn: Lsn) -> Lsn:
    return timeline.canonical_lsn(lsn) if isinstance(timeline, PositionNaming) else lsn


def _what_failed(cause: BaseException, timeline: Timeline, lsn: Lsn) -> str:
    """Return the text by which clients of Neon know the failure."""
    is_past = isinstance(cause, PrepareError) and lsn < _tip(timeline)
    return "invalid basebackup lsn" if is_past else "cannot build the basebackup"
