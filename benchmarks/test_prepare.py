"""Prepares, from `send_prepare` to published and fsynced, beside the limit and other tools."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import tarfile
from functools import partial
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.user import ServerUser
from benchmarks import peak_memory
from benchmarks.bars import Bar, Sense, case
from benchmarks.codecs import codec
from benchmarks.peers import require_postgres_tool, require_tool
from benchmarks.pipeline import Pipeline, publish_limit, publish_with
from benchmarks.rounds import checked, timed
from benchmarks.workspace import MEMORY_PACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from bbcache.testing import MemoryTimeline
    from benchmarks.codecs import Codec
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

    Round = Callable[[], float]

_GZIP: Final = 31
_AT_ONCE: Final = 4

LIMIT: Final = "limit: ISA-L 2, write, fsync, rename"
_LEAN: Final = "bbcache, pieces of 1 MiB"
_LEAN_8K: Final = "bbcache, pieces of 8 KiB"
_ZLIB: Final = "stdlib gzip 9, write, fsync, rename"
_FLATE2: Final = "flate2 9 (cramjam), write, fsync, rename"
_ZLIB_NG: Final = "zlib-ng 6, write, fsync, rename"
_FULL: Final = "bbcache, files of a PGDATA"
_TAR_IGZIP: Final = "tar cf - -T list | igzip -1, fsync"
_TAR_GZIP: Final = "tar czf, fsync"
_TARFILE: Final = 'tarfile.open("w:gz"), fsync'
_BASEBACKUP: Final = "pg_basebackup -Ft -z"
_FOUR: Final = "bbcache, four prepares at once"
_FOUR_MEMORY: Final = "bbcache, four prepares at once from memory"
_FOUR_LIMITS: Final = "four times the limit, one after the other"
_MEMORY: Final = "bbcache, peak of a full prepare at ten times the scale, over the idle process"


def check_published(path: Path, tarball: bytes) -> None:
    """Check that a file is one gzip member of the tarball.

    Raises:
        ValueError: it is not.
    """
    if isal_zlib.decompress(path.read_bytes(), _GZIP) != tarball:
        raise ValueError(f"{path} does not hold the input")


@case(
    "prepare, lean",
    Bar("prepare-lean", _LEAN, LIMIT, Sense.AT_MOST, 1.2),
    Bar("prepare-lean-8k", _LEAN_8K, LIMIT, Sense.AT_MOST, 2.5),
    Bar("prepare-lean-gzip", _LEAN, _ZLIB, Sense.AT_LEAST, 25),
    Bar("prepare-lean-flate2", _LEAN, _FLATE2, Sense.AT_LEAST, 10),
    Bar("prepare-lean-zlib-ng", _LEAN, _ZLIB_NG, Sense.AT_LEAST, 1.2),
)
def test_lean(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A prepare of lean from memory, beside the limit and the limit with other codecs."""
    tarball = workspace.inputs.lean
    for name, piece_size_bytes in ((_LEAN, 1 << 20), (_LEAN_8K, 8 << 10)):
        rounds.add(name, partial(_from_memory, workspace, stack, tarball, piece_size_bytes))
    rounds.add(LIMIT, lambda: _published(workspace, stack, tarball, publish_limit))
    for name, peer in (
        (_ZLIB, codec("zlib 9")),
        (_FLATE2, codec("flate2 9")),
        (_ZLIB_NG, codec("zlib-ng 6")),
    ):
        rounds.add(name, partial(_with_codec, workspace, stack, tarball, peer))
    rounds.run(workspace.counts.pace)


def _from_memory(
    workspace: Workspace, stack: ExitStack, tarball: bytes, piece_size_bytes: int, count: int = 1
) -> Round:
    def add(pipeline: Pipeline) -> MemoryTimeline:
        return pipeline.add_timeline(tarball, piece_size_bytes)

    return _prepared(workspace, stack, tarball, add, count)


def _from_pgdata(workspace: Workspace, stack: ExitStack, count: int = 1) -> Round:
    def add(pipeline: Pipeline) -> MemoryTimeline:
        return pipeline.add_pgdata_timeline(workspace.inputs.pgdata_dir)

    return _prepared(workspace, stack, workspace.inputs.full, add, count)


