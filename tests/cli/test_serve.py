"""``bbcache serve`` as a command: what it serves and refuses, its signals, its end."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest
from page_service import wire
from page_service.certificates import write_certificate
from page_service.tokens import Signer
from page_service.wire import WireClient, copied, kinds
from pageserver.conftest import Lab
from support.cache_helpers import CHILD_DEADLINE_S, DEADLINE_S
from support.helpers import TENANT, TIMELINE, tool, wait_until

from bbcache import BasebackupCache, BasebackupCacheConfig, TimelineId
from bbcache.cli import main
from bbcache.cli.stop_signals import STOP_SIGNALS
from bbcache.postgres.pgdata.restore import restore_tarball
from bbcache.postgres.server.user import ServerUser
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import ClusterFactory, Templates
    from pageserver.conftest import Address
    from support.warm_python import WarmChild, WarmPython

    from bbcache import Lsn, TenantId
    from bbcache.postgres.server.cluster import PostgresBinaries


class Served:
    """A process of the command, and its clients; ended at the latest with the test."""

    def __init__(
        self,
        root: Path,
        *options: str,
        before: Callable[[], object] | None = None,
        leaves: bool = False,
        pass_fds: tuple[int, ...] = (),
        warm: WarmPython | None = None,
    ) -> None:
        self._leaves = leaves  # reads stdout as ``head`` does, up to the line that says "ready"
        argv = [
            *("serve", "--root", str(root), "--listen", "127.0.0.1:0"),
            *("--http", "127.0.0.1:0", *options),
        ]
        self.process: subprocess.Popen[str] | WarmChild
        if warm is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bbcache.cli", *argv],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=before,  # noqa: PLW1509 - the tests' process has no lock that matters
                pass_fds=pass_fds,
            )
        else:
            imports = ["bbcache.cli.deployment", "bbcache.cli.serve"]
            self.process = warm.start("bbcache.cli.main:main", argv, imports=imports)
        self.lines: list[str] = []
        self.err = ""
        self._reading = [
            threading.Thread(target=self._read_out, daemon=True),
            threading.Thread(target=self._read_err, daemon=True),
        ]
        for thread in self._reading:
            thread.start()

    def ready(self) -> Served:
        """Wait until it serves."""
        wait_until(self._has_begun, CHILD_DEADLINE_S)
        assert self.is_ready, self.err
        return self

    @property
    def is_ready(self) -> bool:
        """Whether it has said that it serves."""
        return any(line.startswith("ready") for line in self.lines)

    def value(self, prefix: str) -> str:
        """The rest of the line that begins so."""
        return next(line for line in self.lines if line.startswith(prefix)).removeprefix(prefix)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.value("basebackups on 127.0.0.1:"))

    def conninfo(self, **parameters: str) -> str:
        """How libpq finds it."""
        parameters = {"host": "127.0.0.1", "user": "u", "dbname": "d", **parameters}
        return " ".join(f"{name}={value}" for name, value in parameters.items()) + (
            f" port={self.port}"
        )

    def http(self, path: str) -> bytes:
        """The text at a path over HTTP."""
        address = self.value("status on http://").rstrip("/")
        connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"/{path}")
            return connection.getresponse().read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """The status."""
        document: dict[str, Any] = json.loads(self.http("status.json"))
        return document

    def client(self) -> WireClient:
        """A client that was let in."""
        sock = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        try:
            client = WireClient(sock)
            client.log_in()
        except OSError:  # a service that ends may reset what it has not accepted
            sock.close()
            raise
        return client

    def lazy_client(self, place: Place) -> WireClient:
        """A client that is in the middle of a copy, and does not read on.

        It asks for the tar as such, with a whole segment of WAL in it, which is more than the
        buffers of a socket hold; how small it is when compressed is up to what is in the WAL.
        """
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port))
        client = WireClient(sock)
        client.log_in()
        client.send(wire.query(place.command()))
        assert client.sock.recv(1, socket.MSG_PEEK)
        return client

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end: its exit status; all output is there then."""
        status = self.process.wait(CHILD_DEADLINE_S)
        for thread in self._reading:
            thread.join(DEADLINE_S)
        return status

    def close(self) -> None:
        """Kill it, if need be."""
        self.process.kill()
        self.end()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _has_begun(self) -> bool:
        return self.is_ready or self.process.poll() is not None

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if self._leaves and self.is_ready:
                break
        if self._leaves:
            self.process.stdout.close()

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.err += line


