"""The map of entries with its accounting: identity, credits, limits, threads."""

from __future__ import annotations

import functools
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.helpers import KEY, LSN, TENANT, TIMELINE, make_keys, run_threads
from support.ledger import entries_of, holds, total_bytes, total_count
from support.locks import watched_locks

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import CacheFullError, EntryTooBigError, LimitError
from bbcache.ids import Lsn, TenantTimelineId
from bbcache.storage.accounting import Reservation
from bbcache.storage.index import (
    Entry,
    EntryInfo,
    Index,
    Verification,
    make_key,
    make_place,
    split_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

A, B, C, D = make_keys(4)
sizes = st.integers(0, 60)
keys = st.sampled_from([A, B, C, D])
PATH = "path"


def make_index(max_entries: int = 3, max_bytes: int = 100, max_entry: int = 50) -> Index:
    """An index with small limits."""
    return Index(
        BasebackupCacheConfig(
            max_size_entries=max_entries,
            max_total_size_bytes=max_bytes,
            max_entry_size_bytes=max_entry,
            max_unpublished_size_bytes=1000,
        )
    )


def publish(index: Index, key: bytes, size_bytes: int, lsn: int = 1) -> Entry:
    """Reserve, grow and commit an entry."""
    reservation = index.reserve(key)
    grow(index, reservation, size_bytes)
    entry = Entry(key, Lsn(lsn), size_bytes)
    index.commit(reservation, entry)
    return entry


def by_key(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    """Entries as a start gives them to an index."""
    return {entry.key: entry for entry in entries}


def grow(index: Index, reservation: Reservation, size_bytes: int) -> None:
    """Take room as a build does."""
    with index.lock:
        index.accounting.grow(reservation, size_bytes)


def release(index: Index, reservation: Reservation) -> None:
    """End a build."""
    with index.lock:
        index.accounting.release(reservation)


def unlinked(index: Index, entry: Entry, *, is_gone: bool = True) -> None:
    """Do the catalog's bookkeeping after the first attempt to unlink a doomed file."""
    with index.lock:
        if is_gone:
            index.accounting.doomed.drop(PATH)
        index.settle_credit(entry.key)


def moved(index: Index, entry: Entry) -> None:
    """Do the catalog's bookkeeping after the move into the quarantine."""
    with index.lock:
        index.accounting.doomed.drop(PATH)
        index.accounting.quarantine.put(f"{PATH} of {id(entry)}", entry.size_bytes)
        index.settle_credit(entry.key)


def totals(index: Index) -> tuple[int, int]:
    """Files and bytes that count."""
    return total_count(index), total_bytes(index)


def test_keys_are_both_ids_in_a_row() -> None:
    """A key is 32 bytes and gives both ids back, of their own kinds."""
    key = make_key(TENANT, TIMELINE)
    assert (type(key), len(key)) == (bytes, 32)
    ids = split_key(key)
    assert ids == TenantTimelineId(TENANT, TIMELINE)
    assert [type(each) for each in ids] == [type(TENANT), type(TIMELINE)]


def test_places_are_one_lsn_of_a_timeline() -> None:
    """Different timelines or LSNs have different places, up to the greatest LSN."""
    lsns = [Lsn(0), Lsn(1), Lsn(2**64 - 2), Lsn(2**64 - 1)]
    assert len({make_place(key, lsn) for key in (A, B) for lsn in lsns}) == 8
    assert make_place(A, LSN) == make_place(A, LSN)
    assert A not in {make_place(key, lsn) for key in (A, B) for lsn in lsns}


def test_entry_shows_itself() -> None:
    """An entry tells its ids, LSN and size, and is unverified at first."""
    entry = Entry(KEY, LSN, 7)
    assert entry.info() == EntryInfo(TENANT, TIMELINE, LSN, 7)
    assert str(entry) == f"{TENANT}/{TIMELINE} at {LSN}"
    assert entry.verification is Verification.NONE


@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 2, 2**64 - 1])
def test_what_an_entry_packs_comes_out_again(number: int) -> None:
    """Each packed field keeps its value when the others change."""
    most = 2**64 - 1
    for lsn, size_bytes in ((number, 0), (number, most), (0, number), (most, number)):
        entry = Entry(KEY, Lsn(lsn), size_bytes)
        for verification in (
            Verification.NONE,
            *Verification,
            Verification.PLAIN,
            Verification.NONE,
            Verification.SEALED,
            Verification.NONE,
        ):
            entry.verification = verification
            assert entry.verification is verification
            assert entry.is_verified == (verification is not Verification.NONE)
            assert (entry.lsn, entry.size_bytes) == (lsn, size_bytes)
    assert len(set(Verification)) == 3


