"""Tests of `bbcache.entry_names`; more, with real files, in `test_store`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bbcache.entry_names import (
    are_entry_names,
    is_entry_name,
    may_be_entry_name,
    parse_entry_names,
)
from bbcache.store import Store

ENTRIES = st.lists(
    st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1)), max_size=5
)
STORE = Store("")


@given(entries=ENTRIES)
def test_names_are_parsed_as_they_were_made(entries: list[tuple[bytes, int]]) -> None:
    """What the store names is a name, and parsing many at once gives them back in order."""
    names = [STORE.path_of(key, lsn) for key, lsn in entries]
    assert all(map(is_entry_name, names))
    assert all(map(may_be_entry_name, names))
    assert are_entry_names(names)
    assert [*parse_entry_names(names)] == entries


@given(entries=ENTRIES, at=st.integers(0, 1 << 16), char=st.characters())
def test_one_bad_name_among_many_is_noticed(
    entries: list[tuple[bytes, int]], at: int, char: str
) -> None:
    """One character that is another one, wherever, and not all are names."""
    names = [STORE.path_of(key, lsn) for key, lsn in [*entries, (bytes(32), 0)]]
    number, place = at % len(names), at % len(names[0])
    changed = names[number][:place] + char + names[number][place + 1 :]
    names[number] = changed
    assert are_entry_names(names) == is_entry_name(changed)


def test_two_halves_are_no_names() -> None:
    """Names that only together spell names may not pass the quick look."""
    name = STORE.path_of(bytes(32), 1)
    assert not may_be_entry_name(name[:-1])
    assert not may_be_entry_name(name + name[0])
