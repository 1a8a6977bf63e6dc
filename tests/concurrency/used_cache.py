"""The steps that hosts and readers take with a cache that is compared with its model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest
from concurrency.cache_model import AHEAD, ERROR, HIT, MISS
from concurrency.compared_cache import ComparedCache
from concurrency.scripted_host import FAILURES, GOOD, LSN_STEP, STOPS, TIP_MOVES, Build
from hypothesis import strategies as st
from hypothesis.stateful import rule
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    FillError,
    FillTimeoutError,
    TenantShardId,
    TenantState,
)

if TYPE_CHECKING:
    from concurrency.scripted_host import Slot

    from bbcache import Lsn

_MOST_STOPPED: Final = 2  # of three workers
_MOST_FILES: Final = 8

TROUBLES: Final = (
    *("not ready", "not attached", "unknown tenant", "unknown timeline", "switched off"),
    *(TenantState.ATTACHING, TenantState.STOPPING, TenantState.BROKEN),
    *(RuntimeError("asked at a bad moment"), SystemExit("asked at a bad moment")),
    *[None] * 10,
)
NUMBERS = st.integers(0, 3)
LSNS = st.sampled_from(["tip", "tip", "tip", "next", "last", "held"])
SIZES = st.sampled_from([150, 700, 2000])


class UsedCache(ComparedCache):
    """Prepares of every kind, gets and clean-ups."""

    # What a host does.

    @rule(number=NUMBERS, steps=st.integers(1, 2))
    def advance(self, number: int, steps: int) -> None:
        """A timeline goes on, and reaches what waits for it."""
        if number in self.model.ahead:
            self.settle()
            if number in self.model.builds:
                return
        self.move(self.slots[number], steps)

    def move(self, slot: Slot, steps: int) -> None:
        """Move a tip; a prepare that waits for it runs at once."""
        slot.move(steps)
        if slot.number in self.model.ahead:
            self.model.look_ahead()
            self.wait_until_quiet()

    @rule(
        number=NUMBERS,
        lsn=LSNS,
        size_bytes=SIZES,
        mode=st.sampled_from([GOOD, GOOD, GOOD, GOOD, TIP_MOVES, *FAILURES]),
    )
    def prepare(self, number: int, lsn: str, size_bytes: int, mode: str) -> None:
        """Prepare, and wait for how it ends."""
        self.settle()
        slot = self.slots[number]
        is_plain = number in self.model.builds or number in self.model.ahead
        slot.size_bytes, slot.mode = size_bytes, GOOD if is_plain else mode
        slot.version += 1
        self.send(slot, self.lsn_of(slot, lsn), slot.mode)
        self.wait_until_quiet()
        slot.mode = GOOD
        if slot.late_writer is not None and number not in self.model.builds:
            with pytest.raises(ValueError, match="ended"):
                slot.late_writer.write(b"too late")

    @rule(
        numbers=st.lists(NUMBERS, min_size=1, max_size=4), has_moved=st.booleans(), size_bytes=SIZES
    )
    def prepare_at_the_tip(self, numbers: list[int], size_bytes: int, *, has_moved: bool) -> None:
        """As hosts do nearly always, when timelines have gone on."""
        self.settle()
        for number in numbers:
            if has_moved and not (number in self.model.builds and number in self.model.ahead):
                self.move(self.slots[number], 1)
            self.prepare(number, "tip", size_bytes, GOOD)

    @rule(number=NUMBERS)
    def stop_a_build(self, number: int) -> None:
        """Prepare, and stop the host in the middle, for as many steps as it takes."""
        self.settle()
        slot = self.slots[number]
        is_taken = number in self.model.builds or number in self.model.ahead
        is_unsure = self.model.evicts and not self.model.is_roomy
        if is_taken or is_unsure or len(self.model.builds) == _MOST_STOPPED:
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
            self.model.check_cancelled(self.slots[number])
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
            is_taken = number in self.model.builds or number in self.model.ahead
            wanted = self.lsn_of(slot, lsn)
            if wanted > slot.tip and self.model.is_patient:
                wanted = slot.tip
            if not is_taken and not is_damaged and self.model.is_at_path:
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
        if self.model.is_at_path:
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
        if self.pending and self.model.evicts:
            self.settle()
        is_sure = number not in self.pending
        expected = self.model.get(slot, lsn) if is_sure else None
        file = self.cache.get(slot.tenant.tenant_id, slot.timeline.timeline_id, lsn)
        if not self.pending and not self.model.undecided:
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

    @rule(number=NUMBERS, which=LSNS, size_bytes=SIZES)
    def fill(self, number: int, which: str, size_bytes: int) -> None:
        """Get an entry, or have it built; give up a wait for an LSN beyond the tip."""
        self.settle()
        slot, lsn = self.slots[number], self.lsn_of(self.slots[number], which)
        is_damaged = slot.name(lsn) in self.model.damage or not self.model.is_at_path
        if is_damaged or number in self.model.builds:
            return
        slot.size_bytes = size_bytes
        slot.version += 1
        before = len(self.model.outcomes)
        expected = self.model.fill(slot, lsn)
        self.sent += len(self.model.outcomes) - before + len(self.model.undecided)
        self.reads[HIT if expected == HIT else MISS] += 1
        ids = slot.tenant.tenant_shard_id, slot.timeline.timeline_id, lsn
        if expected in {AHEAD, ERROR}:
            with pytest.raises(FillTimeoutError if expected == AHEAD else FillError):
                self.cache.get_or_prepare(*ids, 0.01 if expected == AHEAD else DEADLINE_S)
            return
        file = self.cache.get_or_prepare(*ids, DEADLINE_S)
        held = self.model.held.get(number)
        is_held = held is not None and held.lsn == lsn
        self.open_files.append((file, held.content if held and is_held else slot.archive(lsn)))
        assert (file.lsn, file.source) == (lsn, expected)
        self.read_kept(-1 if len(self.open_files) % 2 else 0)

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
        is_shrunk = self.model.is_over_limit or self.model.is_low_on_disk
        self.cache.run_cleanup()
        if is_shrunk and not self.pending:
            entries = {entry.timeline_id: entry for entry in self.cache.entries()}
            self.take_over_evictions(entries)
            self.take_over_quarantine()

    @rule(numbers=st.sets(NUMBERS))
    def pin(self, numbers: set[int]) -> None:
        """Tenants pin other timelines; the next clean-up asks for it."""
        self.host.pinned = numbers
