"""One whole life of a cache, which must end well whatever single call fails.

Start on a directory with a past, concurrent prepares and refreshes beside gets,
damage and its repair, clean-up, close. Everything that a caller could notice and
must not is written down as a problem; the life goes on all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from faults import fixed_host
from faults.fixed_host import LSN_A, LSN_B, LSN_C
from faults.shim import hits, outside
from prometheus_client import CollectorRegistry
from support.cache_helpers import disk_bytes
from support.helpers import samples
from support.ledger import total_bytes as counted_bytes

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    FillError,
    Lsn,
    StoreError,
    TenantShardId,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATIENCE_S: Final = 45.0
_GLANCE_S: Final = 0.05
_HOPELESS_HITS: Final = 3  # calls that have failed, after which a dead disk is dead
_ROUNDS: Final = 4  # in which everything must be there again, one fault or not
SHARD: Final = TenantShardId(fixed_host.TENANT)
WITH_TIER: Final = "BBCACHE_FAULTS_TIER"  # in the environment: caches have a second tier
ALWAYS_FULL: Final = "BBCACHE_FAULTS_FULL"  # in the environment: caches have to evict
_FULL_AT: Final = 8  # entries: one more than a life begins with
EXIT_WRONG: Final = 3
EXIT_PROBLEM: Final = 4


class Witness:
    """Writes down what must not be. Thread-safe.

    Attributes:
        wrong: gets whose bytes were not those of any prepare.
        problems: everything else that must not be.
        notes: what may be, and is worth counting.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.tell: Callable[[str], object] = lambda _: None  # at once, where a kill may come
        self.begin_work: Callable[[], object] = lambda: None  # the start is over

    def watch_interpreter(self) -> None:
        """Take what ends in no caller: threads' exceptions, finalisers', warnings."""
        warnings.simplefilter("error")
        threading.excepthook = lambda args: self.add_problem(
            f"thread {args.thread and args.thread.name} died of {args.exc_value!r}"
        )
        sys.unraisablehook = lambda args: self.add_problem(
            f"unraisable in {args.object!r}: {args.exc_value!r}"
        )

    def add_wrong(self, text: str) -> None:
        """Wrong bytes were served."""
        self.wrong.append(text)
        self.tell(f"WRONG {text}")

    def add_problem(self, text: str) -> None:
        """Something else is not as it must be."""
        self.problems.append(text)
        self.tell(f"PROBLEM {text}")

    @contextlib.contextmanager
    def nothing_raised(self, doing: str) -> Any:
        """Whatever the block raises reaches a caller that it must not reach."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - that is the question
            self.add_problem(f"{doing} raised {error!r}")

    def expect(self, is_so: object, problem: str) -> None:
        """Write `problem` down unless it is so."""
        if not is_so:
            self.add_problem(problem)

    def report(self) -> dict[str, list[str]]:
        """All of it."""
        return {"wrong": self.wrong, "problems": self.problems, "notes": self.notes}


class Life:
    """One cache in use, by a caller that checks every byte.

    Args:
        data_dir: its directory.
        tips: where the host's timelines stand.
        witness: records everything that must not be.
        settings: of the cache.
    """

    def __init__(
        self, data_dir: Path, tips: dict[str, Lsn], witness: Witness, **settings: Any
    ) -> None:
        self.dir = data_dir
        self.tips = tips
        self.witness = witness
        self.host, self.timelines = fixed_host.make_host(tips)
        self.registry = CollectorRegistry()
        # Beside the directory, where no call meets a fault.
        config = {"cleanup_period": 3600.0, "prepare_concurrency": 2, **settings}
        config.setdefault("min_free_disk_bytes", 1)  # which any machine has
        config.setdefault("unpublished_dir", str(data_dir.parent))
        self.has_tier = bool(os.environ.get(WITH_TIER))
        self.max_entries: int | None = settings.get("max_size_entries")
        tier = fixed_host.FixedTier() if self.has_tier else None
        self.cache = BasebackupCache.spawn(
            data_dir, BasebackupCacheConfig(**config), self.host, self.registry, tier=tier
        )

    def read(self, name: str, lsn: Lsn) -> bytes | None:
        """Get and read to the end; None for a miss, and where the caller's reading fails."""
        data: bytes | None = None
        with self.witness.nothing_raised(f"get of {name}"):
            file = self.cache.get(fixed_host.TENANT, fixed_host.timeline_id(name), lsn)
            if file is None:
                return None
            try:
                with file:
                    data = file.read()
            except OSError as error:  # of the caller's own calls on its own file
                self.witness.notes.append(f"caller could not read {name}: {error}")
                return None
            if not fixed_host.is_right(data, name, lsn):
                self.witness.add_wrong(f"{name} at {lsn}: {fixed_host.describe(data, name, lsn)}")
        return data

    def fill(self, name: str, lsn: Lsn) -> None:
        """Get or prepare, which must give the exact bytes whatever the disk of the cache does.

        A limit of the process is no failure of the disk: the error names it.
        """
        with self.witness.nothing_raised(f"get_or_prepare of {name}"):
            try:
                file = self.cache.get_or_prepare(
                    SHARD, fixed_host.timeline_id(name), lsn, PATIENCE_S
                )
            except FillError as error:
                if os.strerror(errno.EMFILE) not in str(error):
                    raise
                self.witness.notes.append(f"caller was refused {name}: {error}")
                return
            try:
                with file:
                    data = file.read()
            except OSError as error:  # of the caller's own calls on its own file
                self.witness.notes.append(f"caller could not read {name}: {error}")
                return
            if not fixed_host.is_right(data, name, lsn):
                self.witness.add_wrong(f"{name} at {lsn}: {fixed_host.describe(data, name, lsn)}")

    def send(self, names: Iterable[str], lsn: Lsn | None = None) -> None:
        """Ask for prepares at the tips, or at `lsn`, where the tips are moved to.

        With a second tier, every second one is fetched.
        """
        for number, name in enumerate(names):
            if lsn is not None:
                self.tips[name] = lsn
                self.timelines[name].advance(lsn)
            place = SHARD, fixed_host.timeline_id(name), self.tips[name]
            with self.witness.nothing_raised("send_prepare"):
                if self.has_tier and number % 2:
                    self.cache.send_warm(*place, build=True)
                else:
                    self.cache.send_prepare(*place)

    def wait_idle(self) -> None:
        """All work must come to an end."""
        with self.witness.nothing_raised("wait_idle"):
            self.witness.expect(self.cache.wait_idle(PATIENCE_S), "work does not come to an end")

    def clean_up(self) -> None:
        """One clean-up step."""
        with self.witness.nothing_raised("run_cleanup"):
            self.cache.run_cleanup()

    def save_habits(self) -> None:
        """Save what eviction has learned, as the thread of the cache does each period."""
        with self.witness.nothing_raised("save_habits"):
            assert self.cache._engine is not None
            self.cache._engine.cleaner.save_habits()

    def held(self) -> dict[fixed_host.Found, int]:
        """What `entries` shows, with sizes in bytes."""
        entries = self.cache.entries()
        return {
            fixed_host.Found(fixed_host.name_of(e.timeline_id), e.lsn): e.size_bytes
            for e in entries
        }

    def close(self) -> None:
        """Close; nothing may be left over."""
        started_s = time.monotonic()
        with self.witness.nothing_raised("close"):
            self.cache.close(PATIENCE_S)
        self.witness.expect(time.monotonic() - started_s < PATIENCE_S, "close waits for ever")
        left = [t.name for t in threading.enumerate() if t.name.startswith("bbcache")]
        self.witness.expect(not left, f"close leaves threads: {left}")

    def check_accounting(self) -> None:
        """Books, gauges and directory agree, as they must when the cache is idle.

        Only an entry whose size the start could not learn, because that very call met
        the fault, may be on the disk and not held: it counts as a foreign file.
        """
        with outside():
            sizes = {
                found: p.stat().st_size for found, p in fixed_host.entry_files(self.dir).items()
            }
            temp_files = os.listdir(self.dir / "tmp")
            total_bytes = disk_bytes(self.dir)
        held, gauges, expect = self.held(), samples(self.registry), self.witness.expect
        unheld = set(sizes) - set(held)
        expect(held.items() <= sizes.items(), f"ghosts: {held.items() - sizes.items()}")
        expect(len(unheld) <= min(hits(), 1), f"files without entry: {unheld}")
        expect(not temp_files, f"left in tmp/: {temp_files}")
        entry_count = gauges["pageserver_basebackup_cache_entries_total"]
        expect(entry_count == len(held), f"{entry_count} entries on the gauge, {len(held)} held")
        entry_bytes = gauges["pageserver_basebackup_cache_size_bytes"]
        expect(entry_bytes == sum(held.values()), f"{entry_bytes} bytes on the gauge")
        assert self.cache._engine is not None
        booked_bytes = counted_bytes(self.cache._engine.index)  # no gauge shows it
        expect(booked_bytes == total_bytes, f"{booked_bytes} bytes booked, {total_bytes} on disk")
        if self.max_entries is not None:
            expect(len(held) <= self.max_entries, f"{len(held)} entries in a full cache")