def test_entries_are_compared_by_identity() -> None:
    """A re-publish of the same archive is another entry."""
    assert Entry(KEY, LSN, 7) != Entry(KEY, LSN, 7)


def test_find_wants_the_exact_lsn() -> None:
    """`find` needs the exact LSN; `newest` does not."""
    index = make_index()
    entry = publish(index, A, 10, lsn=5)
    assert index.find(A, 5) is entry
    assert index.newest(A) is entry
    for key, lsn in ((A, 4), (A, 6), (B, 5)):
        assert index.find(key, lsn) is None
    assert index.newest(B) is None


def test_holds_and_remove_judge_identity() -> None:
    """An entry that was replaced by an equal one is not held, and not removed."""
    index = make_index()
    old, new = publish(index, A, 10), publish(index, A, 10)
    assert not holds(index, old)
    assert not index.remove(old)
    assert not index.doom(old, PATH)
    assert holds(index, new)
    assert index.remove(new)
    assert not index.remove(new)
    assert totals(index) == (0, 0)


def test_snapshot_is_a_copy() -> None:
    """Later removals and additions do not change it."""
    index = make_index()
    entry = publish(index, A, 10)
    snapshot = entries_of(index)
    publish(index, B, 10)
    index.remove(entry)
    assert snapshot == [entry]


def test_load_takes_over_whatever_the_limits_say() -> None:
    """A directory over its limits is kept, and nothing new is admitted until it is below."""
    index = make_index(max_entries=2, max_bytes=100)
    entries = [Entry(key, Lsn(1), 40) for key in (A, B, C)]
    index.load(by_key(entries))
    assert totals(index) == (3, 120)
    with pytest.raises(CacheFullError):
        index.reserve(D)
    with pytest.raises(CacheFullError):
        index.check_room(D)
    index.check_room(A)
    release(index, index.reserve(A))
    index.remove(entries[0])
    with pytest.raises(CacheFullError):
        index.reserve(D)
    index.remove(entries[1])
    index.reserve(D)


def test_load_again_counts_nothing_twice() -> None:
    """A start that failed half-way is tried again."""
    index = make_index()
    for _ in range(2):
        index.load(by_key([Entry(A, Lsn(1), 10), Entry(B, Lsn(1), 20)]))
    assert (index.accounting.entry_count, index.accounting.entries_size_bytes) == (2, 30)


def test_commit_returns_what_it_replaces() -> None:
    """The first entry of a timeline replaces none, the second the first."""
    index = make_index()
    first, second = Entry(A, Lsn(1), 10), Entry(A, Lsn(2), 20)
    reservation = index.reserve(A)
    grow(index, reservation, 10)
    assert index.commit(reservation, first) is None
    reservation = index.reserve(A)
    grow(index, reservation, 20)
    assert index.commit(reservation, second) is first
    assert (index.accounting.entry_count, index.accounting.entries_size_bytes) == (1, 20)
    assert totals(index) == (1, 20)


def test_check_room_reserves_nothing() -> None:
    """It raises as `reserve` does, and changes nothing."""
    index = make_index(max_entries=1)
    index.check_room(A)
    assert totals(index) == (0, 0)
    publish(index, A, 10)
    with pytest.raises(CacheFullError):
        index.check_room(B)
    index.check_room(A)
    assert totals(index) == (1, 10)


def test_check_room_sees_builds_under_way() -> None:
    """The slot of a build under way counts."""
    index = make_index(max_entries=1)
    index.reserve(A)
    with pytest.raises(CacheFullError):
        index.check_room(B)


