"""The scenario of Neon's own test of its cache, on real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Lab

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


def test_three_rounds_then_a_write(pg: PostgresBinaries, make_lab: Callable[..., Lab]) -> None:
    """Each stop leaves one archive, each later start hits it, and a write outdates it."""
    lab = make_lab(pg)
    lab.open(cleanup_period=0.05)
    address = lab.add_timeline()
    lsn = lab.timeline(address).get_last_record_lsn()
    for number in range(3):
        lsn = lab.play(address, f"create table t{number} as select generate_series(1, 100) i")
        assert lab.archives() == [
            f"basebackup_{address.tenant_id}_{address.timeline_id}_{lsn:016X}.tar.gz"
        ]
        assert lab.reads() == {"hit": number, "miss": 1, "error": 0}
        assert lab.prepares() == {"ok": number + 1, "skip": 0, "error": 0}
    compute = lab.boot(address)
    assert lab.reads() == {"hit": 3, "miss": 1, "error": 0}
    compute.cluster.psql("insert into t2 select sum(i) from t0 natural join t1")
    lab.wait_tip_past(address, lsn)
    wait_until(lambda: lab.archives() == [])
    lab.wait_idle()
    assert lab.pageserver.cache.entries() == []
    assert lab.prepares() == {"ok": 3, "skip": 0, "error": 0}
    assert compute.cluster.psql("select count(*), max(i) from t2") == "101|5050"
