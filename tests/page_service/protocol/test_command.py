"""The grammar of the commands is Neon's, with flags without dashes beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import LSN, TENANT, TIMELINE

from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.page_service.errors import CommandError
from bbcache.page_service.protocol.command import BasebackupCommand, NoOpCommand, parse_command

T, TL = str(TENANT), str(TIMELINE)
PLAIN = BasebackupCommand(TENANT, TIMELINE)


def wanted(lsn: Lsn | None = None, *, gzip: bool = False, replica: bool = False) -> object:
    """A basebackup command for the timeline of the tests."""
    return BasebackupCommand(TENANT, TIMELINE, lsn, is_gzip=gzip, is_replica=replica)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (f"basebackup {T} {TL}", wanted()),
        (f"basebackup {T} {TL} latest", wanted()),
        (f"basebackup {T} {TL} 0/16B5A50", wanted(LSN)),
        (f"basebackup {T} {TL} 0/16b5a50 --gzip", wanted(LSN, gzip=True)),
        (f"basebackup {T} {TL} --gzip", wanted(gzip=True)),
        (f"basebackup {T} {TL} latest --replica", wanted(replica=True)),
        (f"basebackup {T} {TL} --replica --gzip", wanted(gzip=True, replica=True)),
        (f"basebackup {T} {TL} 0/16B5A50 --gzip --replica", wanted(LSN, gzip=True, replica=True)),
        (f"basebackup {T} {TL} gzip", wanted(gzip=True)),
        (f"basebackup {T} {TL} 0/16B5A50 replica gzip", wanted(LSN, gzip=True, replica=True)),
        (f"basebackup {T} {TL} latest --gzip replica", wanted(gzip=True, replica=True)),
        (f"  BaseBackup   {T}\t{TL}\n gzip ; ", wanted(gzip=True)),
        (f"basebackup {T.upper()} {TL.upper()}", wanted()),
        (f"fullbackup {T} {TL}", BasebackupCommand(TENANT, TIMELINE, is_full=True)),
        (
            f"fullbackup {T} {TL} 0/16B5A50 0/10",
            BasebackupCommand(TENANT, TIMELINE, LSN, is_full=True),
        ),
        ("", NoOpCommand("")),
        (" ; ", NoOpCommand("")),
        ("SET datestyle TO 'ISO'", NoOpCommand("SET")),
        ("BEGIN", NoOpCommand("BEGIN")),
        ("begin isolation level serializable;", NoOpCommand("BEGIN")),
        ("COMMIT", NoOpCommand("COMMIT")),
        ("ROLLBACK", NoOpCommand("ROLLBACK")),
    ],
)
def test_commands(text: str, command: object) -> None:
    """Each means what Neon's pageserver takes it for."""
    assert parse_command(text) == command


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("basebackup", "cannot parse query: basebackup"),
        ("frobnicate", "cannot parse query: frobnicate"),
        ("select 1", "unsupported command select in select 1"),
        (f"pagestream_v3 {T} {TL}", "unsupported command pagestream_v3"),
        (f"basebackup {T}", "needs a tenant and a timeline"),
        (f"basebackup {T[:-1]} {TL}", f"{T[:-1]} is no tenant id"),
        (f"basebackup {T}-0000 {TL}", "is no tenant id"),
        (f"basebackup {T} {TL}0", f"{TL}0 is no timeline id"),
        (f"basebackup {T} {TL} 16B5A50", "16B5A50 is no lsn"),
        (f"basebackup {T} {TL} 0/123456789", "is no lsn"),
        (f"basebackup {T} {TL} LATEST", "LATEST is no lsn"),
        (f"basebackup {T} {TL} --gzip 0/1", "has no parameter 0/1 here"),
        (f"basebackup {T} {TL} gzip latest", "has no parameter latest here"),
        (f"basebackup {T} {TL} --gzip --gzip", "has the parameter --gzip twice"),
        (f"basebackup {T} {TL} --gzip gzip", "has the parameter gzip twice"),
        (f"basebackup {T} {TL} --fast", "has no parameter --fast here"),
        (f"basebackup {T} {TL} 0/1 0/2", "has no parameter 0/2 here"),
        (f"fullbackup {T} {TL} --gzip", "--gzip is no lsn"),
        (f"fullbackup {T} {TL} 0/1 0/2 0/3", "has no parameter 0/3 here"),
        (f"fullbackup {T}", "needs a tenant and a timeline"),
    ],
)
def test_what_is_no_command(text: str, complaint: str) -> None:
    """The error says what is wrong, and the connection goes on."""
    with pytest.raises(CommandError) as raised:
        parse_command(text)
    assert complaint in raised.value.simple_text()
    assert "hint" not in raised.value.simple_text()
    assert not raised.value.is_fatal


@given(
    ids=st.binary(min_size=32, max_size=32),
    lsn=st.none() | st.integers(0, 2**64 - 1).map(Lsn),
    is_gzip=st.booleans(),
    is_replica=st.booleans(),
)
def test_round_trip(ids: bytes, lsn: Lsn | None, *, is_gzip: bool, is_replica: bool) -> None:
    """A command means what it was printed from."""
    command = BasebackupCommand(
        TenantId(ids[:16]), TimelineId(ids[16:]), lsn, is_gzip=is_gzip, is_replica=is_replica
    )
    assert parse_command(str(command)) == command


@pytest.mark.parametrize("lsn", [None, LSN])
def test_round_trip_of_a_fullbackup(lsn: Lsn | None) -> None:
    """It has no word for the tip."""
    command = BasebackupCommand(TENANT, TIMELINE, lsn, is_full=True)
    assert parse_command(str(command)) == command


WORDS = st.sampled_from([T, TL, "0/1", "latest", "--gzip", "gzip", "replica", "--", ";", "\t"])


@given(words=st.lists(WORDS | st.text(max_size=8), max_size=8))
def test_hostile_words(words: list[str]) -> None:
    """Any words are a command for these ids, or raise a CommandError."""
    try:
        command = parse_command(" ".join(["basebackup", *words]))
    except CommandError as error:
        assert len(error.simple_text()) < 1000  # noqa: PT017 - a command, too, is fine
        return
    assert isinstance(command, BasebackupCommand)
    wanted_ids = " ".join(words).lower().split()[:2]
    assert [str(command.tenant_id), str(command.timeline_id)] == wanted_ids


def test_a_long_text_is_cut_in_the_complaint() -> None:
    """An error is no longer than what anybody wants to read."""
    with pytest.raises(CommandError) as raised:
        parse_command("x" * 10_000 + " y")
    assert len(raised.value.simple_text()) < 600
