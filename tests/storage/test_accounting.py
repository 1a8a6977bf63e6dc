"""Counts, bytes, limits and reservations: the arithmetic alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.helpers import KEY

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import CacheFullError, EntryTooBigError, LimitError
from bbcache.storage.accounting import Accounting, Reservation, Tally

sizes = st.integers(0, 60)
timelines = st.integers(0, 3)


def make_accounting(max_entries: int = 3, max_bytes: int = 100, max_entry: int = 50) -> Accounting:
    """Books with small limits."""
    return Accounting(max_entries, max_bytes, max_entry)


def totals(accounting: Accounting) -> tuple[int, int]:
    """Files and bytes that count."""
    return accounting.total_count, accounting.total_size_bytes


def test_tally_adds_and_subtracts() -> None:
    """A file more and a file less, with its bytes."""
    tally = Tally()
    tally.add(5)
    tally.add(7)
    tally.subtract(5)
    assert (tally.count, tally.size_bytes) == (1, 7)


@pytest.mark.parametrize(
    ("max_entry", "wanted"), [(None, 1000), (1, 1), (999, 999), (1000, 1000), (5000, 1000)]
)
def test_limits_come_from_the_settings(max_entry: int | None, wanted: int) -> None:
    """An entry may have what it is allowed, but never more than the whole cache."""
    config = BasebackupCacheConfig(
        max_total_size_bytes=1000, max_size_entries=7, max_entry_size_bytes=max_entry
    )
    accounting = Accounting.from_config(config)
    limits = (accounting.max_entries, accounting.max_size_bytes, accounting.max_entry_size_bytes)
    assert limits == (7, 1000, wanted)
    assert totals(accounting) == (0, 0)
    assert accounting.nonentry_bytes == 0


def test_all_kinds_count_against_the_limits() -> None:
    """Entries, foreign files, doomed and builds count; of the quarantine the bytes alone."""
    accounting = make_accounting(max_entries=100, max_bytes=10**6)
    accounting.entries.add(1)
    accounting.foreign_files.add(10)
    accounting.doomed.add(100)
    accounting.quarantine.add(1000)
    accounting.grow(accounting.open_reservation(KEY, None), 20)
    assert totals(accounting) == (4, 1131)
    assert accounting.nonentry_bytes == 1110


def test_a_new_entry_takes_its_slot_before_the_build() -> None:
    """The slots are gone as soon as they are reserved, and no sooner."""
    accounting = make_accounting(max_entries=2)
    accounting.entries.add(1)
    accounting.open_reservation(KEY, None)
    with pytest.raises(CacheFullError, match="2 of max_size_entries 2"):
        accounting.open_reservation(KEY, None)
    assert totals(accounting) == (2, 1)


def test_a_new_entry_wants_one_byte_at_least() -> None:
    """With all bytes taken there is no use in a build."""
    accounting = make_accounting(max_bytes=100)
    accounting.foreign_files.add(100)
    with pytest.raises(CacheFullError, match=r"100 \+ 1 bytes exceed max_total_size_bytes 100"):
        accounting.open_reservation(KEY, None)
    accounting.foreign_files.subtract(1)
    assert accounting.open_reservation(KEY, None).is_open


@pytest.mark.parametrize("full_by", ["slots", "bytes"])
def test_a_refresh_always_gets_its_reservation(full_by: str) -> None:
    """A held timeline is refreshed even when the cache is full, or over a limit."""
    accounting = make_accounting(max_entries=1, max_bytes=100)
    accounting.entries.add(40)
    accounting.foreign_files.add(200 if full_by == "bytes" else 0)
    before = totals(accounting)
    reservation = accounting.open_reservation(KEY, 40)
    accounting.grow(reservation, 40)
    assert totals(accounting) == before
    assert (reservation.charged_slots, reservation.charged_bytes) == (0, 0)


def test_a_refresh_is_charged_for_what_exceeds_its_old_entry() -> None:
    """The bytes up to the old size are free, those above are not."""
    accounting = make_accounting(max_bytes=100)
    accounting.entries.add(40)
    reservation = accounting.open_reservation(KEY, 40)
    accounting.grow(reservation, 45)
    assert (reservation.charged_bytes, accounting.total_size_bytes) == (5, 45)


@pytest.mark.parametrize(("foreign_bytes", "is_full"), [(99, False), (100, True), (101, True)])
def test_a_new_entry_needs_at_least_one_byte(foreign_bytes: int, *, is_full: bool) -> None:
    """At the limit of bytes, and past it, there is no reservation for a new entry."""
    accounting = make_accounting(max_bytes=100)
    accounting.foreign_files.add(foreign_bytes)
    if is_full:
        with pytest.raises(CacheFullError, match=rf"{foreign_bytes} \+ 1 bytes exceed"):
            accounting.open_reservation(KEY, None)
    else:
        accounting.open_reservation(KEY, None)
    assert accounting.building_slots == (not is_full)


def test_a_refresh_in_a_full_cache_cannot_grow_past_its_old_entry() -> None:
    """One byte more than the old entry, and there is no room."""
    accounting = make_accounting(max_bytes=100)
    accounting.entries.add(40)
    accounting.foreign_files.add(60)
    reservation = accounting.open_reservation(KEY, 40)
    accounting.grow(reservation, 40)
    with pytest.raises(CacheFullError):
        accounting.grow(reservation, 1)
    assert reservation.held_bytes == 40


def test_bytes_are_reserved_all_or_nothing() -> None:
    """A piece that does not fit changes nothing, and a smaller one still fits."""
    accounting = make_accounting(max_bytes=100)
    accounting.foreign_files.add(70)
    reservation = accounting.open_reservation(KEY, None)
    accounting.grow(reservation, 20)
    with pytest.raises(CacheFullError, match=r"90 \+ 11 bytes exceed max_total_size_bytes 100"):
        accounting.grow(reservation, 11)
    assert (reservation.held_bytes, accounting.total_size_bytes) == (20, 90)
    accounting.grow(reservation, 10)
    assert accounting.total_size_bytes == 100


def test_an_entry_too_big_is_told_from_a_full_cache() -> None:
    """What can never fit has an error of its own, and harms nothing."""
    accounting = make_accounting(max_bytes=100, max_entry=50)
    accounting.foreign_files.add(60)
    reservation = accounting.open_reservation(KEY, None)
    with pytest.raises(EntryTooBigError, match="more than 50 bytes"):
        accounting.grow(reservation, 51)
    assert (reservation.held_bytes, accounting.total_size_bytes) == (0, 60)
    with pytest.raises(CacheFullError):
        accounting.grow(reservation, 50)


def test_the_limit_of_an_entry_holds_for_a_refresh() -> None:
    """Its credit does not make an entry bigger."""
    accounting = make_accounting(max_bytes=100, max_entry=50)
    accounting.entries.add(80)
    reservation = accounting.open_reservation(KEY, 80)
    accounting.grow(reservation, 50)
    with pytest.raises(EntryTooBigError):
        accounting.grow(reservation, 1)


def test_a_reservation_is_given_back_exactly_once() -> None:
    """A second release changes nothing."""
    accounting = make_accounting()
    reservation = accounting.open_reservation(KEY, None)
    accounting.grow(reservation, 30)
    for _ in range(3):
        accounting.close_reservation(reservation)
        assert totals(accounting) == (0, 0)
        assert not reservation.is_open


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
    reservation = accounting.open_reservation(KEY, None)
    accounting.grow(reservation, 30)
    for credit_bytes in credits:
        accounting.set_credit(reservation, credit_bytes)
    assert totals(accounting) == wanted
    accounting.close_reservation(reservation)
    assert totals(accounting) == (0, 0)


@pytest.mark.parametrize(
    ("max_entries", "max_bytes", "credit_bytes", "held_bytes", "wanted"),
    [
        (2, 90, 40, 50, True),  # 1 entry, 10 charged: 2 slots and 90 bytes are just enough
        (1, 90, 40, 50, False),
        (2, 89, 40, 50, False),
        (2, 50, 40, 0, True),  # nothing written: no byte more to charge
        (2, 90, None, 50, True),  # no credit to lose
        (1, 50, None, 50, True),
    ],
)
def test_a_credit_is_lost_only_where_there_is_room(
    max_entries: int, max_bytes: int, credit_bytes: int | None, held_bytes: int, *, wanted: bool
) -> None:
    """What the credit covers, bytes and slot, would be charged at once."""
    accounting = make_accounting(max_entries, max_bytes, max_entry=100)
    reservation = accounting.open_reservation(KEY, credit_bytes)
    if credit_bytes is not None:
        accounting.entries.add(credit_bytes)
    accounting.grow(reservation, held_bytes)
    before = totals(accounting)
    assert accounting.may_lose_credit(reservation) == wanted
    assert totals(accounting) == before
    accounting.set_credit(reservation, None)
    fits = accounting.total_count <= max_entries and accounting.total_size_bytes <= max_bytes
    assert fits == wanted


def test_without_a_credit_there_is_none_to_lose_even_past_the_limits() -> None:
    """Files of others do not matter where no charge would rise."""
    accounting = make_accounting(max_entries=1, max_bytes=100)
    reservation = accounting.open_reservation(KEY, None)
    accounting.foreign_files.add(101)
    assert accounting.may_lose_credit(reservation)


@pytest.mark.parametrize(("foreign_files", "wanted"), [(0, True), (1, False)])
def test_a_credit_that_covers_nothing_is_lost_only_with_a_slot(
    foreign_files: int, *, wanted: bool
) -> None:
    """A cache over its limit of bytes lets it go, one without a slot does not."""
    accounting = make_accounting(max_entries=2, max_bytes=10)
    accounting.entries.add(40)
    for _ in range(foreign_files):
        accounting.foreign_files.add(0)
    assert accounting.may_lose_credit(accounting.open_reservation(KEY, 40)) == wanted


def test_limit_errors_have_one_base() -> None:
    """A writer that raises for a limit raises a LimitError."""
    for error in (CacheFullError, EntryTooBigError):
        assert issubclass(error, LimitError)


class AccountingMachine(RuleBasedStateMachine):
    """Builds of four timelines in a cache for three, beside files of every kind.

    Files of others come unasked and may pass a limit; nothing else ever does.
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
        has_room = (
            before[0] < self.accounting.max_entries and before[1] < self.accounting.max_size_bytes
        )
        try:
            self.open[timeline] = self.accounting.open_reservation(KEY, credit_bytes)
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
        before = (reservation.held_bytes, *totals(self.accounting))
        held_bytes = reservation.held_bytes + size_bytes
        charge = max(0, held_bytes - (reservation.credit_bytes or 0)) - reservation.charged_bytes
        try:
            self.accounting.grow(reservation, size_bytes)
        except EntryTooBigError:
            assert held_bytes > self.accounting.max_entry_size_bytes
            assert (reservation.held_bytes, *totals(self.accounting)) == before
        except CacheFullError:
            assert charge > 0
            assert self.accounting.total_size_bytes + charge > self.accounting.max_size_bytes
            assert (reservation.held_bytes, *totals(self.accounting)) == before
        else:
            assert reservation.held_bytes == held_bytes
            assert self.accounting.total_size_bytes == before[2] + charge

    @rule(timeline=timelines)
    def commit(self, timeline: int) -> None:
        """An entry takes the place of its reservation, and of the entry before it."""
        reservation = self.open.pop(timeline, None)
        if reservation is None:
            return
        before = totals(self.accounting)
        self.accounting.close_reservation(reservation)
        if timeline in self.entries:
            self.accounting.entries.subtract(self.entries[timeline])
        self.accounting.entries.add(reservation.held_bytes)
        self.entries[timeline] = reservation.held_bytes
        assert self.accounting.total_count == before[0]
        assert self.accounting.total_size_bytes <= before[1]

    @rule(timeline=timelines)
    def remove(self, timeline: int) -> None:
        """An entry goes while its refresh may be under way."""
        if timeline not in self.entries:
            return
        before = totals(self.accounting)
        self.accounting.entries.subtract(self.entries.pop(timeline))
        if timeline in self.open:
            self.accounting.set_credit(self.open[timeline], None)
        assert self.accounting.total_count <= before[0]
        assert self.accounting.total_size_bytes <= before[1]

    @rule(timeline=timelines)
    def release(self, timeline: int) -> None:
        """A reservation is given back, twice."""
        reservation = self.open.pop(timeline, None)
        if reservation is not None:
            self.accounting.close_reservation(reservation)
            self.accounting.close_reservation(reservation)

    @rule(size_bytes=sizes)
    def foreign_file(self, size_bytes: int) -> None:
        """Others put a file into the directory, whatever the limits say."""
        self.accounting.foreign_files.add(size_bytes)
        self.is_pushed_over = True

    @invariant()
    def builds_are_what_is_open(self) -> None:
        """The accounting of builds are the sums over the open reservations."""
        each_open = self.open.values()
        assert self.accounting.building_slots == sum(each.charged_slots for each in each_open)
        assert self.accounting.building_bytes == sum(each.charged_bytes for each in each_open)

    @invariant()
    def limits_hold(self) -> None:
        """No build ever passes a limit."""
        if not self.is_pushed_over:
            assert self.accounting.total_count <= self.accounting.max_entries
            assert self.accounting.total_size_bytes <= self.accounting.max_size_bytes

    def teardown(self) -> None:
        """Everything given back leaves no build accounted for."""
        for timeline in list(self.open):
            self.release(timeline)
        assert (self.accounting.building_slots, self.accounting.building_bytes) == (0, 0)


AccountingMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestAccountingMachine = AccountingMachine.TestCase


@given(
    steps=st.lists(st.tuples(st.sampled_from(["grow", "credit"]), st.none() | sizes), max_size=30)
)
def test_books_balance_to_zero(steps: list[tuple[str, int | None]]) -> None:
    """Whatever happened to a reservation, its release leaves nothing behind."""
    accounting = make_accounting(max_entries=1, max_bytes=10**6, max_entry=10**6)
    reservation = accounting.open_reservation(KEY, None)
    for what, size_bytes in steps:
        if what == "grow":
            accounting.grow(reservation, size_bytes or 0)
        else:
            accounting.set_credit(reservation, size_bytes)
        assert totals(accounting) == (reservation.charged_slots, reservation.charged_bytes)
    accounting.close_reservation(reservation)
    assert totals(accounting) == (0, 0)