def live(
    data_dir: Path,
    witness: Witness,
    *,
    story: str = "used",
    is_lasting: bool = False,
    **settings: Any,
) -> None:
    """Live one life on a directory that `fixed_host.seed` has filled.

    Args:
        data_dir: the directory.
        witness: records everything that must not be.
        story: what happens in it, of `STORIES`.
        is_lasting: whether the fault lasts to the end, so that nothing recovers.
        settings: of the cache.
    """
    tips = dict.fromkeys(fixed_host.ALL, LSN_A) | {
        fixed_host.MOVED: LSN_B,
        fixed_host.SUPERSEDED: LSN_B,
    }
    del tips[fixed_host.DROPPED]
    fds_before = _open_fds()
    settings = full_settings(_FULL_AT) | settings
    try:
        life = Life(data_dir, tips, witness, **settings)
    except StoreError as error:  # the documented way for a start to fail
        witness.notes.append(f"start failed: {error}".splitlines()[0])
    except BaseException as error:  # noqa: BLE001 - that is the question
        witness.add_problem(f"spawn raised {error!r}")
    else:
        if _wait_initialized(life, is_lasting=is_lasting):
            STORIES[story](life)
            _recover(life, is_lasting=is_lasting)
        else:
            life.send(fixed_host.MADE)  # to be cancelled by the close
            life.fill(fixed_host.WANTED, LSN_A)
        life.close()
        del life
    left = {name for name in _open_fds() - fds_before if not (is_lasting and "lock" in name)}
    witness.expect(not left, f"descriptors left open: {left}")


