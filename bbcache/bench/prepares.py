"""Prepares, from `send_prepare` to published and fsynced, against the limit and other tools."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import tarfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from bbcache.bench.bars import Bar, Sense
from bbcache.bench.codecs import codec
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.peers import require_postgres_tool, require_tool
from bbcache.bench.pipeline import Pipeline, publish_limit, publish_with
from bbcache.bench.rounds import checked, timed
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache.bench.codecs import Codec
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene
    from bbcache.testing import MemoryTimeline

    Round = Callable[[], float]

PIECES: Final = {"8 KiB": 8 << 10, "1 MiB": 1 << 20}
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


def check_published(path: Path, tarball: bytes) -> None:
    """Check that a file is one gzip member of the tarball.

    Raises:
        ValueError: it is not.
    """
    if isal_zlib.decompress(path.read_bytes(), _GZIP) != tarball:
        raise ValueError(f"{path} is no archive of the input")


def _lean(scene: Scene, lineup: Lineup) -> Figures:
    tarball = scene.inputs.lean
    with ExitStack() as stack:
        for name, pieces in ((_LEAN, "1 MiB"), (_LEAN_8K, "8 KiB")):
            lineup.add(name, lambda pieces=pieces: _from_memory(scene, stack, tarball, pieces, 1))  # type: ignore[misc]
        lineup.add(LIMIT, lambda: _published(scene, stack, tarball, publish_limit))
        for name, peer in (
            (_ZLIB, codec("zlib-9")),
            (_FLATE2, codec("flate2-9")),
            (_ZLIB_NG, codec("zlib-ng-6")),
        ):
            lineup.add(name, lambda peer=peer: _with_codec(scene, stack, tarball, peer))  # type: ignore[misc]
        lineup.race(scene.counts.pace)
    return Figures()


def _from_memory(scene: Scene, stack: ExitStack, tarball: bytes, pieces: str, count: int) -> Round:
    size_bytes = PIECES[pieces]
    return _prepared(
        scene, stack, tarball, lambda pipeline: pipeline.add_timeline(tarball, size_bytes), count
    )


def _from_pgdata(scene: Scene, stack: ExitStack, count: int) -> Round:
    pgdata_dir, tarball = scene.inputs.pgdata_dir, scene.inputs.full
    return _prepared(
        scene, stack, tarball, lambda pipeline: pipeline.add_pgdata_timeline(pgdata_dir), count
    )


def _prepared(
    scene: Scene,
    stack: ExitStack,
    tarball: bytes,
    add: Callable[[Pipeline], MemoryTimeline],
    count: int,
) -> Round:
    """Prepare so many new timelines at once, one of which was looked at before."""
    pipeline = stack.enter_context(Pipeline(stack.enter_context(scene.scratch()) / "cache"))
    first = add(pipeline)
    pipeline.prepare(first)
    if isal_zlib.decompress(pipeline.read(first), _GZIP) != tarball:
        raise ValueError("what was prepared is not the input")
    return timed(pipeline.prepare, lambda: [add(pipeline) for _ in range(count)])


def _with_codec(scene: Scene, stack: ExitStack, tarball: bytes, peer: Codec) -> Round:
    return _published(scene, stack, tarball, publish_with(peer.load()))


def _published(
    scene: Scene, stack: ExitStack, tarball: bytes, publish: Callable[[bytes, Path], None]
) -> Round:
    directory = stack.enter_context(scene.scratch())
    paths = (directory / f"{number}.tar.gz" for number in itertools.count())
    path = next(paths)
    publish(tarball, path)
    check_published(path, tarball)
    return timed(publish, lambda: (tarball, next(paths)))


def _full(scene: Scene, lineup: Lineup) -> Figures:
    with ExitStack() as stack:
        lineup.add(_FULL, lambda: _from_pgdata(scene, stack, 1))
        lineup.add(_TAR_IGZIP, lambda: _tar_igzip(scene, stack))
        lineup.add(_TAR_GZIP, lambda: _tar_gzip(scene, stack))
        lineup.add(_BASEBACKUP, lambda: _basebackup(scene, stack))
        lineup.race(scene.counts.pace)
    return Figures()


def _slow(scene: Scene, lineup: Lineup) -> Figures:
    with ExitStack() as stack:
        lineup.add(_FULL, lambda: _from_pgdata(scene, stack, 1))
        lineup.add(_TARFILE, lambda: _tarfile(scene, stack))
        lineup.race(scene.counts.slow_pace)
    return Figures()


def _four(scene: Scene, lineup: Lineup) -> Figures:
    tarball = scene.inputs.full

    def publish_four(tarball: bytes, path: Path) -> None:
        for number in range(_AT_ONCE):
            publish_limit(tarball, path.with_name(f"{path.name}.{number}"))
        path.symlink_to(f"{path.name}.0")

    with ExitStack() as stack:
        lineup.add(_FOUR, lambda: _from_pgdata(scene, stack, _AT_ONCE))
        lineup.add(_FOUR_MEMORY, lambda: _from_memory(scene, stack, tarball, "1 MiB", _AT_ONCE))
        lineup.add(_FOUR_LIMITS, lambda: _published(scene, stack, tarball, publish_four))
        lineup.race(scene.counts.pace)
    return Figures()


def write_file_list(tarball: bytes, path: Path) -> None:
    """Write the names of a tarball's members, one a line, as `tar -T` wants them."""
    path.write_text("".join(f"{name}\n" for name in member_names(tarball)))


