"""Where the archives come from: what a service asks of a host and its cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, Self

from isal import igzip

from bbcache.errors import BbcacheError, NotReadyError, PrepareError
from bbcache.host import attached_shards_zero
from bbcache.metrics import Source
from bbcache.page_service.errors import CommandError, NotFoundError, PageServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from bbcache.cache import BasebackupCache
    from bbcache.host import Tenant, TenantManager, Timeline
    from bbcache.ids import Lsn, TenantId
    from bbcache.page_service.command import BasebackupCommand

_WAIT_SLICE_S: Final = 0.2
_ON_REQUEST_LEVEL: Final = 2


@dataclass(frozen=True, slots=True)
class OpenBasebackup:
    """An open archive, which leaving a ``with`` block closes.

    Attributes:
        file: a file of one gzip member on disk, open at its start.
        lsn: the position that it is of.
        size_bytes: its size.
        origin: how it came to be there: ``bbcache_source`` in the log and the metrics.
    """

    file: BinaryIO
    lsn: Lsn
    size_bytes: int
    origin: Source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class BasebackupSource(Protocol):
    """Gives archives to a service, for many threads at once."""

    def open(self, command: BasebackupCommand, go_on: Callable[[], None]) -> OpenBasebackup:
        """The archive that a command asks for, complete.

        Args:
            command: what is asked for. The client may have it.
            go_on: to be called every so often while there is something to wait for; it
                raises where nobody waits for the archive any more.

        Raises:
            NotFoundError: the tenant or timeline is not here.
            PageServiceError: it cannot be had, for the client to know.
        """
        ...


class CacheSource:
    """Archives from a cache, and from its host where the cache has none. Thread-safe.

    A command without LSN is for the timeline's tip. A replica's archive is a primary's:
    a host's tarball has one form. Those of a ``fullbackup`` are always built.

    Args:
        tenant_manager: the host.
        cache: its cache.
        wait_lsn_timeout_s: how long to wait for a timeline to reach an LSN.
        build_dir: where archives are built; None for the system's temporary directory.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        tenant_manager: TenantManager,
        cache: BasebackupCache,
        *,
        wait_lsn_timeout_s: float = 300.0,
        build_dir: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tenant_manager = tenant_manager
        self._cache = cache
        self._wait_lsn_timeout_s = wait_lsn_timeout_s
        self._build_dir = build_dir
        self._clock = clock

    def open(self, command: BasebackupCommand, go_on: Callable[[], None]) -> OpenBasebackup:
        """See `BasebackupSource.open`."""
        lsn = command.lsn
        if lsn is not None and (found := self._find(command, lsn)):
            return found  # what is held needs no asking of the host
        timeline = self._timeline(command)
        if lsn is None:
            lsn = timeline.get_last_record_lsn()
            if found := self._find(command, lsn):
                return found
        else:
            self._wait(timeline, lsn, go_on)
            if found := self._find(command, lsn):
                return found
        return self._build(timeline, lsn, go_on)

    def _find(self, command: BasebackupCommand, lsn: Lsn) -> OpenBasebackup | None:
        if command.is_full:
            return None
        file = self._cache.get(command.tenant_id, command.timeline_id, lsn)
        if file is None:
            return None
        return OpenBasebackup(file, lsn, file.size_bytes, Source.HIT)

    def _timeline(self, command: BasebackupCommand) -> Timeline:
        tenant = self._tenant(command.tenant_id)
        try:
            return tenant.get_timeline(command.timeline_id)
        except Exception as error:
            raise NotFoundError(
                f"timeline {command.tenant_id}/{command.timeline_id} is not here"
            ) from error

    def _tenant(self, tenant_id: TenantId) -> Tenant:
        try:
            for shard_id, tenant in attached_shards_zero(self._tenant_manager):
                if shard_id.tenant_id == tenant_id:
                    return tenant
        except NotReadyError as error:
            raise CommandError("the tenants are not known yet\nhint: Try again soon.") from error
        raise NotFoundError(f"shard zero of tenant {tenant_id} is not attached here")

    def _wait(self, timeline: Timeline, lsn: Lsn, go_on: Callable[[], None]) -> None:
        """Wait for the LSN, in slices short enough to notice that nobody wants it any more."""
        deadline_s = self._clock() + self._wait_lsn_timeout_s
        while True:
            try:
                timeline.wait_lsn(lsn, _WAIT_SLICE_S)
            except TimeoutError:
                go_on()
                if self._clock() < deadline_s:
                    continue
                tip = timeline.get_last_record_lsn()
                raise CommandError(
                    f"timed out after {self._wait_lsn_timeout_s:g} s of waiting for LSN {lsn}; "
                    f"the timeline is at {tip}"
                ) from None
            return

    def _build(self, timeline: Timeline, lsn: Lsn, go_on: Callable[[], None]) -> OpenBasebackup:
        file = tempfile.TemporaryFile(dir=self._build_dir)  # noqa: SIM115 - the caller closes it
        try:
            with igzip.open(file, "wb", compresslevel=_ON_REQUEST_LEVEL) as gzip:  # type: ignore[no-untyped-call]  # isal has no types for it
                timeline.send_basebackup_tarball(_Watched(gzip, go_on), lsn)
            size_bytes = file.tell()
            file.seek(0)
        except PrepareError as error:
            file.close()
            is_past = lsn < timeline.get_last_record_lsn()
            what = "invalid basebackup lsn" if is_past else "cannot build the basebackup"
            raise CommandError(what) from error
        except PageServiceError:
            file.close()
            raise
        except (BbcacheError, OSError) as error:
            file.close()
            raise CommandError("cannot build the basebackup") from error
        except BaseException:
            file.close()
            raise
        return OpenBasebackup(file, lsn, size_bytes, Source.BUILT)


class _Watched:
    """A writer that stops where nobody waits for what is written any more."""

    def __init__(self, writer: BinaryIO, go_on: Callable[[], None]) -> None:
        self._writer = writer
        self._go_on = go_on

    def write(self, data: Buffer, /) -> int:
        self._go_on()
        return self._writer.write(data)
