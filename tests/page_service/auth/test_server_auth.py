"""Nobody gets a byte of an archive without the token for it, nor a token through in clear."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_service import wire
from page_service.certificates import certificate
from page_service.tokens import Signer
from page_service.wire import WireClient, copied, kinds
from prometheus_client import CollectorRegistry
from support.cache_helpers import LSN_A, MIB

from bbcache.errors import ConfigError
from bbcache.ids import TenantId
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from page_service.conftest import Bench

    from bbcache.testing import MemoryTimeline


class Locked:
    """A bench whose service asks for tokens, and a timeline that it holds."""

    def __init__(self, bench: Bench, directory: Path, tls: ssl.SSLContext | None = None) -> None:
        self.signer = Signer()
        keys = TokenKeys(self.signer.write_public(directory / "key.pem"))
        self.bench = bench
        bench.serve(verifier=keys, tls=tls, max_connections=50)
        self.timeline: MemoryTimeline = bench.harness.prepared(size_bytes=1000)
        self.tenant_id = bench.harness.tenant.tenant_id
        self.command = bench.command(self.timeline, LSN_A, "gzip")
        self.archive = bench.harness.path(self.timeline).read_bytes()

    def token(self, tenant_id: TenantId | None = None) -> str:
        """A token for a tenant: the one that there is, unless another is given."""
        return self.signer.sign(scope="tenant", tenant_id=str(tenant_id or self.tenant_id))


@pytest.fixture
def locked(make_bench: Callable[[], Bench], tmp_path: Path) -> Locked:
    """A service that asks for tokens."""
    return Locked(make_bench(), tmp_path)


def test_a_good_token(locked: Locked) -> None:
    """It lets in, and Neon's server_version is not told."""
    client = locked.bench.client()
    assert kinds(client.log_in(locked.token())) == "RSSSSSKZ"
    assert copied(client.ask(locked.command)) == locked.archive


@pytest.mark.parametrize("token", ["", "x.y.z", Signer().sign()], ids=["empty", "junk", "foreign"])
def test_a_bad_token(locked: Locked, token: str) -> None:
    """It is the end, in Neon's words and no more of them."""
    client = locked.bench.client()
    client.send(wire.startup(user="u"), wire.password(token), wire.query(locked.command))
    replies = client.rest()
    assert kinds(replies) == "RE"
    assert replies[-1].fields() == {"S": "FATAL", "C": "XX000", "M": "JWT authentication error"}
    locked.bench.wait_gone()
    assert locked.bench.endings() == {"unauthorized": 1}


def test_another_tenants_token(locked: Locked) -> None:
    """It lets in, and opens nothing of this one, whether that exists or not."""
    client = locked.bench.logged_in(locked.token(TenantId.generate()))
    for command in (locked.command, f"basebackup {TenantId.generate()} {TenantId.generate()}"):
        error, ready = client.ask(command)
        assert error.fields()["M"] == "JWT authentication error"
        assert error.fields()["D"] == "Tenant id mismatch. Permission denied"
        assert ready.kind == "Z"
        client.send(wire.parse(command), wire.bind(), wire.execute(), wire.SYNC)
        assert client.until("Z")[2].fields()["M"] == (
            "Unauthorized: Tenant id mismatch. Permission denied"
        )
    assert locked.bench.counts("pageserver_compute_commands_total") == {}


