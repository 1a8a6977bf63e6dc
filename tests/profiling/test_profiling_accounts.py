"""Samples added up."""

from __future__ import annotations

import pytest
from support.profiling_stacks import BESIDE, FSYNC, TIMED, WAIT, main_thread, service, worker

from benchmarks.profiling.accounts import account, functions, holders
from benchmarks.profiling.steps import GIL, HAND_OVER

ASLEEP = f"PrepareQueue.take (bbcache/prepare/queue.py:176);{WAIT}"
COMPRESS = "_Compressor._compress (bbcache/archive/format.py:226);0x7f (isal/isal_zlib.so)"
CODEC = "ISA-L: compress, inflate, CRC"


def test_workers_count_where_the_round_waits_for_them() -> None:
    """What is left, when nobody is at work, is a hand-over between threads."""
    found = account(
        [
            main_thread(f"{TIMED};{WAIT}", 80),
            main_thread(f"{TIMED};wait (threading.py:331);take_gil (libpython3.11.so.1.0)", 15),
            main_thread(f"{TIMED};PrepareQueue.put (bbcache/prepare/queue.py:66)", 5),
            main_thread("start (bbcache/bench/suite.py:1)", 500),  # no round
            worker(f"{FSYNC};fsync (libc.so.6)", 30),
            worker(COMPRESS, 50),
            worker(ASLEEP, 70),
        ]
    )
    assert found.steps == {
        "kernel: fsync": 30,
        CODEC: 50,
        "build, queue, hand-over": 5,
        HAND_OVER: 15,
    }
    assert (found.timed_count, found.total, found.threads()) == (100, 100, 1.0)
    assert list(found.shares().items())[:3] == [
        (CODEC, 0.5),
        ("kernel: fsync", 0.3),
        (HAND_OVER, 0.15),
    ]


def test_two_workers_at_once_are_more_than_the_round() -> None:
    """Then shares are of the threads' time, and there is no hand-over to be seen."""
    found = account(
        [main_thread(f"{TIMED};{WAIT}", 100), worker(COMPRESS, 100), worker(COMPRESS, 80)]
    )
    assert found.threads() == pytest.approx(1.8)
    assert found.shares() == {CODEC: 1.0}


def test_a_round_that_works_itself_counts_with_its_helpers() -> None:
    """And what it does before the clock runs does not."""
    found = account(
        [
            main_thread(f"{TIMED};restore_tarball (bbcache/postgres/pgdata/restore.py:5)", 60),
            main_thread(f"{TIMED};_emptied (bbcache/bench/restores.py:75)", 400),
            worker(COMPRESS, 30),
        ]
    )
    assert found.steps == {"unpacking": 60, CODEC: 30}
    assert found.timed_count == 60


def test_what_is_under_way_beside_is_left_out() -> None:
    """Of calls beside builds the calls alone are measured."""
    waits = "get (bbcache/cache.py:107);take_gil (libpython3.11.so.1.0)"
    found = account([main_thread(f"{BESIDE};{waits}", 40), worker(COMPRESS, 300)])
    assert found.steps == {GIL: 40}


def test_of_a_service_its_own_process_counts() -> None:
    """The client's thread times, and works for nobody."""
    found = account(
        [
            main_thread(f"{TIMED};seconds_a_request (bbcache/bench/exchanges.py:155)", 100),
            service("Session.serve (bbcache/page_service/session.py:204)", 7),
            service("f (bbcache/page_service/x.py:1);epoll_wait (libc.so.6)", 900),
        ]
    )
    assert found.steps == {"page service": 7}


def test_every_thread_may_hold_the_gil() -> None:
    """Of the process that is measured."""
    seen = [main_thread("get (bbcache/cache.py:107)", 3), worker(FSYNC, 5)]
    assert holders(seen).steps == {"get": 3, "paths and files": 5}
    assert holders([*seen, service("f (bbcache/page_service/x.py:1)", 2)]).steps == {
        "page service": 2
    }


def test_a_function_has_what_it_calls_outside_of_bbcache() -> None:
    """Of two functions of bbcache, one in the other, the inner one has it."""
    publish = "Builder._publish (bbcache/prepare/builder.py:266)"
    found = account(
        [
            main_thread(f"{TIMED};{WAIT}", 100),
            worker(f"{publish};{FSYNC};fsync (libc.so.6)", 30),
            worker(f"{publish};basename (<frozen posixpath>:144)", 20),
        ]
    )
    assert functions(found) == {
        "TempFile.sync (bbcache/storage/files.py)": 0.3,
        "Builder._publish (bbcache/prepare/builder.py)": 0.2,
    }
