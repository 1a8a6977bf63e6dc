"""What several measurements share, made when the first of them asks for it."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.bench.entries import LSN, make_places, write_entries
from bbcache.bench.inputs import Inputs, make_inputs, make_pgdata
from bbcache.bench.peers import PeerMissingError, require_postgres_tool
from bbcache.bench.rounds import Pace
from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.server.cluster import PostgresBinaries
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache import TenantTimelineId


class Counts(NamedTuple):
    """How much is measured.

    Attributes:
        name: what the report calls these counts.
        scale: pgbench's scale of the input *full*: 100,000 rows each.
        grown_scale: its scale for the peak of memory.
        entries: how many entries are many.
        calls: single calls in a round of latencies, at most.
        latency_s: seconds for them, at most.
        budget_s: seconds for all rounds of one group.
        least_rounds: of one group, however long they take.
        least_slow_rounds: the same of a group that takes many seconds a round.
        is_slow_left_out: whether codecs that take seconds a round are left out.
    """

    name: str
    scale: int
    grown_scale: int
    entries: int
    calls: int
    latency_s: float
    budget_s: float
    least_rounds: int
    least_slow_rounds: int
    is_slow_left_out: bool

    @property
    def pace(self) -> Pace:
        """The rounds of one group."""
        return Pace(self.budget_s, self.least_rounds, _MOST_ROUNDS)

    @property
    def slow_pace(self) -> Pace:
        """The rounds of a group that takes many seconds a round."""
        return Pace(self.budget_s, self.least_slow_rounds, _MOST_ROUNDS)

    @property
    def memory_pace(self) -> Pace:
        """Two rounds: memory hardly differs between them."""
        return Pace(0, _MEMORY_ROUNDS, _MEMORY_ROUNDS)


_MOST_ROUNDS: Final = 60
_MEMORY_ROUNDS: Final = 2
FEW_ENTRIES: Final = 100
FULL: Final = Counts("full", 2, 20, 200_000, 10_000, 0.5, 10.0, 5, 3, is_slow_left_out=False)
QUICK: Final = Counts("quick", 2, 20, 20_000, 2_000, 0.2, 1.5, 3, 1, is_slow_left_out=True)


class Crowd(NamedTuple):
    """A directory with many archives.

    Attributes:
        data_dir: the directory.
        places: the timelines, in an order that looks like chance.
        paths: their files.
    """

    data_dir: Path
    places: list[TenantTimelineId]
    paths: list[str]


class Scene:
    """Inputs and directories below one directory. For one thread.

    Args:
        directory: where everything is written.
        counts: how much is measured.
        pg_bin: PostgreSQL's programs; None looks for them.
        note: called with what is made meanwhile.

    Attributes:
        directory: as given.
        counts: as given.
    """

    def __init__(
        self,
        directory: Path,
        counts: Counts,
        pg_bin: Path | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = directory
        self.counts = counts
        self._pg_bin = pg_bin
        self._note = note
        self._crowds: dict[int, Crowd] = {}

    @cached_property
    def binaries(self) -> PostgresBinaries:
        """PostgreSQL's programs, pgbench among them.

        Raises:
            PeerMissingError: there are none.
            PostgresError: those at a given place do not work.
        """
        try:
            binaries = PostgresBinaries.find(self._pg_bin)
        except PostgresError as error:
            if self._pg_bin is not None:
                raise
            raise PeerMissingError(str(error)) from error
        require_postgres_tool(binaries, "pgbench")
        return binaries

    def postgres_version(self) -> dict[str, str]:
        """The version of PostgreSQL, by that name, where one was needed and found."""
        found = self.__dict__.get("binaries")  # as cached_property keeps it
        return {} if found is None else {"PostgreSQL": found.version}

    @cached_property
    def inputs(self) -> Inputs:
        """Lean and full, and the PGDATA that they come from."""
        self._note(f"making the inputs with PostgreSQL {self.binaries.version}")
        return make_inputs(self.binaries, self.directory / "pgdata", self.counts.scale)

    @cached_property
    def grown_pgdata_dir(self) -> Path:
        """A PGDATA of the greater scale."""
        directory = self.directory / "grown"
        self._note(f"making a PGDATA of pgbench scale {self.counts.grown_scale}")
        make_pgdata(self.binaries, directory, self.counts.grown_scale)
        return directory

    def crowd(self, count: int) -> Crowd:
        """A directory with this many small archives, which caches may use one after the other."""
        if count not in self._crowds:
            self._note(f"writing {count:,} archives")
            data_dir = self.directory / f"entries{count}"
            data_dir.mkdir(mode=0o700)
            places = make_places(count)
            tar = make_tarball(places[0].timeline_id, LSN)
            self._crowds[count] = Crowd(data_dir, places, write_entries(data_dir, places, tar))
        return self._crowds[count]

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory for one measurement, removed after it."""
        directory = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.directory))
        directory.chmod(0o711)
        try:
            yield directory
        finally:
            remove_tree(directory)


@contextmanager
def open_scene(
    counts: Counts,
    parent: Path | None = None,
    pg_bin: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Scene]:
    """A scene in a directory of its own, which is removed at the end.

    Args:
        counts: how much is measured.
        parent: where the directory is made; None for that of temporary files.
        pg_bin: PostgreSQL's programs; None looks for them.
        note: called with what is made meanwhile.
    """
    directory = Path(tempfile.mkdtemp(prefix="bbcache-bench-", dir=parent))
    if os.geteuid() == 0:
        directory.chmod(0o711)  # PostgreSQL runs as another user then, and must pass through
    try:
        yield Scene(directory, counts, pg_bin, note)
    finally:
        remove_tree(directory)