@pytest.fixture
def serve(warm_python: WarmPython) -> Iterator[Callable[..., Served]]:
    """Run the command; in a Python that was just started where that matters."""
    running: list[Served] = []

    def run(root: Path, *options: str, is_cold: bool = False, **more: Any) -> Served:
        is_cold |= bool({"before", "pass_fds"} & more.keys())
        warm = None if is_cold else warm_python
        running.append(Served(root, *options, warm=warm, **more))
        return running[-1].ready()

    yield run
    for served in running:
        served.close()


class Place:
    """A directory with one timeline in it."""

    def __init__(self, lab: Lab) -> None:
        lab.open()
        # Larger than all buffers between a service and a client that does not read.
        self.address: Address = lab.add_timeline(initdb_args=["--wal-segsize=16"])
        self.lsn = lab.play(self.address, "create table t as select generate_series(1, 1000) i")
        lab.close()
        self.root = lab.root

    def command(self, *words: object) -> str:
        """A command for the timeline."""
        return " ".join(map(str, ["basebackup", *self.address, *words]))

    def forget(self) -> None:
        """Remove what the cache holds: the next one is a miss."""
        for path in (self.root / "basebackup_cache").glob("basebackup_*"):
            path.unlink()


@pytest.fixture(scope="module")
def place(
    templates: Templates, pg_dir: Path, newest_pg: PostgresBinaries, warm_python: WarmPython
) -> Place:
    """A pageserver's directory, used by one test after the other."""
    directory = Path(tempfile.mkdtemp(prefix="serve-", dir=pg_dir))
    directory.chmod(0o711)
    return Place(Lab(newest_pg, templates, directory / "root", warm_python))


def psql(conninfo: str, command: str, **environment: str) -> bytes:
    """What psql writes to its output."""
    argv = [tool("psql"), "-X", conninfo, "-c", command]
    return subprocess.run(
        argv, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    ).stdout


@pytest.mark.postgres
def test_it_serves(
    serve: Callable[..., Served],
    place: Place,
    make_cluster: ClusterFactory,
    newest_pg: PostgresBinaries,
) -> None:
    """A miss is built, the next one a hit; PostgreSQL starts from it; the status tells."""
    place.forget()
    served = serve(place.root, is_cold=True)
    assert served.value("tenant ") == (
        f"{place.address.tenant_id} timeline {place.address.timeline_id} at {place.lsn}"
    )
    archives = {
        psql(served.conninfo(), place.command(*words)) for words in ([place.lsn, "gzip"], ["gzip"])
    }
    (archive,) = archives
    user = ServerUser.current()
    owner = (user.uid, user.gid) if user.is_dropped else None
    pgdata_dir = make_cluster.new_dir()
    restore_tarball(io.BytesIO(archive), pgdata_dir, owner=owner)
    with make_cluster.on(newest_pg, pgdata_dir) as cluster:
        cluster.start()
        assert cluster.psql("select count(*) from t").strip() == "1000"
    status = served.status()
    assert (status["state"], status["answers"]) == (
        "ready",
        {"hit": 1, "joined": 0, "built": 1, "fetched": 0},
    )
    assert status["entries"][0]["lsn"] == str(place.lsn)
    assert b"process_resident_memory_bytes" in served.http("metrics")
    assert served.http("readyz") == b"ready\n"
    assert b"<h1>bbcache</h1>" in served.http("")
    served.signal(signal.SIGTERM)
    assert served.end() == 0
    assert served.lines[-1] == "stopped"
    assert "bbcache_source=hit" in served.err


