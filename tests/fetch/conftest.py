"""A basebackup of a real cluster, and places to fetch it to."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import pytest
from isal import igzip

from bbcache.postgres.pgdata.tarball import send_pgdata_tarball

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory, Templates

    from bbcache import Lsn
    from bbcache.postgres.server.cluster import PostgresBinaries


class Archive(NamedTuple):
    """A basebackup: its bytes, gzip'd and plain, and its position."""

    data: bytes
    tar: bytes
    lsn: Lsn
    member_count: int


@pytest.fixture(scope="session")
def archive(newest_pg: PostgresBinaries, templates: Templates, pg_dir: Path) -> Archive:
    """The basebackup of a cluster fresh from initdb."""
    pgdata_dir = pg_dir / "archived"
    templates.copy(newest_pg, (), pgdata_dir)
    out = io.BytesIO()
    summary = send_pgdata_tarball(pgdata_dir, out)
    tar = out.getvalue()
    return Archive(igzip.compress(tar, 1), tar, summary.lsn, summary.member_count)


@pytest.fixture
def place(make_cluster: ClusterFactory) -> Path:
    """A directory with nothing in it, to fetch into."""
    place = make_cluster.new_dir()
    place.mkdir()
    return place
