"""Texts that no system call takes are refused by name, before anything is done."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.helpers import TENANT, TIMELINE

from bbcache import BasebackupCache, BasebackupCacheConfig, BbcacheError, Lsn, TierConfig
from bbcache.cli import main
from bbcache.fetch.download import FetchRequest, fetch_basebackup
from bbcache.http_service.config import HttpConfig
from bbcache.page_service import Address
from bbcache.page_service.auth.tls import Certificate
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.pageserver import Pageserver, PgdataTenantManager, PgdataTimeline, make_root
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.pgdata.settings import make_portable
from bbcache.postgres.pgdata.tarball import (
    check_sendable,
    inspect_pgdata,
    restore_tarball,
    send_pgdata_tarball,
)
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
from bbcache.postgres.server.guard import Guard
from bbcache.postgres.server.start_check import check_starts
from bbcache.postgres.wal import WalFollower, WalReader
from bbcache.testing import MemoryHost
from bbcache.testing.postgres import PostgresOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ClusterFactory

NOWHERE: Final = PostgresBinaries(Path("/nowhere"), "15.0")
UNPASSABLE: Final = {
    "NUL": ("/x\0y", "has a NUL"),
    "surrogate": ("/x\ud800y", "has a character that cannot be encoded as utf-8"),
}


def fetch(
    url: str = "postgresql://127.0.0.1:1/", token: str | None = None, dest: str = "/x"
) -> object:
    """Ask a service that does not exist."""
    return fetch_basebackup(FetchRequest(url, TENANT, TIMELINE, None, token), dest)


def guard(use: Callable[[Guard], object]) -> object:
    """Use a guard."""
    made = Guard()
    try:
        return use(made)
    finally:
        made.close()


PLACES: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "spawn": (
        "the path of the cache directory",
        lambda text: BasebackupCache.spawn(text, BasebackupCacheConfig(), MemoryHost()),
    ),
    "from_toml": ("the path of the settings", BasebackupCacheConfig.from_toml),
    "inspect_pgdata": ("the data directory", inspect_pgdata),
    "check_sendable": ("the data directory", check_sendable),
    "send": ("the data directory", lambda text: send_pgdata_tarball(text, io.BytesIO())),
    "restore": ("the path of the archive", lambda text: restore_tarball(text, "/x")),
    "restore to": ("the data directory", lambda text: restore_tarball(io.BytesIO(), text)),
    "ControlFile": ("the data directory", ControlFile.read),
    "make_portable": ("the data directory", lambda text: make_portable(Path(text))),
    "find": ("the directory of PostgreSQL's programs", PostgresBinaries.find),
    "Cluster": ("the data directory", lambda text: Cluster(NOWHERE, text)),
    "log": ("the path of the server's log", lambda text: Cluster(NOWHERE, "/x", log_path=text)),
    "check_starts": (
        "the data directory",
        lambda text: check_starts(Path(text), NOWHERE, {}, Path("/x")),
    ),
    "guard": ("the guarded directory", lambda text: guard(lambda made: made.add(text))),
    "guard removes": ("the guarded directory", lambda text: guard(lambda made: made.remove(text))),
    "WalReader": ("the directory of the WAL", WalReader),
    "WalFollower": ("the directory of the WAL", lambda text: WalFollower(text, Lsn(1 << 24))),
    "make_root": ("the path of the root", lambda text: make_root(Path(text))),
    "Pageserver": ("the path of the root", lambda text: Pageserver(Path(text), None, None)),
    "timeline": ("the data directory", lambda text: PgdataTimeline(TIMELINE, Path(text))),
    "tenants": ("the directory of the tenants", lambda text: PgdataTenantManager(Path(text))),
    "listen": ("the host of an address", lambda text: Address(text, 1).is_loopback()),
    "http": ("the host of an address", lambda text: HttpConfig(listen=Address(text, 1))),
    "keys": ("the path of the keys", lambda text: TokenKeys(Path(text))),
    "certificate": ("the path of the certificate or key", lambda text: Certificate(Path(text))),
    "key": ("the path of the certificate or key", lambda t: Certificate(Path("/x"), Path(t))),
    "URL": ("the URL", lambda text: fetch(url=text)),
    "token": ("the token", lambda text: fetch(token=text)),
    "dest": ("the data directory", lambda text: fetch(dest=text)),
    "run_dir": ("run_dir", lambda text: PostgresOptions(run_dir=text)),
    "cache_dir": ("cache_dir", lambda text: PostgresOptions(cache_dir=text)),
}


@pytest.mark.parametrize("kind", UNPASSABLE)
@pytest.mark.parametrize("place", PLACES)
def test_a_path_or_name(place: str, kind: str) -> None:
    """Every public entry refuses it by name, with an error of bbcache."""
    what, use = PLACES[place]
    text, fault = UNPASSABLE[kind]
    with pytest.raises(BbcacheError) as caught:
        use(text)
    assert str(caught.value).startswith(f"{what} {fault}")


@pytest.mark.parametrize("kind", UNPASSABLE)
def test_a_value_in_the_settings(kind: str) -> None:
    """A key is named with what it takes."""
    text, _ = UNPASSABLE[kind]
    with pytest.raises(BbcacheError, match=r"unpublished_dir is .*, but must be"):
        BasebackupCacheConfig(unpublished_dir=text)
    for options in ({"region": text}, {text: "x"}):
        with pytest.raises(BbcacheError, match=r"options is .*, but must be"):
            TierConfig(url="s3://bucket", allow_unsigned=True, options=options)
    with pytest.raises(BbcacheError, match=r"key_files is .*, but must be"):
        TierConfig(url="s3://bucket", key_files=(text,))


@pytest.mark.postgres
@pytest.mark.parametrize("kind", UNPASSABLE)
def test_an_argument_of_a_program(
    make_cluster: ClusterFactory, newest_pg: PostgresBinaries, kind: str
) -> None:
    """The setting, the database or the program is named; the server still starts and stops."""
    text, fault = UNPASSABLE[kind]
    cluster = make_cluster(newest_pg)
    refused: dict[str, Callable[[], object]] = {
        "the setting 'search_path'": lambda: cluster.start({"search_path": text}),
        "an argument of postgres": lambda: cluster.start({text: "x"}),
        "an argument of initdb": lambda: cluster.initdb([text]),
        "an argument of pg_checksums": lambda: newest_pg.run("pg_checksums", text),
    }
    for what, use in refused.items():
        with pytest.raises(BbcacheError, match=f"^{what} {fault}"):
            use()
    cluster.start()
    for connect in (cluster.conninfo, lambda name: cluster.psql("SELECT 1", name)):
        with pytest.raises(BbcacheError, match=f"^the name of the database {fault}"):
            connect(text)
    with pytest.raises(BbcacheError, match=f"^an argument of psql {fault}"):
        cluster.psql(f"SELECT '{text}'")
    cluster.stop()


@pytest.mark.parametrize("kind", UNPASSABLE)
@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "--root"],
        ["serve", "--root", "/nowhere", "--listen"],
        ["serve", "--root", "/nowhere", "--http"],
        ["serve", "--root", "/nowhere", "--auth-keys"],
        ["verify"],
        ["demo", "--dir"],
        ["why", str(TENANT), str(TIMELINE), "--root"],
        ["fetch", "postgresql:///", str(TENANT), str(TIMELINE), "/x", "--token-file"],
        ["fetch", "postgresql:///", str(TENANT), str(TIMELINE), "/x", "--owner"],
    ],
    ids=lambda argv: f"{argv[0]} {argv[-1]}",
)
def test_an_argument_of_a_command(
    argv: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 2 and no traceback."""
    text, fault = UNPASSABLE[kind]
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([*argv, text]))
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err or argv[-1] == "--owner"
