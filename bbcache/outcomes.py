"""How reads and prepares end, and what they do before: one row for each.

Metrics, log lines, explanations, the status page and the docs share these rows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Outcome(StrEnum):
    """A value of a metric's label.

    Attributes:
        text: its explanation: lower case, no full stop.
    """

    text: str

    def __new__(cls, value: str, text: str = "") -> Self:
        """Make a member; a look-up by value passes no text."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member


class ReadResult(Outcome):
    """How a `get` ended."""

    HIT = "hit", "an archive was returned"
    MISS = "miss", "the cache has no entry at this LSN"
    ERROR = "error", "there is an entry, but its file is bad or cannot be read"


class Source(Outcome):
    """Where the archive of a `get_or_prepare` came from."""

    HIT = "hit", "prepared before the request"
    JOINED = "joined", "from a build or a fetch that was under way"
    BUILT = "built", "built for this request"
    FETCHED = "fetched", "from the second tier, for this request"


class FillResult(Outcome):
    """How a `get_or_prepare` ended."""

    HIT = Source.HIT.value, Source.HIT.text
    JOINED = Source.JOINED.value, Source.JOINED.text
    BUILT = Source.BUILT.value, Source.BUILT.text
    FETCHED = Source.FETCHED.value, Source.FETCHED.text
    ERROR = "error", "the build failed, or the timeline cannot be built"
    TIMEOUT = "timeout", "the archive was not there in time; the build goes on"
    CANCELLED = "cancelled", "the caller gave up; the build goes on"
    BACKING_OFF = "backing_off", "refused at once after a failed build"
    CLOSING = "closing", "the cache was closed first"


class FallbackResult(Outcome):
    """How a build in `unpublished_dir` ended."""

    OK = "ok", "the archive was built"
    ERROR = "error", "the build failed as well, or ended without a caller"


class PrepareResult(Outcome):
    """How a prepare ended."""

    OK = "ok", "the archive was published"
    SKIP = "skip", "nothing was published, for a reason that is counted by itself"
    ERROR = "error", "the request, the host, the build or the disk failed"


class SkipReason(Outcome):
    """Why a prepare was skipped."""

    NOT_SHARD_ZERO = "not_shard_zero", "basebackups are taken on shard zero only"
    DISABLED = "disabled", "the tenant's switch is off"
    UP_TO_DATE = "up_to_date", "there is an entry at this LSN or a newer one"
    TIP_MOVED = "tip_moved", "the timeline has moved past this LSN"
    FULL = "full", "a limit of the cache has no room, and nothing can be evicted"
    DECLINED = "declined", "the cache is full of entries that are more likely to be asked for"
    LOW_DISK = "low_disk", "the file system has less free space than is to be left"
    TOO_BIG = "too_big", "the archive alone is larger than a limit"
    COALESCED = "coalesced", "another prepare of the timeline covers this one"
    QUEUE_FULL = "queue_full", "too many prepares or fetches waited already"
    CANCELLED = "cancelled", "no caller waited for it any more"
    FETCHED = "fetched", "the second tier had the archive, which is published now"
    NOT_FETCHED = "not_fetched", "the second tier gave no archive, and no build was asked for"
    READ_ONLY = "read_only", "the file system of the cache is read-only"
    CLOSING = "closing", "the cache was closed first"


class RemovalReason(Outcome):
    """Why an entry was removed, other than for a newer one of its timeline."""

    OUTGROWN = "outgrown", "clean-up found no attached tenant that wants it at this LSN"
    NEWCOMER = "newcomer", "evicted for a new entry that is more likely to be asked for"
    OVER_LIMIT = "over_limit", "evicted after a limit was lowered, or other files took the room"
    LOW_DISK = "low_disk", "evicted since the file system has less free space than is to be left"


class RequestState(Outcome):
    """What a prepare that has not ended does."""

    FETCHING = "fetching", "waits for the second tier, or is fetched from it"
    QUEUED = "queued", "waits for a worker"
    CHECKING = "checking", "a worker asks the host whether it is still wanted"
    WAITING_LSN = "waiting_lsn", "waits until its timeline reaches the LSN"
    BUILDING = "building", "the host writes the tarball, the cache compresses it"


class Phase(Outcome):
    """A part of a prepare's time."""

    QUEUE = "queue", "from the request to a worker"
    WAIT_LSN = "wait_lsn", "until the timeline reaches the LSN"
    BUILD = "build", "the host writes the tarball, the cache compresses it"
    PUBLISH = "publish", "from the last byte to the entry: the seal, fsync and rename"


class FetchResult(Outcome):
    """How the second tier was asked for an archive."""

    HIT = "hit", "the archive was fetched, and its signature is right"
    ABSENT = "absent", "there is no object"
    TIMEOUT = "timeout", "the object did not arrive in time"
    DENIED = "denied", "the credentials were refused"
    ERROR = "error", "the request failed, or the bucket is wrong"
    BAD = "bad", "the object is not what was signed, or has a wrong size"
    SKIPPED = "skipped", "not asked: paused after failures, write-only, closing, or without room"


class UploadResult(Outcome):
    """How an archive that was offered to the second tier ended."""

    STORED = "stored", "the object was written"
    EXISTS = "exists", "there was an object already"
    SUPERSEDED = "superseded", "a newer archive of the timeline took its turn"
    DROPPED = "dropped", "too many archives waited, or the cache was closed first"
    GONE = "gone", "the archive was removed from the cache first"
    TOO_BIG = "too_big", "the object would exceed a limit"
    FAILED = "failed", "three attempts have failed"
    SKIPPED = "skipped", "the tier is read-only"


class DeleteResult(Outcome):
    """How the deletion of a superseded object ended."""

    DELETED = "deleted", "the object was removed"
    ABSENT = "absent", "there was no object"
    FAILED = "failed", "the request failed; a lifecycle rule of the bucket removes the object"
