"""Tests of `bbcache.storage.entry_names`; more, with real files, in `test_files`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.storage.entry_names import parse_entry_names
from bbcache.storage.files import Store

ENTRIES = st.lists(
    st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=5,
)
STORE = Store("")
NAME = STORE.path_of(bytes(range(240, 256)) * 2, 0xABCDEF0123456789)
A_NAME = re.compile(
    r"basebackup_[0-9a-f]{32}_[0-9a-f]{32}_[0-9A-F]{16}\.tar\.gz", re.ASCII
)  # the same in other words


@given(entries=ENTRIES)
def test_names_are_parsed_as_they_were_made(entries: list[tuple[bytes, int]]) -> None:
    """Names that the store makes are parsed back, in order."""
    parsed = parse_entry_names([STORE.path_of(key, lsn) for key, lsn in entries])
    assert parsed is not None
    assert [*zip(*parsed, strict=True)] == entries


@given(
    entries=ENTRIES,
    at=st.integers(0, 1 << 16),
    char=st.characters() | st.sampled_from("0aAfFgG_ .x\n\0\ud800\uff11"),
)
def test_one_bad_name_among_many_is_noticed(
    entries: list[tuple[bytes, int]], at: int, char: str
) -> None:
    """One wrong character anywhere makes the whole batch fail."""
    names = [STORE.path_of(key, lsn) for key, lsn in entries]
    number, place = at % len(names), at % len(names[0])
    changed = names[number][:place] + char + names[number][place + 1 :]
    names[number] = changed
    is_name = A_NAME.fullmatch(changed) is not None
    assert (parse_entry_names(names) is not None) == is_name
    assert (parse_entry_names([changed]) is not None) == is_name


@pytest.mark.parametrize("place", range(len(NAME)))
def test_no_other_spelling_is_a_name(place: int) -> None:
    """Each character in the other case, and each replaced by a special one, is refused."""
    for char in (NAME[place].swapcase(), "-", " ", "g"):
        changed = NAME[:place] + char + NAME[place + 1 :]
        assert (parse_entry_names([changed]) is None) == (changed != NAME)


@pytest.mark.parametrize("cut", [1, 50, 99])
def test_two_halves_are_no_names(cut: int) -> None:
    """Names of wrong lengths are refused, even if their sum is right."""
    halves = (NAME + NAME)[:cut], (NAME + NAME)[cut:]
    assert parse_entry_names([*halves]) is None
    assert parse_entry_names([NAME, *halves]) is None
    assert parse_entry_names([NAME[cut:]]) is None
    assert parse_entry_names([]) is None