def test_release_gives_back_once_and_harms_no_later_build() -> None:
    """A late release does not touch the timeline's next reservation."""
    index = make_index()
    first = index.reserve(A)
    grow(index, first, 10)
    index.commit(first, Entry(A, Lsn(1), 10))
    second = index.reserve(A)
    grow(index, second, 20)
    for _ in range(2):
        release(index, first)
    assert totals(index) == (1, 20)
    release(index, second)
    assert totals(index) == (1, 10)


def test_limits_hold_for_builds_at_once() -> None:
    """Two builds share the room that is there."""
    index = make_index(max_bytes=100, max_entry=100)
    first, second = index.reserve(A), index.reserve(B)
    grow(index, first, 60)
    with pytest.raises(CacheFullError):
        grow(index, second, 41)
    grow(index, second, 40)
    assert totals(index) == (2, 100)


def test_an_entry_too_big_harms_no_other() -> None:
    """It is refused, and all entries stay."""
    index = make_index(max_bytes=100, max_entry=50)
    entry = publish(index, A, 40)
    reservation = index.reserve(B)
    with pytest.raises(EntryTooBigError):
        grow(index, reservation, 51)
    release(index, reservation)
    assert entries_of(index) == [entry]
    assert totals(index) == (1, 40)


def test_a_full_cache_refreshes_what_it_holds() -> None:
    """A refresh of the same size needs no room at all."""
    index = make_index(max_entries=2, max_bytes=80)
    publish(index, A, 40)
    publish(index, B, 40)
    reservation = index.reserve(A)
    grow(index, reservation, 40)
    assert totals(index) == (2, 80)
    with pytest.raises(CacheFullError):
        grow(index, reservation, 1)
    assert index.commit(reservation, Entry(A, Lsn(2), 40)) is not None
    assert totals(index) == (2, 80)


def test_credit_is_gone_with_the_entry() -> None:
    """A refresh whose entry is removed meanwhile pays in full."""
    index = make_index()
    entry = publish(index, A, 40)
    reservation = index.reserve(A)
    grow(index, reservation, 45)
    assert totals(index) == (1, 45)
    index.remove(entry)
    assert totals(index) == (1, 45)
    assert (reservation.charged_slots, reservation.charged_bytes) == (1, 45)
    release(index, reservation)
    assert totals(index) == (0, 0)


def test_doomed_file_counts_and_keeps_the_credit_until_the_first_attempt() -> None:
    """Until the first attempt to unlink, file and build are not both charged."""
    index = make_index()
    entry = publish(index, A, 40)
    reservation = index.reserve(A)
    grow(index, reservation, 45)
    assert index.doom(entry, PATH)
    assert index.find(A, 1) is None
    assert (index.accounting.entry_count, index.accounting.nonentry_bytes) == (0, 40)
    assert totals(index) == (1, 45)
    unlinked(index, entry, is_gone=True)
    assert totals(index) == (1, 45)
    assert index.accounting.nonentry_bytes == 0


def test_doomed_file_that_stays_counts_beside_the_build() -> None:
    """After a failed unlink the credit is gone and the file is still charged."""
    index = make_index()
    entry = publish(index, A, 40)
    reservation = index.reserve(A)
    grow(index, reservation, 45)
    index.doom(entry, PATH)
    unlinked(index, entry, is_gone=False)
    assert totals(index) == (2, 85)
    index.accounting.doomed.drop(PATH)
    assert totals(index) == (1, 45)
    release(index, reservation)
    assert totals(index) == (0, 0)


def test_settling_spares_the_credit_of_an_entry_that_has_come_since() -> None:
    """The timeline has a newer entry then, and the credit stays that entry's."""
    index = make_index(max_bytes=200)
    old = publish(index, A, 40)
    index.doom(old, PATH)
    new = publish(index, A, 30, lsn=2)
    reservation = index.reserve(A)
    unlinked(index, old, is_gone=True)
    assert holds(index, new)
    assert reservation.credit_bytes == 30
    assert totals(index) == (1, 30)


