"""One running prepare: its findings so far, and its failures."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bbcache import lifecycle
from bbcache.errors import (
    DeclinedError,
    EntryTooBigError,
    LimitError,
    LowDiskError,
    StoreError,
    safe_str,
)
from bbcache.outcomes import SkipReason

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


class HostError(Exception):
    """The host has raised. Every other error of a prepare is the cache's own.

    Attributes:
        error: the host's exception.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@dataclass(eq=False)
class Job:
    """A request while a worker runs it; for one thread.

    Attributes:
        request: the request.
        is_fetch: whether the second tier is asked for the archive, and the host is not.
        is_claimed: whether a fetch has the slot of its timeline, to publish.
        refusal: why the archive will not be published, but only given to callers that wait;
            None while it may be published.
        disk_failure: why the disk of the cache cannot take the archive, which is built in
            `unpublished_dir` instead; None while the disk has not failed. It ends the job if no
            caller waits.
        is_outgrown: whether the timeline was past the LSN when it was last asked.
        may_evict: whether entries of the cache may be evicted for the archive.
        failing: the key for the back-off if the job fails: of the timeline, or of this one LSN
            of it; None if a failure causes no back-off.
    """

    request: Request
    is_fetch: bool = field(default=False, kw_only=True)
    is_claimed: bool = False
    refusal: Skip | None = None
    disk_failure: StoreError | None = None
    is_outgrown: bool = False
    may_evict: bool = False
    failing: bytes | None = None

    def __post_init__(self) -> None:
        self.disk_failure = self.request.disk_failure

    @property
    def may_publish(self) -> bool:
        """Whether nothing speaks against publishing the archive."""
        return self.refusal is None and self.disk_failure is None

    @property
    def is_stop(self) -> bool:
        """Whether the timeline has stopped, and has not started since."""
        request = self.request
        return request.is_sent and not (request.is_rebuild or request.is_awaited)

    def why_unpublished(self) -> Skip | StoreError:
        """What ends the job if the archive may not be published, and no caller waits for it."""
        why = self.refusal or self.disk_failure
        assert why is not None
        return why

    def refuse(self, reason: SkipReason, why: LimitError | None = None) -> None:
        """Note why the archive must not be published.

        Raises:
            Skip: no caller waits for the archive either.
        """
        skip = self.refusal or Skip(reason, why)
        if not self.request.is_awaited:
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
    match error:
        case EntryTooBigError():
            return SkipReason.TOO_BIG
        case DeclinedError():
            return SkipReason.DECLINED
        case LowDiskError():
            return SkipReason.LOW_DISK
    return SkipReason.FULL


def hint_for_unpublished(error: StoreError) -> str:
    """What to do about a disk error in `unpublished_dir`."""
    if error.errno in PROCESS_LIMITS:
        return str(error).partition("\nhint: ")[2]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, or set unpublished_dir to a directory on another file system."
    return "Make that directory usable for this process, or set unpublished_dir to another one."


@contextmanager
def host_call() -> Iterator[None]:
    """Wrap a call of the host: what it raises becomes a `HostError`."""
    try:
        with lifecycle.callback():
            yield
    except Skip:
        raise
    except BaseException as error:
        raise HostError(error) from error


def cause_of(error: BaseException) -> BaseException:
    """The exception that a host has raised, or the cache's own."""
    return error.error if isinstance(error, HostError) else error