def full_settings(max_entries: int) -> dict[str, Any]:
    """The settings of a cache that is always full, if the environment asks for one."""
    return {"max_size_entries": max_entries} if os.environ.get(ALWAYS_FULL) else {}


def _wait_initialized(life: Life, *, is_lasting: bool) -> bool:
    """Wait for the start, which need not end where the disk is dead by now."""
    deadline_s = time.monotonic() + PATIENCE_S
    with life.witness.nothing_raised("wait_initialized"):
        while not life.cache.wait_initialized(_GLANCE_S):
            if is_lasting and hits() >= _HOPELESS_HITS:
                return False
            if time.monotonic() > deadline_s:
                life.witness.add_problem("the directory is never loaded")
                return False
    return True


def _be_used(life: Life) -> None:
    _read_what_was_held(life)
    _prepare_and_refresh(life)
    _meet_damage(life)
    _clean_up(life)


def _be_replaced(life: Life) -> None:
    """Somebody moves the directory away, and later puts it back again."""
    aside, new = life.dir.with_name("aside"), life.dir.with_name("new")
    with outside():
        life.dir.rename(aside)
    life.read(fixed_host.STEADY, LSN_A)
    life.send([fixed_host.FIRST, fixed_host.BIG])
    life.fill(fixed_host.WANTED, LSN_A)
    _beside(life.clean_up, life.wait_idle)
    life.read(fixed_host.FIRST, LSN_A)
    with outside():
        if life.dir.exists():
            life.dir.rename(new)
        aside.rename(life.dir)
    life.read(fixed_host.FIRST, LSN_A)
    life.clean_up()
    life.send([fixed_host.REFRESHED], LSN_B)
    life.wait_idle()