@pytest.mark.postgres
def test_the_examples_of_the_docs(
    serve: Callable[..., Served], place: Place, tmp_path: Path
) -> None:
    """What docs/page-service.md says to psql and in Python gives whole archives."""
    served = serve(place.root)
    text = (Path(__file__).parents[2] / "docs/page-service.md").read_text()
    text = text.replace("port=64000", f"port={served.port} user=u").replace(
        "0/19392C0", str(place.lsn)
    )
    text = text.replace("TENANT TIMELINE", f"{place.address.tenant_id} {place.address.timeline_id}")
    tool("psql")
    shell = re.findall(r"^(?:psql|echo) .*$", text, re.MULTILINE)
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    archives = []
    for argv in (*(["sh", "-c", line] for line in shell), [sys.executable, "-c", example]):
        subprocess.run(argv, check=True, cwd=tmp_path, timeout=CHILD_DEADLINE_S)
        (path,) = tmp_path.iterdir()
        data = path.read_bytes()
        archives.append(gzip.decompress(data) if path.suffix == ".gz" else data)
        path.unlink()
    assert len(archives) == 5
    assert len(set(archives[:2] + archives[3:])) == 1  # all but the fullbackup
    assert status_of(served) == {"ok": 5, "error": 0}


def status_of(served: Served) -> dict[str, int]:
    """How many commands were answered, and how many were not."""
    status = served.status()
    return {"ok": sum(status["answers"].values()), "error": sum(status["failures"].values())}


@pytest.mark.postgres
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_clients_end_what_they_are_at(
    serve: Callable[..., Served], place: Place, number: signal.Signals
) -> None:
    """A client in a copy gets all of it, an idle one is disconnected, a new one is refused."""
    served = serve(place.root)
    busy, idle = served.lazy_client(place), served.client()
    served.signal(number)
    (error,) = idle.rest()
    assert error.fields()["C"] == "57P01"
    with pytest.raises(OSError, match=r"refused|reset"):
        served.client()
    assert served.status()["state"] == "draining"
    replies = busy.rest()
    assert kinds(replies) == "HdcCZE"
    name = f"basebackup_{place.address.tenant_id}_{place.address.timeline_id}_{place.lsn:016X}"
    entry = (place.root / f"basebackup_cache/{name}.tar.gz").read_bytes()
    assert copied(replies) == gzip.decompress(entry)
    assert served.end() == 0
    assert served.lines[-1] == "stopped"
    for client in (busy, idle):
        client.close()


@pytest.mark.postgres
@pytest.mark.parametrize("is_impatient", [True, False])
def test_a_client_that_does_not_end(
    serve: Callable[..., Served], place: Place, *, is_impatient: bool
) -> None:
    """It is cut off after its time, or at a second signal."""
    served = serve(place.root, "--drain-timeout", "1h" if is_impatient else "100ms")
    lazy = served.lazy_client(place)
    served.signal(signal.SIGTERM)
    if is_impatient:
        wait_until(lambda: any(line.startswith("stopping") for line in served.lines))
        served.signal(signal.SIGINT)
    assert served.end() == 0
    assert served.lines[-1] == "stopped; 1 clients were disconnected"
    assert "c" not in kinds(_until_cut(lazy))
    lazy.close()


