"""A disk that fills up under a compute node costs no commit."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest
from support.disk_helpers import fill_disk, mount

from bbcache.errors import BbcacheError, PostgresError
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pageserver.conftest import Address, Lab

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_DISK = "size=220m,mode=711"


@pytest.fixture
def small_lab(make_lab: Callable[..., Lab], newest_pg: PostgresBinaries) -> Iterator[Lab]:
    """A lab on a file system of its own; tests are skipped where it cannot be mounted."""
    lab = make_lab(newest_pg)
    mount("-t", "tmpfs", "-o", _DISK, "bbcache-test", lab.root)
    yield lab
    lab.close()
    subprocess.run(["umount", lab.root], check=True)


def commit_until_it_fails(lab: Lab, address: Address) -> int:
    """Commit rows on a new compute node until its server has crashed; return how many."""
    compute = lab.boot(address)
    connection = psycopg.connect(compute.cluster.conninfo(), autocommit=True)
    fill_disk(lab.root)
    count = 0
    with contextlib.suppress(psycopg.Error), connection:
        while True:
            connection.execute("insert into t values (2)")
            count += 1
            connection.execute("select from pg_logical_emit_message(true, '', repeat('x', 500000))")
    with pytest.raises(PostgresError, match=str(compute.cluster.pgdata_dir)):
        compute.stop()
    return count


def test_no_commit_is_lost(small_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there is room again, a start recovers what the crash has left."""
    stop = functools.partialmethod(Cluster.stop, timeout_s=3.0)  # it may hang on a full disk
    monkeypatch.setattr(Cluster, "stop", stop)
    lab = small_lab
    lab.open()
    address = lab.add_timeline()
    lab.play(address, "create table t as select 2 i")
    count = commit_until_it_fails(lab, address)
    try:
        lab.open()  # still without room: old data is never served
        assert lab.read(address, "select count(*)::int from t") == [(1 + count,)]
    except BbcacheError:
        lab.close()
    (lab.root / "filler").unlink()
    lab.open()
    assert lab.read(address, "select count(*)::int from t") == [(1 + count,)]
