"""The connection: where TLS is required unasked, and what libpq is told."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from fetch.bad_service import BadService, Peer, serves

from bbcache.errors import ConfigError
from bbcache.fetch.connection import CopyStream, connect
from bbcache.fetch.errors import RefusedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAR_S = 1e6


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGUSER", "PGCONNECT_TIMEOUT"),
        *("PGSERVICE", "PGSERVICEFILE"),
    ):
        monkeypatch.delenv(name, raising=False)


def _url(server: BadService, host: str, **parameters: str) -> str:
    words = "&".join(f"{name}={value}" for name, value in parameters.items())
    return server.url.replace("127.0.0.1", host) + f"?{words}"


# The address 0.0.0.0 leads to this machine, but is not one of loopback's.
@pytest.mark.parametrize(
    ("host", "parameters"),
    [("0.0.0.0", {}), ("localhost", {"hostaddr": "0.0.0.0"})],  # noqa: S104
)
def test_nothing_goes_in_clear_to_another_machine(host: str, parameters: dict[str, str]) -> None:
    """Unless the URL says so, a service there must speak TLS; how to say so is told."""
    with BadService(serves(b"")) as server:
        server.listen()
        with pytest.raises(RefusedError, match=r"does not support SSL.*\nhint: .*sslmode=prefer"):
            connect(_url(server, host, **parameters), None, FAR_S)
        connect(_url(server, host, sslmode="disable", **parameters), None, FAR_S).close()


def test_the_environment_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGSSLMODE counts as the URL's; PGHOST is another machine, too."""
    with BadService(serves(b"")) as server:
        server.listen()
        monkeypatch.setenv("PGHOSTADDR", "0.0.0.0")  # noqa: S104 - not listened to
        for host in ("", "localhost"):  # where it leads to is said by the other one
            with pytest.raises(RefusedError, match="does not support SSL"):
                connect(_url(server, host), None, FAR_S)
        monkeypatch.setenv("PGSSLMODE", "prefer")
        connect(_url(server, ""), None, FAR_S).close()


@pytest.mark.parametrize("by_name", [True, False])
def test_a_service_of_libpq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_name: bool
) -> None:
    """Where it leads to is not known, so an sslmode must be said beside it."""
    with BadService(serves(b"")) as server:
        server.listen()
        port = server.url.rpartition(":")[2].strip("/")
        services = tmp_path / "services"
        services.write_text(f"[far]\nhost=0.0.0.0\nport={port}\ndbname=x\n")
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        url = "service=far" if by_name else ""
        if not by_name:
            monkeypatch.setenv("PGSERVICE", "far")
        with pytest.raises(ConfigError, match=r"\nhint: Add an sslmode "):
            connect(url, None, FAR_S)
        with pytest.raises(RefusedError, match="does not support SSL"):
            connect(f"{url} sslmode=require", None, FAR_S)
        connect(f"{url} sslmode=prefer", None, FAR_S).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_may_be_in_clear(host: str) -> None:
    """There is nobody on the way."""
    with BadService(serves(b"")) as server:
        server.listen()
        connect(_url(server, host), None, FAR_S).close()


@pytest.mark.parametrize(("parameters", "user"), [({}, "bbcache"), ({"user": "u"}, "u")])
def test_a_user_that_needs_no_name_here(parameters: dict[str, str], user: str) -> None:
    """The user is one that a process without a name can have, unless the URL names one."""
    heard: list[list[str]] = []

    def script(peer: Peer) -> None:
        peer.begin()
        heard.append(peer.parameters)

    with BadService(script) as server:
        server.listen()
        with pytest.raises(UnavailableError):
            connect(_url(server, "127.0.0.1", **parameters), None, FAR_S)
    assert heard[0][heard[0].index("user") + 1] == user
    assert heard[0][heard[0].index("application_name") + 1] == "bbcache fetch"


def _stream(server: BadService, read: Callable[[CopyStream], None]) -> None:
    connection = connect(server.url, None, FAR_S)
    try:
        read(CopyStream(connection, "basebackup", FAR_S, math.inf, lambda: 0.0))
    finally:
        connection.close()


@pytest.mark.parametrize("size_bytes", [1, 1000, 300_000])
def test_reads(size_bytes: int) -> None:
    """Pieces are no longer than asked for, and the end comes once and for good."""
    data = bytes(range(256)) * 4000

    def read(stream: CopyStream) -> None:
        pieces = [stream.read(size_bytes) for _ in range(5)]
        assert max(map(len, pieces)) <= size_bytes
        while piece := stream.read(1 << 20):
            pieces.append(piece)
        assert b"".join(pieces) == data
        assert (stream.read(1), stream.size_bytes) == (b"", len(data))

    with BadService(serves(data)) as server:
        server.listen()
        _stream(server, read)
