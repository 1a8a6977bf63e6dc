"""File-system calls of a fetch fail, or are its last: nothing is ever half-made."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from faults import shim
from faults.calls import read_log
from faults.conftest import compiler  # noqa: F401 - a fixture
from faults.shim import Fault
from fetch.bad_service import BadService, serves
from isal import igzip
from support.cache_helpers import CHILD_DEADLINE_S
from support.helpers import TENANT, TIMELINE
from support.shares import IS_NIGHTLY

from bbcache.postgres.pgdata.tarball import inspect_pgdata

if TYPE_CHECKING:
    from pathlib import Path

    from fetch.conftest import Archive

WANTED = ("./", ".", "base", "global", "pg_wal", "PG_VERSION", "global/pg_control")


@pytest.fixture(scope="session")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811 - the fixture
    """The fault injector."""
    return shim.build(tmp_path_factory.mktemp("shim"), compiler)


@pytest.fixture(scope="session")
def small(archive: Archive) -> bytes:
    """A basebackup with no more in it than a check asks for."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive.tar)) as whole,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as part,
    ):
        for member in whole:
            if member.name.removeprefix("./") in WANTED:
                part.addfile(member, whole.extractfile(member) if member.isfile() else None)
    return igzip.compress(out.getvalue(), 1)


class Life:
    """Fetches into one place, in processes with the injector."""

    def __init__(self, library: Path, place: Path, server: BadService) -> None:
        self.place = place
        self.dest = place / "pgdata"
        self.log = place.with_name(place.name + ".calls")
        self._library = library
        self._server = server

    def run(self, fault: Fault | None = None) -> int:
        """Fetch with a fault; the exit status."""
        ids = (str(TENANT), str(TIMELINE))
        told = shim.settings(self.place, fault, self.log)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bbcache.cli", "fetch", "--attempts", "1"),
                *(self._server.url, *ids, str(self.dest)),
            ],
            check=False,
            env={**os.environ, "LD_PRELOAD": str(self._library), **told},
            capture_output=True,
            text=True,
            timeout=CHILD_DEADLINE_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    def check(self) -> None:
        """It is not there, or whole."""
        if self.dest.exists():
            inspect_pgdata(self.dest)
            assert (self.dest / "base").is_dir()

    def check_next(self) -> None:
        """The next fetch is well, and tidies up what was left."""
        if self.dest.exists():
            subprocess.run(["rm", "-r", "--", self.dest], check=True)
        assert self.run() == 0
        assert os.listdir(self.place) == ["pgdata"]


@pytest.fixture(scope="module")
def calls(library: Path, pg_dir: Path, small: bytes) -> Counter[str]:
    """How many calls of each kind a fetch makes where nothing fails."""
    place = pg_dir / "faultless"
    place.mkdir()
    with BadService(serves(small)) as server:
        server.listen()
        life = Life(library, place, server)
        assert life.run() == 0
        return Counter(call.op for call in read_log(life.log) if call.number)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["mkdir", "pwrite", "fsync", "rename"])
@pytest.mark.parametrize("kind", ["error", "kill-after"])
def test_calls(
    library: Path, place: Path, small: bytes, calls: Counter[str], kind: shim.Kind, op: str
) -> None:
    """The first call of a kind or the last one, of all that bring something to the disk.

    ``HYPOTHESIS_PROFILE=nightly`` takes both.
    """
    with BadService(serves(small)) as server:
        server.listen()
        life = Life(library, place, server)
        count = calls[op]
        assert count
        for at in (1, count) if IS_NIGHTLY else [random.choice((1, count))]:
            subprocess.run(["rm", "-r", "--", life.dest], check=False)
            status = life.run(Fault(kind, at, errno.EIO, op))
            if kind == "error":
                assert status == 2
                assert os.listdir(place) in ([], ["pgdata"])
            else:
                assert status == -9
            life.check()
        life.check_next()
