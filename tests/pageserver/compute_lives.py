"""Lives of pageservers that are killed, and the compute nodes that they leave."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bbcache import TenantId, TimelineId
from bbcache.pageserver import Pageserver
from bbcache.postgres.server.cluster import PostgresBinaries

if TYPE_CHECKING:
    from pageserver.conftest import Address, Lab


class Orphan(NamedTuple):
    """A compute node whose pageserver was killed: its data directory and its server's pid."""

    pgdata_dir: Path
    pid: int

    @property
    def started_path(self) -> Path:
        """The sign beside the data directory that its server was started."""
        return self.pgdata_dir.with_name(f"{self.pgdata_dir.name}.started")


def leave_orphan(lab: Lab, address: Address, *statements: str, is_started: bool = True) -> Orphan:
    """Close the lab, and have a pageserver killed that runs a compute node.

    Args:
        lab: its directory is used.
        address: the timeline.
        statements: run on the compute node.
        is_started: whether the compute node is; else it is restored only.
    """
    lab.close()
    life = {
        "root": str(lab.root),
        "bindir": str(lab.binaries.bindir),
        "ids": [str(each) for each in address],
        "settings": {**lab.settings},
        "statements": [*statements],
        "is_started": is_started,
    }
    with lab.warm_python.start("pageserver.compute_lives:run_and_die", life) as child:
        said = child.stdout.read()
        assert child.wait() == -signal.SIGKILL, child.stderr.read()
    path, pid = said.split()
    return Orphan(Path(path), int(pid))


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie, which has no program."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return True


def run_and_die(life: dict[str, Any]) -> None:
    """The life of a pageserver that is killed."""
    address = TenantId.from_str(life["ids"][0]), TimelineId.from_str(life["ids"][1])
    pageserver = Pageserver(Path(life["root"]), PostgresBinaries.find(life["bindir"]), None)
    with pageserver.open_basebackup(*address).file as archive:
        compute = pageserver.make_compute(*address, archive)
    pid = 0
    if life["is_started"]:
        compute.start(life["settings"])
        pid = compute.cluster.pid
        for statement in life["statements"]:
            compute.cluster.psql(statement)
    sys.stdout.write(f"{compute.cluster.pgdata_dir} {pid}\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
