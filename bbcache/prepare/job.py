"""One prepare that runs: what is known of it so far, and how its own steps fail."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bbcache.errors import ClosingError, EntryTooBigError, LimitError, StoreError, safe_str
from bbcache.outcomes import SkipReason
from bbcache.storage.files import disk_step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.host import Timeline
    from bbcache.prepare.request import Request


# Limits of this process or machine: a build in another directory would meet them again. Every
# other errno of one of the cache's own steps means that the disk has failed.
PROCESS_LIMITS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Skip(Exception):  # noqa: N818 - not an error: it ends a prepare that is not needed
    """A prepare is not needed, or has no room.

    Attributes:
        reason: under which it is counted.
        why: the error behind the reason, if there is one.
    """

    def __init__(self, reason: SkipReason, why: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why


class DiskError(Exception):
    """One of the cache's own steps on the disk has failed. Internal: no host can raise it.

    Attributes:
        error: the failure.
    """

    def __init__(self, error: StoreError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(eq=False)
class Job:
    """A request while a worker runs it; for one thread.

    Attributes:
        request: the request.
        refusal: why the archive will not be published, but only given to callers that wait;
            None while nothing speaks against it.
        disk_failure: why the disk of the cache cannot take the archive, which is built in
            `unpublished_dir` instead; None while the disk has not failed.
        is_outgrown: whether the timeline was past the LSN when it was last asked.
        failing: what a failure is held against for a while: the timeline, or this one LSN of
            it; None while a failure has cost nothing.
    """

    request: Request
    refusal: Skip | None = None
    disk_failure: StoreError | None = None
    is_outgrown: bool = False
    failing: bytes | None = None

    def __post_init__(self) -> None:
        self.disk_failure = self.request.disk_failure

    @property
    def may_publish(self) -> bool:
        """Whether nothing speaks against publishing the archive."""
        return self.refusal is None and self.disk_failure is None

    def why_unpublished(self) -> Skip | DiskError:
        """What ends the job if the archive may not be published, and no caller waits for it."""
        if self.refusal is not None:
            return self.refusal
        assert self.disk_failure is not None
        return DiskError(self.disk_failure)

    def refuse(self, reason: SkipReason, why: LimitError | None = None) -> None:
        """Note why the archive must not be published.

        Raises:
            Skip: no caller waits for the archive either.
        """
        skip = self.refusal or Skip(reason, why)
        if not self.request.call.is_awaited:
            raise skip
        self.refusal = skip

    def check_tip(self, timeline: Timeline) -> None:
        """Refuse if the timeline is past the LSN; a rebuild wants the tip at exactly its LSN."""
        tip = timeline.get_last_record_lsn()
        self.is_outgrown = tip > self.request.lsn
        if self.is_outgrown or (self.request.is_rebuild and tip != self.request.lsn):
            self.refuse(SkipReason.TIP_MOVED)


def both_failed(first: StoreError, second: BaseException, hint: str = "") -> StoreError:
    """Make one error of the failure of the cache's disk and that of the build elsewhere.

    Args:
        first: the failure of the cache's disk.
        second: the failure of the build elsewhere.
        hint: what to do about the second, in place of the hints in the texts.
    """
    what, _, first_hint = str(first).partition("\nhint: ")
    then, _, second_hint = safe_str(second).partition("\nhint: ")
    hint = hint or second_hint or first_hint
    text = f"{what}; the build in unpublished_dir has failed too: {then}"
    return StoreError(f"{text}\nhint: {hint}" if hint else text, errno=first.errno)


def reason_of(error: LimitError) -> SkipReason:
    """The reason under which a limit is counted."""
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
    """Turn a disk error of one of the cache's own steps into a `DiskError`.

    Args:
        doing: what the step does, such as ``write``.
        path: the file or directory.
    """
    try:
        with disk_step(doing, path):
            yield
    except StoreError as error:
        raise DiskError(error) from error


@contextmanager
def own_limits() -> Iterator[None]:
    """Turn a limit or a close that one of the cache's own steps meets into a `Skip`.

    It is not for callbacks: a host that raises these errors has failed.
    """
    try:
        yield
    except ClosingError as error:
        raise Skip(SkipReason.CLOSING) from error
    except LimitError as error:
        raise Skip(reason_of(error), error) from error
