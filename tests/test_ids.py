"""Ids, shard ids and LSNs: what they take, how they print, compare and add."""

from __future__ import annotations

import array
import copy
import pickle
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import LSN, TENANT, TIMELINE

from bbcache.errors import BbcacheError, ParseError, safe_repr
from bbcache.ids import Lsn, TenantId, TenantShardId, TenantTimelineId, TimelineId

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = "de200bd42b49cc1814412c7e592dd6e9"
MAX_LSN = 2**64 - 1
BAD_IDS = [
    *("", TEXT[:-1], TEXT + "0", TEXT + "\n", " " + TEXT[1:], "g" + TEXT[1:], "0x" + TEXT[2:]),
    *(TEXT[:-1] + "\u0664", "-" + TEXT[1:], TEXT[:8] + "-" + TEXT[8:], "de 2" + TEXT[4:]),
]
BAD_LSNS = [
    *("", "/", "0/", "/0", "0", "16B5A50", "0/0/0", "0/16B5A50 ", " 0/16B5A50", "0/16B5A50\n"),
    *("0x0/1", "+0/1", "-1/0", "0/1_0", "0/G", "123456789/0", "0/123456789", "0/\u0661", "0-1"),
]
id_classes = pytest.mark.parametrize("cls", [TenantId, TimelineId])


def check_refused(parse: Callable[[], object]) -> str:
    """Check that an error is a ParseError and a ValueError; returns its text."""
    with pytest.raises(ParseError) as caught:
        parse()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BbcacheError)
    return str(caught.value)


@id_classes
@given(raw=st.binary(min_size=16, max_size=16))
def test_id_prints_lower_case_and_parses_both_cases(
    cls: type[TenantId | TimelineId], raw: bytes
) -> None:
    """An id prints 32 lower-case hex digits, and parses them in either case."""
    made = cls(raw)
    assert str(made) == raw.hex() == f"{made}"
    assert bytes(made) == raw
    assert type(bytes(made)) is bytes
    assert cls.from_str(raw.hex()) == cls.from_str(raw.hex().upper()) == made
    assert type(cls.from_str(raw.hex())) is cls


@id_classes
@pytest.mark.parametrize("text", BAD_IDS)
def test_id_refuses_other_texts(cls: type[TenantId | TimelineId], text: str) -> None:
    """Only exactly 32 hex digits: no blank, sign, prefix, foreign digit or newline."""
    assert repr(text) in check_refused(lambda: cls.from_str(text))


@given(text=st.text(alphabet=string.printable + "\u0661\uff11", min_size=31, max_size=33))
def test_id_takes_only_what_it_would_print(text: str) -> None:
    """Whatever is parsed prints as the same digits."""
    try:
        made = TenantId.from_str(text)
    except ParseError:
        return
    assert str(made) == text.lower()


