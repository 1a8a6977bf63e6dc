"""The prepared statements and portals of one connection."""

from __future__ import annotations

from sys import getsizeof
from typing import Final

from bbcache.page_service.errors import CommandError

_MAX_NAMES: Final = 16  # of statements, and of portals
_MAX_STATE_BYTES: Final = 16 * 1024  # names and texts of all of them
_KINDS: Final = ("statement", "portal")


class Names:
    """Keeps the texts of commands by the names of statements and portals. Not thread-safe.

    Each method raises `CommandError` where a name is unknown, or one more has no room.
    """

    def __init__(self) -> None:
        self._texts: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def text_of(self, name: str, *, is_portal: bool) -> str:
        """Return the command of a statement or portal."""
        text = self._texts[is_portal].get(name)
        if text is None:
            raise CommandError(f"there is no {_KINDS[is_portal]} {name[:40]!r}")
        return text

    def keep(self, name: str, text: str, *, is_portal: bool) -> None:
        """Name a command."""
        texts = self._texts[is_portal]
        if name not in texts and len(texts) >= _MAX_NAMES:
            raise CommandError(f"a connection has {_MAX_NAMES} named {_KINDS[is_portal]}s at most")
        kept = [*self._texts[0].items(), *self._texts[1].items(), (name, text)]
        if sum(getsizeof(each) for pair in kept for each in pair) > _MAX_STATE_BYTES:
            raise CommandError(
                f"the statements and portals of a connection have {_MAX_STATE_BYTES} bytes at most"
            )
        texts[name] = text

    def close(self, name: str, *, is_portal: bool) -> None:
        """Forget a statement or portal, if there is one."""
        self._texts[is_portal].pop(name, None)

    def close_portals(self) -> None:
        """Forget all portals."""
        self._texts[True].clear()
