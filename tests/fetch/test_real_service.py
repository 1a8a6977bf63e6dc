"""The command against the real service: PostgreSQL starts from what it has fetched."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from page_service.certificates import certificate
from page_service.tokens import Signer
from pageserver.conftest import make_lab  # noqa: F401 - a fixture
from prometheus_client import CollectorRegistry

from bbcache.cli import main
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from bbcache.postgres.server.user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import ClusterFactory
    from pageserver.conftest import Lab

    from bbcache.ids import TenantId
    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


class Served:
    """A timeline with a table, and a service with TLS and tokens that gives its basebackup."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.directory = directory
        self.signer = Signer()
        lab.open()
        address = lab.add_timeline()
        self.tenant_id, self.timeline_id = address
        self.lsn = lab.play(address, "create table t as select generate_series(1, 1000) i")
        config = PageServiceConfig(listen=Address("127.0.0.1", 0))
        self.service = PageService(
            CacheSource(lab.pageserver.tenants, lab.pageserver.cache, config),
            config,
            verifier=TokenKeys(self.signer.write_public(directory / "key.pem")),
            tls=certificate(directory)[0],
            registry=CollectorRegistry(),
        )

    def url(self, **parameters: object) -> str:
        """Where it is."""
        address = self.service.address
        words = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://{address.host}:{address.port}/?{words}"

    @property
    def trusting_url(self) -> str:
        """The same, to verify the certificate."""
        return self.url(sslmode="verify-full", sslrootcert=self.directory / "server.crt")

    def token(self, tenant_id: TenantId) -> str:
        """A token for a tenant."""
        return self.signer.sign(scope="tenant", tenant_id=str(tenant_id))

    def arguments(self, url: str, dest: Path, *words: str) -> list[str]:
        """Those of the command."""
        owner = ["--owner", ServerUser.current().name] if os.geteuid() == 0 else []
        ids = (str(self.tenant_id), str(self.timeline_id))
        return ["fetch", *owner, "--attempts", "2", url, *ids, *words, str(dest)]


@pytest.fixture
def served(
    make_lab: Callable[[PostgresBinaries], Lab],  # noqa: F811 - the fixture
    tmp_path: Path,
    pg: PostgresBinaries,
) -> Iterator[Served]:
    """One for each PostgreSQL."""
    served = Served(make_lab(pg), tmp_path)
    with served.service:
        yield served


@pytest.mark.parametrize("position", ["lsn", "latest", ""])
def test_postgres_starts_from_it(
    served: Served,
    pg: PostgresBinaries,
    make_cluster: ClusterFactory,
    capsys: pytest.CaptureFixture[str],
    position: str,
) -> None:
    """With a token from a file, over TLS; cleanly, and with the data."""
    token_path = served.directory / "token"
    token_path.write_text(served.token(served.tenant_id) + "\n")
    dest = make_cluster.new_dir()
    words = {"lsn": [str(served.lsn)], "latest": ["latest"], "": []}[position]
    arguments = served.arguments(served.trusting_url, dest, *words)
    assert main([*arguments, "--json", "--token-file", str(token_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["lsn"] == str(served.lsn)
    assert document["dest"] == str(dest)
    assert (document["tenant_id"], document["timeline_id"]) == (
        str(served.tenant_id),
        str(served.timeline_id),
    )
    assert document["attempt_count"] == 1
    assert 0 < document["received_bytes"] < document["size_bytes"]
    members = sum(1 for _ in dest.rglob("*"))
    assert document["member_count"] in (members, members + 1)  # a tar may name its top
    with make_cluster.on(pg, dest) as cluster:
        cluster.start()
        assert cluster.psql("select count(*), sum(i) from t") == "1000|500500"
        assert "not properly shut down" not in cluster.read_log()


def test_without_logical_replication(
    served: Served,
    pg: PostgresBinaries,
    make_cluster: ClusterFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy for use beside the timeline starts no workers for its subscriptions."""
    monkeypatch.setenv("PGPASSWORD", served.token(served.tenant_id))
    dest = make_cluster.new_dir()
    arguments = served.arguments(served.url(sslmode="require"), dest)
    assert main([*arguments, "--without-logical-replication"]) == 0
    with make_cluster.on(pg, dest) as cluster:
        cluster.start()
        assert cluster.psql("show max_logical_replication_workers") == "0"
        assert "not properly shut down" not in cluster.read_log()


def test_a_token_from_the_environment(
    served: Served,
    make_cluster: ClusterFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As PGPASSWORD; the summary is a sentence."""
    monkeypatch.setenv("PGPASSWORD", served.token(served.tenant_id))
    dest = make_cluster.new_dir()
    assert main(served.arguments(served.url(sslmode="require"), dest)) == 0
    sentence = capsys.readouterr().out
    assert sentence.startswith(f"{dest} is timeline {served.timeline_id} at {served.lsn}: ")
    assert sentence.endswith(" s and 1 attempt\n")


def test_refusals(
    served: Served,
    make_cluster: ClusterFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is said once, with the status of an error, and leaves nothing."""
    right = served.token(served.tenant_id)
    others = served.token(type(served.tenant_id).generate())
    certificate(make_directory(served.directory / "other"))
    stranger = served.url(
        sslmode="verify-full", sslrootcert=served.directory / "other" / "server.crt"
    )
    dest = make_cluster.new_dir()
    arguments = served.arguments(served.trusting_url, dest)
    unknown = [*arguments[:-2], "00" * 16, str(dest)]
    late = served.arguments(served.trusting_url, dest, "0/28")
    for token, argv, said in (
        ("x.y.z", arguments, "FATAL:  JWT authentication error"),
        (others, arguments, "the service says: JWT authentication error: Tenant id mismatch"),
        (right, unknown, "the service says: not found: timeline "),
        (right, late, "the service says: invalid basebackup lsn"),
        (right, served.arguments(stranger, dest), "certificate verify failed"),
        (right, served.arguments(served.url(sslmode="disable"), dest), "must connect with TLS"),
    ):
        monkeypatch.setenv("PGPASSWORD", token)
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert "attempt" not in err
        assert token not in err
    assert not [path for path in dest.parent.iterdir() if path.name.startswith(".bbcache")]
    assert not dest.exists()


def make_directory(path: Path) -> Path:
    """Make it."""
    path.mkdir()
    return path
