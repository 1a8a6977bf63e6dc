"""Counts, bytes, limits and reservations: the arithmetic alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.helpers import KEY, make_keys

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import CacheFullError, EntryTooBigError, LimitError
from bbcache.storage.accounting import Accounting, Files, Reservation

sizes = st.integers(0, 60)
timelines = st.integers(0, 3)
KEYS = make_keys(4)
MAX_ENTRIES, MAX_BYTES, MAX_ENTRY_BYTES = 3, 100, 50


def make_accounting(
    max_entries: int = MAX_ENTRIES,
    max_bytes: int = MAX_BYTES,
    max_entry: int = MAX_ENTRY_BYTES,
) -> Accounting:
    """A ledger with small limits."""
    return Accounting(
        BasebackupCacheConfig(
            max_size_entries=max_entries,
            max_total_size_bytes=max_bytes,
            max_entry_size_bytes=max_entry,
            max_unpublished_size_bytes=10,
        )
    )


def put(files: Files, size_bytes: int) -> None:
    """Count one file more of a kind."""
    files.put(f"file {len(files.sizes)}", size_bytes)


def hold_entry(accounting: Accounting, size_bytes: int) -> None:
    """Count one entry more, as the index does."""
    accounting.entry_count += 1
    accounting.entries_size_bytes += size_bytes


def totals(accounting: Accounting) -> tuple[int, int]:
    """Files and bytes that count."""
    return accounting.total_count, accounting.total_size_bytes


def test_files_are_counted_once_a_path() -> None:
    """A second `put` replaces the size; `drop` of an unknown path does nothing."""
    files = Files()
    files.put("a", 5)
    files.put("b", 7)
    files.put("a", 6)
    assert (files.sizes, files.size_bytes) == ({"a": 6, "b": 7}, 13)
    for _ in range(2):
        files.drop("a")
        assert (files.sizes, files.size_bytes) == ({"b": 7}, 7)
    files.replace({"c": 1, "d": 2})
    assert (files.sizes, files.size_bytes) == ({"c": 1, "d": 2}, 3)


@pytest.mark.parametrize(
    ("max_entry", "wanted"), [(None, 1000), (1, 1), (999, 999), (1000, 1000), (5000, 1000)]
)
def test_limits_come_from_the_settings(max_entry: int | None, wanted: int) -> None:
    """An entry may have its own limit, but never more than the whole cache."""
    config = BasebackupCacheConfig(max_total_size_bytes=1000, max_entry_size_bytes=max_entry)
    accounting = Accounting(config)
    assert totals(accounting) == (accounting.nonentry_bytes, accounting.unpublished_bytes) == (0, 0)
    reservation = accounting.reserve(KEY, None)
    accounting.grow(reservation, wanted)
    with pytest.raises(EntryTooBigError, match=f"more than {wanted} bytes"):
        accounting.grow(reservation, 1)


def test_all_kinds_count_against_the_limits() -> None:
    """Entries, foreign files, doomed files and builds count; the quarantine counts bytes only."""
    accounting = make_accounting(max_entries=100, max_bytes=10**6)
    hold_entry(accounting, 1)
    put(accounting.foreign_files, 10)
    put(accounting.doomed, 100)
    put(accounting.quarantine, 1000)
    accounting.grow(accounting.reserve(KEY, None), 20)
    assert totals(accounting) == (4, 1131)
    assert accounting.nonentry_bytes == 1110


def test_a_new_entry_takes_its_slot_before_the_build() -> None:
    """The slots are gone as soon as they are reserved, and no sooner."""
    accounting = make_accounting(max_entries=2)
    hold_entry(accounting, 1)
    accounting.reserve(KEY, None)
    with pytest.raises(CacheFullError, match="2 of max_size_entries 2"):
        accounting.reserve(KEY, None)
    assert totals(accounting) == (2, 1)


def test_a_new_entry_wants_one_byte_at_least() -> None:
    """A build is refused when no byte is left."""
    accounting = make_accounting(max_bytes=100)
    put(accounting.foreign_files, 100)
    with pytest.raises(CacheFullError, match=r"100 \+ 1 bytes exceed max_total_size_bytes 100"):
        accounting.reserve(KEY, None)
    accounting.foreign_files.put("file 0", 99)
    accounting.reserve(KEY, None)
    assert totals(accounting) == (2, 99)


@pytest.mark.parametrize("full_by", ["slots", "bytes"])
def test_a_refresh_always_gets_its_reservation(full_by: str) -> None:
    """A held timeline is refreshed even when the cache is full, or over a limit."""
    accounting = make_accounting(max_entries=1, max_bytes=100)
    hold_entry(accounting, 40)
    put(accounting.foreign_files, 200 if full_by == "bytes" else 0)
    before = totals(accounting)
    reservation = accounting.reserve(KEY, 40)
    accounting.grow(reservation, 40)
    assert totals(accounting) == before
    assert (reservation.charged_slots, reservation.charged_bytes) == (0, 0)


def test_a_refresh_is_charged_for_what_exceeds_its_old_entry() -> None:
    """The bytes up to the old size are free, those above are not."""
    accounting = make_accounting(max_bytes=100)
    hold_entry(accounting, 40)
    reservation = accounting.reserve(KEY, 40)
    accounting.grow(reservation, 45)
    assert (reservation.charged_bytes, accounting.total_size_bytes) == (5, 45)


@pytest.mark.parametrize(("foreign_bytes", "is_full"), [(99, False), (100, True), (101, True)])
def test_a_new_entry_needs_at_least_one_byte(foreign_bytes: int, *, is_full: bool) -> None:
    """At or above the limit of bytes a new entry gets no reservation."""
    accounting = make_accounting(max_bytes=100)
    put(accounting.foreign_files, foreign_bytes)
    if is_full:
        with pytest.raises(CacheFullError, match=rf"{foreign_bytes} \+ 1 bytes exceed"):
            accounting.reserve(KEY, None)
    else:
        accounting.reserve(KEY, None)
    assert accounting.total_count == 1 + (not is_full)


def test_a_refresh_in_a_full_cache_cannot_grow_past_its_old_entry() -> None:
    """One byte more than the old entry is refused."""
    accounting = make_accounting(max_bytes=100)
    hold_entry(accounting, 40)
    put(accounting.foreign_files, 60)
    reservation = accounting.reserve(KEY, 40)
    accounting.grow(reservation, 40)
    with pytest.raises(CacheFullError):
        accounting.grow(reservation, 1)
    assert reservation.size_bytes == 40


def test_bytes_are_reserved_all_or_nothing() -> None:
    """A piece that does not fit changes nothing, and a smaller one still fits."""
    accounting = make_accounting(max_bytes=100)
    put(accounting.foreign_files, 70)
    reservation = accounting.reserve(KEY, None)
    accounting.grow(reservation, 20)
    with pytest.raises(CacheFullError, match=r"90 \+ 11 bytes exceed max_total_size_bytes 100"):
        accounting.grow(reservation, 11)
    assert (reservation.size_bytes, accounting.total_size_bytes) == (20, 90)
    accounting.grow(reservation, 10)
    assert accounting.total_size_bytes == 100


def test_an_entry_too_big_has_its_own_error() -> None:
    """An archive above the limit of one entry raises its own error and changes nothing."""
    accounting = make_accounting(max_bytes=100, max_entry=50)
    put(accounting.foreign_files, 60)
    reservation = accounting.reserve(KEY, None)
    with pytest.raises(EntryTooBigError, match="more than 50 bytes"):
        accounting.grow(reservation, 51)
    assert (reservation.size_bytes, accounting.total_size_bytes) == (0, 60)
    with pytest.raises(CacheFullError):
        accounting.grow(reservation, 50)


def test_the_limit_of_an_entry_holds_for_a_refresh() -> None:
    """The credit of a refresh does not raise the limit of one entry."""
    accounting = make_accounting(max_bytes=100, max_entry=50)
    hold_entry(accounting, 80)
    reservation = accounting.reserve(KEY, 80)
    accounting.grow(reservation, 50)
    with pytest.raises(EntryTooBigError):
        accounting.grow(reservation, 1)


def test_a_reservation_is_given_back_exactly_once() -> None:
    """A second release changes nothing."""
    accounting = make_accounting()
    reservation = accounting.reserve(KEY, None)
    accounting.grow(reservation, 30)
    for _ in range(3):
        accounting.release(reservation)
        assert totals(accounting) == (0, 0)


@pytest.mark.parametrize(
    ("credits", "wanted"),
    [
        ([None], (1, 30)),
        ([30], (0, 0)),
        ([20], (0, 10)),
        ([50], (0, 0)),
        ([50, None], (1, 30)),
        ([50, 10, None, 29], (0, 1)),
        ([0], (0, 30)),
    ],
)
def test_the_charge_follows_the_credit(
    credits: list[int | None],  # noqa: A002 - the field's own term
    wanted: tuple[int, int],
) -> None:
    """The entry to be replaced may come, go and change while the build runs."""
    accounting = make_accounting()
    reservation = accounting.reserve(KEY, None)
    accounting.grow(reservation, 30)
    for credit_bytes in credits:
        reservation.credit_bytes = credit_bytes
    assert totals(accounting) == wanted
    accounting.release(reservation)
    assert totals(accounting) == (0, 0)


def test_limit_errors_have_one_base() -> None:
    """A writer that raises for a limit raises a LimitError."""
    for error in (CacheFullError, EntryTooBigError):
        assert issubclass(error, LimitError)


class AccountingMachine(RuleBasedStateMachine):
    """Builds of four timelines in a cache for three, beside files of every kind.

    Foreign files may pass a limit; nothing else ever does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accounting = make_accounting()
        self.entries: dict[int, int] = {}  # timeline -> bytes
        self.open: dict[int, Reservation] = {}
        self.is_pushed_over = False

    @rule(timeline=timelines)
    def reserve(self, timeline: int) -> None:
        """A refresh always gets its reservation, a new entry where there is room."""
        if timeline in self.open:
            return
        before = totals(self.accounting)
        credit_bytes = self.entries.get(timeline)
        has_room = before[0] < MAX_ENTRIES and before[1] < MAX_BYTES
        try:
            self.open[timeline] = self.accounting.reserve(KEYS[timeline], credit_bytes)
        except CacheFullError:
            assert credit_bytes is None
            assert not has_room
        else:
            assert credit_bytes is not None or has_room
            assert totals(self.accounting) == (before[0] + (credit_bytes is None), before[1])

    @rule(timeline=timelines, size_bytes=sizes)
    def grow(self, timeline: int, size_bytes: int) -> None:
        """Room is taken all or nothing, and refused only for a reason."""
        reservation = self.open.get(timeline)
        if reservation is None:
            return
        before = (reservation.size_bytes, *totals(self.accounting))
        after_bytes = reservation.size_bytes + size_bytes
        charge = max(0, after_bytes - (reservation.credit_bytes or 0)) - reservation.charged_bytes
        try:
            self.accounting.grow(reservation, size_bytes)
        except EntryTooBigError:
            assert after_bytes > MAX_ENTRY_BYTES
            assert (reservation.size_bytes, *totals(self.accounting)) == before
        except CacheFullError:
            assert charge > 0
            assert self.accounting.total_size_bytes + charge > MAX_BYTES
            assert (reservation.size_bytes, *totals(self.accounting)) == before
        else:
            assert reservation.size_bytes == after_bytes
            assert self.accounting.total_size_bytes == before[2] + charge

    @rule(timeline=timelines)
    def commit(self, timeline: int) -> None:
        """An entry takes the place of its reservation, and of the entry before it."""
        reservation = self.open.pop(timeline, None)
        if reservation is None:
            return
        before = totals(self.accounting)
        self.accounting.release(reservation)
        if timeline in self.entries:
            self._drop_entry(timeline)
        hold_entry(self.accounting, reservation.size_bytes)
        self.entries[timeline] = reservation.size_bytes
        assert self.accounting.total_count == before[0]
        assert self.accounting.total_size_bytes <= before[1]

    @rule(timeline=timelines)
    def remove(self, timeline: int) -> None:
        """An entry goes while its refresh may be under way."""
        if timeline not in self.entries:
            return
        before = totals(self.accounting)
        self._drop_entry(timeline)
        if timeline in self.open:
            self.open[timeline].credit_bytes = None
        assert self.accounting.total_count <= before[0]
        assert self.accounting.total_size_bytes <= before[1]

    @rule(timeline=timelines)
    def release(self, timeline: int) -> None:
        """A reservation is given back, twice."""
        reservation = self.open.pop(timeline, None)
        if reservation is not None:
            self.accounting.release(reservation)
            self.accounting.release(reservation)

    @rule(size_bytes=sizes)
    def foreign_file(self, size_bytes: int) -> None:
        """Others put a file into the directory, whatever the limits say."""
        put(self.accounting.foreign_files, size_bytes)
        self.is_pushed_over = True

    @invariant()
    def builds_are_what_is_open(self) -> None:
        """The builds count by what is open, and by nothing else."""
        each_open, others = self.open.values(), self.accounting
        slots = others.total_count - others.entry_count - len(others.foreign_files.sizes)
        building_bytes = others.total_size_bytes - others.entries_size_bytes - others.nonentry_bytes
        assert slots == sum(each.charged_slots for each in each_open)
        assert building_bytes == sum(each.charged_bytes for each in each_open)

    @invariant()
    def limits_hold(self) -> None:
        """No build ever passes a limit."""
        if not self.is_pushed_over:
            assert self.accounting.total_count <= MAX_ENTRIES
            assert self.accounting.total_size_bytes <= MAX_BYTES

    def teardown(self) -> None:
        """Everything given back leaves no build accounted for."""
        for timeline in list(self.open):
            self.release(timeline)
        assert self.accounting.reservations == {}

    def _drop_entry(self, timeline: int) -> None:
        self.accounting.entry_count -= 1
        self.accounting.entries_size_bytes -= self.entries.pop(timeline)


AccountingMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestAccountingMachine = AccountingMachine.TestCase


@given(
    steps=st.lists(st.tuples(st.sampled_from(["grow", "credit"]), st.none() | sizes), max_size=30)
)
def test_the_ledger_returns_to_zero(steps: list[tuple[str, int | None]]) -> None:
    """After any steps the release of a reservation leaves zeros."""
    accounting = make_accounting(max_entries=1, max_bytes=10**6, max_entry=10**6)
    reservation = accounting.reserve(KEY, None)
    for what, size_bytes in steps:
        if what == "grow":
            accounting.grow(reservation, size_bytes or 0)
        else:
            reservation.credit_bytes = size_bytes
        assert totals(accounting) == (reservation.charged_slots, reservation.charged_bytes)
    accounting.release(reservation)
    assert totals(accounting) == (0, 0)


def unpublished(accounting: Accounting, size_bytes: int = 0) -> Reservation:
    """A build that is not to be published."""
    reservation = Reservation(KEY)
    accounting.unpublish(reservation)
    accounting.grow(reservation, size_bytes)
    return reservation


def test_the_limit_of_unpublished_bytes_is_exact() -> None:
    """The last byte fits, one more does not, and a refusal takes nothing."""
    accounting = make_accounting(max_bytes=1, max_entry=1)
    one, other = unpublished(accounting, 6), unpublished(accounting, 4)
    with pytest.raises(CacheFullError, match=r"10 \+ 1 bytes exceed max_unpublished") as caught:
        accounting.grow(one, 1)
    assert "\nhint: " in str(caught.value)
    assert (accounting.unpublished_bytes, one.size_bytes, other.size_bytes) == (10, 6, 4)
    assert totals(accounting) == (0, 0)


def test_unpublished_bytes_count_until_the_last_holder_lets_go() -> None:
    """The room is free only when build and readers have all let go."""
    accounting = make_accounting()
    reservation = unpublished(accounting, 7)
    reservation.hold("reader")
    for _ in range(2):
        accounting.release(reservation)
        assert accounting.unpublished_bytes == 7
    reservation.let_go("reader")
    assert accounting.unpublished_bytes == 0
    unpublished(accounting, 10)
    assert reservation not in accounting.unpublished


def test_a_build_that_leaves_its_slot_counts_as_unpublished() -> None:
    """It moves from one limit to the other as a whole, or not at all."""
    accounting = make_accounting()
    small, big = accounting.reserve(KEYS[0], None), accounting.reserve(KEYS[1], 40)
    accounting.grow(small, 10)
    accounting.grow(big, 11)
    accounting.unpublish(small)
    assert (totals(accounting), accounting.unpublished_bytes) == ((0, 0), 10)
    with pytest.raises(CacheFullError, match=r"10 \+ 11 bytes exceed max_unpublished"):
        accounting.unpublish(big)
    assert accounting.reservations == {KEYS[1]: big}
    assert not big.is_unpublished
