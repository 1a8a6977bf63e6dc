"""Programs start with default signals, whatever the signals of this process are."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import run_child
from support.signals import give_children_default_signals

from bbcache.postgres.pgdata.control_file import ClusterState, ControlFile
from bbcache.postgres.server.default_signals import has_default_signals
from bbcache.postgres.server.user import ServerUser

if TYPE_CHECKING:
    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

# The C library keeps two signals to itself, which no program can set (nptl(7)).
_VALID = sum(1 << (number - 1) for number in signal.valid_signals())


def signals_in(status: str) -> int:
    """The signals of a line of ``/proc/self/status``, as bits."""
    return int(status, 16) & _VALID


both_ways = pytest.mark.parametrize("how", ["ignored", "blocked"])


@both_ways
def test_a_program_has_default_signals(how: str) -> None:
    """No signal is ignored or blocked, and root's privileges are dropped all the same."""
    shown = dict(
        line.split(":\t") for line in run_child("postgres.signal_children:show", how).splitlines()
    )
    assert (signals_in(shown["SigBlk"]), signals_in(shown["SigIgn"])) == (0, 0)
    user = ServerUser.current()
    assert shown["Uid"].split() == [str(user.uid)] * 4
    assert shown["Gid"].split() == [str(user.gid)] * 4
    if user.is_dropped:
        assert shown["Groups"].split() == []


@both_ways
def test_a_server_that_is_not_ready_in_time_ends_in_order(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, how: str
) -> None:
    """It is ended by a signal that it heeds, so that its pid file goes with it."""
    pgdata_dir = make_cluster(newest_pg).pgdata_dir
    child = "postgres.signal_children:start_in_no_time"
    assert run_child(child, how, newest_pg.bindir, pgdata_dir) == "True False\n"


@both_ways
def test_a_server_starts_and_stops(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, how: str
) -> None:
    """A whole life, initdb's probe and psql among it."""
    pgdata_dir = make_cluster(newest_pg).pgdata_dir
    out = run_child("postgres.signal_children:start_and_stop", how, newest_pg.bindir, pgdata_dir)
    assert out == "1\n"
    assert ControlFile.read(pgdata_dir).state is ClusterState.SHUT_DOWN


def test_the_tests_start_programs_with_default_signals() -> None:
    """Under nohup as well: what arrives ignored or blocked is not passed on."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        assert not has_default_signals()
        give_children_default_signals()
        assert has_default_signals()
        signal.raise_signal(signal.SIGHUP)  # which this process survives, as before
        command = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGHUP, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert [signals_in(line.split()[1]) for line in done.stdout.splitlines()] == [0, 0]
