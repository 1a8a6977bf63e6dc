"""What a process does to its services: fork, and exit."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from page_service.wire import WireClient, kinds, query
from support.cache_helpers import DEADLINE_S, end_child, run_child, start_child

if TYPE_CHECKING:
    from pathlib import Path


def test_a_child_keeps_no_socket(tmp_path: Path) -> None:
    """Its parent's clients see their ends, no wait is woken for nothing, and no close harms."""
    run_child("page_service.service_children:fork_while_serving", tmp_path / "cache")


def test_a_child_forked_in_a_source_does_not_come_out_of_it(tmp_path: Path) -> None:
    """It ends there; the client is its parent's alone."""
    run_child("page_service.service_children:fork_in_a_source", tmp_path / "cache")


def test_an_exit_without_a_close(tmp_path: Path) -> None:
    """Busy and idle clients see the end, and the process exits."""
    child = start_child("page_service.service_children:exit_while_serving", tmp_path / "cache")
    assert child.stdout is not None
    assert child.stdin is not None
    port, command = int(child.stdout.readline()), child.stdout.readline().strip()
    with ExitStack() as opened:
        clients = [
            WireClient(
                opened.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
            )
            for _ in range(3)
        ]
        for client in clients[:2]:
            client.log_in()
        clients[1].send(query(command))
        child.stdin.write("\n")
        child.stdin.flush()
        for client in clients:
            assert kinds(client.rest()) in ("E", "")
        code, _, err = end_child(child)
    assert code == 0, err
