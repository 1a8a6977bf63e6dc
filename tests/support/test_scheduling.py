"""How the tests are shared out among workers."""

from __future__ import annotations

from pathlib import Path

from support.scheduling import LONG

_ROOT = Path(__file__).parents[2]


def test_what_begins_first_is_there() -> None:
    """A file that is renamed is renamed in the list, too."""
    assert [name for name in LONG if not (_ROOT / name).exists()] == []