def test_quarantine_counts_its_bytes_but_no_slot() -> None:
    """A bad archive frees its slot and keeps its bytes."""
    index = make_index(max_entries=1, max_bytes=100)
    entry = publish(index, A, 40)
    assert index.doom(entry, PATH)
    assert totals(index) == (1, 40)
    assert entries_of(index) == []
    moved(index, entry)
    assert totals(index) == (0, 40)
    assert (index.accounting.entry_count, index.accounting.nonentry_bytes) == (0, 40)
    publish(index, B, 50)
    index.accounting.quarantine.replace({"old": 10})
    assert totals(index) == (1, 60)


def test_quarantine_of_a_cache_over_its_limit_needs_no_room() -> None:
    """The bytes only move from entries to quarantine."""
    index = make_index(max_bytes=100)
    entries = [Entry(key, Lsn(1), 90) for key in (A, B)]
    index.load(by_key(entries))
    assert index.doom(entries[0], PATH)
    moved(index, entries[0])
    assert total_bytes(index) == 180


def test_gauges_are_read_without_the_lock() -> None:
    """A scrape never waits for the index."""
    with watched_locks() as locks:
        index = make_index()
    publish(index, A, 10)
    index.accounting.doomed.put(PATH, 5)
    reservation = Reservation(B)
    index.accounting.unpublish(reservation)
    grow(index, reservation, 7)
    accounting = index.accounting
    seen: list[tuple[int, ...]] = []

    def scrape() -> None:
        entries = accounting.entry_count, accounting.entries_size_bytes
        seen.append((*entries, accounting.nonentry_bytes, accounting.unpublished_bytes))

    with locks[0]:
        run_threads([scrape])
    assert seen == [(1, 10, 5, 7)]


def test_an_unpublished_archive_is_let_go_of_without_the_lock() -> None:
    """The garbage collector may close a file in any thread at any time."""
    with watched_locks() as locks:
        index = make_index()
    reservation = Reservation(A)
    index.accounting.unpublish(reservation)
    grow(index, reservation, 7)
    reservation.hold("reader")
    release(index, reservation)
    with locks[0]:
        run_threads([functools.partial(reservation.let_go, "reader")])
        assert index.accounting.unpublished_bytes == 0


def test_the_limit_of_unpublished_bytes_holds_between_threads() -> None:
    """Concurrent builds together take exactly the room that there is."""
    index = make_index()
    refused: list[int] = []

    def build(key: bytes) -> None:
        reservation = Reservation(key)
        with index.lock:
            index.accounting.unpublish(reservation)
        for _ in range(100):
            try:
                grow(index, reservation, 1)
            except CacheFullError:
                refused.append(1)

    run_threads([functools.partial(build, key) for key in make_keys(20)])
    assert index.accounting.unpublished_bytes == 1000
    assert len(refused) == 1000


def test_lock_is_reentrant() -> None:
    """A thread that has the lock may call the index."""
    with watched_locks() as locks:
        index = make_index()
    with locks[0]:
        entry = publish(index, A, 10)
        assert index.find(A, 1) is entry
        assert index.remove(entry)


def test_an_entry_takes_little_memory() -> None:
    """Ten thousand entries, the default limit, are a few megabytes."""
    count = 10_000
    made = make_keys(count)
    index = make_index(max_entries=count, max_bytes=2**40)
    tracemalloc.start()
    try:
        index.load(
            by_key(
                Entry(bytes(bytearray(key)), Lsn(2**40 + n), 25_000) for n, key in enumerate(made)
            )
        )
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes / count < 400