def member_names(tarball: bytes) -> list[str]:
    """The names of all that is in a tarball, in order."""
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        return tar.getnames()


def check_members(path: Path, tarball: bytes) -> None:
    """Check that an archive that a peer has made has the members of a tarball.

    Raises:
        ValueError: it has others.
    """
    if member_names(isal_zlib.decompress(path.read_bytes(), _GZIP)) != member_names(tarball):
        raise ValueError(f"{path} does not have the members of the input")


def _tar_command(scene: Scene, stack: ExitStack) -> tuple[list[str], Path]:
    """Tar of the same files, and a directory for what it makes."""
    directory = stack.enter_context(scene.scratch())
    list_path = directory / "list"
    write_file_list(scene.inputs.full, list_path)
    tar = require_tool("tar", "tar")
    # --no-recursion goes for what follows it: the list names each file by itself.
    what = ["-C", str(scene.inputs.pgdata_dir), "--no-recursion", "-T", str(list_path)]
    return [tar, *what], directory / "out.tar.gz"


def _tar_igzip(scene: Scene, stack: ExitStack) -> Round:
    igzip = require_tool("igzip", "isal")
    tar, path = _tar_command(scene, stack)

    def run() -> None:
        with open(path, "wb") as file:
            with subprocess.Popen([*tar, "-cf", "-"], stdout=subprocess.PIPE) as source:  # noqa: S603 - tar as found
                subprocess.run([igzip, "-1"], stdin=source.stdout, stdout=file, check=True)  # noqa: S603 - igzip as found
            _must_be_zero("tar", source.returncode)
            os.fsync(file.fileno())

    return checked(timed(run), lambda: check_members(path, scene.inputs.full))


def _must_be_zero(name: str, status: int) -> None:
    if status != 0:
        raise subprocess.CalledProcessError(status, name)


def _tar_gzip(scene: Scene, stack: ExitStack) -> Round:
    require_tool("gzip", "gzip")
    tar, path = _tar_command(scene, stack)

    def run() -> None:
        subprocess.run([*tar, "-czf", path], check=True)  # noqa: S603 - tar as found
        _sync(path)

    return checked(timed(run), lambda: check_members(path, scene.inputs.full))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tarfile(scene: Scene, stack: ExitStack) -> Round:
    path = stack.enter_context(scene.scratch()) / "out.tar.gz"
    pgdata_dir = scene.inputs.pgdata_dir
    names = member_names(scene.inputs.full)

    def run() -> None:
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                tar.add(pgdata_dir / name, name, recursive=False)
        _sync(path)

    return checked(timed(run), lambda: check_members(path, scene.inputs.full))


def _basebackup(scene: Scene, stack: ExitStack) -> Round:
    """pg_basebackup, which fsyncs by itself, from a server on a copy of the cluster."""
    binaries = scene.binaries
    require_postgres_tool(binaries, "pg_basebackup")
    directory = stack.enter_context(scene.scratch())
    copy_dir, dest_dir = directory / "copy", directory / "dest"
    shutil.copytree(scene.inputs.pgdata_dir, copy_dir, symlinks=True)
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


CONTESTS: Final = (
    Contest(
        "prepare, lean",
        (
            Bar("prepare-lean", _LEAN, LIMIT, Sense.AT_MOST, 1.2),
            Bar("prepare-lean-8k", _LEAN_8K, LIMIT, Sense.AT_MOST, 2.5),
            Bar("prepare-lean-gzip", _LEAN, _ZLIB, Sense.AT_LEAST, 25),
            Bar("prepare-lean-flate2", _LEAN, _FLATE2, Sense.AT_LEAST, 10),
            Bar("prepare-lean-zlib-ng", _LEAN, _ZLIB_NG, Sense.AT_LEAST, 1.2),
        ),
        _lean,
    ),
    Contest(
        "prepare, full",
        (
            Bar("prepare-full-igzip", _FULL, _TAR_IGZIP, Sense.AT_MOST, 1.0),
            Bar("prepare-full-tar", _FULL, _TAR_GZIP, Sense.AT_LEAST, 8),
            Bar("prepare-full-basebackup", _FULL, _BASEBACKUP, Sense.AT_LEAST, 8),
        ),
        _full,
    ),
    Contest(
        "prepare, full, a slow peer",
        (Bar("prepare-full-tarfile", _FULL, _TARFILE, Sense.AT_LEAST, 50),),
        _slow,
    ),
    Contest(
        "prepare, four at once",
        (
            Bar("prepare-four", _FOUR, _FOUR_LIMITS, Sense.AT_LEAST, 1.3),
            Bar("prepare-four-memory", _FOUR_MEMORY, _FOUR_LIMITS, Sense.AT_LEAST, 1.3),
        ),
        _four,
    ),
)
