"""Ceph's gateway for S3 on one node that keeps everything in memory."""

from __future__ import annotations

import base64
import hmac
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.cache_helpers import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

_STOP_TIMEOUT_S: Final = 20.0
_CONFIG: Final = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon cluster log file = {dir}/cluster.log
run dir = {dir}
crash dir = {dir}
admin socket = {dir}/$name.asok
log file = {dir}/$name.log
pid file = {dir}/$name.pid
plugin dir = {lib}/ceph
erasure code dir = {lib}/ceph/erasure-code
osd class dir = {lib}/rados-classes
[mon.a]
mon data = {dir}/mon
[osd.0]
osd objectstore = memstore
osd data = {dir}/osd
memstore device bytes = 1073741824
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {dir}
"""


@contextmanager
def ceph_gateway(
    radosgw: str, directory: Path, ports: list[int], keys: tuple[str, str], bucket: str
) -> Iterator[str]:
    """Run a monitor, a store in memory and the gateway, with a bucket; gives its URL.

    Args:
        radosgw: the program; the others are beside it, and its libraries are found.
        directory: is made.
        ports: free ones, of the monitor and of the gateway.
        keys: the access key and its secret.
        bucket: the name of the bucket.
    """
    programs = Path(radosgw).parent
    fsid, config = str(uuid.uuid4()), directory / "ceph.conf"
    for path in (directory, directory / "mon", directory / "osd"):
        path.mkdir()
    config.write_text(
        _CONFIG.format(
            fsid=fsid,
            dir=directory,
            lib=programs.parent / "lib/x86_64-linux-gnu",
            mon_port=ports[0],
            port=ports[1],
        )
    )
    named = ["-c", str(config), "--no-mon-config"]

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)

    address = f"[v1:127.0.0.1:{ports[0]}]"
    monmap, osdmap = str(directory / "monmap"), str(directory / "osdmap")
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    run("osdmaptool", "--createsimple", "1", osdmap, "-c", str(config))
    run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--osdmap", osdmap, *named)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()), *named)
    with ExitStack() as started:
        _start(started, [str(programs / "ceph-mon"), "-f", "-i", "a", *named])
        _start(started, [str(programs / "ceph-osd"), "-f", "-i", "0", *named])
        user = ["--uid=test", "--display-name=test"]
        credentials = [f"--access-key={keys[0]}", f"--secret-key={keys[1]}"]
        client = ["-n", "client.rgw", *named]
        run("radosgw-admin", *client, "user", "create", *user, *credentials)
        _start(started, [radosgw, "-f", *client])
        url = f"http://127.0.0.1:{ports[1]}"
        _make_bucket(url, keys, bucket)
        yield url


def _start(started: ExitStack, command: list[str]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        process.kill()
        process.wait()

    started.callback(stop)


def _make_bucket(url: str, keys: tuple[str, str], bucket: str) -> None:
    """Make the bucket once the gateway answers; obstore cannot."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        date = formatdate(usegmt=True)
        mac = hmac.digest(keys[1].encode(), f"PUT\n\n\n{date}\n/{bucket}".encode(), "sha1")
        head = {"Date": date, "Authorization": f"AWS {keys[0]}:{base64.b64encode(mac).decode()}"}
        request = urllib.request.Request(f"{url}/{bucket}", method="PUT", headers=head)  # noqa: S310 - loopback
        try:
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - loopback
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            return


def find_radosgw() -> str | None:
    """The gateway, if all programs that it takes are in one directory of PATH."""
    wanted = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "monmaptool", "osdmaptool")
    for name in os.get_exec_path():
        if all(shutil.which(program, path=name) for program in wanted):
            return shutil.which(wanted[0], path=name)
    return None
