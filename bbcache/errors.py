"""Every exception that bbcache raises, under one base class.

Messages are lower case and name the object and the limit. A hint, if there is one, has a line
of its own. What a program may need from the text is in attributes too.
"""

from __future__ import annotations

import re
from typing import Final

_USER: Final = re.compile(r"://[^\s'\"?#]*@")
_QUERY: Final = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")
_ABSOLUTE_PATH: Final = re.compile(r"(?:^|(?<=[\s'\"(=]))/")


class BbcacheError(Exception):
    """Base class of every exception that bbcache raises."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle text and attributes, since constructors make the text from their arguments."""
        attributes = dict(vars(self))
        if isinstance(self, OSError):  # which keeps this one elsewhere
            attributes["errno"] = self.errno
        return _restore, (type(self), self.args, attributes)


def _restore(
    cls: type[BbcacheError], args: tuple[object, ...], attributes: dict[str, object]
) -> BbcacheError:
    error = cls.__new__(cls)
    error.args = args
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class ParseError(BbcacheError, ValueError):
    """A text or number that is not an id, a shard id or an LSN."""


class ArgumentError(ParseError, TypeError):
    """An argument of a wrong type: a `TypeError`, and a `ValueError` as well."""


class ConfigError(BbcacheError, ValueError):
    """A setting that is unknown, has the wrong type or is out of range."""


class MissingExtraError(ConfigError, ModuleNotFoundError):
    """A package of one of bbcache's extras cannot be imported.

    Attributes:
        what: the action that needs it, as a sentence without its full stop.
        extra: the extra.
        reason: the text of the first `ImportError`.
    """

    def __init__(self, what: str, extra: str, cause: ImportError | str) -> None:
        self.what = what
        self.extra = extra
        self.reason: str = cause.reason if isinstance(cause, MissingExtraError) else str(cause)
        super().__init__(
            f"{what}: {self.reason}\n"
            f"hint: Install what it needs with `pip install 'bbcache[{extra}]'`."
        )


class NotReadyError(BbcacheError):
    """Raised by a host that does not know its tenants yet. Clean-up then keeps every entry."""


class StoreError(BbcacheError, OSError):
    """The cache directory cannot be used, or a file in it cannot be handled.

    Also an `OSError`: `errno` is set if the operating system gave one.
    """

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class DirectoryLockedError(StoreError):
    """Another cache, or another pageserver, holds the directory.

    Attributes:
        data_dir: the directory asked for.
        pid: the holder's process id; None if its lock file does not say.
    """

    def __init__(self, data_dir: str, pid: int | None, kind: str = "cache directory") -> None:
        holder = "an unknown process" if pid is None else f"the process with pid {pid}"
        super().__init__(
            f"{kind} {data_dir} is locked by {holder}\n"
            "hint: Stop that process, or give this one a directory of its own."
        )
        self.data_dir = data_dir
        self.pid = pid


class ArchiveError(BbcacheError):
    """An archive's bytes are not what they should be."""


class LimitError(BbcacheError):
    """A size limit has no room for what is being built."""


class CacheFullError(LimitError):
    """There is no room now, but there may be later."""


class DeclinedError(CacheFullError):
    """Every entry that could make room is more likely to be asked for."""


class LowDiskError(CacheFullError):
    """The file system has less free space than is to be left to others."""


class EntryTooBigError(LimitError):
    """The archive is larger than a limit, so that it never fits."""


class PrepareError(BbcacheError):
    """A basebackup cannot be prepared: its tenant, timeline or LSN is missing."""


class BrokenError(PrepareError):
    """Raised by a host for a tenant or timeline that it has found damaged.

    Clean-up then keeps the entries. It neither counts nor logs an error, since the host
    reports the damage itself.
    """


class ClosingError(BbcacheError):
    """The cache is closing."""


class FillError(BbcacheError):
    """`BasebackupCache.get_or_prepare` cannot get a basebackup; the cause is chained."""


class FillTimeoutError(FillError, TimeoutError):
    """The basebackup was not ready in time. Its build goes on."""


class BackingOffError(FillError):
    """The last builds have failed, and the next one is not tried yet.

    Attributes:
        what: what failed: the timeline, or one LSN of it.
        failure_count: how many times in a row.
        retry_after_s: seconds until the next try.
        until: the time of the next try, UTC, in ISO 8601.
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


class PostgresError(BbcacheError):
    """A PostgreSQL file, cluster or program is not as bbcache needs it."""


class TakeoverError(PostgresError, OSError):
    """The data directory of a stopped compute node could not become its timeline's state.

    Nothing is removed: the next start of the pageserver tries again.

    Attributes:
        timeline_id: the timeline, as text.
        pgdata_dir: the directory that has the last commits.
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


def safe_repr(value: object) -> str:
    """A value's repr, or the name of its type if `repr` fails, as for an int of many digits."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a bad argument may be anything
        return f"an unprintable {type(value).__name__}"


def without_credentials(text: str) -> str:
    """A text whose URLs have neither a user, a password nor a query, which may be a token."""
    return _QUERY.sub(r"\1?***", _USER.sub("://***@", text))


def safe_str(error: BaseException) -> str:
    """The text of an exception, after the name of its type unless it is one of bbcache's.

    The name is needed because the text of a `KeyError`, say, is the bare key. It stands alone if
    there is no text or `str` fails.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an exception of a host may be broken in any way
        return name
    if not text:
        return name
    return text if isinstance(error, BbcacheError) else f"{name}: {text}"


def names_a_path(text: str) -> bool:
    """Whether a text has an absolute path in it, which clients of a service must not see."""
    return _ABSOLUTE_PATH.search(text) is not None


def printable(text: str, most: int = 1000) -> str:
    r"""A foreign text as one line that is safe for a terminal or a log.

    Characters that are not printable (controls, line ends, marks of writing direction,
    lone surrogates) become escapes such as ``\x1b``.

    Args:
        text: the text.
        most: how many characters are kept; a longer text ends in ``...``.
    """
    kept = text if len(text) <= most else f"{text[:most]}..."
    if kept.isprintable():
        return kept
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in kept
    )
