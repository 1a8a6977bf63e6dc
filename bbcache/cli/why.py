"""``bbcache why``: say why a timeline has an entry, or has none."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from bbcache.cli import arguments
from bbcache.cli.arguments import NoCacheError
from bbcache.cli.verify import CACHE_DIR_NAME
from bbcache.errors import BbcacheError, ParseError, printable, without_credentials
from bbcache.eviction import ReturnRate
from bbcache.explanation import habits_text
from bbcache.human_units import duration, size
from bbcache.ids import TenantId, TimelineId
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.files import HABITS_NAME, TMP_NAME
from bbcache.storage.habits_file import HabitsFile
from bbcache.storage.index import make_key
from bbcache.storage.verify import Audit, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.archive.format import Seal
    from bbcache.eviction import Habits
    from bbcache.storage.verify import StoredArchive

_DESCRIPTION = """\
Say why a timeline has an entry in a cache, or has none: the entry, its habits and its rank
in a full cache, what runs or waits, what the host says, and the last outcomes of prepares
and reads, such as skips with their reasons, failures with their causes, and evictions.

With --root the directory alone is read, which also works if no service runs on it: the
file, its seal and the saved habits. The outcomes are in the memory of the service.
"""
_EPILOG = """\
examples:
  bbcache why 1f0c... 55aa...                            of the service on this machine
  bbcache why --url http://10.0.0.7:9898 1f0c... 55aa... of another one
  bbcache why --root /srv/pageserver 1f0c... 55aa...     of a directory

