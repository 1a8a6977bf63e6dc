"""A PGDATA timeline outside of a pageserver, as embedders use it."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING

import pytest

from bbcache import Lsn, TimelineId
from bbcache.errors import BrokenError, PostgresError, PrepareError, TakeoverError
from bbcache.pageserver import PgdataTimeline
from bbcache.postgres.pgdata.tarball import restore_tarball
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory, Templates

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


@pytest.fixture
def pgdata_dir(
    templates: Templates, newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> Path:
    """A data directory that was shut down cleanly."""
    directory = make_cluster.new_dir()
    templates.copy(newest_pg, (), directory)
    return directory


def test_a_compute_node_is_taken_over(pgdata_dir: Path, newest_pg: PostgresBinaries) -> None:
    """Tip, wait and tarball follow it, and the directory of the node becomes the timeline's."""
    timeline = PgdataTimeline(TimelineId.generate(), pgdata_dir)
    before, archive = timeline.get_last_record_lsn(), io.BytesIO()
    timeline.send_basebackup_tarball(archive, before)
    archive.seek(0)
    copy = pgdata_dir.with_name(f"{pgdata_dir.name}-copy")
    restore_tarball(archive, copy)
    timeline.lend_to_compute()
    with pytest.raises(TimeoutError):
        timeline.wait_lsn(Lsn(before + 8), 0)
    with Cluster(newest_pg, copy, settings={"fsync": "off"}) as cluster:
        cluster.start()
        with pytest.raises(TakeoverError, match="is running"):
            timeline.take_over(copy)
    after = timeline.take_over(copy)
    assert after > before
    assert not copy.exists()
    timeline.wait_lsn(after, 0)
    assert timeline.get_last_record_lsn() == after
    with pytest.raises(PrepareError, match=f"at {after}, not at {before}"):
        timeline.send_basebackup_tarball(io.BytesIO(), before)


def test_a_takeover_that_a_crash_has_cut_short_is_finished(pgdata_dir: Path) -> None:
    """The next timeline on the directory does so: the new state was complete beside it."""
    new = pgdata_dir.rename(pgdata_dir.with_name(f"{pgdata_dir.name}.new"))
    assert PgdataTimeline(TimelineId.generate(), pgdata_dir).get_last_record_lsn()
    assert not new.exists()
    assert pgdata_dir.is_dir()


def test_a_link_is_refused(pgdata_dir: Path) -> None:
    """A takeover renames the directory, so the timeline must be the directory itself."""
    link = pgdata_dir.with_name(f"{pgdata_dir.name}-link")
    link.symlink_to(pgdata_dir)
    with pytest.raises(PostgresError, match="is not a directory"):
        PgdataTimeline(TimelineId.generate(), link)


def test_damage_is_named_without_a_path(pgdata_dir: Path) -> None:
    """A directory that is damaged meanwhile is a `BrokenError`; mended, the timeline works."""
    timeline = PgdataTimeline(TimelineId.generate(), pgdata_dir)
    lsn = timeline.get_last_record_lsn()
    control = pgdata_dir / "global" / "pg_control"
    away = shutil.move(control, pgdata_dir.with_name(f"{pgdata_dir.name}-control"))
    with pytest.raises(BrokenError, match=f"timeline {timeline.timeline_id} is broken") as caught:
        timeline.send_basebackup_tarball(io.BytesIO(), lsn)
    assert str(pgdata_dir) not in str(caught.value)
    shutil.move(away, control)
    timeline.send_basebackup_tarball(io.BytesIO(), lsn)
