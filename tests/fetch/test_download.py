"""Fetching: archives are checked, failures are retried, and nothing is left half-made."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fetch.bad_service import (
    BadService,
    Peer,
    breaks_off,
    error,
    falls_silent,
    greets_with,
    hangs_up,
    says,
    serves,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isal import igzip
from support.cache_helpers import CHILD_DEADLINE_S, Worker
from support.helpers import TENANT, TIMELINE, wait_until

from bbcache.errors import ConfigError, PostgresError
from bbcache.fetch.download import (
    DEFAULT_LIMITS,
    FetchRequest,
    FetchSummary,
    fetch_basebackup,
)
from bbcache.fetch.errors import FetchError, RefusedError
from bbcache.fetch.retry import RetryPolicy
from bbcache.ids import Lsn
from bbcache.page_service.protocol import backend
from bbcache.postgres.pgdata.tarball import inspect_pgdata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fetch.conftest import Archive

    from bbcache.postgres.pgdata.tar_reader import TarLimits

    Script = Callable[[Peer], None]


class Fetcher:
    """Fetches from a server, without the waits between attempts.

    Attributes:
        told: the lines about attempts that have failed.
        pauses: the waits, in seconds, which the test skips.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.dest = place / "pgdata"
        self.told: list[str] = []
        self.pauses: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def _sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.on_sleep()

    def __call__(
        self,
        server: BadService,
        lsn: Lsn | None = None,
        *,
        parameters: str = "",
        token: str | None = None,
        limits: TarLimits = DEFAULT_LIMITS,
        **policy: Any,
    ) -> FetchSummary:
        """Fetch from it."""
        url = server.url + (f"?{parameters}" if parameters else "")
        return fetch_basebackup(
            FetchRequest(url, TENANT, TIMELINE, lsn, token),
            self.dest,
            policy=RetryPolicy(**policy),
            limits=limits,
            tell=self.told.append,
            sleep=self._sleep,
            chance=lambda: 0.5,
        )

    def check_nothing_left(self) -> None:
        """Nothing is at the place, nor beside it."""
        assert os.listdir(self.place) == []

    def check_fetched(self, archive: Archive) -> None:
        """The data directory is there, alone."""
        assert os.listdir(self.place) == ["pgdata"]
        assert inspect_pgdata(self.dest).checkpoint_end_lsn == archive.lsn


@pytest.fixture
def fetch(place: Path) -> Fetcher:
    """Fetches into a new directory."""
    return Fetcher(place)


@pytest.mark.parametrize("with_lsn", [True, False])
@pytest.mark.parametrize("is_there", [True, False])
def test_fetches(fetch: Fetcher, archive: Archive, *, with_lsn: bool, is_there: bool) -> None:
    """The command is Neon's, the summary is right; DEST may be an empty directory."""
    if is_there:
        fetch.dest.mkdir()
    heard: list[str] = []

    def serve(peer: Peer) -> None:
        heard.append(peer.let_in())
        peer.send(backend.COPY_OUT)
        for at in range(0, len(archive.data), 999_983):
            piece = archive.data[at : at + 999_983]
            peer.send(backend.copy_data_head(len(piece)), piece)
        peer.end_copy()

    with BadService(serve) as server:
        server.listen()
        summary = fetch(server, archive.lsn if with_lsn else None)
    lsn = f" {archive.lsn}" if with_lsn else ""
    assert heard == [f"basebackup {TENANT} {TIMELINE}{lsn} --gzip"]
    assert summary.lsn == archive.lsn
    assert summary.member_count == archive.member_count
    assert (summary.size_bytes, summary.received_bytes) == (len(archive.tar), len(archive.data))
    assert (summary.attempt_count, fetch.told) == (1, [])
    fetch.check_fetched(archive)


