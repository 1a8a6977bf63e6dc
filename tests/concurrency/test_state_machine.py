"""A cache on a real directory beside a model of one, through random steps.

The steps are what hosts, disks, administrators and restarts do; after each of them the cache,
its metrics and its directory are what the model says. Builds run in the cache's own threads:
some are stopped in the middle for many steps, and prepares are left running while other steps
go on.

The normal run takes some 25 s. ``HYPOTHESIS_PROFILE=nightly`` makes tens of thousands of
steps. Both print how many there were, which ``-s`` shows.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
from cache_helpers import DEADLINE_S
from concurrency.cache_model import CONTENT, ERROR, FOLDER, HIT, MISS, MISSING, SPECIAL
from concurrency.compared_cache import ComparedCache
from concurrency.scripted_host import (
    FAILURES,
    GOOD,
    LSN_STEP,
    STOPS,
    TIP_MOVES,
    Build,
    Slot,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    Lsn,
    TenantShardId,
    TenantState,
)
from bbcache.archive import HEADER_SIZE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IS_NIGHTLY: Final = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# A life of a cache is a directory, threads and fsyncs: slow by nature, which is all that
# `too_slow` would say. The other health checks stay on, since no step filters its input. There
# is no deadline for an example: how long threads take is the machine's affair. And no database
# of failures, which would need a directory to write to: `print_blob` says how to repeat one.
PROFILE: Final = settings(
    max_examples=1200 if IS_NIGHTLY else 120,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
TIMEOUT_S: Final = 7200 if IS_NIGHTLY else 600  # a failure is made small, which takes long
_MOST_STOPPED: Final = 2  # of three workers
_MOST_FILES: Final = 8
_REPLACED: Final = ("unlink", "link", "fifo", "folder")
_STRAYS: Final = ("lost+found", ".DS_Store", "basebackup_old.tar.gz", "core.7", "notes.txt")

TROUBLES: Final = (
    *("not ready", "not attached", "unknown tenant", "unknown timeline", "switched off"),
    *(TenantState.ATTACHING, TenantState.STOPPING, TenantState.BROKEN),
    *(RuntimeError("asked at a bad moment"), SystemExit("asked at a bad moment")),
    *[None] * 10,
)
NUMBERS = st.integers(0, 3)
LSNS = st.sampled_from(["tip", "tip", "tip", "next", "last", "held"])
SETTINGS = st.fixed_dictionaries(
    {
        "verify_reads": st.sampled_from(["always", "always", "first", "never"]),
        "max_total_size_bytes": st.sampled_from([1 << 30, 1 << 30, 8000, 4000, 1500]),
        "max_size_entries": st.sampled_from([10_000, 10_000, 4, 3, 2]),
        "max_entry_size_bytes": st.sampled_from([None, None, 1200]),
        "prepare_channel_size": st.sampled_from([100, 100, 1]),
    }
)


class CacheMachine(ComparedCache):
    """The steps."""

    @initialize(options=SETTINGS)
    def begin(self, options: dict[str, Any]) -> None:
        """The first life, on no directory at all."""
        self.start(options)

    # What a host does.

    @rule(number=NUMBERS, steps=st.integers(1, 2))
    def advance(self, number: int, steps: int) -> None:
        """A timeline goes on."""
        self.slots[number].move(steps)

    @rule(
        number=NUMBERS,
        lsn=LSNS,
        size_bytes=st.sampled_from([150, 700, 2000]),
        mode=st.sampled_from([GOOD, GOOD, GOOD, GOOD, TIP_MOVES, *FAILURES]),
    )
    def prepare(self, number: int, lsn: str, size_bytes: int, mode: str) -> None:
        """Prepare, and wait for how it ends."""
        self.settle()
        slot = self.slots[number]
        slot.size_bytes, slot.mode = size_bytes, GOOD if number in self.model.builds else mode
        slot.version += 1
        self.send(slot, self.lsn_of(slot, lsn), slot.mode)
        self.wait_until_quiet()
        slot.mode = GOOD
        if slot.late_writer is not None and number not in self.model.builds:
            with pytest.raises(ValueError, match="ended"):
                slot.late_writer.write(b"too late")

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4), has_moved=st.booleans())
    def prepare_at_the_tip(self, numbers: list[int], *, has_moved: bool) -> None:
        """As hosts do nearly always, when timelines have gone on."""
        self.settle()
        for number in numbers:
            self.slots[number].move(has_moved)
            self.prepare(number, "tip", 150, GOOD)

    @rule(number=NUMBERS)
    def stop_a_build(self, number: int) -> None:
        """Prepare, and stop the host in the middle, for as many steps as it takes."""
        self.settle()
        slot = self.slots[number]
        if number in self.model.builds or len(self.model.builds) == _MOST_STOPPED:
            return
        slot.version += 1
        slot.move()
        slot.mode, slot.build = STOPS, Build(slot.tip, slot.archive(slot.tip))
        self.send(slot, slot.tip, STOPS)
        if number in self.model.builds:
            assert slot.build.has_arrived.wait(DEADLINE_S)
        self.wait_until_quiet()
        slot.mode = GOOD

    @rule(number=NUMBERS)
    def let_go_on(self, number: int) -> None:
        """Let a build that was stopped go on."""
        self.settle()
        if number in self.model.builds:
            build = self.model.builds[number]
            self.model.go_on(self.slots[number])
            build.may_go_on.set()

    @rule(asked=st.lists(st.tuples(NUMBERS, LSNS), min_size=1, max_size=5))
    def leave_running(self, asked: list[tuple[int, str]]) -> None:
        """Ask for prepares, and do not wait."""
        if not self.pending:
            self.bytes_before = self.model.total_bytes
            self.outgrown.clear()
        for number, lsn in asked:
            slot, held = self.slots[number], self.model.held.get(number)
            is_damaged = held is not None and slot.name(held.lsn) in self.model.damage
            if number not in self.model.builds and not is_damaged and self.model.is_home:
                wanted = self.lsn_of(slot, lsn)
                self.pending.setdefault(number, set()).add(wanted)
                self.sent += 1
                self.cache.send_prepare(
                    slot.tenant.tenant_shard_id, slot.timeline.timeline_id, wanted
                )

    def send(self, slot: Slot, lsn: Lsn, mode: str = GOOD) -> None:
        """Ask the model and the cache for a prepare."""
        self.model.ask(slot, lsn, mode)
        self.sent += 1
        self.cache.send_prepare(slot.tenant.tenant_shard_id, slot.timeline.timeline_id, lsn)

    def lsn_of(self, slot: Slot, which: str) -> Lsn:
        """The LSN that is meant."""
        held = self.model.held.get(slot.number)
        if which == "held" and held is not None:
            return held.lsn
        return slot.tip + {"next": LSN_STEP, "last": -LSN_STEP}.get(which, 0)

    @rule(number=NUMBERS, mistake=st.sampled_from(["other shard", "types", "second cache"]))
    def make_a_mistake(self, number: int, mistake: str) -> None:
        """A prepare on another shard, or of wrong types; a second cache on the directory."""
        self.settle()
        slot = self.slots[number]
        if mistake == "second cache":
            self.start_a_second_cache()
        elif mistake == "types":
            self.sent += 1
            self.cache.send_prepare(slot.tenant.tenant_id, slot.timeline.timeline_id, slot.tip)  # type: ignore[arg-type]  # that is it
            self.model.outcomes.append(ERROR)
        else:
            self.sent += 1
            shard_id = TenantShardId(slot.tenant.tenant_id, 1, 2)
            self.cache.send_prepare(shard_id, slot.timeline.timeline_id, slot.tip)
            self.model.outcomes.append("not_shard_zero")

    def start_a_second_cache(self) -> None:
        """It is refused, and told by whom."""
        if self.model.is_home:
            with pytest.raises(DirectoryLockedError) as refusal:
                BasebackupCache.spawn(
                    self.dir, BasebackupCacheConfig(), self.host, CollectorRegistry()
                )
            assert refusal.value.pid == os.getpid()

    @rule(number=NUMBERS, trouble=st.sampled_from(TROUBLES))
    def trouble(self, number: int, trouble: object) -> None:
        """The host has other trouble, with a tenant, a timeline or altogether, or none now."""
        self.settle()
        self.recover()
        slot = self.slots[number]
        if isinstance(trouble, TenantState):
            slot.tenant.state = trouble
        elif isinstance(trouble, BaseException):
            self.host.failure = trouble
        elif trouble == "not attached":
            self.host.tenants[slot.tenant.tenant_shard_id] = None
        elif trouble == "unknown tenant":
            self.host.tenants.pop(slot.tenant.tenant_shard_id, None)
        elif trouble == "unknown timeline":
            slot.tenant.timelines.pop(slot.timeline.timeline_id, None)
        elif trouble == "switched off":
            slot.tenant.is_cache_enabled = False
        elif trouble == "not ready":
            self.host.is_ready = False

    def recover(self) -> None:
        """The host is well again."""
        self.host.is_ready, self.host.failure = True, None
        for slot in self.slots:
            slot.tenant.state, slot.tenant.is_cache_enabled = TenantState.ACTIVE, True
            slot.tenant.timelines[slot.timeline.timeline_id] = slot.timeline
            self.host.tenants[slot.tenant.tenant_shard_id] = slot.tenant

    # What readers and clean-up do.

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4), is_kept=st.booleans())
    def get_entries(self, numbers: list[int], *, is_kept: bool) -> None:
        """Ask for what is there."""
        for number in numbers:
            self.get(self.some_entry(number), "held", is_kept=is_kept)

    def some_entry(self, number: int) -> int:
        """The number of a timeline that has an entry, if there is one."""
        held = sorted(self.model.held)
        return held[number % len(held)] if held else number

    @rule(number=NUMBERS, which=LSNS, is_kept=st.booleans())
    def get(self, number: int, which: str, *, is_kept: bool) -> None:
        """A hit gives the sealed bytes of exactly that timeline and LSN, a miss nothing."""
        slot = self.slots[number]
        lsn = self.lsn_of(slot, which)
        if slot.name(lsn) in self.model.damage:
            self.settle()
        is_sure = number not in self.pending
        expected = self.model.get(slot, lsn) if is_sure else None
        file = self.cache.get(slot.tenant.tenant_id, slot.timeline.timeline_id, lsn)
        if not self.pending:
            self.wait_until_quiet()  # a rebuild
        self.reads[expected or (HIT if file else MISS)] += 1
        assert (file is not None) == (expected == HIT) or not is_sure
        if file is None:
            return
        held = self.model.held.get(number)
        content = held.content if held is not None and held.lsn == lsn else slot.archive(lsn)
        assert (file.lsn, file.size_bytes, file.tell()) == (lsn, len(content), 0)
        self.open_files.append((file, content))
        if not is_kept or len(self.open_files) > _MOST_FILES:
            self.read_kept(-1)

    @rule()
    def read_one(self) -> None:
        """Read a file that was kept open."""
        if self.open_files:
            self.read_kept(0)

    @rule()
    def clean_up(self) -> None:
        """Run a clean-up step."""
        for number in self.pending.keys() & self.model.held.keys():
            if self.model.is_outgrown(self.slots[number], self.model.held[number].lsn):
                self.outgrown.add(number)
        self.model.clean_up(self.pending)
        self.cache.run_cleanup()

    # What disks and administrators do.

    @rule(
        number=NUMBERS,
        kind=st.sampled_from(
            [
                *("header", "body", "zeros", "cut", "tail", "swap"),
                *("unlink", "link", "fifo", "folder"),
            ]
        ),
        place=st.integers(0, 1 << 16),
        is_read=st.booleans(),
    )
    def damage(self, number: int, kind: str, place: int, *, is_read: bool) -> None:
        """The file of an entry is damaged, in a way that `verify_reads` promises to find."""
        self.settle()
        number = self.some_entry(number)
        held = self.model.held.get(number)
        if held is None or not self.is_found(number, kind):
            return
        path = self.dir / self.slots[number].name(held.lsn)
        if kind in _REPLACED:
            path.unlink()
            self.replace(path, kind)
        elif kind == "swap":
            self.swap(number, self.some_entry(number + 1))
        else:
            self.write(path, damaged(held.content, kind, place))
            self.model.damage[path.name] = CONTENT
        if is_read:
            self.get(number, "held", is_kept=False)

    def is_found(self, number: int, kind: str) -> bool:
        """Whether damage would be found by the next `get`, by what the design promises."""
        held, verify = self.model.held[number], self.model.config.verify_reads
        if self.slots[number].name(held.lsn) in self.model.damage or not self.model.is_home:
            return False
        if kind in ("header", "body", "zeros", "swap"):
            is_read = verify == "always" or not held.is_proven
            return is_read and not held.is_plain and (kind != "body" or verify != "never")
        return True

    def replace(self, path: Path, kind: str) -> None:
        """Put what is no file in the place of an entry."""
        self.model.damage[path.name] = SPECIAL
        if kind == "unlink":
            self.model.damage[path.name] = MISSING
        elif kind == "link":
            path.symlink_to(self.parent / "elsewhere")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
            self.model.damage[path.name] = FOLDER

    def write(self, path: Path, content: bytes | bytearray) -> None:
        """Give a path other bytes; who has the old file open keeps it."""
        scratch = self.parent / "scratch"
        scratch.write_bytes(content)
        scratch.replace(path)

    def swap(self, *numbers: int) -> None:
        """Two archives change places."""
        if len({*numbers}) == 2 and all(self.is_found(number, "swap") for number in numbers):
            held = [self.model.held[number] for number in numbers]
            for number, own, other in zip(numbers, held, reversed(held), strict=True):
                path = self.dir / self.slots[number].name(own.lsn)
                self.write(path, other.content)
                self.model.damage[path.name] = CONTENT

    @rule(
        number=NUMBERS,
        which=LSNS,
        what=st.sampled_from(["sealed", "plain", "junk", *_STRAYS]),
        size_bytes=st.integers(0, 500),
    )
    def bring(self, number: int, which: str, what: str, size_bytes: int) -> None:
        """Somebody puts an archive, another file or a folder there; the next start finds it."""
        self.settle()
        if not self.model.is_home:
            return
        slot = self.slots[number]
        path = self.dir / what
        if what == "lost+found":
            path.mkdir(exist_ok=True)
        elif what in _STRAYS:
            path.write_bytes(bytes(size_bytes))
        else:
            path = self.dir / slot.name(self.lsn_of(slot, which))
            if path.name in self.model.names | self.model.damage.keys():
                return
            self.bring_an_archive(slot, path, self.lsn_of(slot, which), what)
        self.model.foreign.add(path.name)

    def bring_an_archive(self, slot: Slot, path: Path, lsn: Lsn, kind: str) -> None:
        """Copy an archive of this cache, of Neon's, or what only has the name of one."""
        slot.version += 1
        plain = gzip.compress(slot.tar(lsn), mtime=0)
        self.model.known_good[path.name] = plain if kind == "plain" else slot.archive(lsn)
        self.write(path, slot.tar(lsn) if kind == "junk" else self.model.known_good[path.name])

    @rule(
        what=st.sampled_from(
            [
                *("strays", "strays", "folders", "quarantine", "quarantine itself"),
                *("tmp", "lock file", "everything"),
            ]
        )
    )
    def remove(self, what: str) -> None:
        """An administrator removes what is astray, what is bad, or what is the cache's own."""
        self.settle()
        if what == "strays":
            for name in self.model.foreign.intersection(_STRAYS):
                path = self.dir / name
                path.rmdir() if path.is_dir() else path.unlink()
                self.model.foreign.discard(name)
        elif what == "folders":
            self.remove_folders()
        elif what.startswith("quarantine"):
            shutil.rmtree(self.dir / "quarantine", ignore_errors=True)
            if what == "quarantine" and self.model.is_home:
                (self.dir / "quarantine").mkdir()
        elif self.model.is_home:
            self.lose(what)

    def lose(self, what: str) -> None:
        """Remove the directory, or a part without which builds or the lock are lost."""
        if what == "everything":
            shutil.rmtree(self.dir)
            self.model.lose_directory()
        elif what == "lock file":
            (self.dir / ".bbcache.lock").unlink()
            self.model.is_home = False
        else:
            shutil.rmtree(self.dir / "tmp", ignore_errors=True)
            for build in self.model.builds.values():
                build.is_lost = True

    def remove_folders(self) -> None:
        """Remove every folder that has the name of an entry."""
        entries = {self.slots[number].name(held.lsn) for number, held in self.model.held.items()}
        for name in [name for name, damage in self.model.damage.items() if damage == FOLDER]:
            (self.dir / name).rmdir()
            self.model.foreign.discard(name)
            del self.model.damage[name]
            if name in entries:
                self.model.damage[name] = MISSING

    # What restarts do.

    @rule(options=SETTINGS, is_dropped=st.sampled_from([False, False, True]))
    def restart(self, options: dict[str, Any], *, is_dropped: bool) -> None:
        """Close or drop the cache, whatever is running, and start another: nothing is lost."""
        self.end(is_dropped=is_dropped)
        model = self.model
        before = {} if self.pending else {**model.held}
        if CONTENT in model.damage.values() and options["verify_reads"] == "never":
            options = {**options, "verify_reads": "first"}  # "never" does not promise to find it
        for number, lsns in self.pending.items():
            for lsn in lsns:
                slot = self.slots[number]
                path = self.dir / slot.name(lsn)
                if path.is_file() and path.read_bytes() == slot.archive(lsn):
                    model.known_good[path.name] = slot.archive(lsn)
        damage = model.damage
        self.start(options)
        for number, held in before.items():
            if self.slots[number].name(held.lsn) not in damage:
                assert model.held[number].lsn >= held.lsn


def damaged(content: bytes, kind: str, place: int) -> bytes:
    """The bytes of an archive with a bit flipped, zeroed, cut short or with a tail."""
    if kind == "zeros":
        return bytes(len(content))
    if kind == "cut":
        return content[: place % len(content)]
    if kind == "tail":
        return content + bytes(1 + place % 100)
    start, end = (0, HEADER_SIZE_BYTES) if kind == "header" else (HEADER_SIZE_BYTES, len(content))
    flipped = bytearray(content)
    flipped[start + place % (end - start)] ^= 1 << place % 8
    return bytes(flipped)


@pytest.fixture
def _without_log() -> Iterator[None]:
    """What goes wrong on purpose is logged, with a traceback, thousands of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.nightly
@pytest.mark.usefixtures("_without_log")
@pytest.mark.timeout(TIMEOUT_S)
def test_a_cache_is_what_its_model_says() -> None:
    """Through hosts that fail, damage, clean-up, limits and restarts a cache is like its model."""
    run_state_machine_as_test(CacheMachine, settings=PROFILE)
    print(f"\n{dict(sorted(CacheMachine.totals.items()))}")  # noqa: T201 - they are part of the result
