"""A service that never ends, or sends more than anybody wants: the fetch ends all the same."""

from __future__ import annotations

import itertools
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from fetch.bad_service import BadService, Peer, serves
from fetch.test_download import Fetcher
from isal import igzip
from support.helpers import TENANT, TIMELINE
from support.restore_helpers import directory, file, make_tar

from bbcache.cli import main
from bbcache.errors import ArchiveError, ConfigError, LimitError
from bbcache.fetch.download import FetchRequest, fetch_basebackup
from bbcache.fetch.errors import FetchError
from bbcache.fetch.retry import RetryPolicy
from bbcache.page_service.protocol import backend
from bbcache.postgres.pgdata.tar_reader import TarLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Script = Callable[[Peer], None]

# A member of a gzip stream that goes on with blocks of nothing, and one of zeros.
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\3"
_EMPTY_BLOCK = b"\0\0\0\xff\xff"
_NOTICE = b"N" + backend.error_response("NOTICE", "00000", "no news")[1:]


def endless(first: bytes, piece: bytes) -> Script:
    """Send the first bytes of a copy, and then a piece of it for ever, as fast as it goes."""

    def script(peer: Peer) -> None:
        peer.copy(first)
        message = backend.copy_data_head(len(piece)) + piece
        while True:
            peer.send(message)

    return script


def one_message(peer: Peer) -> None:
    """Announce a message of 256 MiB, and send it byte by byte, as fast as it goes."""
    peer.let_in()
    peer.send(backend.COPY_OUT, backend.copy_data_head(1 << 28))
    while True:
        peer.send(b"\0" * 10)


def notices(peer: Peer) -> None:
    """Answer the command with nothing but notices."""
    peer.let_in()
    while True:
        peer.send(_NOTICE * 10)


def handshake(peer: Peer) -> None:
    """Let the client in, but never to an end; not faster than it must be to go on."""
    peer.begin()
    peer.send(backend.AUTHENTICATION_OK)
    while True:
        peer.send(backend.parameter_status("x", "y"))
        time.sleep(0.01)


@pytest.mark.parametrize(
    "script",
    [
        endless(make_tar()[:2000], b"\0" * 512),
        endless(_GZIP_HEAD, _EMPTY_BLOCK * 100),
        endless(b"", b"\0"),
        one_message,
        notices,
    ],
    ids=["a member without an end", "gzip blocks of nothing", "drips", "one message", "notices"],
)
def test_the_timeout_holds_against_a_stream_without_an_end(tmp_path: Path, script: Script) -> None:
    """However fast the bytes come, and though nothing is ever waited for."""
    ticks = itertools.count()
    with BadService(script) as server:
        server.listen()
        with pytest.raises(
            FetchError,
            match=r"no attempt is left within 5 s: .*did not send the whole basebackup in time",
        ):
            fetch_basebackup(
                FetchRequest(server.url, TENANT, TIMELINE),
                tmp_path / "pgdata",
                policy=RetryPolicy(timeout_s=5.0),
                clock=lambda: next(ticks) / 20,
                sleep=lambda _: None,
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wish", ["connect_timeout=0", "connect_timeout=86400"])
def test_the_timeout_holds_against_a_login_without_an_end(tmp_path: Path, wish: str) -> None:
    """Also where the URL wishes for a longer one, or for none."""
    with BadService(handshake) as server:
        server.listen()
        with pytest.raises(FetchError, match="no attempt is left within 1 s"):
            fetch_basebackup(
                FetchRequest(f"{server.url}?{wish}", TENANT, TIMELINE),
                tmp_path / "pgdata",
                policy=RetryPolicy(timeout_s=1.0),
            )


@pytest.mark.parametrize("is_gzip", [False, True])
def test_zeros_behind_the_tar(tmp_path: Path, *, is_gzip: bool) -> None:
    """Padding is what tar makes, not more; it is not read to its end."""
    tar = make_tar() + bytes(2 << 20)
    fetch = Fetcher(tmp_path)
    with BadService(serves(igzip.compress(tar) if is_gzip else tar)) as server:
        server.listen()
        with pytest.raises(FetchError, match="more than 1048576 bytes of zeros after its end"):
            fetch(server, attempt_count=1)


def announced(size_bytes: int) -> bytes:
    """A tar with a member that is said to have so many bytes."""
    tar = bytearray(make_tar(file("base/2", 512)))
    at = tar.index(b"base/2\0")
    tar[at + 124 : at + 136] = b"\x80" + size_bytes.to_bytes(11, "big")
    header = tar[at : at + 148] + b" " * 8 + tar[at + 156 : at + 512]
    tar[at + 148 : at + 156] = f"{sum(header):06o}\0 ".encode()
    return bytes(tar)


MORE = {
    "a size of 2**62": (announced(2**62), f"the tar has {2**62 + 5120} bytes or more; 10000000"),
    "a sum of sizes": (
        make_tar(*(file(f"base/{n}", 3_000_000) for n in range(2, 7))),
        "bytes or more; 10000000",
    ),
    "members": (make_tar(*(directory(f"base/{n}") for n in range(2, 90))), "more than 50 members"),
    "names": (
        make_tar(*(file(f"base/{n:0200}") for n in range(2, 30)), style=tarfile.GNU_FORMAT),
        "more than 64 bytes for each of the 50 members",
    ),
}


@pytest.mark.parametrize("what", MORE)
def test_more_than_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """One error that names the limit and how to raise it, no other attempt, nothing left."""
    tar, reason = MORE[what]
    argv = [str(TENANT), str(TIMELINE), str(tmp_path / "pgdata")]
    with BadService(serves(tar)) as server:
        server.listen()
        limits = ["--max-size", "10000000", "--max-members", "50"]
        assert main(["fetch", *limits, server.url, *argv]) == 2
        assert server.count == 1
    out, err = capsys.readouterr()
    assert (out, list(tmp_path.iterdir())) == ("", [])
    assert reason in err
    assert err.endswith("\nhint: If that is right, allow more with --max-size or --max-members.\n")


def test_what_is_allowed_is_taken(tmp_path: Path) -> None:
    """The limits are the most that is taken, not more and not less."""
    tar = make_tar()
    fetch = Fetcher(tmp_path)
    content_bytes = len(tar.rstrip(b"\0"))
    with BadService(serves(tar)) as server:
        server.listen()
        with pytest.raises(FetchError, match="does not start cleanly"):  # it is no cluster's
            fetch(server, limits=TarLimits(content_bytes, 4))
        for limits in (TarLimits(content_bytes - 1, 4), TarLimits(content_bytes, 3)):
            with pytest.raises(LimitError):
                fetch(server, limits=limits)


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 1)])
def test_limits_that_are_none(limits: tuple[int, int]) -> None:
    """They are refused by name."""
    with pytest.raises(ConfigError, match="must be at least 1"):
        TarLimits(*limits)


def test_a_damaged_archive_is_not_a_large_one() -> None:
    """What another attempt may mend is told apart from what it cannot."""
    assert not issubclass(LimitError, ArchiveError)