def _half(archive: Archive) -> bytes:
    return archive.data[: len(archive.data) // 2]


def _flipped(archive: Archive) -> bytes:
    data = bytearray(archive.data)
    data[-6] ^= 1  # in the trailer's CRC-32
    return bytes(data)


# Each is met once, and told of so; the next attempt finds all well.
PASSING: dict[str, tuple[Callable[[Archive], Script], str]] = {
    "hangs up": (lambda _: hangs_up, "server closed the connection unexpectedly"),
    "starting": (
        lambda _: greets_with("the database system is starting up", "57P03"),
        "the database system is starting up",
    ),
    "too many": (lambda _: greets_with("too many connections", "53300"), "too many connections"),
    "shut down": (
        lambda _: says("shutdown", "57P01", "FATAL"),
        r"the service says: shutdown \(57P01\)",
    ),
    "not ready": (
        lambda _: says("the tenants are not known yet"),
        r"the service says: the tenants are not known yet \(XX000\)",
    ),
    "closes half-way": (
        lambda archive: breaks_off(_half(archive)),
        "the connection is broken: .*server closed the connection unexpectedly",
    ),
    "error half-way": (
        lambda archive: breaks_off(_half(archive), error("it broke"), backend.READY_FOR_QUERY),
        r"the service says: it broke \(XX000\)",
    ),
    "error behind all": (
        lambda archive: breaks_off(archive.data, error("it broke"), backend.READY_FOR_QUERY),
        r"the service says: it broke \(XX000\)",
    ),
    "error behind the end": (
        lambda archive: breaks_off(
            archive.data, backend.COPY_DONE, error("it broke"), backend.READY_FOR_QUERY
        ),
        r"the service says: it broke \(XX000\)",
    ),
    "error behind well": (
        lambda archive: breaks_off(
            archive.data,
            *(backend.COPY_DONE, backend.command_complete("SELECT 1"), error("it broke")),
            backend.READY_FOR_QUERY,
        ),
        r"the service says: it broke \(XX000\)",
    ),
    "no end": (
        lambda archive: breaks_off(archive.data, backend.COPY_DONE),
        "the connection is broken: .*server closed the connection unexpectedly",
    ),
    "ends early": (lambda archive: serves(_half(archive)), "the archive is cut short"),
    "wrong checksum": (
        lambda archive: serves(_flipped(archive)),
        "the archive is not a valid gzip file: .*checksum",
    ),
    "junk behind": (
        lambda archive: serves(archive.data + b"junk"),
        "the archive has bytes after its gzip member",
    ),
    "a second member": (
        lambda archive: serves(archive.data * 2),
        "the archive has bytes after its gzip member",
    ),
    "not a tar": (lambda _: serves(igzip.compress(b"x" * 2000)), "the checksum in a header"),
    "nothing": (lambda _: serves(b""), "the tar is cut short after 0 bytes"),
}


@pytest.mark.parametrize("name", PASSING)
def test_another_try(fetch: Fetcher, archive: Archive, name: str) -> None:
    """What may pass is told of and tried again, from the beginning."""
    make_script, told = PASSING[name]
    with BadService(make_script(archive), serves(archive.data)) as server:
        server.listen()
        summary = fetch(server, archive.lsn)
    assert summary.attempt_count == 2
    assert fetch.pauses == [0.5]
    (line,) = fetch.told
    assert line.startswith("attempt 1 of 11 failed: ")
    assert line.endswith("; retrying in 0.5 s")
    assert re.search(told, line), line
    fetch.check_fetched(archive)


@pytest.mark.parametrize("name", PASSING)
def test_no_more_tries(fetch: Fetcher, archive: Archive, name: str) -> None:
    """A failure that stays ends the fetch with the last attempt, and leaves nothing."""
    make_script, told = PASSING[name]
    with BadService(make_script(archive)) as server:
        server.listen()
        with pytest.raises(FetchError) as caught:
            fetch(server, archive.lsn, attempt_count=3)
        assert server.count == 3
    assert re.match("attempt 3 of 3 failed, and no attempt is left: ", str(caught.value))
    assert re.search(told, str(caught.value))
    assert not isinstance(caught.value, RefusedError)
    assert fetch.pauses == [0.5, 0.75]
    fetch.check_nothing_left()


def test_a_service_that_starts_late(fetch: Fetcher, archive: Archive) -> None:
    """Two refused connections, and then it is there."""
    with BadService(serves(archive.data)) as server:
        fetch.on_sleep = lambda: server.listen() if len(fetch.pauses) == 2 else None
        assert fetch(server).attempt_count == 3
    assert [line.partition(": ")[0] for line in fetch.told] == [
        "attempt 1 of 11 failed",
        "attempt 2 of 11 failed",
    ]
    assert "Connection refused" in fetch.told[0]
    fetch.check_fetched(archive)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (says("not found"), r"the service says: not found \(XX000\)$"),
        (says("Not found: timeline is archived"), "timeline is archived"),
        (says("JWT authentication error"), "the service says: JWT authentication error"),
        (says("invalid basebackup lsn: cut off"), "the service says: invalid basebackup lsn"),
        (says('syntax error at or near "basebackup"', "42601"), "syntax error"),
        (says("no", "28000"), r"the service says: no \(28000\)"),
        (
            greets_with("JWT authentication error", "XX000"),
            "the service cannot be used: FATAL:  JWT authentication error",
        ),
        (greets_with("must connect with TLS", "XX000"), "FATAL:  must connect with TLS"),
        (greets_with('role "bbcache" does not exist', "28000"), "FATAL:  role"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_is_final(fetch: Fetcher, script: Script, said: str) -> None:
    """A permanent refusal is not retried."""
    with BadService(script) as server:
        server.listen()
        with pytest.raises(RefusedError, match=said):
            fetch(server)
        assert server.count == 1
    assert fetch.pauses == []
    fetch.check_nothing_left()


def test_what_is_no_page_service(fetch: Fetcher) -> None:
    """A server that answers with something else than a copy."""

    def script(peer: Peer) -> None:
        peer.let_in()
        peer.send(backend.command_complete("SELECT 1"), backend.READY_FOR_QUERY)
        peer.wait_gone()

    with BadService(script) as server:
        server.listen()
        with pytest.raises(RefusedError, match="does not answer with a copy\nhint: Does the URL"):
            fetch(server)
    fetch.check_nothing_left()


def test_a_token_wanted_and_none_there(
    fetch: Fetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Says how to give one; given, it is sent in place of the URL's."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    heard: list[bytes] = []
    token = "a-token"  # noqa: S105 - for nothing

    def script(peer: Peer) -> None:
        peer.begin()
        peer.send(backend.CLEARTEXT_PASSWORD_WANTED)
        heard.append(peer.message())

    with BadService(script) as server:
        server.listen()
        with pytest.raises(RefusedError, match="no password supplied\nhint: Give the token"):
            fetch(server)
        with pytest.raises(FetchError):
            fetch(server, parameters="password=of-the-url", token=token, attempt_count=1)
        monkeypatch.setenv("PGPASSWORD", "of-the-environment")
        with pytest.raises(FetchError):
            fetch(server, attempt_count=1)
    assert heard == [b"a-token\0", b"of-the-environment\0"]


def test_silence(fetch: Fetcher, archive: Archive) -> None:
    """An archive that falls silent is given up, and asked for again."""
    with BadService(falls_silent(_half(archive)), serves(archive.data)) as server:
        server.listen()
        assert fetch(server, read_timeout_s=1.0).attempt_count == 2
    assert "the service has sent nothing for 1 s" in fetch.told[0]
    fetch.check_fetched(archive)


def test_silence_before_the_archive_begins(fetch: Fetcher, archive: Archive) -> None:
    """May last: the service may have to wait for the LSN. The limit of all time still holds."""
    gate = threading.Event()

    def late(peer: Peer) -> None:
        peer.let_in()
        gate.wait(1.5)
        peer.send(backend.COPY_OUT, backend.copy_data_head(len(archive.data)), archive.data)
        peer.end_copy()

    def never(peer: Peer) -> None:
        peer.let_in()
        peer.wait_gone()

    with BadService(never, late) as server:
        server.listen()
        with pytest.raises(
            FetchError, match=r"within 0.3 s: .*did not send the whole basebackup in time"
        ):
            fetch(server, timeout_s=0.3)
        fetch.check_nothing_left()
        assert fetch(server, read_timeout_s=1.0).attempt_count == 1
    fetch.check_fetched(archive)


def test_the_limit_of_all_time_counts_pauses(fetch: Fetcher) -> None:
    """No pause is begun that would end behind it."""
    with BadService(hangs_up) as server:
        server.listen()
        with pytest.raises(
            FetchError, match=r"^attempt 1 of 11 .* no attempt is left within 0.4 s: "
        ):
            fetch(server, timeout_s=0.4)
    assert fetch.pauses == []
    fetch.check_nothing_left()


def test_another_lsn(fetch: Fetcher, archive: Archive) -> None:
    """A basebackup at another LSN than the one asked for is not taken."""
    wanted = Lsn(archive.lsn + 8)
    with BadService(serves(archive.data)) as server:
        server.listen()
        with pytest.raises(FetchError, match=f"the basebackup at {archive.lsn}, not .* {wanted}"):
            fetch(server, wanted)
    fetch.check_nothing_left()


def test_what_is_no_clean_cluster(fetch: Fetcher, archive: Archive) -> None:
    """An archive that is whole, but of a cluster that was not shut down, is not taken."""
    tar = bytearray(archive.tar)
    at = tar.rindex(b"global/pg_control\0") + 512
    tar[at + 16] = 6  # in production
    with BadService(serves(igzip.compress(bytes(tar), 1))) as server:
        server.listen()
        with pytest.raises(FetchError, match="a basebackup that does not start cleanly"):
            fetch(server)
    fetch.check_nothing_left()


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1?foo=bar", "nonsense", "port=99999", "sslmode=maybe"]
)
def test_a_bad_url(fetch: Fetcher, url: str) -> None:
    """A bad URL is an error at once."""
    with pytest.raises(
        (ConfigError, RefusedError), match=r"the URL cannot be|invalid (port|sslmode)"
    ):
        fetch_basebackup(FetchRequest(url, TENANT, TIMELINE), fetch.dest)
    fetch.check_nothing_left()


def test_a_full_disk(fetch: Fetcher, archive: Archive) -> None:
    """Ends the fetch at once, says what is missing, and leaves nothing."""
    with BadService(serves(archive.data)) as server:
        server.listen()
        script = (
            f"mount -t tmpfs -o size=4m none {fetch.place} && "
            f'"$@"; code=$?; ls -A {fetch.place}; exit $code'
        )
        argv = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        done = subprocess.run(
            [*argv, *cli(server, fetch.dest)], capture_output=True, text=True, check=False
        )
        if "bbcache" not in done.stderr:
            pytest.skip(f"no mount in a namespace of its own here: {done.stderr}")
        assert server.count == 1
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match("bbcache: error: no space for .*\nhint: Make room", done.stderr)


def test_a_dest_that_is_filled_meanwhile(fetch: Fetcher, archive: Archive) -> None:
    """A DEST that another program fills meanwhile is left as it is."""

    def script(peer: Peer) -> None:
        peer.copy(archive.data)
        fetch.dest.mkdir()
        (fetch.dest / "theirs").touch()
        peer.end_copy()

    with BadService(script) as server:
        server.listen()
        with pytest.raises(PostgresError, match="is not empty any more"):
            fetch(server)
    assert [path.name for path in fetch.place.rglob("*")] == ["pgdata", "theirs"]


# The tests may run where a signal is ignored, as in the background of a script.
_COMMAND = """
import signal, sys
from bbcache.cli import main
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
sys.exit(main(sys.argv[1:]))
"""


def cli(server: BadService, dest: Path) -> list[str]:
    """The command that fetches from a server."""
    ids = (str(TENANT), str(TIMELINE))
    return [sys.executable, "-c", _COMMAND, "fetch", server.url, *ids, str(dest)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal(fetch: Fetcher, archive: Archive, number: signal.Signals) -> None:
    """In the middle of an archive: nothing is left, and the status is the shell's."""
    is_half = threading.Event()
    with BadService(falls_silent(_half(archive), is_half)) as server:
        server.listen()
        with subprocess.Popen(cli(server, fetch.dest), stderr=subprocess.PIPE, text=True) as child:
            assert is_half.wait(CHILD_DEADLINE_S)
            wait_until(lambda: any(fetch.place.rglob("PG_VERSION")))
            child.send_signal(number)
            _, complaint = child.communicate(timeout=CHILD_DEADLINE_S)
    assert child.returncode == 128 + number
    assert complaint in ("bbcache: interrupted\n", "bbcache: terminated\n", "bbcache: hung up\n")
    fetch.check_nothing_left()


@pytest.mark.parametrize("phase", ["connect", "answer", "pause"])
def test_stopped_while_it_waits(fetch: Fetcher, phase: str) -> None:
    """For a connection, for the first byte, or between two attempts: likewise."""
    is_waiting = threading.Event()

    def script(peer: Peer) -> None:
        if phase == "connect":
            peer.begin()
        elif phase == "answer":
            peer.let_in()
        else:
            return
        is_waiting.set()
        peer.wait_gone()

    with BadService(script) as server:
        server.listen()
        with subprocess.Popen(cli(server, fetch.dest), stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            if phase == "pause":
                assert child.stderr.readline().startswith("bbcache: attempt 1 of 11 failed: ")
            else:
                assert is_waiting.wait(CHILD_DEADLINE_S)
            child.send_signal(signal.SIGTERM)
            _, complaint = child.communicate(timeout=CHILD_DEADLINE_S)
    assert (child.returncode, complaint) == (128 + signal.SIGTERM, "bbcache: terminated\n")
    fetch.check_nothing_left()


def test_killed(fetch: Fetcher, archive: Archive) -> None:
    """What a killed one has left is removed by the next; never what one is still at."""
    strangers = [".bbcache-fetch-0123456789abcdef", ".bbcache-fetch-xyz", "else"]
    for name in strangers:
        (fetch.place / name).mkdir(mode=0o700)
    (fetch.place / strangers[0] / "precious").touch()
    other = Fetcher(fetch.place)
    other.dest = fetch.place / "other"
    first_half, second_half = threading.Event(), threading.Event()
    check_cancelled = threading.Event()

    def stopping(peer: Peer) -> None:
        half = _half(archive)
        peer.copy(half)
        second_half.set()
        assert check_cancelled.wait(CHILD_DEADLINE_S)
        rest = archive.data[len(half) :]
        peer.send(backend.copy_data_head(len(rest)), rest)
        peer.end_copy()

    with BadService(
        falls_silent(_half(archive), first_half), stopping, serves(archive.data)
    ) as server:
        server.listen()
        with subprocess.Popen(cli(server, fetch.dest)) as child:
            assert first_half.wait(CHILD_DEADLINE_S)
            wait_until(lambda: any(fetch.place.rglob("PG_VERSION")))
            (left,) = set(os.listdir(fetch.place)) - {*strangers}
            child.kill()
        living = Worker(other, server)
        assert second_half.wait(CHILD_DEADLINE_S)
        wait_until(lambda: any(fetch.place.rglob("PG_VERSION")))
        assert left not in os.listdir(fetch.place)
        fetch(server)
        check_cancelled.set()
        assert isinstance(living.result(), FetchSummary)
    assert set(os.listdir(fetch.place)) == {*strangers, "pgdata", "other"}
    for dest in (fetch.dest, other.dest):
        assert inspect_pgdata(dest).checkpoint_end_lsn == archive.lsn


PIECES = st.sampled_from(
    [
        *(backend.COPY_OUT, backend.COPY_DONE, backend.READY_FOR_QUERY, backend.EMPTY_QUERY),
        *(backend.command_complete("SELECT 1"), backend.command_complete("COPY 0")),
        *(backend.NO_DATA, backend.PARSE_COMPLETE, backend.AUTHENTICATION_OK),
        *(error("no"), error("not found"), error("no", "57P01", "FATAL"), b"E\0\0\0\5\0"),
        *(backend.copy_data_head(3) + b"abc", backend.copy_data_head(0), b"d\0\0\0\0"),
        *(b"G\0\0\0\7\0\0\0", b"W\0\0\0\7\0\0\0", b"D\0\0\0\6\0\0", b"T\0\0\0\6\0\0"),
        *(b"N\0\0\0\5\0", b"S\0\0\0\6\0\0", b"d\xff\xff\xff\xff", b"H\0\0\0\4", b"?\0\0\0\4"),
    ]
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    pieces=st.lists(PIECES | st.binary(max_size=20), max_size=8),
    is_let_in=st.booleans(),
    is_copy=st.booleans(),
)
def test_a_hostile_service(
    fetch: Fetcher, pieces: list[bytes], *, is_let_in: bool, is_copy: bool
) -> None:
    """Whatever it says, the fetch ends in time with an error of its own, and leaves nothing."""

    def script(peer: Peer) -> None:
        if is_let_in:
            peer.let_in()
        else:
            peer.begin()
        peer.send(backend.COPY_OUT * is_copy, *pieces)

    with BadService(script) as server:
        server.listen()
        with pytest.raises(FetchError):
            fetch(server, attempt_count=1, timeout_s=10)
    fetch.check_nothing_left()
