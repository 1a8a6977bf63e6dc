"""nginx in a process of its own, over loopback, which sends the files of a directory."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.peers import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START_TIMEOUT_S: Final = 10.0
_END_TIMEOUT_S: Final = 10.0
_PAUSE_S: Final = 0.01
# As Debian sets it up, log of each request included; but no connection ends by itself.
_CONFIG: Final = """\
daemon off;
{user}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 768; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


@contextmanager
def nginx_process(root: Path, directory: Path) -> Iterator[int]:
    """Serve the files of a directory while the block runs.

    Args:
        root: the directory of the files.
        directory: an empty one for its settings, logs and temporary files.

    Returns:
        The port on loopback.

    Raises:
        PeerMissingError: nginx is not there.
        ValueError: it did not start.
    """
    program = require_tool("nginx", "nginx-light")
    port = _free_port()
    settings = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    settings.write_text(_CONFIG.format(user=user, directory=directory, root=root, port=port))
    command = [program, "-p", str(directory), "-c", str(settings)]
    with (
        (directory / "stderr").open("wb") as errors,
        subprocess.Popen([*command, "-e", "stderr"], stderr=errors) as process,
    ):
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(_END_TIMEOUT_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), _PAUSE_S).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise ValueError(f"nginx did not start on port {port}") from None
            time.sleep(_PAUSE_S)
        else:
            return
