"""The commands of the page service, as Neon's pageserver has them.

``basebackup <tenant> <timeline> [<lsn> | latest] {--gzip | --replica}`` and
``fullbackup <tenant> <timeline> [lsn] [prev_lsn]``. The last LSN is checked and not used.
Flags may be written without the dashes, too: psql takes ``--gzip`` in a script for a comment. A
semicolon may stand at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from bbcache.errors import ParseError
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.page_service.errors import CommandError

_LATEST: Final = "latest"
_GZIP: Final = "gzip"
_REPLICA: Final = "replica"
_SHOWN_CHARACTERS: Final = 200
_MAX_FULLBACKUP_WORDS: Final = 4
_USAGE: Final = (
    "hint: Say `basebackup <tenant> <timeline> [<lsn> | latest] [gzip] [replica]` or "
    "`fullbackup <tenant> <timeline> [<lsn> [<prev_lsn>]]`."
)
# The statements that drivers send around a command, and their tags.
_TAGS: Final = {
    "set": "SET",
    "reset": "RESET",
    "discard": "DISCARD",
    "deallocate": "DEALLOCATE",
    "begin": "BEGIN",
    "start": "START TRANSACTION",
    "commit": "COMMIT",
    "end": "COMMIT",
    "rollback": "ROLLBACK",
    "abort": "ROLLBACK",
    "savepoint": "SAVEPOINT",
    "release": "RELEASE",
}
_BEGINNINGS: Final = ("BEGIN", "START TRANSACTION")
_ENDINGS: Final = ("COMMIT", "ROLLBACK")

_T = TypeVar("_T")


class BasebackupCommand(NamedTuple):
    """A request for an archive. Immutable, hence thread-safe.

    Attributes:
        tenant_id: the tenant.
        timeline_id: its timeline.
        lsn: the position; None for the tip.
        is_gzip: whether the archive is to come compressed.
        is_replica: whether it is for a server that follows another.
        is_full: whether it is a ``fullbackup``, which is never compressed nor cached.
    """

    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn | None = None
    is_gzip: bool = False
    is_replica: bool = False
    is_full: bool = False

    def __str__(self) -> str:
        ids = f"{self.tenant_id.hex()} {self.timeline_id.hex()}"
        if self.is_full:
            return f"fullbackup {ids}" if self.lsn is None else f"fullbackup {ids} {self.lsn}"
        position = _LATEST if self.lsn is None else str(self.lsn)
        flags = f" {_GZIP}" * self.is_gzip + f" {_REPLICA}" * self.is_replica
        return f"basebackup {ids} {position}{flags}"


@dataclass(frozen=True, slots=True)
class NoOpCommand:
    """A statement that drivers send around a command; an empty text is one, too.

    Attributes:
        tag: what it is answered with; empty for an empty text.
        is_to_savepoint: whether it rolls back to a savepoint, and ends no transaction.
    """

    tag: str
    is_to_savepoint: bool = False

    @property
    def begins_transaction(self) -> bool:
        """Whether a transaction is open after it."""
        return self.tag in _BEGINNINGS

    @property
    def ends_transaction(self) -> bool:
        """Whether no transaction is open after it."""
        return self.tag in _ENDINGS and not self.is_to_savepoint


Command = BasebackupCommand | NoOpCommand


def parse_command(text: str) -> Command:
    """Parse the text of a query.

    Raises:
        CommandError: it is none, or has words that it cannot have.
    """
    query = text.strip().removesuffix(";").rstrip()
    if not query:
        return NoOpCommand("")
    word, _, rest = query.partition(" ")
    tag = _TAGS.get(word.lower())
    if tag is not None:
        return NoOpCommand(tag, is_to_savepoint=" to " in f" {rest.lower()} " and tag == "ROLLBACK")
    if not rest:
        raise CommandError(f"cannot parse query: {_shown(query)}\n{_USAGE}")
    if word.lower() == "basebackup":
        return _basebackup(rest.split())
    if word.lower() == "fullbackup":
        return _fullbackup(rest.split())
    raise CommandError(f"unsupported command {_shown(word)} in {_shown(query)}\n{_USAGE}")


def _basebackup(words: Sequence[str]) -> BasebackupCommand:
    tenant_id, timeline_id = _ids("basebackup", words)
    lsn, flags = None, words[2:]
    if flags and _flag(flags[0]) is None and not flags[0].startswith("--"):
        position, *flags = flags
        lsn = None if position == _LATEST else _read(Lsn.from_str, "lsn", position)
    seen: set[str] = set()
    for word in flags:
        flag = _flag(word)
        if flag is None:
            raise CommandError(f"basebackup has no parameter {_shown(word)} here\n{_USAGE}")
        if flag in seen:
            raise CommandError(f"basebackup has the parameter {word} twice")
        seen.add(flag)
    return BasebackupCommand(
        tenant_id, timeline_id, lsn, is_gzip=_GZIP in seen, is_replica=_REPLICA in seen
    )


def _fullbackup(words: Sequence[str]) -> BasebackupCommand:
    tenant_id, timeline_id = _ids("fullbackup", words)
    if len(words) > _MAX_FULLBACKUP_WORDS:
        raise CommandError(f"fullbackup has no parameter {_shown(words[-1])} here\n{_USAGE}")
    positions = [_read(Lsn.from_str, "lsn", word) for word in words[2:]]
    lsn = positions[0] if positions else None
    return BasebackupCommand(tenant_id, timeline_id, lsn, is_full=True)


def _ids(name: str, words: Sequence[str]) -> tuple[TenantId, TimelineId]:
    if len(words) < 2:  # noqa: PLR2004 - tenant and timeline
        raise CommandError(f"{name} needs a tenant and a timeline\n{_USAGE}")
    return (
        _read(TenantId.from_str, "tenant id", words[0]),
        _read(TimelineId.from_str, "timeline id", words[1]),
    )


def _read(parse: Callable[[str], _T], what: str, word: str) -> _T:
    try:
        return parse(word)
    except ParseError:
        raise CommandError(f"{_shown(word)} is no {what}\n{_USAGE}") from None


def _flag(word: str) -> str | None:
    name = word.removeprefix("--")
    return name if name in (_GZIP, _REPLICA) else None


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
