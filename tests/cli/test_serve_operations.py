"""``bbcache serve`` under an operator: its logs, its reload, systemd, several addresses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from cli.test_serve import place, serve  # noqa: F401 - fixtures
from page_service import wire
from page_service.wire import WireClient, kinds
from support.cache_helpers import CHILD_DEADLINE_S, DEADLINE_S
from support.helpers import wait_until

from bbcache import TimelineId
from bbcache.cli.main import ExitCode, main
from bbcache.serving.listening import Address, address_of, open_listeners

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.test_serve import Place, Served

LOOPBACK = Address("127.0.0.1", 0)
WRONG = wire.query(f"basebackup {'0' * 32} {'0' * 32}")


def ask(host: str, port: int) -> list[wire.Reply]:
    """The answer to a driver's statement there."""
    client = WireClient(socket.create_connection((host, port), DEADLINE_S))
    try:
        client.log_in()
        return client.ask("BEGIN")
    finally:
        client.close()


def test_several_addresses(serve: Callable[..., Served], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """Each is announced and served, for clients and for HTTP; `[::]` is both families."""
    served = serve(
        *(tmp_path / "root", "--create", "--listen", "[::]:0", "--http", "[::1]:0"),
        *("--allow-unauthenticated",),
    )
    first, second = (line for line in served.lines if line.startswith("basebackups on "))
    assert kinds(ask("127.0.0.1", int(first.rpartition(":")[2]))) == "CZ"
    port = int(second.rpartition(":")[2])
    assert second == f"basebackups on [::]:{port}"
    for host in ("127.0.0.1", "::1"):
        assert kinds(ask(host, port)) == "CZ"
    assert len([line for line in served.lines if line.startswith("status on http://")]) == 2
    assert served.http("healthz") == b"ok\n"


def test_a_json_log(serve: Callable[..., Served], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """Each line is a record, with its time in UTC, also one with a traceback or a hint."""
    served = serve(tmp_path / "root", "--create", "--log-format", "json", "--log-level", "debug")
    served.http("healthz")
    client = served.client()
    client.send(WRONG)
    assert kinds(client.until("Z")) == "EZ"
    client.close()
    served.signal(signal.SIGTERM)
    served.end()
    records = [json.loads(line) for line in served.err.splitlines()]
    for record in records:
        assert record.keys() >= {"time", "level", "logger", "message"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"])
    assert {"DEBUG", "INFO", "WARNING"} <= {record["level"] for record in records}
    assert any("result=error" in record["message"] for record in records)


@pytest.mark.postgres
def test_a_text_log(serve: Callable[..., Served], place: Place) -> None:  # noqa: F811 - the fixtures
    """Times are UTC with their offset; the access log can be off, and tells of failures even so."""
    served = serve(place.root, "--no-access-log")
    client = served.client()
    assert kinds(client.ask(place.command("gzip"))) == "HdcCZ"
    client.ask(place.command("nowhere"))
    client.send(WRONG)
    client.until("Z")
    client.close()
    served.signal(signal.SIGTERM)
    served.end()
    assert "result=ok" not in served.err
    assert "result=error" in served.err
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 [A-Z]+ bbcache", served.err)


def test_a_log_level(serve: Callable[..., Served], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """Only what is as bad or worse is written."""
    (tmp_path / "root").mkdir()
    served = serve(tmp_path / "root", "--log-level", "error")
    served.signal(signal.SIGTERM)
    served.end()
    assert served.err == ""


@pytest.mark.postgres
def test_a_second_tier(serve: Callable[..., Served], place: Place, tmp_path: Path) -> None:  # noqa: F811 - the fixtures
    """What one node has built, another one with the tenant has warm before its first client."""
    key, other = tmp_path / "key", place.root.with_name("other")
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    (tmp_path / "store").mkdir()
    config = tmp_path / "pageserver.toml"
    config.write_text(
        f"[basebackup_cache_config.tier]\nurl = 'file://{tmp_path}/store'\nkey_files = ['{key}']\n"
        "fetch_timeout = '1m'\n"
    )
    place.forget()
    first = serve(place.root, "--config", str(config))
    client = first.client()
    assert kinds(client.ask(place.command("gzip"))) == "HdcCZ"
    client.close()
    wait_until(lambda: first.status()["tier"]["uploads"]["stored"] == 1)
    (other / "tenants").mkdir(parents=True)
    tenant = place.root / "tenants" / str(place.address.tenant_id)
    shutil.copytree(tenant, other / "tenants" / tenant.name)
    second = serve(other, "--config", str(config))
    wait_until(lambda: second.status()["tier"]["fetches"]["hit"] == 1)
    wait_until(lambda: second.status()["entry_count"] == 1)
    client = second.client()
    assert kinds(client.ask(place.command("gzip"))) == "HdcCZ"
    client.close()
    wait_until(lambda: second.status()["answers"]["hit"] == 1)
    assert b'bbcache_tier_fetch_total{result="hit"} 1.0' in second.http("metrics")
    assert b"<h2>Second tier</h2>" in second.http("")
    key.write_bytes(b"short")
    second.signal(signal.SIGHUP)
    wait_until(lambda: "the keys of the tier from before stay in use" in second.err)


def test_a_tier_that_cannot_be_used_is_an_error_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is missing is named; nothing is served."""
    config = tmp_path / "pageserver.toml"
    config.write_text(
        "[basebackup_cache_config.tier]\nurl = 's3://bucket'\nkey_files = ['/missing/key']\n"
    )
    arguments = ["serve", "--root", str(tmp_path / "root"), "--create", "--config", str(config)]
    assert main([*arguments, "--listen", "127.0.0.1:0", "--no-http"]) == ExitCode.ERROR
    assert "cannot read the key /missing/key" in capsys.readouterr().err


@pytest.mark.postgres
def test_a_hangup_reloads_and_never_ends(serve: Callable[..., Served], place: Place) -> None:  # noqa: F811 - the fixtures
    """Settings and timelines are read again; settings that are wrong stay as they were."""
    config = place.root / "pageserver.toml"
    config.write_text("[basebackup_cache_config]\nmax_size_entries = 7\n")
    served = serve(place.root, "--config", str(config))

    def limit(setting: str = "max_size_entries") -> int:
        limits = {each["setting"]: each["limit"] for each in served.status()["meters"]}
        return int(limits[setting])

    config.write_text("[basebackup_cache_config]\nmax_size_entries = 9\nprepare_channel_size = 1\n")
    timelines = place.root / "tenants" / str(place.address.tenant_id) / "timelines"
    timeline_id = TimelineId.generate()
    shutil.copytree(timelines / str(place.address.timeline_id), timelines / str(timeline_id))
    served.signal(signal.SIGHUP)
    wait_until(lambda: "were read again" in served.err)
    assert limit() == 9
    assert "max_size_entries is 9 now" in served.err
    assert "prepare_channel_size is 1 from the next start on" in served.err
    assert limit("prepare_channel_size") == 100
    client = served.client()
    command = f"basebackup {place.address.tenant_id} {timeline_id} gzip"
    assert kinds(client.ask(command)) == "HdcCZ"
    shutil.rmtree(timelines / str(timeline_id))
    config.write_text("[basebackup_cache_config]\nmax_size_entries = 0\n")
    served.signal(signal.SIGHUP)
    wait_until(lambda: served.err.count("were read again") == 2)
    assert "the settings from before stay in use" in served.err
    assert limit() == 9
    assert client.ask(command.replace("gzip", "latest gzip"))[0].kind == "E"
    client.close()
    config.unlink()


@pytest.mark.postgres
def test_timelines_are_noticed_without_a_hangup(
    serve: Callable[..., Served],  # noqa: F811 - the fixture
    place: Place,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """Once in a clean-up period."""
    config = tmp_path / "pageserver.toml"
    config.write_text("[basebackup_cache_config]\ncleanup_period = '100ms'\n")
    served = serve(place.root, "--config", str(config))
    timelines = place.root / "tenants" / str(place.address.tenant_id) / "timelines"
    timeline_id = TimelineId.generate()
    # A rescan may meet it half-copied: then it is broken, and the next one finds it whole.
    shutil.copytree(timelines / str(place.address.timeline_id), timelines / str(timeline_id))
    client = served.client()
    command = f"basebackup {place.address.tenant_id} {timeline_id} gzip"
    wait_until(lambda: kinds(client.ask(command)) == "HdcCZ")
    shutil.rmtree(timelines / str(timeline_id))
    wait_until(lambda: f"timeline {timeline_id} of tenant" in served.err)
    wait_until(lambda: "is gone" in served.err)
    client.close()


def test_tenants_that_cannot_be_listed(serve: Callable[..., Served], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """The service is degraded, says why, and is ready again when they can be listed."""
    root = tmp_path / "root"
    served = serve(root, "--create")
    (root / "tenants").rename(tmp_path / "away")
    served.signal(signal.SIGHUP)
    wait_until(lambda: served.http("readyz").startswith(b"degraded: "), CHILD_DEADLINE_S)
    assert b"cannot be listed" in served.http("readyz")
    assert b"bbcache_pageserver_degraded 1.0" in served.http("metrics")
    (tmp_path / "away").rename(root / "tenants")
    served.signal(signal.SIGHUP)
    wait_until(lambda: served.http("readyz") == b"ready\n", CHILD_DEADLINE_S)


def test_systemd_is_told(serve: Callable[..., Served], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """When the service is ready, reloads, is ready again, and stops."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE_S)

        def told() -> list[str]:
            return systemd.recv(1000).decode().split("\n")

        served = serve(
            tmp_path / "root", "--create", before=lambda: os.environ.update(NOTIFY_SOCKET=path)
        )
        assert told() == ["READY=1", f"STATUS=basebackups on 127.0.0.1:{served.port}"]
        served.signal(signal.SIGHUP)
        assert re.fullmatch(r"RELOADING=1 MONOTONIC_USEC=\d+", " ".join(told()))
        assert told() == ["READY=1"]
        served.signal(signal.SIGTERM)
        assert told() == ["STOPPING=1"]
        assert served.end() == 0


@pytest.mark.parametrize("names", ["bbcache:http", ""])
def test_sockets_of_systemd(
    serve: Callable[..., Served],  # noqa: F811 - the fixture
    tmp_path: Path,
    names: str,
) -> None:
    """It serves on those that are there, by their names, and not where it would listen itself."""
    first, second = open_listeners([LOOPBACK, LOOPBACK])

    def give() -> None:
        for fd, copy in enumerate([os.dup(each.fileno()) for each in (first, second)], 3):
            os.dup2(copy, fd)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES=names)

    with first, second:
        ports = [address_of(listener).port for listener in (first, second)]
        served = serve(tmp_path / "root", "--create", before=give, pass_fds=(3, 4))
    announced = [line for line in served.lines if line.startswith("basebackups on ")]
    assert [int(line.rpartition(":")[2]) for line in announced] == ports[: 1 if names else 2]
    assert kinds(ask("127.0.0.1", ports[0])) == "CZ"
    assert served.http("healthz") == b"ok\n"
    if names:
        assert served.value("status on http://") == f"127.0.0.1:{ports[1]}/"
