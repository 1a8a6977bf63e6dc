"""A compute node: a PostgreSQL server on a restored copy, and a thread that follows its WAL.

The thread reads the server's files, or the WAL that the server streams.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.errors import MissingExtraError, PostgresError
from bbcache.ids import Lsn
from bbcache.pageserver.compute_dir import ComputeDir
from bbcache.pageserver.next_start import check_next_start
from bbcache.pageserver.timeline import PgdataTimeline
from bbcache.postgres.pgdata.tarball import inspect_pgdata
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries, StopMode
from bbcache.postgres.server.orphan import end_server
from bbcache.postgres.wal import WalFollower

if TYPE_CHECKING:  # an extra
    from bbcache.pageserver.wal_stream import WalStream

# The interval of polls while WAL is written or the server stops, and its upper bound ...
_SHORTEST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.64  # ... while nothing is written
_STREAM_TIMEOUT_S: Final = 10.0
# A checkpoint removes old WAL: keep the part that may not have been read yet.
_SETTINGS: Final = {"wal_keep_size": "128MB"}

log = logging.getLogger(__name__)


class ComputeNode:
    """Runs PostgreSQL on a copy of a timeline, and keeps the timeline's tip up to date.

    Not thread-safe: one caller at a time; the WAL is followed in a thread of its own.
    A node that is neither stopped nor killed ends with the process, and the next start of the
    pageserver takes over its commits.

    Args:
        timeline: the timeline, at the LSN that the copy was restored from.
        binaries: PostgreSQL's programs.
        pgdata_dir: the copy, on the timeline's file system.
        on_shutdown_checkpoint: called with the end LSN of each shutdown checkpoint in
            the WAL, in the thread that follows it. Crash recovery also writes such a
            checkpoint, and the server runs on after it. If the WAL could not be
            followed to its end, `stop` calls it with the last checkpoint.
        streams_wal: whether the server streams its WAL; otherwise its files are read.

    Attributes:
        cluster: the server, to connect to.
    """

    def __init__(
        self,
        timeline: PgdataTimeline,
        binaries: PostgresBinaries,
        pgdata_dir: Path,
        on_shutdown_checkpoint: Callable[[Lsn], None],
        *,
        streams_wal: bool = False,
    ) -> None:
        self.cluster = Cluster(binaries, pgdata_dir, settings=_SETTINGS)
        self._directory = ComputeDir(self.cluster.pgdata_dir)
        self._timeline = timeline
        self._on_shutdown_checkpoint = on_shutdown_checkpoint
        self._files = WalFollower(
            pgdata_dir / "pg_wal", timeline.get_last_record_lsn(), max_data_bytes=0
        )
        self._stream = _make_stream(timeline) if streams_wal else None
        self._is_to_be_kept = False  # `stop` was called: the directory must not be removed
        self._is_ending = False  # the server is being stopped
        self._has_server_ended = False
        self._news = threading.Event()  # ends a pause of the follower
        self._is_failing = False  # the last poll failed, and that was logged
        self._reported_lsn: Lsn | None = None  # of the last shutdown checkpoint
        self._has_ended = False
        self._thread: threading.Thread | None = None
        self._has_followed = threading.Event()

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start the server, and follow its WAL from now on.

        It may be called again after a crash, or after a `stop` that failed: PostgreSQL recovers
        first, and another `stop` takes the directory over.

        Raises:
            PostgresError: it did not start.
            OSError: the start could not be recorded on disk.
        """
        effective = {**_SETTINGS, **(settings or {})}
        self._directory.note_start(effective)
        self.cluster.start(settings)
        self._directory.note_started(effective)
        if self._is_to_be_kept:
            self._timeline.resume_compute()
        if self._stream is not None:
            self._stream.follow(self.cluster.conninfo())
        self._is_ending = False
        if self._thread is None:
            self._start_following()
        self._news.set()
        if self._stream is not None and not self._stream.wait_tried(_STREAM_TIMEOUT_S):
            log.warning("the WAL of timeline %s is not streamed yet", self._timeline.timeline_id)

    def stop(self) -> Lsn:
        """Stop the server, and make its directory the new state of the timeline.

        After a failure the directory stays, and the timeline cannot be used until the directory
        is taken over: by another `stop` (after a `start` if the server has crashed), or by the
        next start of the pageserver.

        Returns:
            The LSN at which the next compute node starts.

        Raises:
            PostgresError: the server did not shut down cleanly, or the node had ended already.
            TakeoverError: see `PgdataTimeline.take_over`.
        """
        pgdata_dir = self.cluster.pgdata_dir
        if self._has_ended:
            raise PostgresError(f"the compute node in {pgdata_dir} has already ended")
        self._is_to_be_kept = True
        try:
            self._stop_cluster("fast")
            self._stop_following()
            lsn = self._timeline.take_over(pgdata_dir, self._check_next_start)
        except BaseException:
            self._timeline.refuse_until_takeover()
            self._reported_lsn = None  # its prepare has failed
            raise
        self._has_ended = True
        self._directory.forget()
        if self._reported_lsn != lsn:
            self._on_shutdown_checkpoint(lsn)
        return lsn

    def _check_next_start(self) -> None:
        check_next_start(
            self.cluster.pgdata_dir,
            self._timeline.pgdata_dir,
            self.cluster.binaries,
            self._directory.settings(),
        )

    def kill(self) -> None:
        """Crash the server and remove its copy: its commits are lost.

        Its log stays until the next start of the pageserver. Does nothing if the node
        has already ended. After a `stop` that failed, nothing is lost or removed: the
        next start of the pageserver takes the directory over.
        """
        if self._has_ended:
            return
        self._stop_cluster("immediate")
        self._stop_following()
        self._has_ended = True
        if self._is_to_be_kept:
            log.warning("keeping %s: its stop failed", self.cluster.pgdata_dir)
            return
        try:
            self._directory.remove()
        except OSError as error:
            log.warning("cannot remove %s, which is not needed: %s", self._directory.path, error)
        self._timeline.give_up_compute()

    def _stop_cluster(self, mode: StopMode) -> None:
        if self._stream is not None:
            self._stream.expect_end()
        self._is_ending = True
        self._news.set()
        self.cluster.stop(mode)
        # A server that a user has restarted with pg_ctl is not a child of this process.
        end_server(self.cluster.pgdata_dir)

    def _start_following(self) -> None:
        self._has_server_ended = False
        self._has_followed.clear()
        name = f"bbcache-follow-{self._timeline.timeline_id}"
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        pause_s = _SHORTEST_PAUSE_S
        while not self._has_server_ended:
            if self._poll() or self._is_ending:
                pause_s = _SHORTEST_PAUSE_S
            if self._news.wait(pause_s):
                self._news.clear()
                pause_s = _SHORTEST_PAUSE_S
            else:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._poll()  # the server has ended, so this poll sees all of its WAL
        if self._stream is not None:
            self._stream.close()
        self._has_followed.set()

    def _poll(self) -> bool:
        """Handle the new records; return whether there was WAL, which may be padding alone."""
        has_come = False
        from_lsn = self._stream.next_lsn if self._stream else None
        try:
            for record in (self._stream or self._files).poll():
                has_come = True
                self._timeline.advance(record.end_lsn)
                if record.is_shutdown_checkpoint:
                    self._reported_lsn = record.end_lsn
                    self._on_shutdown_checkpoint(record.end_lsn)
            self._is_failing = False
        except Exception:
            if not self._is_failing:
                log.exception("cannot follow the WAL of timeline %s", self._timeline.timeline_id)
            self._is_failing = True
        return has_come or (self._stream is not None and self._stream.next_lsn != from_lsn)

    def _stop_following(self) -> None:
        self._has_server_ended = True
        self._news.set()
        if self._thread is not None:
            self._has_followed.wait()  # a join that a signal has interrupted cannot be repeated
            self._thread = None


def _make_stream(timeline: PgdataTimeline) -> WalStream:
    try:
        from bbcache.pageserver.wal_stream import WalStream  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("cannot stream WAL", "replication", error) from error
    size_bytes = inspect_pgdata(timeline.pgdata_dir).wal_segment_size_bytes
    return WalStream(timeline.get_last_record_lsn(), size_bytes, max_data_bytes=0)
