"""What several cases share, made when the first of them asks for it."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.server.cluster import PostgresBinaries
from bbcache.testing import make_tarball
from benchmarks.entries import LSN, make_ids, write_entries
from benchmarks.inputs import Inputs, make_inputs, make_pgdata
from benchmarks.latency import Calls
from benchmarks.peers import PeerMissingError, require_postgres_tool
from benchmarks.rounds import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache import TenantTimelineId


class Counts(NamedTuple):
    """How much is measured.

    Attributes:
        name: the name of these counts in the report.
        scale: pgbench's scale of the input *full*: 100,000 rows each.
        grown_scale: its scale for the peak of memory.
        entries: the number of entries in cases with many.
        calls: the calls in a round of latencies.
        pace: the rounds of a case.
        slow_pace: the rounds of a case that takes many seconds a round.
        skipped_codecs: the codecs that are not measured on *full*.
        crowd_divisor: connections of the page service's crowds are divided by this number.
    """

    name: str
    scale: int
    grown_scale: int
    entries: int
    calls: Calls
    pace: Pace
    slow_pace: Pace
    skipped_codecs: frozenset[str]
    crowd_divisor: int = 1


FEW_ENTRIES: Final = 100
LONG_CODECS: Final = frozenset({"zlib 9", "zlib-ng 9", "flate2 6", "flate2 9", "libdeflate 12"})
MEMORY_PACE: Final = Pace(0, 2, 2)  # memory hardly differs between rounds
FULL: Final = Counts(
    "full", 2, 20, 200_000, Calls(10_000, 0.5), Pace(10, 5, 60), Pace(10, 3, 60), frozenset()
)
QUICK: Final = Counts(
    "quick", 2, 20, 20_000, Calls(2_000, 0.2), Pace(0.8, 3, 60), Pace(0.8, 1, 60), LONG_CODECS
)
UNTIMED: Final = Counts(
    "untimed", 1, 1, 300, Calls(50, 0.05), Pace(0, 1, 1), Pace(0, 1, 1), LONG_CODECS, 100
)


class ManyEntries(NamedTuple):
    """A directory with many archives.

    Attributes:
        data_dir: the directory.
        ids: the timelines, in a random order.
        paths: their files.
    """

    data_dir: Path
    ids: list[TenantTimelineId]
    paths: list[str]


class Workspace:
    """Inputs and directories below one directory. For one thread.

    Args:
        directory: everything is written below it.
        counts: how much is measured.

    Attributes:
        directory: as given.
        counts: as given.
    """

    def __init__(self, directory: Path, counts: Counts) -> None:
        self.directory = directory
        self.counts = counts
        self._many_entries: dict[int, ManyEntries] = {}

    @cached_property
    def binaries(self) -> PostgresBinaries:
        """PostgreSQL's programs, pgbench among them.

        Raises:
            PeerMissingError: there are none.
        """
        try:
            binaries = PostgresBinaries.find()
        except PostgresError as error:
            raise PeerMissingError(str(error)) from error
        require_postgres_tool(binaries, "pgbench")
        return binaries

    @cached_property
    def inputs(self) -> Inputs:
        """Lean and full, and the PGDATA that they come from."""
        return make_inputs(self.binaries, self.directory / "pgdata", self.counts.scale)

    @cached_property
    def grown_pgdata_dir(self) -> Path:
        """A PGDATA of the greater scale."""
        directory = self.directory / "grown"
        make_pgdata(self.binaries, directory, self.counts.grown_scale)
        return directory

    def many_entries(self, count: int) -> ManyEntries:
        """Return a directory with this many small archives, for one cache after the other."""
        if count not in self._many_entries:
            data_dir = self.directory / f"entries{count}"
            data_dir.mkdir(mode=0o700)
            ids = make_ids(count)
            tar = make_tarball(ids[0].timeline_id, LSN)
            paths = write_entries(data_dir, ids, tar)
            self._many_entries[count] = ManyEntries(data_dir, ids, paths)
        return self._many_entries[count]

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make an empty directory for the block, and remove it afterwards."""
        directory = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.directory))
        directory.chmod(0o711)
        try:
            yield directory
        finally:
            remove_tree(directory)


@contextmanager
def open_workspace(counts: Counts) -> Iterator[Workspace]:
    """Open a workspace below the directory of temporary files; the end removes it."""
    directory = Path(tempfile.mkdtemp(prefix="bbcache-bench-"))
    if os.geteuid() == 0:
        directory.chmod(0o711)  # PostgreSQL runs as another user then, and must pass through
    try:
        yield Workspace(directory, counts)
    finally:
        remove_tree(directory)
