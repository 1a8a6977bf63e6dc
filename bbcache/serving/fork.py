"""Close in a forked child the sockets that its parent serves.

None of the threads that serve them runs in the child. A connection that the parent closes
would stay open to its client as long as the child lives, and stay in the parent's epoll.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Owner(Protocol):
    """An object with sockets."""

    def close_inherited(self) -> None:
        """Close the descriptors in a forked child, without a lock or a word to a peer."""
        ...


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def close_in_children(owner: Owner) -> None:
    """Have each child that is forked from now on close the sockets of `owner`."""
    _owners.add(owner)


def _in_forked_child() -> None:
    for owner in list(_owners):
        owner.close_inherited()
    _owners.clear()


os.register_at_fork(after_in_child=_in_forked_child)