def _until_cut(client: WireClient) -> list[wire.Reply]:
    """What came before the end, whole messages or not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.sock.recv(1 << 20):
            data += piece
    return wire.split(data)[0]


@pytest.mark.postgres
def test_tokens_over_tls(serve: Callable[..., Served], place: Place, tmp_path: Path) -> None:
    """By psql, psycopg 3 and psycopg2, with sslmode=require and verify-full."""
    signer, files = Signer(), write_certificate(tmp_path)
    options = _secured(signer, files, tmp_path)
    served = serve(place.root, *options)
    token = signer.sign(scope="tenant", tenant_id=str(place.address.tenant_id))
    secure = {
        "require": served.conninfo(password=token, sslmode="require"),
        "verify-full": served.conninfo(
            password=token, sslmode="verify-full", sslrootcert=str(files.cert), host="localhost"
        ),
    }
    archives = set()
    for conninfo in secure.values():
        archives.add(psql(conninfo, place.command("gzip")))
        with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
            assert connection.pgconn.ssl_in_use
            with cursor.copy(place.command("gzip").encode()) as copy:
                archives.add(b"".join(map(bytes, copy)))
        connection2 = psycopg2.connect(conninfo)
        out = io.BytesIO()
        connection2.cursor().copy_expert(place.command("gzip"), out)
        connection2.close()
        archives.add(out.getvalue())
    assert len(archives) == 1
    status = served.status()
    assert (status["has_tokens"], status["has_tls"]) == (True, True)
    for refused, text in (
        (served.conninfo(password=token, sslmode="disable"), "must connect with TLS"),
        (served.conninfo(password=f"{token}x", sslmode="require"), "JWT authentication error"),
        (
            served.conninfo(
                password=token, sslmode="verify-full", sslrootcert=str(_other(tmp_path))
            ),
            "certificate verify failed",
        ),
    ):
        with pytest.raises(psycopg.OperationalError, match=text):
            psycopg.connect(refused)
    assert token not in served.err


def _secured(signer: Signer, files: Any, directory: Path) -> list[str]:
    keys = directory / "keys"
    keys.mkdir()
    signer.write_public(keys / "key.pem")
    return [*("--auth-keys", str(keys), "--tls-cert", str(files.cert), "--tls-key", str(files.key))]


def _other(directory: Path) -> Path:
    other = directory / "other"
    other.mkdir(exist_ok=True)
    return write_certificate(other).cert


@pytest.mark.postgres
def test_keys_and_certificate_are_read_anew(
    serve: Callable[..., Served], place: Place, tmp_path: Path
) -> None:
    """SIGHUP changes them for new connections; broken ones leave the old ones in use."""
    old, new, files = Signer(), Signer(), write_certificate(tmp_path)
    served = serve(place.root, *_secured(old, files, tmp_path))
    claims = {"scope": "pageserverapi"}

    def works(signer: Signer, cert: Path) -> bool:
        conninfo = served.conninfo(
            password=signer.sign(**claims), sslmode="verify-full", sslrootcert=str(cert)
        )
        try:
            psycopg.connect(conninfo).close()
        except psycopg.OperationalError:
            return False
        return True

    before = tmp_path / "before.crt"
    before.write_bytes(files.cert.read_bytes())
    assert works(old, before)
    (tmp_path / "keys" / "key.pem").write_bytes(b"broken")
    served.signal(signal.SIGHUP)
    wait_until(lambda: "the key or certificate from before stays in use" in served.err)
    assert works(old, before)
    new.write_public(tmp_path / "keys" / "key.pem")
    write_certificate(tmp_path)
    served.signal(signal.SIGHUP)
    wait_until(lambda: works(new, files.cert))
    assert not works(old, files.cert)
    assert not works(new, before)


def ignore_stop_signals() -> None:
    """Have them ignored, as nohup, a shell's background and some supervisors do."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.postgres
def test_signals_that_arrive_ignored(serve: Callable[..., Served], place: Place) -> None:
    """SIGINT and SIGHUP stay ignored, and SIGTERM ends the service."""
    served = serve(place.root, before=ignore_stop_signals)
    for number in (signal.SIGINT, signal.SIGHUP):
        served.signal(number)
        assert served.http("readyz") == b"ready\n"
    served.signal(signal.SIGTERM)
    assert served.end() == 0
    assert served.lines[-1] == "stopped"


