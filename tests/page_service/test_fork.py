"""A child that is forked while a service runs takes no part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache_helpers import run_child

if TYPE_CHECKING:
    from pathlib import Path


def test_a_child_keeps_no_socket(tmp_path: Path) -> None:
    """Its parent's clients see their ends, no wait is woken for nothing, and no close harms."""
    run_child("page_service.fork_children:fork_while_serving", tmp_path / "cache")


def test_a_child_forked_in_a_source_does_not_come_out_of_it(tmp_path: Path) -> None:
    """It ends there; the client is its parent's alone."""
    run_child("page_service.fork_children:fork_in_a_source", tmp_path / "cache")
