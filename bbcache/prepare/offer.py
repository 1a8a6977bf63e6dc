"""Offering what was built and published to the second tier."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bbcache.second_tier import Tier
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry

log = logging.getLogger(__name__)


def offer(tier: Tier, store: Store, entry: Entry, replaced: Entry | None) -> None:
    """Offer a published archive to the second tier. Knows no engine, which may be dropped."""
    is_newer = replaced is not None and replaced.lsn < entry.lsn
    open_file = partial(store.open, entry.key, entry.lsn, entry.size_bytes)
    try:
        tier.offer(entry.info(), open_file, replaced.lsn if replaced and is_newer else None)
    except Exception:
        log.exception("the second tier has refused %s", entry)