@pytest.mark.postgres
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_arrive_blocked(
    serve: Callable[..., Served], place: Place, number: signal.Signals
) -> None:
    """A signal that was blocked before the service started ends it as any other does."""
    served = serve(
        place.root, before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    )
    served.signal(number)
    assert served.end() == 0
    assert served.lines[-1] == "stopped"


def test_a_new_directory(serve: Callable[..., Served], tmp_path: Path) -> None:
    """With --create it is made, and what to do next is said."""
    served = serve(tmp_path / "new", "--create")
    assert any("bbcache demo --dir DIR" in line for line in served.lines)
    assert served.status()["entry_count"] == 0
    assert "WARNING" not in served.err


def test_no_tenant_at_all(serve: Callable[..., Served], tmp_path: Path) -> None:
    """An existing directory without a tenant is logged, and a metric tells: it may be unmounted."""
    served = serve(tmp_path)
    assert f"no tenant is in {tmp_path}/tenants\nhint: Is --root spelled right" in served.err
    assert b'bbcache_pageserver_tenants{state="active"} 0.0' in served.http("metrics")
    assert served.status()["errors"][0]["level"] == "WARNING"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda _: None, r"there is no directory .*/root\nhint: Is it spelled right"),
        (lambda root: root.touch(), r"the root .*/root cannot be used: Not a directory"),
        (lambda root: root.symlink_to("nowhere"), r"there is no directory .*/root"),
        (lambda root: root.symlink_to("root"), r"cannot be used: Too many levels of symbolic"),
    ],
    ids=["nothing", "a file", "a broken link", "a loop"],
)
def test_a_root_that_is_no_directory(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    complaint: str,
) -> None:
    """It is named, the status is 2, and nothing is made."""
    make(tmp_path / "root")
    before = sorted(tmp_path.iterdir())
    assert main(["serve", "--root", str(tmp_path / "root"), "--no-http"]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


def test_a_root_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --create as well, what is in its place is named."""
    (tmp_path / "file").touch()
    for root, complaint in (("file", "File exists"), ("file/root", "Not a directory")):
        assert main(["serve", "--create", "--root", str(tmp_path / root), "--no-http"]) == 2
        assert (
            f"the root {tmp_path}/{root} cannot be created: {complaint}" in capsys.readouterr().err
        )


def test_a_relative_root(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of the directory in which the command was started."""
    monkeypatch.chdir(tmp_path)
    serve(Path("new"), "--create")
    assert (tmp_path / "new" / "tenants").is_dir()


def test_a_root_with_a_name_that_cannot_be_printed(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    """It is escaped in what is printed and logged."""
    served = serve(tmp_path / os.fsdecode(b"r\xff"), "--create")
    assert served.is_ready


@pytest.mark.postgres
def test_what_is_broken(serve: Callable[..., Served], place: Place, tmp_path: Path) -> None:
    """Logged, counted, shown, refused by any spelling of the command; the other is served."""
    root = tmp_path / "root"
    shutil.copytree(place.root, root)
    timelines = root / "tenants" / str(place.address.tenant_id) / "timelines"
    bad = TimelineId.generate()
    shutil.copytree(timelines / str(place.address.timeline_id), timelines / str(bad))
    os.truncate(timelines / str(bad) / "global/pg_control", 100)
    (root / "tenants" / "lost+found").mkdir()
    (root / "tenants" / str(TENANT)).symlink_to("nowhere")
    held = root / "basebackup_cache" / entry_name(place.address.tenant_id, bad, place.lsn)
    entry = entry_name(*place.address, place.lsn)
    shutil.copy(root / "basebackup_cache" / entry, held)
    served = serve(root)
    assert served.value("2 tenants or timelines are broken") == ": see the log"
    reason = "pg_control: has 100 bytes, not 8192"
    for verb, *words in (
        ("basebackup",),
        ("basebackup", place.lsn),
        ("basebackup", place.lsn, "--gzip"),
        ("basebackup", "latest", "--gzip"),
        ("fullbackup",),
        ("fullbackup", place.lsn),
    ):
        command = " ".join(map(str, [verb, place.address.tenant_id, bad, *words]))
        error = refusal(served, command)
        assert f"timeline {bad} of tenant {place.address.tenant_id} is broken: " in error
        assert reason in error
        assert str(root) not in error
    error = refusal(served, f"basebackup {TENANT} {TIMELINE}")
    assert f"tenant {TENANT} is broken: its directory cannot be read: No such file" in error
    assert psql(served.conninfo(), place.command("gzip"))
    metrics = served.http("metrics").decode()
    for line in (
        'bbcache_pageserver_tenants{state="active"} 1.0',
        'bbcache_pageserver_tenants{state="broken"} 1.0',
        'bbcache_pageserver_timelines{state="active"} 1.0',
        'bbcache_pageserver_timelines{state="broken"} 1.0',
        "bbcache_pageserver_foreign_names 1.0",
    ):
        assert f"{line}\n" in metrics
    status = served.status()
    assert {each["timeline_id"] for each in status["broken"]} == {None, str(bad)}
    assert reason in served.http("").decode()
    assert served.http("readyz") == b"ready\n"
    assert str(timelines / str(bad)) in served.err
    assert f"{root}/tenants/lost+found: its name is not an id" in served.err
    assert held.exists()


def entry_name(tenant_id: TenantId, timeline_id: TimelineId, lsn: Lsn) -> str:
    """The file of an entry."""
    return f"basebackup_{tenant_id}_{timeline_id}_{lsn:016X}.tar.gz"


def refusal(served: Served, command: str) -> str:
    """All that a client reads of a command that fails; nothing where it does not."""
    client = served.client()
    replies = client.ask(command)
    client.close()
    return "\n".join(
        value for reply in replies if reply.kind == "E" for value in reply.fields().values()
    )


@pytest.mark.postgres
@pytest.mark.parametrize("what", ["", "tenants"])
def test_a_root_that_vanishes_while_it_is_served(
    serve: Callable[..., Served], place: Place, tmp_path: Path, what: str
) -> None:
    """The service goes on, names no path to a client, and serves again when all is back."""
    root = tmp_path / "root"
    shutil.copytree(place.root, root)
    for entry in (root / "basebackup_cache").glob("basebackup_*"):
        entry.unlink()
    served = serve(root)
    (root / what).rename(tmp_path / "away")
    command = place.command()
    error = refusal(served, command)
    assert error
    assert str(tmp_path) not in error
    if what:
        assert "is broken: PG_VERSION does not exist" in error
        assert "is broken: PG_VERSION does not exist" in refusal(served, command)  # not tried again
        assert served.status()["broken_count"] == 1
    assert not (root / "tenants").exists()
    if not what:  # the cache may have made its own directory again
        shutil.rmtree(root, ignore_errors=True)
    (tmp_path / "away").rename(root / what)
    # A build that has failed is not tried again for a while.
    wait_until(lambda: not refusal(served, command), CHILD_DEADLINE_S)
    assert served.status()["broken_count"] == 0
    served.signal(signal.SIGTERM)
    assert served.end() == 0


@pytest.mark.postgres
def test_the_drain_needs_no_reader_of_stdout(serve: Callable[..., Served], place: Place) -> None:
    """As with ``serve | head``: a client that is served at SIGTERM gets all of its archive."""
    served = serve(place.root, leaves=True)
    wait_until(lambda: served.process.stdout is None or served.process.stdout.closed)
    busy = served.lazy_client(place)
    served.signal(signal.SIGTERM)
    wait_until(lambda: served.status()["state"] == "draining")
    assert kinds(busy.rest()) == "HdcCZE"
    assert served.end() == 0
    busy.close()
    assert "Traceback" not in served.err


@pytest.mark.parametrize("streams", [">/dev/full 2>/dev/full", ">&- 2>&-", ">&- 2>&- <&-"])
def test_it_needs_no_stream(tmp_path: Path, streams: str) -> None:
    """With full or closed standard streams it serves, drains, and ends with 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [
        *(sys.executable, "-m", "bbcache.cli", "serve", "--create", "--root", str(tmp_path / "r")),
        *("--no-http", "--listen", f"127.0.0.1:{port}"),
    ]
    process = subprocess.Popen(["sh", "-c", f'exec "$@" {streams}', "sh", *argv])

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
            return True
        assert process.poll() is None
        return False

    try:
        wait_until(is_up, CHILD_DEADLINE_S)
        links = {os.path.realpath(f"/proc/{process.pid}/fd/{fd}") for fd in (1, 2)}
        assert links <= {"/dev/null", "/dev/full"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(CHILD_DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_settings(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Those of a pageserver.toml, whose other keys may be any."""
    config = tmp_path / "pageserver.toml"
    config.write_text(
        "listen_pg_addr = '127.0.0.1:1'\n[basebackup_cache_config]\nmax_size_entries = 7\n"
    )
    served = serve(tmp_path / "root", "--create", "--config", str(config), "--max-connections", "5")
    limits = {each["setting"]: each["limit"] for each in served.status()["meters"]}
    assert (limits["max_size_entries"], limits["max_connections"]) == (7, 5)


@pytest.mark.parametrize(("hard", "soft_then"), [(2000, 770), (300, 300)])
def test_descriptors(
    serve: Callable[..., Served], tmp_path: Path, hard: int, soft_then: int
) -> None:
    """The limit is raised to what its clients need, as far as that goes; else fewer are served."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))

    served = serve(tmp_path / "root", "--create", "--max-connections", "100", before=limit)
    pid = served.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (soft_then, hard)
    limits = {each["setting"]: each["limit"] for each in served.status()["meters"]}
    served.signal(signal.SIGTERM)
    served.end()
    assert ("100 clients need 770 descriptors, but there are" in served.err) == (hard < 770)
    assert limits["max_connections"] == (100 if hard >= 770 else 47)


def test_few_descriptors(serve: Callable[..., Served], tmp_path: Path) -> None:
    """With 64 of them 300 silent strangers keep no client out."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    served = serve(tmp_path / "root", "--create", before=limit)
    with contextlib.ExitStack() as opened:
        old = served.client()
        opened.callback(old.close)
        for number in range(300):
            stranger = socket.create_connection(("127.0.0.1", served.port), DEADLINE_S)
            opened.callback(stranger.close)
            if number % 30 == 29:
                client = served.client()
                assert kinds(client.ask("BEGIN")) == "CZ"
                client.close()
        assert kinds(old.ask("BEGIN")) == "CZ"
        assert served.http("healthz") == b"ok\n"
    assert "cannot accept" not in served.err


def test_enough_descriptors(serve: Callable[..., Served], tmp_path: Path) -> None:
    """A limit that is high enough stays as it is."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    served = serve(tmp_path / "root", "--create", "--max-connections", "1")
    assert resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE) == before


def test_no_http(serve: Callable[..., Served], tmp_path: Path) -> None:
    """It can do without."""
    served = serve(tmp_path / "root", "--create", "--no-http")
    assert not any(line.startswith("status") for line in served.lines)


EVERYWHERE = "0.0.0.0:0"


def with_keys(path: Path) -> list[str]:
    """The option for a new key."""
    return ["--auth-keys", str(Signer().write_public(path / "key.pem"))]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--listen", EVERYWHERE], r"no token is asked for\nhint: .* --allow-unauthenticated: "),
        (["--http", EVERYWHERE], r"asks for no token\nhint: Say --allow-unauthenticated-http: "),
        (["--listen", "nowhere:x"], r"'nowhere:x' is not an address such as 127\.0\.0\.1:64000"),
        (["--http", "x:y:z"], r"'x:y:z' is not an address such as 127\.0\.0\.1:9898"),
        (["--auth-keys", "/nothing"], r"cannot read the keys in /nothing: No such file"),
        (["--tls-cert", "/nothing"], r"cannot read /nothing: No such file"),
        (["--tls-key", "/nothing"], r"--tls-key needs a certificate\nhint: "),
        (["--config", "/nothing"], r"cannot read the settings /nothing: No such file"),
        (["--max-connections", "0"], r"max_connections is 0, but must be an int of at least 1"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    """It is named, the status is 2, and nothing was touched."""
    root = tmp_path / "root"
    argv = ["serve", "--create", "--root", str(root), "--listen", "127.0.0.1:0", *options]
    argv.append("--no-http")
    if "--http" in options:
        argv.remove("--no-http")
    assert main(argv) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert not root.exists()


def test_tokens_in_clear_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond loopback, unless told to in so many words."""
    argv = ["serve", "--create", "--root", str(tmp_path / "root"), "--no-http"]
    argv += ["--listen", EVERYWHERE]
    assert main([*argv, *with_keys(tmp_path)]) == 2
    assert "--allow-cleartext-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--allow-unauthenticated", "--allow-cleartext-tokens", "--allow-unauthenticated-http"],
)
def test_what_was_asked_for_in_so_many_words(
    serve: Callable[..., Served], tmp_path: Path, option: str
) -> None:
    """An insecure service starts if the options allow it by name."""
    where = "--http" if option.endswith("http") else "--listen"
    more = with_keys(tmp_path) if "tokens" in option else []
    served = serve(tmp_path / "root", "--create", where, EVERYWHERE, option, *more)
    assert any(EVERYWHERE.partition(":")[0] in line for line in served.lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\n", r"has no table basebackup_cache_config.*\nhint: Add a line"),
        ("x = \n", r"are not TOML"),
        ("x = " + "[" * 5000, r"are not TOML"),
        ("[basebackup_cache_config]\nmax_entries = 1\n", r"unknown key .*: max_entries\n"),
        ("basebackup_cache_config = 1\n", r"basebackup_cache_config is 1, but must be a table"),
    ],
)
def test_settings_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    """They are named, and the status is 2."""
    config = tmp_path / "pageserver.toml"
    config.write_text(text)
    assert (
        main(["serve", "--create", "--root", str(tmp_path / "root"), "--config", str(config)]) == 2
    )
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / "root").exists()