FORMS = [
    *("basebackup {}", "basebackup {} gzip", "basebackup {} latest --gzip --replica"),
    *("BaseBackup {} {lsn}", "basebackup {} {lsn} --gzip", "basebackup {} {lsn} replica;"),
    *("fullbackup {}", "FULLBACKUP {} {lsn}", "fullbackup {} {lsn} {lsn}"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_command_needs_a_token_for_it(locked: Locked, form: str) -> None:
    """However it is spelled, simple or extended; one for the timeline opens that alone."""
    other = locked.bench.harness.prepared(lsn=LSN_A)
    ids = {
        timeline: locked.bench.command(timeline, name="").strip()
        for timeline in (locked.timeline, other)
    }
    claims = {"tenant_id": str(locked.tenant_id), "timeline_id": str(other.timeline_id)}
    refused = [
        locked.signer.sign(scope="timeline", **claims),
        locked.signer.sign(scope="admin", **claims),
        locked.token(TenantId.generate()),
    ]
    command = form.format(ids[locked.timeline], lsn=LSN_A)
    for token in refused:
        client = locked.bench.logged_in(token)
        assert client.ask(command)[0].fields()["M"] == "JWT authentication error"
        client.send(wire.parse(command), wire.bind(), wire.execute(), wire.SYNC)
        assert kinds(client.until("Z")) == "12EZ"
    assert locked.bench.counts("pageserver_compute_commands_total") == {}
    client = locked.bench.logged_in(refused[0])
    assert kinds(client.ask(form.format(ids[other], lsn=LSN_A))) == "HdcCZ"


def test_a_token_that_expires_while_connected(
    make_bench: Callable[[], Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is good for no command any more."""
    signer, bench, now_s = Signer(), make_bench(), time.time()
    bench.serve(verifier=TokenKeys(signer.write_public(tmp_path / "key.pem")))
    timeline = bench.harness.prepared()
    client = bench.logged_in(signer.sign(scope="pageserverapi", exp=int(now_s) + 3600))
    assert kinds(client.ask(bench.command(timeline, "gzip"))) == "HdcCZ"
    monkeypatch.setattr(time, "time", lambda: now_s + 3600 + 60)
    (error, _) = client.ask(bench.command(timeline, "gzip"))
    assert error.fields()["D"] == "the token has expired. Permission denied"


HOSTILE = st.sampled_from(
    [
        *(wire.startup(user="u"), wire.ssl_request(), wire.gss_request(), wire.SYNC),
        *(wire.password("x"), wire.bind(), wire.describe(), wire.execute(), wire.FLUSH),
        *(wire.packed(b"d", b"x"), wire.packed(b"c"), wire.cancel_request(b"\0\0\0\1abcd")),
    ]
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pieces=st.lists(HOSTILE | st.binary(max_size=20) | st.none(), max_size=12))
def test_hostile_strangers(locked: Locked, pieces: list[bytes | None]) -> None:
    """A stranger gets no byte of an archive for any input, and the service goes on."""
    command = wire.query(locked.command)
    sock = locked.bench.socket()
    try:
        for piece in pieces:
            sock.sendall(command if piece is None else piece)
        sock.shutdown(1)
        received = b""
        while piece := sock.recv(1 << 16):
            received += piece
    except OSError:
        received = b""
    finally:
        sock.close()
    assert locked.archive[:16] not in received
    assert "H" not in {reply.kind for reply in wire.split(received.lstrip(b"N"))[0]}
    client = locked.bench.logged_in(locked.token())
    assert copied(client.ask(locked.command)) == locked.archive
    client.close()


def test_reload_of_keys(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """A new key lets in as soon as it is read, and an old one does not any more."""
    old, new = Signer(), Signer()
    keys = TokenKeys(old.write_public(tmp_path / "key.pem"))
    bench = make_bench()
    bench.serve(verifier=keys)
    bench.logged_in(old.sign())
    new.write_public(tmp_path / "key.pem")
    keys.reload()
    bench.logged_in(new.sign())
    assert kinds(bench.client().log_in(old.sign())) == "E"


def test_tls(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """Token and archive go through it, large archives and many commands, too."""
    server, trusting = certificate(tmp_path)
    locked = Locked(make_bench(), tmp_path, server)
    large = locked.bench.harness.prepared(size_bytes=5 * MIB)
    sock = locked.bench.socket()
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    client = WireClient(trusting.wrap_socket(sock, server_hostname="127.0.0.1"))
    assert kinds(client.log_in(locked.token())) == "RSSSSSKZ"
    assert copied(client.ask(locked.command)) == locked.archive
    whole = locked.bench.harness.path(large).read_bytes()
    assert copied(client.ask(locked.bench.command(large, LSN_A, "gzip"))) == whole
    client.close()


@pytest.mark.parametrize("hello", [b"", b"no TLS at all, but rather some text" * 9])
def test_tls_that_does_not_come_about(
    make_bench: Callable[[], Bench], tmp_path: Path, hello: bytes
) -> None:
    """The connection ends, and that is all."""
    server, _ = certificate(tmp_path)
    bench = make_bench()
    bench.serve(tls=server)
    sock = bench.socket()
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    sock.sendall(hello)
    sock.close()
    bench.wait_gone()
    assert bench.endings() == {"broken": 1}


def test_no_token_in_clear_where_there_is_tls(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """A client that does not ask for TLS is sent away before it is asked for its token."""
    server, _ = certificate(tmp_path)
    locked = Locked(make_bench(), tmp_path, server)
    client = locked.bench.client()
    client.send(wire.startup(user="u"))
    (error,) = client.rest()
    assert error.fields()["M"] == "must connect with TLS"
    assert error.fields()["H"] == "Add sslmode=require to the connection string."


def test_exposure(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """Beyond loopback it listens with tokens and TLS only, unless told to in so many words."""
    server, _ = certificate(tmp_path)
    keys = TokenKeys(Signer().write_public(tmp_path / "key.pem"))
    everywhere = Address("0.0.0.0", 0)  # noqa: S104 - to be refused
    bench = make_bench()
    with pytest.raises(
        ConfigError, match=r"no token is asked for\nhint: .*--allow-unauthenticated"
    ):
        bench.serve(listen=everywhere)
    with pytest.raises(ConfigError, match=r"in clear text\nhint: .*--allow-cleartext-tokens"):
        bench.serve(listen=everywhere, verifier=keys)
    with pytest.raises(ConfigError, match="no token is asked for"):
        bench.serve(listen=everywhere, tls=server)
    bench.serve(listen=everywhere, verifier=keys, tls=server).close()
    for config in (
        PageServiceConfig(listen=everywhere, allow_unauthenticated=True),
        PageServiceConfig(listen=Address("::1", 0)),
        PageServiceConfig(listen=Address("localhost", 0)),
    ):
        PageService(bench.source(), config, registry=CollectorRegistry()).close()
