"""A timeline that is kept as a PGDATA directory."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bbcache.arguments import check_passable
from bbcache.errors import BrokenError, PostgresError, PrepareError, TakeoverError, safe_str
from bbcache.host import TarballWriter
from bbcache.ids import Lsn, TimelineId
from bbcache.pageserver.broken import TimelineHealth, UnregisteredHealth
from bbcache.pageserver.takeover import finish_takeover, pending_takeover, take_over
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.pgdata.tarball import (
    check_sendable,
    inspect_pgdata,
    send_pgdata_tarball,
)
from bbcache.postgres.wal import canonical_lsn

_MAX_VERSION_BYTES: Final = 16  # of PG_VERSION


class PgdataTimeline:
    """One timeline; implements `bbcache.host.Timeline`. Thread-safe.

    A timeline has two positions. The *tip* is the end of the last WAL record seen, and runs
    ahead while a compute node works. The *directory's* LSN is the shutdown checkpoint
    that the directory starts from; it catches up when a compute node has stopped and
    `take_over` has made its directory the new one. Basebackups are made at the directory's
    LSN only.

    A takeover that a crash has cut short is finished first.

    Args:
        timeline_id: its id.
        pgdata_dir: its directory, a cluster that was shut down cleanly.
        health: gets a report when the timeline breaks, or works again; None for a timeline
            outside of a pageserver.

    Attributes:
        timeline_id: its id.
        pgdata_dir: its directory.

    Raises:
        OSError: the directory cannot be read.
        PostgresError: the directory is not a cluster that was shut down cleanly.
    """

    def __init__(
        self, timeline_id: TimelineId, pgdata_dir: Path, health: TimelineHealth | None = None
    ) -> None:
        check_passable("the data directory", pgdata_dir, PostgresError)
        finish_takeover(pgdata_dir)
        _check_own_directory(pgdata_dir)
        self.timeline_id = timeline_id
        self.pgdata_dir = pgdata_dir
        self._health = health or UnregisteredHealth(timeline_id, pgdata_dir)
        control = _inspect(pgdata_dir)
        self._wal_segment_size_bytes = control.wal_segment_size_bytes
        # Entered by `with` itself: an interrupt while a condition is entered leaves it locked.
        self._lock = threading.RLock()  # guards all that follows
        self._moved = threading.Condition(self._lock)
        self._directory_lsn = control.checkpoint_end_lsn
        self._tip = self._directory_lsn
        self._reader_count = 0
        self._is_moving = False  # a takeover is under way, or waits for the readers
        self._failure: BrokenError | None = None  # of a takeover, whose directory is elsewhere
        self._has_compute = False

    def get_last_record_lsn(self) -> Lsn:
        """The tip: the end of the last WAL record that was seen.

        Raises:
            BrokenError: a takeover has failed.
        """
        with self._lock:
            self._check_usable_locked()
            return self._tip

    def check_usable(self) -> None:
        """Raise `BrokenError` if a takeover has failed; else do nothing."""
        with self._lock:
            self._check_usable_locked()

    @property
    def has_compute(self) -> bool:
        """Whether a compute node works on the timeline."""
        with self._lock:
            return self._has_compute

    def canonical_lsn(self, lsn: Lsn) -> Lsn:
        """The canonical name of a position; see `bbcache.postgres.wal.canonical_lsn`."""
        return canonical_lsn(lsn, self._wal_segment_size_bytes)

    def wait_lsn(self, lsn: Lsn, timeout: float) -> None:
        """Wait until the directory is at `lsn`, or until it is certain that it never gets there.

        It never gets there if the tip is past `lsn` (crash recovery wrote that shutdown
        checkpoint, and the server ran on), or if no compute node runs. In these cases
        `send_basebackup_tarball` refuses the LSN.

        Raises:
            TimeoutError: neither after `timeout` seconds.
        """
        with self._lock:
            if not self._moved.wait_for(
                lambda: self._directory_lsn >= lsn or self._tip > lsn or not self._has_compute,
                timeout,
            ):
                raise TimeoutError(
                    f"timeline {self.timeline_id} has its directory at {self._directory_lsn} "
                    f"and its tip at {self._tip}"
                )

    def send_basebackup_tarball(self, writer: TarballWriter, lsn: Lsn) -> None:
        """Write the directory as a tar; it must be at exactly `lsn`.

        Raises:
            BrokenError: the directory is damaged, or a takeover has failed.
            PrepareError: it is at another LSN.
            PostgresError: it cannot be sent.
        """
        with self._reading() as directory_lsn:
            if directory_lsn != lsn:
                raise PrepareError(
                    f"timeline {self.timeline_id} has its directory at {directory_lsn}, "
                    f"not at {lsn}\nhint: Stop the compute node that writes to this timeline."
                )
            try:
                send_pgdata_tarball(self.pgdata_dir, writer)
            except PostgresError as error:
                self._check_health(error)
                raise
        self._health.works()

    def lend_to_compute(self) -> None:
        """Record that a compute node runs on a copy; one at a time.

        Raises:
            BrokenError: a takeover has failed.
            PrepareError: the timeline has a compute node already.
        """
        with self._lock:
            self._check_usable_locked()
            if self._has_compute:
                raise PrepareError(f"timeline {self.timeline_id} has a compute node already")
            self._has_compute = True

    def advance(self, lsn: Lsn) -> None:
        """Move the tip to the end of a WAL record."""
        with self._lock:
            self._tip = max(self._tip, lsn)
            self._moved.notify_all()

    def take_over(self, pgdata_dir: Path, check: Callable[[], object] | None = None) -> Lsn:
        """Make a stopped compute node's directory the state of the timeline.

        Waits until no basebackup is being read. Durable and atomic: after a crash half-way
        the timeline has either its old state or the new one. A failure never removes the
        directory; the timeline cannot be used until another call, or the next start, has
        taken the directory over.

        Args:
            pgdata_dir: the compute node's directory.
            check: called after the directory's own checks; raises `PostgresError` to refuse the
                directory.

        Returns:
            The directory's new LSN.

        Raises:
            TakeoverError: the compute node was not shut down cleanly, or the directory cannot
                be sent or is refused, and nothing has changed; or the disk failed.
        """
        try:
            lsn = check_sendable(pgdata_dir).checkpoint_end_lsn
            if check is not None:
                check()
        except PostgresError as error:
            raise self._takeover_error(pgdata_dir, error) from error
        try:
            with self._lock:
                self._is_moving = True
                self._moved.wait_for(lambda: self._reader_count == 0)
            take_over(pgdata_dir, self.pgdata_dir)
        except BaseException as error:
            self.refuse_until_takeover()
            if isinstance(error, OSError):
                raise self._takeover_error(pgdata_dir, error) from error
            raise
        with self._lock:
            self._is_moving = False
            self._has_compute = False
            self._failure = None
            self._directory_lsn = lsn
            self._tip = max(self._tip, lsn)
            self._moved.notify_all()
        self._health.works()
        return lsn

    def _takeover_error(self, pgdata_dir: Path, error: Exception) -> TakeoverError:
        kept_dir = pending_takeover(pgdata_dir, self.pgdata_dir)
        return TakeoverError(str(self.timeline_id), str(kept_dir), safe_str(error))

    def refuse_until_takeover(self) -> None:
        """Refuse all use until a takeover succeeds."""
        failure = self._health.broken("a takeover failed half-way or was interrupted")
        with self._lock:
            self._is_moving = False
            self._has_compute = False  # so that no reader waits for it
            self._failure = failure
            self._moved.notify_all()

    def resume_compute(self) -> None:
        """Record that the compute node of a failed takeover runs again."""
        with self._lock:
            self._has_compute = True
            self._failure = None
            self._moved.notify_all()
        self._health.works()

    def give_up_compute(self) -> None:
        """Record that the compute node and its commits are lost; reset the tip."""
        with self._lock:
            self._has_compute = False
            self._tip = self._directory_lsn
            self._moved.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[Lsn]:
        """Keep the directory unchanged during a block."""
        with self._lock:
            self._moved.wait_for(lambda: not self._is_moving)
            self._check_usable_locked()
            self._reader_count += 1
            lsn = self._directory_lsn
        try:
            yield lsn
        finally:
            with self._lock:
                self._reader_count -= 1
                self._moved.notify_all()

    def _check_health(self, error: PostgresError) -> None:
        """Raise `BrokenError` if the directory is damaged."""
        try:
            _inspect(self.pgdata_dir)
        except (OSError, PostgresError) as damage:
            raise self._health.broken(damage) from error

    def _check_usable_locked(self) -> None:
        if self._failure is not None:
            raise BrokenError(str(self._failure))


def _check_own_directory(pgdata_dir: Path) -> None:
    """Refuse a link: a takeover renames the directory itself."""
    if not stat.S_ISDIR(pgdata_dir.lstat().st_mode):
        raise PostgresError(f"{pgdata_dir} is not a directory")


def _inspect(pgdata_dir: Path) -> ControlFile:
    """Check PG_VERSION and pg_control, without which PostgreSQL does not start."""
    path = pgdata_dir / "PG_VERSION"
    if not path.is_file():
        raise PostgresError(f"{path} does not exist, or is not a file")
    control = inspect_pgdata(pgdata_dir)
    with path.open("rb") as file:
        version = file.read(_MAX_VERSION_BYTES).strip()
    if version != str(control.major_version).encode():
        raise PostgresError(f"{path} does not say {control.major_version}, but pg_control does")
    return control