def test_a_directory_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one who uses it is named."""
    config, host = BasebackupCacheConfig(), MemoryHost()
    argv = ["serve", "--root", str(tmp_path), "--listen", "127.0.0.1:0", "--no-http"]
    with BasebackupCache.spawn(tmp_path / "basebackup_cache", config, host, None):
        assert main(argv) == 2
    assert f"is locked by the process with pid {os.getpid()}" in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and everything that had begun is undone: the next one starts."""
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--listen", "--http"):
            argv = ["serve", "--root", str(tmp_path), "--listen", "127.0.0.1:0"]
            assert main([*argv, option, f"127.0.0.1:{port}"]) == 2
            assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "the following arguments are required: --root"),
        (["--root", ""], "argument --root: it is empty"),
        (["--root", "x", "--drain-timeout", "soon"], "--drain-timeout: duration is 'soon'"),
        (["--root", "x", "--max-connections", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    """They are named, and the status is 2."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """How to try it, how to make a key, what signals do, every option."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for wanted in (
        *("bbcache demo --dir", "psql", "openssl genpkey", "pageserverapi", "HUP", "--root"),
        *("--create", "exit codes"),
        *("--listen", "--http", "--no-http", "--auth-keys", "--tls-cert", "--tls-key", "--config"),
        *("--drain-timeout", "--max-connections", "--allow-unauthenticated-http"),
    ):
        assert wanted in text


def test_signals_are_as_before(tmp_path: Path) -> None:
    """After the end none is blocked that was not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    main(["serve", "--root", str(tmp_path / "root"), "--listen", EVERYWHERE])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
