"""Fetching one basebackup: request, unpack while it arrives, check, and publish."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from bbcache.errors import ArchiveError, BbcacheError, PostgresError
from bbcache.fetch.connection import CopyStream, connect
from bbcache.fetch.conninfo import check_texts
from bbcache.fetch.errors import FetchError, UnavailableError
from bbcache.fetch.retry import RetryPolicy
from bbcache.fetch.staging import Staging
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.postgres.pgdata.restore import RestoreSummary, restore_tarball
from bbcache.postgres.pgdata.tar_reader import TarLimits
from bbcache.postgres.pgdata.tarball import inspect_pgdata
from bbcache.postgres.wal.page import canonical_lsn

DEFAULT_LIMITS: Final = TarLimits(max_size_bytes=256 << 30, max_member_count=1_000_000)
"""The default limits of a fetch, so that no service can fill a disk."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to fetch, and from where. Immutable, hence thread-safe.

    Attributes:
        url: a libpq connection string or URL of a page service.
        tenant_id: the tenant.
        timeline_id: its timeline.
        lsn: the position; None for the tip.
        token: the password, in place of the URL's; None leaves the choice to libpq: the
            URL, PGPASSWORD or a password file.
    """

    url: str = field(repr=False)  # it may have a password
    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def command(self) -> str:
        """The command for the service."""
        words = ["basebackup", str(self.tenant_id), str(self.timeline_id)]
        words += [] if self.lsn is None else [str(self.lsn)]
        return " ".join([*words, "--gzip"])


@dataclass(frozen=True, slots=True)
class FetchSummary:
    """The result of a fetch.

    Attributes:
        lsn: the position at which the data directory starts.
        member_count: files and directories.
        size_bytes: size of the uncompressed tar.
        received_bytes: size of the archive as received in the last attempt.
        attempt_count: how many attempts it took.
        elapsed_s: seconds for the whole fetch.
    """

    lsn: Lsn
    member_count: int
    size_bytes: int
    received_bytes: int
    attempt_count: int
    elapsed_s: float


def fetch_basebackup(
    request: FetchRequest,
    dest: Path | str,
    *,
    policy: RetryPolicy | None = None,
    owner: tuple[int, int] | None = None,
    without_logical_replication: bool = False,
    limits: TarLimits = DEFAULT_LIMITS,
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> FetchSummary:
    """Fetch a basebackup into a new data directory, from which PostgreSQL starts.

    `dest` appears complete, checked and on disk, or not at all. Until then everything
    is in a directory beside it. A failure or a signal that raises removes that directory; the
    next fetch removes one that a kill has left. A failure that may pass is retried.
    Safe to call from several threads, each with its own `dest`.

    A copy that runs beside the timeline's compute node needs
    `without_logical_replication`, as `restore_tarball` says.

    Args:
        request: what to fetch.
        dest: a path that does not exist, or an empty directory; its parent must exist.
        policy: how often and how long to try; None takes the defaults.
        owner: user id and group id of the new files; only for root. None takes the
            caller's.
        without_logical_replication: as for `restore_tarball`.
        limits: how large a tar may be.
        tell: called with a line for each failed attempt that is retried.
        clock: seconds that only grow.
        sleep: waits so many seconds.
        chance: random numbers from 0 up to 1.

    Raises:
        ConfigError: the URL cannot be understood.
        RefusedError: the service refuses the request for good.
        FetchError: all attempts failed, or the service sent another basebackup.
        LimitError: the basebackup is larger than `limits` allow.
        PostgresError: `dest` cannot be used, or there is no space for a file.
    """
    check_texts(request.url, request.token)
    policy = policy or RetryPolicy()
    started_s = clock()
    with Staging(dest) as staging:
        options = _RestoreOptions(owner, without_logical_replication, limits)
        attempts = _Attempts(request, staging.pgdata_dir, policy, options, started_s, clock)
        while (failure := attempts.run_one()) is not None:
            pause_s = attempts.pause_s(failure, chance())
            tell(f"{attempts.last} failed: {_one_line(failure)}; retrying in {pause_s:.1f} s")
            sleep(pause_s)
        lsn = _check(staging.pgdata_dir, request)
        staging.publish()
    assert attempts.restored is not None
    return FetchSummary(
        lsn,
        attempts.restored.member_count,
        attempts.restored.size_bytes,
        attempts.received_bytes,
        attempts.count,
        clock() - started_s,
    )


class _RestoreOptions(NamedTuple):
    owner: tuple[int, int] | None
    without_logical_replication: bool
    limits: TarLimits


class _Attempts:
    """The attempts to fetch one basebackup.

    Attributes:
        count: the number of attempts so far.
        restored: the summary of the attempt that succeeded.
        received_bytes: bytes received in the last attempt.
    """

    def __init__(
        self,
        request: FetchRequest,
        pgdata_dir: Path,
        policy: RetryPolicy,
        options: _RestoreOptions,
        started_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._pgdata_dir = pgdata_dir
        self._policy = policy
        self._options = options
        self._deadline_s = started_s + policy.timeout_s
        self._clock = clock
        self.count = 0
        self.restored: RestoreSummary | None = None
        self.received_bytes = 0

    @property
    def last(self) -> str:
        """The name of the last attempt."""
        return f"attempt {self.count} of {self._policy.attempt_count}"

    def run_one(self) -> BbcacheError | None:
        """Make one attempt; return a failure that may be retried."""
        self.count += 1
        self.received_bytes = 0
        try:
            self._run()
        except (UnavailableError, ArchiveError) as error:
            return error
        return None

    def _run(self) -> None:
        connection = connect(self._request.url, self._request.token, self._deadline_s, self._clock)
        with contextlib.closing(connection):
            stream = CopyStream(
                connection,
                self._request.command,
                self._deadline_s,
                self._policy.read_timeout_s,
                self._clock,
            )
            self.restored = restore_tarball(
                stream, self._pgdata_dir, sync=True, **self._options._asdict()
            )
            self.received_bytes = stream.size_bytes

    def pause_s(self, failure: BbcacheError, chance: float) -> float:
        """Seconds to wait before the next attempt; raises `FetchError` if none is left."""
        pause_s = self._policy.pause_s(self.count, chance)
        if pause_s is not None and self._clock() + pause_s < self._deadline_s:
            return pause_s
        limit = "" if pause_s is None else f" within {self._policy.timeout_s:g} s"
        raise FetchError(
            f"{self.last} failed, and no attempt is left{limit}: {failure}"
        ) from failure


def _check(pgdata_dir: Path, request: FetchRequest) -> Lsn:
    """Check that the unpacked directory starts cleanly; return its LSN."""
    try:
        control = inspect_pgdata(pgdata_dir)
    except PostgresError as error:
        raise FetchError(
            f"the service sent a basebackup that does not start cleanly: {error}"
        ) from error
    lsn = control.checkpoint_end_lsn
    wanted = request.lsn
    if wanted is not None and canonical_lsn(wanted, control.wal_segment_size_bytes) != lsn:
        raise FetchError(f"the service sent the basebackup at {lsn}, not the one at {wanted}")
    return lsn


def _one_line(error: BbcacheError) -> str:
    return str(error).partition("\n")[0]
