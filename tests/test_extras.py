"""What needs an extra says so when it is imported: in a process where the extra is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

_IMPORT = """
import sys
for missing in sys.argv[2].split(","):
    sys.modules[missing] = None
try:
    __import__(sys.argv[1])
except ModuleNotFoundError as error:
    from bbcache import BbcacheError
    assert isinstance(error, BbcacheError)
    print(error)
else:
    print("imported")
"""


def imported(module: str, *missing: str) -> str:
    """What a fresh process says that imports a module where others are missing."""
    command = [sys.executable, "-c", _IMPORT, module, ",".join(missing)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


@pytest.mark.parametrize(
    ("module", "missing", "what", "extra"),
    [
        ("bbcache.postgres.wal", "google_crc32c", "bbcache.postgres", "postgres"),
        (
            "bbcache.postgres.pgdata.control_file",
            "google_crc32c",
            "bbcache.postgres",
            "postgres",
        ),
        ("bbcache.pageserver", "google_crc32c", "bbcache.postgres", "postgres"),
        ("bbcache.pageserver.wal_stream", "psycopg2", "bbcache.pageserver.wal_stream", "replica"),
        ("bbcache.page_service.auth.tokens", "jwt", "bbcache.page_service.auth.tokens", "serve"),
        (
            "bbcache.page_service.auth.tokens",
            "cryptography",
            "bbcache.page_service.auth.tokens",
            "serve",
        ),
        ("bbcache.http_service.routes", "jinja2", "bbcache.http_service.templates", "serve"),
        ("bbcache.tier", "obstore", "bbcache.tier", "tier"),
        ("bbcache.testing.postgres", "psycopg", "bbcache.testing.postgres", "testing"),
        ("bbcache.fetch.download", "psycopg", "bbcache.fetch", "fetch"),
        ("bbcache.fetch.connection", "psycopg", "bbcache.fetch", "fetch"),
        ("bbcache.fetch.refusal", "psycopg", "bbcache.fetch", "fetch"),
    ],
)
def test_the_extra_that_is_missing_is_named(
    module: str, missing: str, what: str, extra: str
) -> None:
    """A ModuleNotFoundError of bbcache's own names the package, and how to install it."""
    first, hint = imported(module, missing).split("\n")
    assert first.startswith(f"{what} cannot be imported: ")
    assert missing in first
    assert hint.startswith(f"hint: Install what it needs with `pip install 'bbcache[{extra}")


@pytest.mark.parametrize(
    "module",
    [
        *(
            "bbcache",
            "bbcache.testing",
            "bbcache.http_service.server",
            "bbcache.page_service.server",
        ),
        *(
            "bbcache.cli",
            "bbcache.postgres.server.binaries",
            "bbcache.postgres.pgdata.tar_reader",
        ),
    ],
)
def test_what_needs_no_extra_goes_without(module: str) -> None:
    """The core, the services and the command are imported in a bare installation."""
    extras = (
        *("google_crc32c", "psycopg", "psycopg2", "jwt", "cryptography", "rich", "pytest"),
        "obstore",
    )
    assert imported(module, *extras) == "imported"


def test_the_reference_host_goes_without_replication() -> None:
    """Only `streams_wal` needs psycopg2."""
    assert imported("bbcache.pageserver", "psycopg2", "psycopg", "jwt", "rich") == "imported"