def _prepared(
    workspace: Workspace,
    stack: ExitStack,
    tarball: bytes,
    add: Callable[[Pipeline], MemoryTimeline],
    count: int,
) -> Round:
    """Prepare so many new timelines at once; the archive of a first one is checked before."""
    pipeline = stack.enter_context(Pipeline(stack.enter_context(workspace.scratch()) / "cache"))
    first = add(pipeline)
    pipeline.prepare(first)
    if isal_zlib.decompress(pipeline.read(first), _GZIP) != tarball:
        raise ValueError("the prepared archive does not hold the input")
    return timed(pipeline.prepare, lambda: [add(pipeline) for _ in range(count)])


def _with_codec(workspace: Workspace, stack: ExitStack, tarball: bytes, peer: Codec) -> Round:
    return _published(workspace, stack, tarball, publish_with(peer.load()))


def _published(
    workspace: Workspace, stack: ExitStack, tarball: bytes, publish: Callable[[bytes, Path], None]
) -> Round:
    directory = stack.enter_context(workspace.scratch())
    paths = (directory / f"{number}.tar.gz" for number in itertools.count())
    path = next(paths)
    publish(tarball, path)
    check_published(path, tarball)
    return timed(publish, lambda: (tarball, next(paths)))


@case(
    "prepare, full",
    Bar("prepare-full-igzip", _FULL, _TAR_IGZIP, Sense.AT_MOST, 1.0),
    Bar("prepare-full-tar", _FULL, _TAR_GZIP, Sense.AT_LEAST, 8),
    Bar("prepare-full-basebackup", _FULL, _BASEBACKUP, Sense.AT_LEAST, 8),
)
def test_full(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A prepare that reads the files of a PGDATA, beside tar with a codec and pg_basebackup."""
    rounds.add(_FULL, lambda: _from_pgdata(workspace, stack))
    rounds.add(_TAR_IGZIP, lambda: _tar_igzip(workspace, stack))
    rounds.add(_TAR_GZIP, lambda: _tar_gzip(workspace, stack))
    rounds.add(_BASEBACKUP, lambda: _basebackup(workspace, stack))
    rounds.run(workspace.counts.pace)


@case(
    "prepare, full, a slow peer",
    Bar("prepare-full-tarfile", _FULL, _TARFILE, Sense.AT_LEAST, 50),
)
def test_full_slow(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """The same beside Python's tarfile, which takes seconds."""
    rounds.add(_FULL, lambda: _from_pgdata(workspace, stack))
    rounds.add(_TARFILE, lambda: _tarfile(workspace, stack))
    rounds.run(workspace.counts.slow_pace)


@case(
    "prepare, four at once",
    Bar("prepare-four", _FOUR, _FOUR_LIMITS, Sense.AT_LEAST, 1.3),
    Bar("prepare-four-memory", _FOUR_MEMORY, _FOUR_LIMITS, Sense.AT_LEAST, 1.3),
)
def test_four(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """Four prepares at once, beside four times the limit in sequence."""
    tarball = workspace.inputs.full

    def publish_four(tarball: bytes, path: Path) -> None:
        for number in range(_AT_ONCE):
            publish_limit(tarball, path.with_name(f"{path.name}.{number}"))
        path.symlink_to(f"{path.name}.0")

    rounds.add(_FOUR, lambda: _from_pgdata(workspace, stack, _AT_ONCE))
    rounds.add(_FOUR_MEMORY, lambda: _from_memory(workspace, stack, tarball, 1 << 20, _AT_ONCE))
    rounds.add(_FOUR_LIMITS, lambda: _published(workspace, stack, tarball, publish_four))
    rounds.run(workspace.counts.pace)


@case("memory of a prepare", Bar("memory-prepare", _MEMORY, "", Sense.AT_MOST, 24, "MiB"))
def test_memory(workspace: Workspace, rounds: Rounds) -> None:
    """The most that a full prepare of ten times the scale adds to an idle process."""

    def enter() -> Round:
        pgdata_dir = workspace.grown_pgdata_dir

        def growth_mib() -> float:
            with workspace.scratch() as directory:
                return peak_memory.growth_mib(pgdata_dir, directory / "cache")

        return growth_mib

    rounds.add(_MEMORY, enter)
    rounds.run(MEMORY_PACE)


def member_names(tarball: bytes) -> list[str]:
    """Return the names of the members of a tarball, in order."""
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        return tar.getnames()


def check_members(path: Path, tarball: bytes) -> None:
    """Check that the archive of a peer has the members of a tarball.

    Raises:
        ValueError: it has others.
    """
    if member_names(isal_zlib.decompress(path.read_bytes(), _GZIP)) != member_names(tarball):
        raise ValueError(f"{path} does not have the members of the input")


def _tar_command(workspace: Workspace, stack: ExitStack) -> tuple[list[str], Path]:
    """Return the command that tars the files of full, and a path for its output."""
    directory = stack.enter_context(workspace.scratch())
    list_path = directory / "list"
    list_path.write_text("".join(f"{name}\n" for name in member_names(workspace.inputs.full)))
    tar = require_tool("tar", "tar")
    # --no-recursion holds for what follows it: the list names each file.
    what = ["-C", str(workspace.inputs.pgdata_dir), "--no-recursion", "-T", str(list_path)]
    return [tar, *what], directory / "out.tar.gz"


def _tar_igzip(workspace: Workspace, stack: ExitStack) -> Round:
    igzip = require_tool("igzip", "isal")
    tar, path = _tar_command(workspace, stack)

    def run() -> None:
        with open(path, "wb") as file:
            with subprocess.Popen([*tar, "-cf", "-"], stdout=subprocess.PIPE) as source:
                subprocess.run([igzip, "-1"], stdin=source.stdout, stdout=file, check=True)
            if source.returncode != 0:
                raise subprocess.CalledProcessError(source.returncode, "tar")
            os.fsync(file.fileno())

    return checked(timed(run), lambda: check_members(path, workspace.inputs.full))


def _tar_gzip(workspace: Workspace, stack: ExitStack) -> Round:
    require_tool("gzip", "gzip")
    tar, path = _tar_command(workspace, stack)

    def run() -> None:
        subprocess.run([*tar, "-czf", path], check=True)
        _sync(path)

    return checked(timed(run), lambda: check_members(path, workspace.inputs.full))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tarfile(workspace: Workspace, stack: ExitStack) -> Round:
    path = stack.enter_context(workspace.scratch()) / "out.tar.gz"
    pgdata_dir = workspace.inputs.pgdata_dir
    names = member_names(workspace.inputs.full)

    def run() -> None:
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                tar.add(pgdata_dir / name, name, recursive=False)
        _sync(path)

    return checked(timed(run), lambda: check_members(path, workspace.inputs.full))


def _basebackup(workspace: Workspace, stack: ExitStack) -> Round:
    """Run pg_basebackup, which fsyncs, from a server on a copy of the cluster."""
    binaries = workspace.binaries
    require_postgres_tool(binaries, "pg_basebackup")
    directory = stack.enter_context(workspace.scratch())
    copy_dir, dest_dir = directory / "copy", directory / "dest"
    shutil.copytree(workspace.inputs.pgdata_dir, copy_dir, symlinks=True)
    copy_dir.chmod(0o700)
    cluster = stack.enter_context(Cluster(binaries, copy_dir, settings={"autovacuum": "off"}))
    cluster.start()
    where = [f"--host={cluster.socket_dir}", f"--port={cluster.port}", "--username=postgres"]
    how = ["-Ft", "-z", "--wal-method=fetch", "--checkpoint=fast", "--no-password"]

    def setup() -> tuple[()]:
        if dest_dir.exists():
            shutil.rmtree(dest_dir)
        dest_dir.mkdir()
        ServerUser.current().own_tree(dest_dir)
        return ()

    return timed(lambda: binaries.run("pg_basebackup", f"--pgdata={dest_dir}", *how, *where), setup)
