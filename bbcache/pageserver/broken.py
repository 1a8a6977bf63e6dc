"""Tenants and timelines on disk that cannot be served, and foreign names beside them.

One bad directory must not keep the others from being served. It is *broken*: logged,
counted, shown on the status page, and refused to clients. Its entries stay in the cache,
because they may still be needed.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bbcache.errors import BrokenError, names_a_path, printable, safe_str
from bbcache.host import TarballWriter
from bbcache.ids import Lsn, TenantId, TimelineId

_MOST_LOGGED: Final = 20  # of each kind, while the tenants are attached
_UNNAMED_REASON: Final = "its directory cannot be used; the log of the service has the reason"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broken:
    """One tenant or timeline that cannot be served. Immutable, hence thread-safe.

    Attributes:
        tenant_id: the tenant.
        timeline_id: the timeline; None if the whole tenant is broken.
        reason: why, in one line that names no path, so that clients may read it.
    """

    tenant_id: TenantId
    timeline_id: TimelineId | None
    reason: str

    def __str__(self) -> str:
        timeline = "" if self.timeline_id is None else f"timeline {self.timeline_id} of "
        return f"{timeline}tenant {self.tenant_id}"

    def error(self) -> BrokenError:
        """The error for callers that ask for it."""
        return BrokenError(
            f"{self} is broken: {self.reason}\n"
            "hint: Repair its directory; the service notices that by itself."
        )


class BrokenTimeline:
    """Stands in for a timeline that cannot be served; implements `bbcache.host.Timeline`.

    A tenant lists it, so that clean-up keeps its entries. Thread-safe.

    Args:
        timeline_id: its id.
        broken: what all methods raise as an error.
    """

    def __init__(self, timeline_id: TimelineId, broken: Broken) -> None:
        self.timeline_id = timeline_id
        self.broken = broken

    def get_last_record_lsn(self) -> Lsn:
        """Raise `BrokenError`: the tip is not known."""
        raise self.broken.error()

    def wait_lsn(self, lsn: Lsn, timeout: float) -> None:  # noqa: ARG002 - of the protocol
        """Raise `BrokenError`."""
        raise self.broken.error()

    def send_basebackup_tarball(self, writer: TarballWriter, lsn: Lsn) -> None:  # noqa: ARG002 - of the protocol
        """Raise `BrokenError`."""
        raise self.broken.error()


class BrokenRegister:
    """The broken tenants and timelines, and the number of foreign names. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all that follows
        self._broken: dict[tuple[TenantId, TimelineId | None], Broken] = {}
        self._foreign_count = 0
        self._is_attached = False

    def __bool__(self) -> bool:
        """Whether any tenant or timeline is broken."""
        return bool(self._broken)

    @property
    def foreign_count(self) -> int:
        """The number of names that are neither a tenant nor a timeline."""
        with self._lock:
            return self._foreign_count

    def report(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId | None,
        path: Path,
        error: BaseException | str,
    ) -> Broken:
        """Note that a tenant or timeline is broken, and log it the first time.

        Args:
            tenant_id: the tenant.
            timeline_id: the timeline; None for the tenant as a whole.
            path: its directory.
            error: why.
        """
        broken = Broken(tenant_id, timeline_id, _reason(error, path))
        key = tenant_id, timeline_id
        with self._lock:
            is_news = key not in self._broken
            self._broken[key] = broken
            is_logged = is_news and (self._is_attached or len(self._broken) <= _MOST_LOGGED)
        if is_logged:
            where = "" if str(path) in (text := _first_line(error)) else f" ({path})"
            log.error("%s is broken: %s", broken, printable(text + where))
        return broken

    def forget(self, tenant_id: TenantId, timeline_id: TimelineId | None) -> None:
        """Drop a report of a tenant or timeline that is gone."""
        with self._lock:
            self._broken.pop((tenant_id, timeline_id), None)

    def mended(self, tenant_id: TenantId, timeline_id: TimelineId | None) -> None:
        """Note that a tenant or timeline works again."""
        if not self._broken:
            return
        with self._lock:
            broken = self._broken.pop((tenant_id, timeline_id), None)
        if broken is not None:
            log.info("%s works again", broken)

    def report_foreign(self, directory: Path, names: list[str]) -> None:
        """Log and count names that are not ids; their files are not touched."""
        with self._lock:
            before, self._foreign_count = self._foreign_count, self._foreign_count + len(names)
        room = max(0, _MOST_LOGGED - before)
        for name in names[:room]:
            log.warning("ignoring %s: its name is not an id", printable(str(directory / name)))

    def end_attach(self) -> None:
        """Log how many reports were not logged; each later report is logged."""
        with self._lock:
            self._is_attached = True
            broken_count, foreign_count = len(self._broken), self._foreign_count
        if broken_count > _MOST_LOGGED:
            log.error("%d more tenants and timelines are broken", broken_count - _MOST_LOGGED)
        if foreign_count > _MOST_LOGGED:
            log.warning("ignoring %d more names that are not ids", foreign_count - _MOST_LOGGED)

    def find(self, tenant_id: TenantId, timeline_id: TimelineId | None) -> Broken | None:
        """The report of a tenant or timeline; None if it is not broken."""
        with self._lock:
            return self._broken.get((tenant_id, timeline_id))

    def list(self) -> list[Broken]:
        """All reports."""
        with self._lock:
            return list(self._broken.values())


class TimelineHealth(Protocol):
    """Gets the reports of a timeline that breaks or works again. Must be thread-safe."""

    def broken(self, error: BaseException | str) -> BrokenError:
        """Take a report that the timeline is broken; return the error for its callers."""
        ...

    def works(self) -> None:
        """Take a report that the timeline works."""
        ...


class UnregisteredHealth:
    """The health of a timeline outside of a pageserver: it logs and keeps nothing.

    Args:
        timeline_id: the timeline.
        path: its directory.
    """

    def __init__(self, timeline_id: TimelineId, path: Path) -> None:
        self._timeline_id = timeline_id
        self._path = path

    def broken(self, error: BaseException | str) -> BrokenError:
        """Return the error for the callers of the timeline."""
        return BrokenError(f"timeline {self._timeline_id} is broken: {_reason(error, self._path)}")

    def works(self) -> None:
        """Do nothing."""


class RegisteredHealth:
    """The health of a timeline of a pageserver, kept in its register. Thread-safe.

    Args:
        register: where the reports go.
        tenant_id: the tenant of the timeline.
        timeline_id: the timeline.
        path: its directory.
    """

    def __init__(
        self, register: BrokenRegister, tenant_id: TenantId, timeline_id: TimelineId, path: Path
    ) -> None:
        self._register = register
        self._tenant_id = tenant_id
        self._timeline_id = timeline_id
        self._path = path

    def broken(self, error: BaseException | str) -> BrokenError:
        """Report that the timeline is broken; return the error for its callers."""
        reported = self._register.report(self._tenant_id, self._timeline_id, self._path, error)
        return reported.error()

    def works(self) -> None:
        """Report that the timeline works."""
        self._register.mended(self._tenant_id, self._timeline_id)


def _reason(error: BaseException | str, path: Path) -> str:
    """The error's first line without a path of this machine."""
    if isinstance(error, OSError) and error.strerror:
        return f"its directory cannot be read: {error.strerror}"
    text = _first_line(error).replace(f"{path}/", "").replace(str(path), "its directory")
    return _UNNAMED_REASON if names_a_path(text) else printable(text)


def _first_line(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else safe_str(error)
    return text.partition("\n")[0]