exit codes: 0 explained, 2 the service does not answer or the directory cannot be read,
3 the directory is not a cache
"""
_DEFAULT_URL: Final = "http://127.0.0.1:9898"  # of bbcache serve
_CONNECTIONS: Final[dict[str, type[http.client.HTTPConnection]]] = {
    "": http.client.HTTPConnection,
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}
_TIMEOUT_S: Final = 10.0  # the service waits a second for its host
_MOST_BYTES: Final = 4 << 20
_NO_HISTORY: Final = "the outcomes are known to the service alone: ask it with --url"


class WhyError(BbcacheError):
    """The service does not explain the timeline."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``why`` command."""
    parser = commands.add_parser(
        "why",
        help="say why a timeline has an entry in a cache, or has none",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tenant", metavar="TENANT", help="the tenant's id, 32 hex digits")
    parser.add_argument("timeline", metavar="TIMELINE", help="the timeline's id, 32 hex digits")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url", default=_DEFAULT_URL, help="the HTTP address of the service (default: %(default)s)"
    )
    source.add_argument(
        "--root",
        type=arguments.path,
        metavar="DIR",
        help="the pageserver's directory, or the cache's own: read it, and ask no service",
    )
    parser.add_argument("--json", action="store_true", help="print the explanation as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> bool:
    """Explain the timeline.

    Returns:
        True.

    Raises:
        ParseError: an argument is no id.
        WhyError: the service does not answer, or not as one.
        NoCacheError: the directory is not that of a cache.
        OSError: the directory cannot be read.
    """
    tenant_id, timeline_id = _parse_ids(options.tenant, options.timeline)
    if options.root is None:
        print(_ask(options.url, tenant_id, timeline_id, as_json=options.json), end="")
        return True
    facts = _Directory(options.root, tenant_id, timeline_id)
    if options.json:
        print(json.dumps(facts.as_dict(), indent=2))
    else:
        print(*facts.lines(), sep="\n")
    return True


def _parse_ids(tenant: str, timeline: str) -> tuple[TenantId, TimelineId]:
    try:
        return TenantId.from_str(tenant), TimelineId.from_str(timeline)
    except ParseError as error:
        raise ParseError(
            f"{error}\nhint: Copy the ids from the status page or a log line, the tenant's first."
        ) from error


def _ask(url: str, tenant_id: TenantId, timeline_id: TimelineId, *, as_json: bool) -> str:
    """Return the explanation of a service, as text or JSON."""
    connection, base = _connection(url)
    url = without_credentials(url)
    try:
        with contextlib.closing(connection):
            ids = f"{tenant_id}/{timeline_id}{'.json' if as_json else ''}"
            connection.request("GET", f"{base}/why/{ids}")
            response = connection.getresponse()
            body = response.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise WhyError(
            f"the service at {url} does not answer: {why}\n"
            "hint: Does `bbcache serve` run there, and is this its --http address? --root DIR "
            "reads the directory without it."
        ) from error
    if response.status != HTTPStatus.OK:
        said = printable(body.partition("\n")[0])
        raise WhyError(
            f"the service at {url} has no explanation: {response.status} {said}\n"
            "hint: Name the HTTP address of `bbcache serve`, of this version or a later one."
        )
    return body


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to a service, and the path that those of the service begin with."""
    wrong = WhyError(
        f"{without_credentials(url)} is no HTTP address\nhint: Name one such as {_DEFAULT_URL}."
    )
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise wrong from error
    connect = _CONNECTIONS.get(parts.scheme)
    if connect is None or not host:
        raise wrong
    return connect(host, port, timeout=_TIMEOUT_S), parts.path.rstrip("/")


class _Directory:
    """What a cache's directory says about a timeline.

    Raises:
        NoCacheError: it is not that of a cache.
        OSError: it cannot be listed.
    """

    def __init__(self, root: Path, tenant_id: TenantId, timeline_id: TimelineId) -> None:
        inner = root / CACHE_DIR_NAME
        self._dir = inner if inner.is_dir() else root
        audit = Audit(self._dir)
        if not audit.is_cache:
            raise NoCacheError(
                f"{self._dir} is not a cache: it has neither an archive nor {LOCK_NAME}\n"
                "hint: Is the path spelled right, and is the file system mounted?"
            )
        key = make_key(tenant_id, timeline_id)
        self._ids = tenant_id, timeline_id
        self._archives = audit.archives_of(key)
        self._habits, self._habits_text = _read_habits(self._dir, key)
        self._quarantined = audit.quarantined_of(key)

    def as_dict(self) -> dict[str, Any]:
        tenant_id, timeline_id = self._ids
        return {
            "tenant_id": str(tenant_id),
            "timeline_id": str(timeline_id),
            "dir": os.fspath(self._dir),
            "files": [_as_dict(each) for each in self._archives],
            "quarantined": self._quarantined,
            "habits": None if self._habits is None else dataclasses.asdict(self._habits),
            "outcomes": None,
        }

    def lines(self) -> Iterator[str]:
        tenant_id, timeline_id = self._ids
        yield f"timeline {timeline_id} of tenant {tenant_id} in {self._dir}"
        if not self._archives:
            yield "file: none"
        for archive in self._archives:
            yield from _lines(archive)
        yield f"habits: {self._habits_text}"
        yield from (f"quarantined: {path}" for path in self._quarantined)
        yield f"note: {_NO_HISTORY}"


def _read_habits(directory: Path, key: bytes) -> tuple[Habits | None, str]:
    """The saved habits of a timeline, and the same as a text."""
    data_dir = os.fspath(directory)
    data = HabitsFile(data_dir, os.path.join(data_dir, TMP_NAME)).read()
    if not data:
        return None, "none are saved"
    policy, now_s = ReturnRate(None, max_known=len(data)), time.time()
    if not policy.load(data, now_s):
        return None, f"{HABITS_NAME} is damaged, or of another version"
    habits = policy.habits(key, now_s)
    return habits, f"{habits_text(habits)}, as of the last clean-up"


def _lines(archive: StoredArchive) -> Iterator[str]:
    finding, age = archive.finding, archive.age_s
    written = "" if age is None else f", written {duration(age)} ago"
    yield f"file: {finding.path}"
    yield f"  at {archive.lsn}, {size(finding.size_bytes)}{written}"
    seal = archive.seal
    if seal is not None:
        yield f"  seal: xxh3-128 {seal.digest.hex()} of a tarball of {size(seal.tar_bytes)}"
    elif finding.verdict is Verdict.GOOD:
        yield "  seal: none, as of an archive that Neon has written"
    yield f"  {finding.verdict}{f': {finding.reason}' if finding.reason else ''}"


def _as_dict(archive: StoredArchive) -> dict[str, Any]:
    finding, seal = archive.finding, archive.seal
    return {
        "path": finding.path,
        "lsn": str(archive.lsn),
        "size_bytes": finding.size_bytes,
        "age_s": archive.age_s,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "seal": None if seal is None else _seal_as_dict(seal),
    }


def _seal_as_dict(seal: Seal) -> dict[str, Any]:
    return {"tar_bytes": seal.tar_bytes, "digest": seal.digest.hex()}
