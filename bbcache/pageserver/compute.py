"""A compute node: a PostgreSQL server on a restored copy, and its WAL followed.

The WAL is followed in the server's files, or as the server streams it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from typing import TYPE_CHECKING, Final

from bbcache.errors import ConfigError
from bbcache.postgres.cluster import Cluster
from bbcache.postgres.pgdata import inspect_pgdata
from bbcache.postgres.wal import WalFollower

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bbcache.ids import Lsn
    from bbcache.pageserver.timeline import PgdataTimeline
    from bbcache.pageserver.wal_stream import WalStream
    from bbcache.postgres.cluster import PostgresBinaries, StopMode

_POLL_S: Final = 0.02
_STREAM_TIMEOUT_S: Final = 10.0
# A checkpoint removes old WAL: leave what may not have been read yet.
_SETTINGS: Final = {"wal_keep_size": "128MB"}

log = logging.getLogger(__name__)


class ComputeNode:
    """Runs PostgreSQL on a copy of a timeline, and keeps the timeline's tip up to date.

    Not thread-safe: one caller at a time; the WAL is followed in a thread of its own.
    One that is neither stopped nor killed ends with the process, and what it wrote is lost.

    Args:
        timeline: the timeline, at the LSN that the copy was restored from.
        binaries: PostgreSQL's programs.
        pgdata_dir: the copy, on the timeline's file system.
        on_shutdown_checkpoint: called with the end LSN of each shutdown checkpoint in
            the WAL, from the following thread. One that crash recovery has written
            looks the same: the server goes on after it. Where the WAL could not be
            followed to its end, `stop` calls it with the last one.
        streams_wal: whether the server streams its WAL, or its files are read.

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
        self._timeline = timeline
        self._on_shutdown_checkpoint = on_shutdown_checkpoint
        self._files = WalFollower(
            pgdata_dir / "pg_wal", timeline.get_last_record_lsn(), max_data_bytes=0
        )
        self._stream = _make_stream(timeline) if streams_wal else None
        self._is_stopping = threading.Event()
        self._is_failing = False  # the last poll has failed, and that was logged
        self._reported_lsn: Lsn | None = None  # of the last shutdown checkpoint
        self._has_ended = False
        self._thread: threading.Thread | None = None
        self._has_followed = threading.Event()

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start the server, and follow its WAL from now on.

        Raises:
            PostgresError: it did not start.
        """
        self.cluster.start(settings)
        if self._stream is not None:
            self._stream.follow(self.cluster.conninfo())
        if self._thread is None:
            name = f"bbcache-follow-{self._timeline.timeline_id}"
            self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
            self._thread.start()
        if self._stream is not None and not self._stream.wait_tried(_STREAM_TIMEOUT_S):
            log.warning("timeline %s is not followed yet", self._timeline.timeline_id)

    def stop(self) -> Lsn:
        """Stop the server, and make what it leaves the new state of the timeline.

        Returns:
            The LSN at which the next compute node starts.

        Raises:
            PostgresError: the server did not shut down cleanly; the timeline keeps its
                old state.
            OSError: the disk failed; see `PgdataTimeline.take_over`.
        """
        try:
            self._stop_cluster("fast")
            self._stop_following()
            lsn = self._timeline.take_over(self.cluster.pgdata_dir)
        except BaseException:
            self.kill()
            raise
        self._has_ended = True
        self.cluster.log_path.unlink(missing_ok=True)
        if self._reported_lsn != lsn:
            self._on_shutdown_checkpoint(lsn)
        return lsn

    def kill(self) -> None:
        """Crash the server for good: what it wrote is lost, and its copy removed.

        Its log stays until the next start of the pageserver. Does nothing when the node
        has ended already.
        """
        if self._has_ended:
            return
        self._stop_cluster("immediate")
        self._stop_following()
        self._has_ended = True
        self._timeline.give_up_compute()
        shutil.rmtree(self.cluster.pgdata_dir, ignore_errors=True)

    def _stop_cluster(self, mode: StopMode) -> None:
        if self._stream is not None:
            self._stream.expect_end()
        self.cluster.stop(mode)

    def _follow(self) -> None:
        while not self._is_stopping.wait(_POLL_S):
            self._poll()
        self._poll()  # the server has ended: what is there now is all
        if self._stream is not None:
            self._stream.close()
        self._has_followed.set()

    def _poll(self) -> None:
        try:
            for record in (self._stream or self._files).poll():
                self._timeline.advance(record.end_lsn)
                if record.is_shutdown_checkpoint:
                    self._reported_lsn = record.end_lsn
                    self._on_shutdown_checkpoint(record.end_lsn)
            self._is_failing = False
        except Exception:
            if not self._is_failing:
                log.exception("cannot follow the WAL of timeline %s", self._timeline.timeline_id)
            self._is_failing = True

    def _stop_following(self) -> None:
        self._is_stopping.set()
        if self._thread is not None:
            self._has_followed.wait()  # a join that a signal interrupts cannot be repeated


def _make_stream(timeline: PgdataTimeline) -> WalStream:
    try:
        from bbcache.pageserver.wal_stream import WalStream  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            f"no WAL can be streamed: {error}\n"
            "hint: Install what it needs with `pip install 'bbcache[replication]'`."
        ) from error
    size_bytes = inspect_pgdata(timeline.pgdata_dir).wal_segment_size_bytes
    return WalStream(timeline.get_last_record_lsn(), size_bytes, max_data_bytes=0)
