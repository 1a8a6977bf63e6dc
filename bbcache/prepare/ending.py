"""How a prepare has ended: what the metrics count, what the log says, what its callers get."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ClosingError, safe_str
from bbcache.outcomes import SkipReason
from bbcache.prepare.singleflight import Result
from bbcache.storage.index import split_key

if TYPE_CHECKING:
    from bbcache.errors import ArgumentError
    from bbcache.ids import Lsn
    from bbcache.metrics import Metrics
    from bbcache.prepare.request import Request

CLOSED: Final = Result(error=ClosingError("the cache is closing"))

# The documented logger of all outcomes: archives that became ready as information, skips at
# debug level (a limit that is in the way as a warning), and errors.
log = logging.getLogger("bbcache.prepare.worker")


class Ending(NamedTuple):
    """How one request has ended; without arguments an error, after which callers ask again.

    Attributes:
        result: what its callers get.
        reason: why nothing was published; None for an archive that was, and for an error.
        why: what stood in the way, where there is more to say.
        published: bytes of the tarball and of the archive; None where nothing was published.
    """

    result: Result = Result()
    reason: SkipReason | None = None
    why: BaseException | None = None
    published: tuple[int, int] | None = None

    @classmethod
    def skip(cls, reason: SkipReason) -> Ending:
        """The end of a request that falls out of the line; its callers ask again."""
        return cls(CLOSED if reason is SkipReason.CLOSING else Result(), reason)

    def count_in(self, metrics: Metrics) -> None:
        """Count the request."""
        if self.reason is not None:
            metrics.skipped(self.reason)
        elif self.published is not None:
            metrics.prepared(*self.published)
        else:
            metrics.prepare_failed()

    def log(self, request: Request, waiting_count: int) -> None:
        """Log why nothing was published; a build and an error are logged where they happen.

        Args:
            request: the request that has ended.
            waiting_count: how many others wait.
        """
        if self.reason is None:
            return
        log_skip(request.key, request.lsn, self)
        if self.reason is SkipReason.QUEUE_FULL:
            log.warning(
                "a prepare was dropped: %d wait already (prepare_channel_size)", waiting_count
            )


def log_skip(key: bytes, lsn: Lsn, ending: Ending) -> None:
    """Log that nothing was published of a timeline at an LSN."""
    log.log(
        logging.WARNING if ending.why else logging.DEBUG,
        "basebackup of %s at %s %s (%s)%s",
        split_key(key),
        lsn,
        "not published" if ending.result.is_built else "skipped",
        ending.reason,
        f": {safe_str(ending.why)}" if ending.why else "",
    )


def log_refused(error: ArgumentError) -> None:
    """Log a `send_prepare` with arguments of a wrong type."""
    log.error("send_prepare asked for nothing: %s", error)
