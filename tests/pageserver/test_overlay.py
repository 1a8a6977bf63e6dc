"""A root in the image of a container: on overlayfs, with timelines in a lower layer."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from pageserver.conftest import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Templates

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


@pytest.fixture
def over() -> Iterator[Callable[[Path], Path]]:
    """Mount an overlay over a directory; returns the directory that shows both layers."""
    mounted: list[Path] = []

    def mount(lower: Path) -> Path:
        top = lower.with_name(f"{lower.name}.overlay")
        upper, work, merged = (top / name for name in ("upper", "work", "merged"))
        for path in (top, upper, work, merged):
            path.mkdir(mode=0o711)
        options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
        argv = ["mount", "-t", "overlay", "-o", options, "overlay", str(merged)]
        if subprocess.run(argv, check=False, capture_output=True).returncode:
            pytest.skip("no overlay can be mounted here")
        mounted.append(merged)
        return merged

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_timeline_of_a_lower_layer(
    make_lab: Callable[[PostgresBinaries], Lab],
    over: Callable[[Path], Path],
    newest_pg: PostgresBinaries,
    templates: Templates,
) -> None:
    """It is taken over like any other, also if that was cut short: it cannot be renamed."""
    image = make_lab(newest_pg)
    image.open()
    address = image.add_timeline(sql="create table t as select 1 i")
    image.close()
    lab = Lab(newest_pg, templates, over(image.root), image.warm_python)
    lab.open()
    try:
        compute = lab.boot(address)
        lab.sql(compute, "insert into t values (2)")
        place = lab.timeline(address).pgdata_dir
        compute.cluster.stop()
        compute.cluster.pgdata_dir.rename(place.with_name(f"{place.name}.new"))
        (place / "PG_VERSION").unlink()  # half removed
        lab.open()
        lab.play(address, "insert into t values (3)")
        assert lab.read(address, "select i from t order by i") == [(1,), (2,), (3,)]
        assert [path.name for path in place.parent.iterdir()] == [place.name]
    finally:
        lab.close()
