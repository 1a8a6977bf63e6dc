"""Steps on the disk that a KeyboardInterrupt may break off."""

from __future__ import annotations


class Doubt:
    """Whether a KeyboardInterrupt, say, has broken off a step in the middle.

    A context manager around each step that may run in a caller's thread.
    """

    is_there = False

    def __enter__(self) -> None:
        """Begin a step."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, OSError):  # a step expects an OSError
            self.is_there = True