STORIES: Final[dict[str, Callable[[Life], None]]] = {"used": _be_used, "replaced": _be_replaced}


def _read_what_was_held(life: Life) -> None:
    life.read(fixed_host.STEADY, LSN_A)
    life.read(fixed_host.STEADY, LSN_B)  # a miss
    life.read(fixed_host.PLAIN, LSN_A)
    life.read(fixed_host.SUPERSEDED, LSN_B)
    life.read(fixed_host.BAD, LSN_A)  # goes to quarantine; its rebuild is queued


def _prepare_and_refresh(life: Life) -> None:
    life.send(fixed_host.MADE)
    life.send([fixed_host.REFRESHED], LSN_B)
    _beside(
        lambda: [life.read(fixed_host.STEADY, LSN_A) for _ in range(5)],
        lambda: life.fill(fixed_host.FIRST, LSN_A),
    )
    life.fill(fixed_host.WANTED, LSN_A)
    life.wait_idle()
    for name in (fixed_host.FIRST, fixed_host.BIG, fixed_host.CUT, fixed_host.LOST):
        life.read(name, LSN_A)
    life.read(fixed_host.REFRESHED, LSN_B)


def _meet_damage(life: Life) -> None:
    with outside():
        files = fixed_host.entry_files(life.dir)
        _overwrite(files.get(fixed_host.Found(fixed_host.HURT, LSN_A)), fixed_host.flipped)
        _overwrite(files.get(fixed_host.Found(fixed_host.CUT, LSN_A)), lambda content: content[:-1])
        lost = files.get(fixed_host.Found(fixed_host.LOST, LSN_A))
        if lost is not None:
            lost.unlink()
    life.fill(fixed_host.HURT, LSN_A)
    for name in (fixed_host.HURT, fixed_host.CUT, fixed_host.LOST):
        life.read(name, LSN_A)
    life.wait_idle()
    for name in (fixed_host.HURT, fixed_host.CUT):
        life.read(name, LSN_A)


def _overwrite(path: Path | None, change: Callable[[bytes], bytes]) -> None:
    if path is not None:
        content = change(path.read_bytes())
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def _clean_up(life: Life) -> None:
    life.send([fixed_host.REFRESHED], LSN_C)
    life.wait_idle()
    life.read(fixed_host.REFRESHED, LSN_C)
    life.save_habits()
    life.send([fixed_host.FIRST], LSN_C)
    _beside(life.clean_up, life.wait_idle)  # which may take its old entry first
    life.read(fixed_host.FIRST, LSN_C)


def _recover(life: Life, *, is_lasting: bool) -> None:
    """However it went, asking again brings everything there, and clean-up takes the rest."""
    missing = []
    for _ in range(1 if is_lasting else _ROUNDS):
        life.send(life.tips)
        life.wait_idle()
        life.clean_up()
        for name, lsn in life.tips.items():
            life.fill(name, lsn)
        missing = [name for name, lsn in life.tips.items() if life.read(name, lsn) is None]
        if not missing:
            break
        life.wait_idle()
    life.clean_up()
    life.wait_idle()
    if not is_lasting:
        is_full = life.max_entries is not None
        life.witness.expect(is_full or not missing, f"not there again: {missing}")
        life.check_accounting()


def _beside(first: Callable[[], object], second: Callable[[], object]) -> None:
    thread = threading.Thread(target=first)
    thread.start()
    second()
    thread.join()


def _open_fds() -> set[str]:
    """What the process has open, the shim's log left out."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if int(fd) < 200 and "/proc/" not in target:
                found.add(f"{fd} {target}")
    return found


def main() -> int:
    """Live on the directory named on the command line, under whatever shim is loaded."""
    witness = Witness()
    witness.watch_interpreter()
    live(Path(sys.argv[1]), witness)
    sys.stdout.writelines(f"WRONG {line}\n" for line in witness.wrong)
    sys.stdout.writelines(f"PROBLEM {line}\n" for line in witness.problems)
    return EXIT_WRONG if witness.wrong else EXIT_PROBLEM if witness.problems else 0


if __name__ == "__main__":
    sys.exit(main())
