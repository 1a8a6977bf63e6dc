"""One prepare that runs: what is known of it so far."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bbcache.errors import (
    CacheFullError,
    ClosingError,
    EntryTooBigError,
    LimitError,
    StoreError,
    safe_str,
)
from bbcache.outcomes import SkipReason
from bbcache.storage.files import disk_step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.host import Timeline
    from bbcache.prepare.request import Request


# These are limits of this process or machine: a build elsewhere would meet them again, and the
# disk is not to blame. Every other errno of the cache's own step says that the disk has failed.
PROCESS_LIMITS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Skip(Exception):  # noqa: N818 - not an error: it ends a prepare that is not needed
    """A prepare is not needed, or has no room.

    Attributes:
        reason: counted by it.
        why: what stood in the way, where there is more to say.
    """

    def __init__(self, reason: SkipReason, why: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why


class DiskError(Exception):
    """A build has failed in the cache's own work on the disk, and not in the host.

    Internal, so that no host can raise it.

    Attributes:
        error: what the disk has refused.
    """

    def __init__(self, error: StoreError) -> None:
        super().__init__(error)
        self.error = error


class Job:
    """A request while a worker runs it; for one thread.

    Attributes:
        request: what was asked for.
        refusal: why its archive will not be published, but only handed to those who wait;
            None as long as it may be.
        disk_failure: why the disk of the cache cannot take the archive, so that it is built
            in `unpublished_dir`; None as long as the disk has not failed.
        is_outgrown: whether the timeline was past the LSN when it was last looked at.
        failing: what its failure would be held against, for a while: the timeline, or this
            one LSN of it; None while a failure has cost nothing.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.refusal: Skip | None = None
        self.disk_failure = request.disk_failure
        self.is_outgrown = False
        self.failing: bytes | None = None

    @property
    def may_publish(self) -> bool:
        """Whether nothing is known that keeps the archive from being published."""
        return self.refusal is None and self.disk_failure is None

    def why_unpublished(self) -> Skip | DiskError:
        """What ends the job where nobody waits for an archive that may not be published."""
        if self.refusal is not None:
            return self.refusal
        assert self.disk_failure is not None
        return DiskError(self.disk_failure)

    def refuse(self, reason: SkipReason, why: LimitError | None = None) -> None:
        """There is a reason not to publish.

        Raises:
            Skip: nobody waits for the archive either.
        """
        skip = self.refusal or Skip(reason, why)
        if not self.request.call.is_awaited:
            raise skip
        self.refusal = skip

    def check_tip(self, timeline: Timeline) -> None:
        """Refuse when the timeline has gone on; a rebuild wants it at exactly its LSN."""
        tip = timeline.get_last_record_lsn()
        self.is_outgrown = tip > self.request.lsn
        if self.is_outgrown or (self.request.is_rebuild and tip != self.request.lsn):
            self.refuse(SkipReason.TIP_MOVED)


def both_failed(first: StoreError, second: BaseException, own_hint: str = "") -> StoreError:
    """The error that names the failure of the cache's disk, and that of the build elsewhere.

    Args:
        first: of the cache's disk.
        second: of the build elsewhere.
        own_hint: what to do about the second; in the place of the hints in the texts.
    """
    what, _, hint = str(first).partition("\nhint: ")
    then, _, second_hint = safe_str(second).partition("\nhint: ")
    hint = own_hint or second_hint or hint
    text = f"{what}; the build in unpublished_dir has failed too: {then}"
    return StoreError(f"{text}\nhint: {hint}" if hint else text, errno=first.errno)


def reason_of(error: LimitError) -> SkipReason:
    """Under which reason a limit is counted."""
    return SkipReason.TOO_BIG if isinstance(error, EntryTooBigError) else SkipReason.FULL


def hint_for_unpublished(error: StoreError) -> str:
    """What to do about a disk error in `unpublished_dir`."""
    if error.errno in PROCESS_LIMITS:
        return str(error).partition("\nhint: ")[2]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, or set unpublished_dir to a directory on another file system."
    return "Make that directory usable for this process, or set unpublished_dir to another one."


@contextmanager
def own_disk(doing: str, path: str) -> Iterator[None]:
    """Turn what the disk does to the cache's own step into a `DiskError`.

    Args:
        doing: what the step does, such as ``write``.
        path: what it does it to.
    """
    try:
        with disk_step(doing, path):
            yield
    except StoreError as error:
        raise DiskError(error) from error


@contextmanager
def own_limits() -> Iterator[None]:
    """Turn what the cache itself has no room or no time for into a skip.

    Round its own steps only: a host that raises these has failed.
    """
    try:
        yield
    except ClosingError as error:
        raise Skip(SkipReason.CLOSING) from error
    except (EntryTooBigError, CacheFullError) as error:
        raise Skip(reason_of(error), error) from error
