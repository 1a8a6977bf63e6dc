"""The two inputs, lean and full, made from a real PostgreSQL cluster."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.postgres.pgdata.tar_writer import TarWriter
from bbcache.postgres.pgdata.tarball import inspect_pgdata, send_pgdata_tarball
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.wal.segment import segment_name

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.postgres.server.cluster import PostgresBinaries

_PG_CONTROL: Final = "global/pg_control"
_LEAN_FILES: Final = re.compile(
    r"pg_hba\.conf|postgresql\.auto\.conf"
    r"|(base/\d+/)?PG_VERSION"
    r"|(base/\d+|global)/pg_filenode\.map"
    r"|(pg_xact|pg_multixact/members|pg_multixact/offsets)/[0-9A-F]+"
)
# The cluster is made to be read, not to last.
_SETTINGS: Final = {"fsync": "off", "autovacuum": "off"}
_PGBENCH_TIMEOUT_S: Final = 600.0


class Inputs(NamedTuple):
    """The tarballs that the benchmarks compress, prepare and restore.

    Attributes:
        lean: see `lean_tarball`.
        full: see `full_tarball`.
        pgdata_dir: the stopped cluster that both come from, as it is in `full`.
        version: the version of PostgreSQL that made them.
    """

    lean: bytes
    full: bytes
    pgdata_dir: Path
    version: str

    def __str__(self) -> str:
        sizes = f"lean {len(self.lean):,} bytes, full {len(self.full):,} bytes"
        return f"inputs: {sizes}, of PostgreSQL {self.version}"

    def tarball(self, name: str) -> bytes:
        """Return the tarball called ``lean`` or ``full``."""
        return {"lean": self.lean, "full": self.full}[name]


def make_inputs(binaries: PostgresBinaries, pgdata_dir: Path, scale: int) -> Inputs:
    """Make a cluster, and take one tarball without pgbench's tables and one with them.

    Before the first the cluster begins a new WAL segment, so that the one in *lean*
    is nearly all zeros.

    Args:
        binaries: what to make it with; pgbench must be there.
        pgdata_dir: where to make it; the parent must be open to PostgreSQL's user.
        scale: pgbench's scale: 100,000 rows, about 15 MB, for each.

    Raises:
        PostgresError: a program failed.
    """
    cluster = _make_cluster(binaries, pgdata_dir)
    with cluster:
        cluster.start()
        cluster.psql("SELECT pg_switch_wal()")
    lean = lean_tarball(pgdata_dir)
    with cluster:
        cluster.start()
        _run_pgbench(cluster, scale)
    return Inputs(lean, full_tarball(pgdata_dir), pgdata_dir, binaries.version)


def make_pgdata(binaries: PostgresBinaries, pgdata_dir: Path, scale: int) -> None:
    """Make a stopped cluster with pgbench's tables; arguments as of `make_inputs`."""
    with _make_cluster(binaries, pgdata_dir) as cluster:
        cluster.start()
        _run_pgbench(cluster, scale)


def _make_cluster(binaries: PostgresBinaries, pgdata_dir: Path) -> Cluster:
    cluster = Cluster(binaries, pgdata_dir, settings=_SETTINGS)
    cluster.initdb(["--no-sync"])
    return cluster


def _run_pgbench(cluster: Cluster, scale: int) -> None:
    cluster.binaries.run(
        "pgbench",
        "--initialize",
        f"--scale={scale}",
        f"--host={cluster.socket_dir}",
        f"--port={cluster.port}",
        "--username=postgres",
        "postgres",
        timeout_s=_PGBENCH_TIMEOUT_S,
    )


def full_tarball(pgdata_dir: Path) -> bytes:
    """Return *full*: the tarball that `send_pgdata_tarball` makes of a stopped cluster.

    All relations, and of the WAL the one segment that the next start reads, with
    zeros behind the checkpoint. Smaller than a tar of the directory as it lies there,
    which has the rest of the WAL too.
    """
    buffer = io.BytesIO()
    send_pgdata_tarball(pgdata_dir, buffer)
    return buffer.getvalue()


def lean_tarball(pgdata_dir: Path) -> bytes:
    """Return *lean*: the tarball that a Neon pageserver would serve, of this cluster's files.

    A compute node there reads relations from the pageserver page by page, so its
    basebackup has none. In it are:

    - every directory of PGDATA;
    - PG_VERSION of the cluster and of each database, pg_hba.conf,
      postgresql.auto.conf, and an empty pg_ident.conf;
    - the relation map (pg_filenode.map) of each database and of ``global``;
    - the SLRU segments: pg_xact, pg_multixact/members, pg_multixact/offsets;
    - last, global/pg_control and the WAL segment of the shutdown checkpoint at its
      full size, zeros behind the checkpoint. With 16 MiB it is nearly all there is.

    Left out are Neon's own small files (its signal file among them): a stock
    PostgreSQL writes none.
    """
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    for path in sorted(pgdata_dir.rglob("*")):
        name = path.relative_to(pgdata_dir).as_posix()
        if path.is_dir():
            tar.add_directory(name)
        elif name == "pg_ident.conf":
            tar.add_bytes(name, b"")
        elif _LEAN_FILES.fullmatch(name):
            tar.add_bytes(name, path.read_bytes())
    tar.add_bytes(_PG_CONTROL, (pgdata_dir / _PG_CONTROL).read_bytes())
    _add_wal_segment(tar, pgdata_dir)
    tar.finish()
    return buffer.getvalue()


def _add_wal_segment(tar: TarWriter, pgdata_dir: Path) -> None:
    control = inspect_pgdata(pgdata_dir)
    size_bytes = control.wal_segment_size_bytes
    name = f"pg_wal/{segment_name(control.tli, control.checkpoint_lsn, size_bytes)}"
    used_bytes = control.checkpoint_end_lsn - control.checkpoint_lsn // size_bytes * size_bytes
    fd = os.open(pgdata_dir / name, os.O_RDONLY)
    try:
        tar.add_file(name, fd, size_bytes, used_bytes=used_bytes)
    finally:
        os.close(fd)
