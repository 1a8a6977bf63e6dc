"""``bbcache fetch``: a basebackup from a page service, into a new data directory."""

from __future__ import annotations

import argparse
import json
import pwd
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from bbcache.cli import arguments
from bbcache.cli.stop_signals import stop_signals_raise
from bbcache.errors import ConfigError, LimitError, MissingExtraError, ParseError, printable
from bbcache.ids import Lsn, TenantId, TimelineId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LATEST: Final = "latest"
_MAX_TOKEN_BYTES: Final = 64 * 1024
_MIB: Final = 1024**2
_MOST_NAME_CHARACTERS: Final = 64  # of a token's file; tokens are longer
_MOST_ID_CHARACTERS: Final = 40
_MAYBE_URL: Final = re.compile(r"://|[@=]")
_SIZE: Final = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)?", re.ASCII)
_SHIFTS: Final = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
_DESCRIPTION = """\
Fetch a basebackup from a page service and unpack it while it arrives. DEST appears
complete, checked and on disk, or not at all. A failure that may pass is retried, as
Neon's compute nodes do.

A password or token is read from PGPASSWORD, from --token-file, or from any other place
where libpq looks for one. The URL's sslmode decides about TLS; a URL without one
requires TLS unless the service is on this machine.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``fetch`` command."""
    parser = commands.add_parser(
        "fetch",
        help="fetch a basebackup from a page service into a new data directory",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="bbcache fetch [options] URL TENANT TIMELINE [LSN] DEST",
        allow_abbrev=False,  # --token is not --token-file
    )
    parser.add_argument(
        "url", metavar="URL", help="the page service: a libpq URL or conninfo string"
    )
    parser.add_argument("tenant", metavar="TENANT", type=_id(TenantId), help="32 hex digits")
    parser.add_argument("timeline", metavar="TIMELINE", type=_id(TimelineId), help="32 hex digits")
    parser.add_argument(
        "lsn", metavar="LSN", type=_lsn, nargs="?", help="such as 0/16B5A50 (default: latest)"
    )
    parser.add_argument(
        "dest",
        metavar="DEST",
        type=arguments.path,
        help="the data directory to make, or an empty one",
    )
    _add_options(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=arguments.path,
        help="a file with the token, or password",
    )
    for name in ("--token", "--password"):
        parser.add_argument(name, type=_refused_secret, help=argparse.SUPPRESS)
    parser.add_argument(
        "--attempts",
        metavar="N",
        type=int,
        default=11,
        help="attempts at most (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=600.0,
        help="seconds for all attempts together (default: %(default)g)",
    )
    parser.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="seconds without data after which an attempt fails (default: %(default)g)",
    )
    parser.add_argument(
        "--max-size",
        metavar="SIZE",
        type=_size_bytes,
        default="256GiB",
        help="largest uncompressed basebackup to accept (default: %(default)s)",
    )
    parser.add_argument(
        "--max-members",
        metavar="N",
        type=int,
        default=1_000_000,
        help="most files and directories to accept (default: %(default)s)",
    )
    parser.add_argument(
        "--owner", metavar="USER", help="owner of the new files, with its group; only for root"
    )
    parser.add_argument(
        "--without-logical-replication",
        action="store_true",
        help="start no logical replication workers; for a copy that runs beside its timeline",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(options: argparse.Namespace) -> bool:
    """Fetch, and print what was fetched.

    Returns:
        True.

    Raises:
        BbcacheError: it could not be fetched.
        OSError: the token cannot be read.
    """
    try:
        from bbcache.fetch.download import FetchRequest, fetch_basebackup  # noqa: PLC0415 - an extra
        from bbcache.fetch.retry import RetryPolicy  # noqa: PLC0415 - likewise
        from bbcache.postgres.pgdata.tar_reader import TarLimits  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise MissingExtraError("bbcache fetch cannot start", "fetch", error) from error

    request = FetchRequest(
        options.url,
        options.tenant,
        options.timeline,
        None if options.lsn == _LATEST else options.lsn,
        None if options.token_file is None else _read_token(options.token_file),
    )
    limits = TarLimits(options.max_size, options.max_members)
    with stop_signals_raise(), _hints_at_limits():
        summary = fetch_basebackup(
            request,
            options.dest,
            policy=RetryPolicy(options.attempts, options.timeout, options.read_timeout),
            owner=None if options.owner is None else _owner(options.owner),
            without_logical_replication=options.without_logical_replication,
            limits=limits,
            tell=lambda line: print(f"bbcache: {printable(line)}", file=sys.stderr, flush=True),
        )
    document = {
        "dest": str(options.dest),
        "tenant_id": str(request.tenant_id),
        "timeline_id": str(request.timeline_id),
        "lsn": str(summary.lsn),
        "member_count": summary.member_count,
        "size_bytes": summary.size_bytes,
        "received_bytes": summary.received_bytes,
        "attempt_count": summary.attempt_count,
        "elapsed_s": round(summary.elapsed_s, 3),
    }
    print(json.dumps(document, indent=2) if options.json else _sentence(document))
    return True


def _sentence(document: dict[str, Any]) -> str:
    count = document["attempt_count"]
    return (
        f"{document['dest']} is timeline {document['timeline_id']} at {document['lsn']}: "
        f"{document['member_count']} members, {document['size_bytes'] / _MIB:.1f} MiB, "
        f"from {document['received_bytes'] / _MIB:.1f} MiB received "
        f"in {document['elapsed_s']:.2f} s and {count} attempt{'s' * (count != 1)}"
    )


def _read_token(path: Path) -> str:
    # The argument may be a token in place of its file, which must not be printed.
    shown = str(path) if len(path.name) <= _MOST_NAME_CHARACTERS else "--token-file"
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token in {shown}: {error.strerror}") from None
    if not raw or b"\0" in raw or not raw.isascii():
        raise ConfigError(f"there is no token in {shown}")
    return raw.decode("ascii")


@contextmanager
def _hints_at_limits() -> Iterator[None]:
    try:
        yield
    except LimitError as error:
        raise LimitError(
            f"{error}\nhint: If that is right, allow more with --max-size or --max-members."
        ) from error


def _refused_secret(_: str) -> str:
    raise argparse.ArgumentTypeError(
        "every user of this machine can read a command line; use --token-file or PGPASSWORD"
    )


def _size_bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB, 256GiB or 1TiB")
    return int(found[1]) << _SHIFTS[found[2] or "B"]


def _owner(name: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: the name has a NUL
        raise ConfigError(f"there is no user {name}") from None
    return entry.pw_uid, entry.pw_gid


def _id(kind: type[TenantId | TimelineId]) -> Callable[[str], TenantId | TimelineId]:
    def parse(text: str) -> TenantId | TimelineId:
        try:
            return kind.from_str(text)
        except ParseError as error:
            raise argparse.ArgumentTypeError(_without_secret(error, text)) from None

    return parse


def _lsn(text: str) -> Lsn | str:
    try:
        return text if text == _LATEST else Lsn.from_str(text)
    except ParseError as error:
        raise argparse.ArgumentTypeError(_without_secret(error, text)) from None


def _without_secret(error: ParseError, text: str) -> str:
    """The error of an argument, without an argument that may hold a password or token."""
    if len(text) <= _MOST_ID_CHARACTERS and not _MAYBE_URL.search(text):
        return str(error)
    return str(error).partition(", not ")[0]
