"""What a compute node leaves is what the next one finds, through the cache."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pageserver.conftest import Lab

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_FIRST = (
    "create table accounts (id serial primary key, balance numeric not null, note text)",
    "create index on accounts (balance)",
    "insert into accounts (balance, note) select i, md5(i::text) from generate_series(1, 5000) i",
    "create sequence numbers start 100 cache 10",
    "select nextval('numbers')",
    "create unlogged table scratch as select generate_series(1, 500) i",
    "create tablespace elsewhere location '{elsewhere}'",
    "create table apart (i int) tablespace elsewhere",
    "insert into apart select generate_series(1, 300)",
    "create table both_phases (i int)",
    "begin; insert into both_phases values (1), (2); prepare transaction 'waiting'",
)
_NEXT = (
    "update accounts set balance = balance * 1.25 where id % 10 = {number}",
    "delete from accounts where id % 1000 = {number}",
    "insert into scratch values ({number})",
    "insert into apart values ({number})",
)
_STATE = """
    select (select (count(*), sum(balance), sum(id), md5(string_agg(note, '' order by id)))::text
              from accounts),
           (select (count(*), sum(i))::text from scratch),
           (select (count(*), sum(i))::text from apart),
           (select count(*) from both_phases),
           (select string_agg(gid, ',') from pg_prepared_xacts),
           (select last_value from numbers)
"""


def test_four_rounds(
    pg: PostgresBinaries, make_lab: Callable[..., Lab], server_dir: Callable[[Path], Path]
) -> None:
    """Tables, an index, sequences, unlogged data, a tablespace and a prepared transaction."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    compute = lab.boot(address)
    elsewhere = server_dir(compute.cluster.pgdata_dir)
    lab.sql(compute, *(statement.format(elsewhere=elsewhere) for statement in _FIRST))
    state = lab.sql(compute, _STATE)
    compute.stop()
    lab.wait_idle()
    for number in (1, 2):
        compute = lab.boot(address)
        assert lab.sql(compute, _STATE) == state
        lab.sql(compute, *(statement.format(number=number) for statement in _NEXT))
        state = lab.sql(compute, _STATE)
        compute.stop()
        lab.wait_idle()
        shutil.rmtree(elsewhere, ignore_errors=True)  # the copies have one of their own
    compute = lab.boot(address)
    assert lab.sql(compute, _STATE) == state
    lab.sql(compute, "commit prepared 'waiting'")
    assert lab.sql(compute, "select i from both_phases order by i") == [(1,), (2,)]
    assert lab.sql(compute, "select nextval('numbers') > 100") == [(True,)]
    assert lab.sql(compute, "set enable_seqscan = off", "select sum(balance) from accounts") == (
        lab.sql(compute, "select sum(balance) from accounts")
    )
    assert lab.reads() == {"hit": 3, "miss": 1, "error": 0}
    assert lab.prepares() == {"ok": 3, "skip": 0, "error": 0}
