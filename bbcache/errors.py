"""Every exception that bbcache raises, under one base class.

Messages are lower case, name the object and the limit, and carry a hint on a
line of its own where there is something to do about it. What callers may want of
the text is in attributes too. All of them survive pickling.
"""

from __future__ import annotations

import re
from typing import Final

_ABSOLUTE_PATH: Final = re.compile(r"(?:^|(?<=[\s'\"(=]))/")


class BbcacheError(Exception):
    """Base class of every exception that bbcache raises."""


class ParseError(BbcacheError, ValueError):
    """A text or number that is not an id, a shard id or an LSN."""


class ArgumentError(ParseError, TypeError):
    """An argument of a wrong type: a `TypeError`, and a `ValueError` like all of its kind."""


class ConfigError(BbcacheError, ValueError):
    """A setting that is unknown, has the wrong type or is out of range."""


class MissingExtraError(ConfigError, ModuleNotFoundError):
    """A package that one of bbcache's extras brings cannot be imported.

    Args:
        what: what cannot be done without it, as a sentence without its end.
        extra: the extra.
        cause: the `ImportError`, or its text.

    Attributes:
        what: the same.
        extra: the same.
        reason: the text of the cause; of the first one where there were several.
    """

    reason: str

    def __init__(self, what: str, extra: str, cause: ImportError | str) -> None:
        self.what = what
        self.extra = extra
        self.reason = cause.reason if isinstance(cause, MissingExtraError) else str(cause)
        super().__init__(
            f"{what}: {self.reason}\n"
            f"hint: Install what it needs with `pip install 'bbcache[{extra}]'`."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the arguments, not by the text made from them."""
        return type(self), (self.what, self.extra, self.reason)


class NotReadyError(BbcacheError):
    """Raised by a host while it does not know its set of tenants yet.

    Clean-up keeps every entry when it meets this: unknown is not gone.
    """


class StoreError(BbcacheError, OSError):
    """The cache directory cannot be used, or a file in it cannot be handled.

    Also an `OSError`: `errno` is set where the operating system gave it.
    """

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the attributes that `OSError` keeps outside of its dict."""
        return _restore_store_error, (type(self), str(self), self.errno)


def _restore_store_error(cls: type[StoreError], message: str, errno: int | None) -> StoreError:
    return cls(message, errno=errno)


class DirectoryLockedError(StoreError):
    """Another cache holds the directory.

    Attributes:
        data_dir: the directory asked for.
        pid: the holder's process id, or None where its lock file does not say.
    """

    def __init__(self, data_dir: str, pid: int | None) -> None:
        holder = "an unknown process" if pid is None else f"the process with pid {pid}"
        super().__init__(
            f"cache directory {data_dir} is locked by {holder}\n"
            "hint: Stop that cache, or give this one a directory of its own."
        )
        self.data_dir = data_dir
        self.pid = pid

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the arguments, not by the text made from them."""
        return type(self), (self.data_dir, self.pid)


class ArchiveError(BbcacheError):
    """An archive's bytes are not what they should be."""


class LimitError(BbcacheError):
    """A size limit has no room for what is being built."""


class CacheFullError(LimitError):
    """There is no room now; there may be later."""


class EntryTooBigError(LimitError):
    """The archive can never fit, however empty the cache is."""


class PrepareError(BbcacheError):
    """A basebackup cannot be prepared: its tenant, timeline or LSN is not there."""


class BrokenError(PrepareError):
    """Raised by a host for a tenant or timeline that it has found damaged.

    Clean-up keeps its entries: unknown is not gone. The host reports the damage itself, so
    clean-up neither counts nor logs this as an error.
    """


class ClosingError(BbcacheError):
    """The cache is closing, and what was under way is given up."""


class FillError(BbcacheError):
    """`BasebackupCache.get_or_prepare` cannot get a basebackup; the cause is chained."""


class FillTimeoutError(FillError, TimeoutError):
    """The basebackup was not ready in time. Its build, once begun, goes on."""


class BackingOffError(FillError):
    """The last builds have failed, and the next is not tried yet.

    Attributes:
        what: what failed: the timeline, or one LSN of it.
        failure_count: how many times in a row.
        retry_after_s: seconds until the next try.
        until: the same as a time of day, UTC, by ISO 8601.
        cause: the text of the last failure.
    """

    def __init__(
        self, what: str, failure_count: int, retry_after_s: float, until: str, cause: str
    ) -> None:
        super().__init__(
            f"the basebackup of {what} is not tried before {until} (in {retry_after_s:.1f} s): "
            f"it has failed {failure_count} times in a row, the last time with: "
            f"{cause.partition(chr(10))[0]}\n"
            "hint: Ask again then; meanwhile see the log of the cache for what is wrong."
        )
        self.what = what
        self.failure_count = failure_count
        self.retry_after_s = retry_after_s
        self.until = until
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the arguments, not by the text made from them."""
        arguments = (self.what, self.failure_count, self.retry_after_s, self.until, self.cause)
        return type(self), arguments


class PostgresError(BbcacheError):
    """A PostgreSQL file, cluster or program is not as bbcache needs it."""


class TakeoverError(PostgresError, OSError):
    """What a compute node has left could not be made the state of its timeline.

    Nothing of it is removed: the next start of the pageserver takes it over.

    Attributes:
        timeline_id: the timeline, as text.
        pgdata_dir: the directory that has its last commits.
        reason: what went wrong.
    """

    def __init__(self, timeline_id: str, pgdata_dir: str, reason: str) -> None:
        super().__init__(
            f"{pgdata_dir} has the last commits of timeline {timeline_id}, and cannot be taken "
            f"over: {reason}\n"
            "hint: Nothing was removed. The next start of the pageserver tries again; to give up "
            "those commits, move the directory away before."
        )
        self.timeline_id = timeline_id
        self.pgdata_dir = pgdata_dir
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the arguments, not by the text made from them."""
        return type(self), (self.timeline_id, self.pgdata_dir, self.reason)


def safe_repr(value: object) -> str:
    """A value's repr, or its type's name where that cannot be had.

    Python refuses the digits of an int that has thousands of them.
    """
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a bad argument may be anything
        return f"an unprintable {type(value).__name__}"


def safe_str(error: BaseException) -> str:
    """An exception's text, after its type's name unless it is one of bbcache's own.

    The text of a `KeyError` is the bare key, and many others say as little. The name stands
    alone where the text is empty or cannot be had.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - of a host's exception, anything may be broken
        return name
    if not text:
        return name
    return text if isinstance(error, BbcacheError) else f"{name}: {text}"


def names_a_path(text: str) -> bool:
    """Whether a text has an absolute path in it, which is not for the clients of a service."""
    return _ABSOLUTE_PATH.search(text) is not None


def printable(text: str, most: int = 1000) -> str:
    r"""A foreign text as one line that does nothing to a terminal or a log.

    Characters that are not printable (controls, line ends, marks of writing direction,
    lone surrogates) become escapes such as ``\x1b``.

    Args:
        text: the text.
        most: how many characters of it are kept; what is longer ends in ``...``.
    """
    kept = text if len(text) <= most else f"{text[:most]}..."
    if kept.isprintable():
        return kept
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in kept
    )