@id_classes
@pytest.mark.parametrize("value", [b"", b"1" * 15, b"1" * 17, TEXT, 7, None, [0] * 16])
def test_id_refuses_other_values(cls: type[TenantId | TimelineId], value: object) -> None:
    """An id is made of 16 bytes and of nothing else."""
    assert cls.__name__ in check_refused(lambda: cls(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [b"1" * 16, bytearray(b"1" * 16), memoryview(b"1" * 16)])
def test_id_takes_any_buffer_of_sixteen_bytes(value: bytes) -> None:
    """Bytes, bytearray and memoryview are all copied in."""
    assert bytes(TenantId(value)) == b"1" * 16


def test_id_counts_bytes_and_not_items_of_a_view() -> None:
    """Sixteen items of four bytes are no id."""
    words = memoryview(array.array("I", range(16)))
    check_refused(lambda: TenantId(words))  # type: ignore[arg-type]


@id_classes
def test_id_refuses_a_text_of_another_type(cls: type[TenantId | TimelineId]) -> None:
    """Only a str is parsed."""
    for value in (TEXT.encode(), None, 12):
        check_refused(lambda value=value: cls.from_str(value))  # type: ignore[misc]


@id_classes
def test_generated_ids_differ(cls: type[TenantId | TimelineId]) -> None:
    """Each generated id is a new one of its own kind."""
    made = {cls.generate() for _ in range(100)}
    assert len(made) == 100
    assert {type(each) for each in made} == {cls}


def test_ids_of_different_kinds_are_never_equal() -> None:
    """A tenant id is no timeline id, and no plain bytes, whatever its bytes are."""
    raw = bytes(16)
    assert TenantId(raw) == TenantId(raw)
    assert not TenantId(raw) != TenantId(raw)  # noqa: SIM202 - __ne__ has code of its own
    others: list[object] = [TimelineId(raw), raw, raw.hex(), None]
    assert all(TenantId(raw) != other and not TenantId(raw) == other for other in others)  # noqa: SIM201 - likewise
    assert len({TenantId(raw), TimelineId(raw), TenantId(raw)}) == 2


@given(raws=st.lists(st.binary(min_size=16, max_size=16)))
def test_ids_are_ordered_by_their_bytes(raws: list[bytes]) -> None:
    """Ids sort as their texts do."""
    made = sorted(TenantId(raw) for raw in raws)
    assert [str(each) for each in made] == sorted(raw.hex() for raw in raws)


def test_ids_are_immutable() -> None:
    """Nothing can be set on an id or an LSN."""
    shard_id, pair = TenantShardId(TENANT), TenantTimelineId(TENANT, TIMELINE)
    for value, name in ((TENANT, "x"), (LSN, "x"), (shard_id, "shard_number"), (pair, "tenant_id")):
        with pytest.raises((AttributeError, TypeError)):
            setattr(value, name, 1)


@pytest.mark.parametrize(
    "value",
    [TENANT, TIMELINE, LSN, TenantShardId(TENANT, 1, 4), TenantTimelineId(TENANT, TIMELINE)],
)
def test_ids_survive_pickle_and_copy(value: object) -> None:
    """A pickled or copied id is equal and of the same type."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301 - our own bytes
        assert (again, type(again)) == (value, type(value))
    for again in (copy.copy(value), copy.deepcopy(value)):
        assert (again, type(again)) == (value, type(value))


def test_reprs_are_expressions() -> None:
    """What repr shows makes the same value again."""
    names = {"TenantId": TenantId, "TimelineId": TimelineId, "Lsn": Lsn}
    for value in (TENANT, TIMELINE, LSN):
        assert eval(repr(value), names) == value  # noqa: S307 - our own text


def test_id_and_lsn_can_be_padded() -> None:
    """A format spec works on an id's text, and on an LSN's number."""
    assert f"{TENANT:>40}" == " " * 8 + TEXT
    assert f"{LSN:016X}" == "00000000016B5A50"


def test_tenant_timeline_id_prints_both() -> None:
    """A pair of ids prints with a slash."""
    assert str(TenantTimelineId(TENANT, TIMELINE)) == f"{TENANT}/{TIMELINE}"


def test_unsharded_tenant_is_shard_zero() -> None:
    """A tenant without shards prints its id alone and is its own shard zero."""
    made = TenantShardId(TENANT)
    assert (made.shard_number, made.shard_count, made.is_shard_zero) == (0, 0, True)
    assert str(made) == TEXT
    assert TenantShardId.from_str(TEXT) == TenantShardId.from_str(TEXT.upper()) == made


@given(count=st.integers(1, 255), data=st.data())
def test_shard_id_prints_as_neon_does(count: int, data: st.DataObject) -> None:
    """A sharded one prints number and count as two hex digits each, and parses so."""
    number = data.draw(st.integers(0, count - 1))
    made = TenantShardId(TENANT, number, count)
    assert str(made) == f"{TEXT}-{number:02x}{count:02x}"
    assert TenantShardId.from_str(str(made)) == TenantShardId.from_str(str(made).upper()) == made
    assert made.is_shard_zero == (number == 0)


@pytest.mark.parametrize(
    "text",
    [
        *(TEXT + "-", TEXT + "-0", TEXT + "-000", TEXT + "-00001", TEXT + "-0000", TEXT + "-0g01"),
        *(TEXT + "-0404", TEXT + "-0504", TEXT + "--004", TEXT + "-0004\n", TEXT + "-0004-0004"),
        *("-0004", "", TEXT[:-1] + "-0004", " " + TEXT, TEXT + "-+1+4", TEXT + "-0_04"),
    ],
)
def test_shard_id_refuses_other_texts(text: str) -> None:
    """Only what Neon prints is parsed; a number past the count is refused."""
    check_refused(lambda: TenantShardId.from_str(text))


def test_shard_id_refuses_a_text_of_another_type() -> None:
    """Only a str is parsed."""
    for value in (b"x", None, TENANT):
        check_refused(lambda value=value: TenantShardId.from_str(value))  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments",
    [
        *((TENANT, -1, 4), (TENANT, 4, 4), (TENANT, 1, 0), (TENANT, 0, 256), (TENANT, 256, 256)),
        *((TENANT, True, 4), (TENANT, 0, False), (TENANT, 0.0, 4), (TENANT, "0", 4)),
        *((TENANT, 10**5000, 4), (TENANT, 0, -(10**5000)), (10**5000, 0, 0)),
        *((TIMELINE, 0, 0), (TEXT, 0, 0), (bytes(TENANT), 0, 0), (None, 0, 0)),
    ],
)
def test_shard_id_refuses_other_values(arguments: tuple[TenantId, int, int]) -> None:
    """Numbers are ints in range and no bools; the tenant is a TenantId."""
    check_refused(lambda: TenantShardId(*arguments))


def test_shard_ids_are_ordered_and_hashable() -> None:
    """Shards sort by tenant, then number."""
    shards = [TenantShardId(TENANT, number, 4) for number in range(4)]
    assert sorted([shards[2], shards[0], shards[3], shards[1]]) == shards
    assert len({*shards, TenantShardId(TENANT, 0, 4)}) == 4


@given(value=st.integers(0, MAX_LSN))
def test_lsn_prints_and_parses_as_postgres_does(value: int) -> None:
    """An LSN prints two hex halves without leading zeros, and parses both cases."""
    lsn = Lsn(value)
    assert str(lsn) == f"{lsn}" == f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"
    assert Lsn.from_str(str(lsn)) == Lsn.from_str(str(lsn).lower()) == value
    assert Lsn.from_str(f"{value >> 32:08X}/{value & 0xFFFFFFFF:08X}") == value


def test_lsn_of_the_documentation() -> None:
    """The example of the documentation holds."""
    assert Lsn.from_str("0/16B5A50") == Lsn(0x16B5A50)
    assert str(Lsn(0x16B5A50)) == "0/16B5A50"


@pytest.mark.parametrize("text", BAD_LSNS)
def test_lsn_refuses_other_texts(text: str) -> None:
    """No blank, sign, prefix, underscore, foreign digit, newline or bare number."""
    assert repr(text) in check_refused(lambda: Lsn.from_str(text))


@given(text=st.text(alphabet="0123456789abcdefABCDEF/ _+-xX\n\u0661", max_size=12))
def test_lsn_takes_only_what_it_could_print(text: str) -> None:
    """Whatever is parsed is two hex numbers of at most eight digits."""
    try:
        lsn = Lsn.from_str(text)
    except ParseError:
        return
    high, low = text.split("/")
    assert all(
        part and len(part) <= 8 and set(part) <= set(string.hexdigits) for part in text.split("/")
    )
    assert lsn == int(high, 16) * 2**32 + int(low, 16)


@pytest.mark.parametrize(
    "value", [-1, MAX_LSN + 1, 10**5000, True, False, 1.0, "1", None, b"1"], ids=safe_repr
)
def test_lsn_refuses_other_values(value: object) -> None:
    """An LSN is an int from 0 to 2^64-1, and a bool is no int."""
    check_refused(lambda: Lsn(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 5, b"0/1"])
def test_lsn_refuses_a_text_of_another_type(value: object) -> None:
    """Only a str is parsed."""
    check_refused(lambda: Lsn.from_str(value))  # type: ignore[arg-type]


@given(value=st.integers(0, MAX_LSN), other=st.integers(0, MAX_LSN))
def test_lsn_compares_and_adds_as_an_int(value: int, other: int) -> None:
    """The sum is an LSN, from either side; a sum out of range is refused."""
    lsn = Lsn(value)
    assert (lsn < other, lsn == other, hash(lsn)) == (value < other, value == other, hash(value))
    if value + other > MAX_LSN:
        check_refused(lambda: lsn + other)
        check_refused(lambda: other + lsn)
        return
    for total in (lsn + other, other + lsn, lsn + Lsn(other)):
        assert total == value + other
        assert type(total) is Lsn


def test_lsn_difference_is_a_plain_number_of_bytes() -> None:
    """Two positions apart give an int, which may be negative."""
    assert Lsn(5) - Lsn(7) == -2
    assert type(Lsn(7) - Lsn(5)) is int
    assert type(Lsn(1) + (-1)) is Lsn
    check_refused(lambda: Lsn(0) + (-1))


def test_lsn_leaves_foreign_sums_to_the_other_side() -> None:
    """Adding what is no int follows the rules of int."""
    assert Lsn(1) + 0.5 == 1.5
    with pytest.raises(TypeError):
        Lsn(1) + "1"  # type: ignore[operator]
    assert sum([Lsn(1), Lsn(2)]) == Lsn(3)
