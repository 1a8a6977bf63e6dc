"""What a forked child inherits and must not keep: descriptors of its parent's sockets.

None of the threads that serve them is there. A connection that the parent closes would
stay open to its client as long as the child lives, and stay in the parent's epoll.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Owner(Protocol):
    """Somebody with sockets."""

    def drop_inherited(self) -> None:
        """Close their descriptors, in a forked child alone: without a lock or a word to a peer."""
        ...


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def drop_in_children(owner: Owner) -> None:
    """Have `owner` drop its sockets in each child that is forked from now on."""
    _owners.add(owner)


def _in_forked_child() -> None:
    for owner in list(_owners):
        owner.drop_inherited()
    _owners.clear()


os.register_at_fork(after_in_child=_in_forked_child)