class IndexMachine(RuleBasedStateMachine):
    """All that happens to an index, with one step on the disk at a time, as in the catalog.

    Files that could not be removed, foreign files and rescans may pass a limit. Nothing else
    ever does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = make_index()
        self.held: dict[bytes, Entry] = {}
        self.open: dict[bytes, Reservation] = {}
        self.credits: dict[bytes, int | None] = {}
        self.on_disk: Entry | None = None  # doomed, its unlink under way
        self.moving: Entry | None = None  # on its way into the quarantine
        self.doomed: list[int] = []
        self.quarantined: list[int] = []
        self.foreign_files: list[int] = []
        self.is_pushed_over = False

    @property
    def is_busy(self) -> bool:
        """Whether a step on the disk is under way: there is one at a time."""
        return self.on_disk is not None or self.moving is not None

    @rule(key=keys)
    def reserve(self, key: bytes) -> None:
        """Begin a build."""
        if key in self.open:
            return
        try:
            self.index.check_room(key)
        except CacheFullError:
            with pytest.raises(CacheFullError):
                self.index.reserve(key)
            assert key not in self.held
            return
        self.open[key] = self.index.reserve(key)
        self.credits[key] = self.held[key].size_bytes if key in self.held else None

    @rule(key=keys, size_bytes=sizes)
    def grow(self, key: bytes, size_bytes: int) -> None:
        """Write a piece."""
        if key in self.open:
            before = totals(self.index)
            try:
                grow(self.index, self.open[key], size_bytes)
            except LimitError:
                assert totals(self.index) == before

    @rule(key=keys)
    def commit(self, key: bytes) -> None:
        """Publish, and remove the file before it."""
        if key not in self.open or self.is_busy:
            return
        reservation = self.open.pop(key)
        entry = Entry(key, Lsn(1), reservation.size_bytes)
        assert self.index.commit(reservation, entry) is self.held.get(key)
        self.held[key] = entry

    @rule(key=keys, is_removed=st.booleans())
    def give_up(self, key: bytes, *, is_removed: bool) -> None:
        """A build fails, and its file can be removed or not."""
        reservation = self.open.pop(key, None)
        if reservation is None:
            return
        if is_removed:
            release(self.index, reservation)
        else:
            release(self.index, reservation)
            self.doomed.append(reservation.size_bytes)
            self.show_files()
            self.is_pushed_over = True

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        """A reader finds the file gone."""
        if key in self.held:
            assert self.index.remove(self.held.pop(key))
            self.credits[key] = None

    @rule(key=keys)
    def doom(self, key: bytes) -> None:
        """An entry is dropped and its file is about to be unlinked."""
        if key in self.held and not self.is_busy:
            self.on_disk = self.held.pop(key)
            assert self.index.doom(self.on_disk, PATH)

    @rule(is_unlinked=st.booleans())
    def settle(self, *, is_unlinked: bool) -> None:
        """The first attempt to unlink it."""
        if self.on_disk is None:
            return
        unlinked(self.index, self.on_disk, is_gone=is_unlinked)
        self.credits[self.on_disk.key] = None
        entry, self.on_disk = self.on_disk, None
        if not is_unlinked:
            self.doomed.append(entry.size_bytes)
            self.is_pushed_over = True
            self.show_files()

    def show_files(self) -> None:
        """Count the files that are no entries, as the catalog does."""
        accounting = self.index.accounting
        going = [each for each in (self.on_disk, self.moving) if each is not None]
        for files, sizes in (
            (accounting.doomed, self.doomed),
            (accounting.quarantine, self.quarantined),
            (accounting.foreign_files, self.foreign_files),
        ):
            files.replace({f"file {number}": each for number, each in enumerate(sizes)})
        for entry in going:
            accounting.doomed.put(PATH, entry.size_bytes)

    @rule()
    def unlink_at_last(self) -> None:
        """A file that could not be removed is gone."""
        if self.doomed:
            self.doomed.pop()
            self.show_files()

    @rule(key=keys)
    def begin_quarantine(self, key: bytes) -> None:
        """A bad entry is dropped, unless its timeline is built: its file is then unlinked."""
        if key in self.held and key not in self.open and not self.is_busy:
            self.moving = self.held.pop(key)
            assert self.index.doom(self.moving, PATH)

    @rule(is_moved=st.booleans())
    def end_quarantine(self, *, is_moved: bool) -> None:
        """Its file is moved, or stays to be removed later."""
        entry, self.moving = self.moving, None
        if entry is None:
            return
        if is_moved:
            moved(self.index, entry)
            self.quarantined.append(entry.size_bytes)
        else:
            unlinked(self.index, entry, is_gone=False)
            self.doomed.append(entry.size_bytes)
        self.show_files()

    @rule(found=st.dictionaries(keys, sizes, max_size=3))
    def rescan(self, found: dict[bytes, int]) -> None:
        """The directory was replaced: the index has the files that are there now, and no other."""
        if self.is_busy:
            return
        self.held = {key: Entry(key, Lsn(1), size_bytes) for key, size_bytes in found.items()}
        self.index.load(self.held.copy())
        self.credits = dict(found)
        self.is_pushed_over = True

    @rule()
    def trim_quarantine(self) -> None:
        """The oldest evidence goes."""
        del self.quarantined[:1]
        self.show_files()

    @rule(size_bytes=sizes)
    def foreign_file(self, size_bytes: int) -> None:
        """Others put a file into the directory."""
        self.foreign_files.append(size_bytes)
        self.show_files()
        self.is_pushed_over = True

    @invariant()
    def entries_are_those_held(self) -> None:
        """The gauges count the published entries and nothing else."""
        assert {entry.key: entry for entry in entries_of(self.index)} == self.held
        assert self.index.accounting.entry_count == len(self.held)
        assert self.index.accounting.entries_size_bytes == sum(
            e.size_bytes for e in self.held.values()
        )

    @invariant()
    def accounting_is_the_sums(self) -> None:
        """Each total is the sum of its parts, and no credit is forgotten."""
        for key, reservation in self.open.items():
            assert reservation.credit_bytes == self.credits.get(key)
        going = [each.size_bytes for each in (self.on_disk, self.moving) if each is not None]
        charged = [(each.charged_slots, each.charged_bytes) for each in self.open.values()]
        others = [*self.foreign_files, *self.doomed, *going]
        assert self.index.accounting.nonentry_bytes == sum(others) + sum(self.quarantined)
        assert total_count(self.index) == len(self.held) + len(others) + sum(n for n, _ in charged)
        assert total_bytes(self.index) == (
            self.index.accounting.entries_size_bytes
            + self.index.accounting.nonentry_bytes
            + sum(n for _, n in charged)
        )

    @invariant()
    def limits_hold(self) -> None:
        """No build, publication, removal or quarantine ever passes a limit."""
        if not self.is_pushed_over:
            assert total_count(self.index) <= 3
            assert total_bytes(self.index) <= 100

    def teardown(self) -> None:
        """With everything gone the accounting is at zero."""
        self.settle(is_unlinked=True)
        self.end_quarantine(is_moved=True)
        for key in (A, B, C, D):
            self.give_up(key, is_removed=True)
            self.remove(key)
        while self.doomed:
            self.unlink_at_last()
        self.foreign_files, self.quarantined = [], []
        self.show_files()
        assert totals(self.index) == (0, 0)


IndexMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestIndexMachine = IndexMachine.TestCase


def build_much(index: Index, key: bytes, seed: int) -> None:
    """Build and publish one timeline's entries, as fast as the limits allow."""
    numbers = random.Random(seed)
    for lsn in range(300):
        try:
            reservation = index.reserve(key)
        except CacheFullError:
            continue
        try:
            for _ in range(3):
                grow(index, reservation, numbers.randrange(20))
        except LimitError:
            release(index, reservation)
        else:
            index.commit(reservation, Entry(key, Lsn(lsn), reservation.size_bytes))


def clean_much(index: Index, seed: int) -> None:
    """Remove entries at random; the limits are never passed."""
    numbers = random.Random(seed)
    for _ in range(600):
        for entry in entries_of(index):
            if numbers.random() < 0.5 and index.doom(entry, PATH):
                unlinked(index, entry, is_gone=True)
            index.find(entry.key, entry.lsn)
        assert total_count(index) <= 3
        assert total_bytes(index) <= 100


def test_limits_and_ledger_hold_between_threads() -> None:
    """Builds, removals and look-ups at once pass no limit and leave zeros behind."""
    index = make_index(max_entries=3, max_bytes=100, max_entry=50)
    run_threads(
        [functools.partial(build_much, index, key, n) for n, key in enumerate(make_keys(8))]
        + [functools.partial(clean_much, index, seed) for seed in (100, 200)]
    )
    assert total_count(index) == index.accounting.entry_count
    for entry in entries_of(index):
        assert index.remove(entry)
    assert totals(index) == (0, 0)
