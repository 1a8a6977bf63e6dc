"""Load a cache's directory at the start, with retries."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from bbcache.errors import ClosingError
from bbcache.storage.disk_errors import hint_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.storage.catalog import Catalog, LoadReport

_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 5.0

log = logging.getLogger(__name__)


def load(
    catalog: Catalog,
    data_dir: str,
    *,
    is_stopped_in: Callable[[float], bool],
    on_failure: Callable[[], None],
) -> LoadReport | None:
    """Load the directory; after a failure try again, with growing pauses.

    A directory that cannot be listed is not an empty cache.

    Args:
        catalog: loads it.
        data_dir: the directory, for log lines.
        is_stopped_in: waits a number of seconds; returns True as soon as the cache closes.
        on_failure: called after each failure, before the pause.

    Returns:
        The result of the scan; None if the cache was closed before.
    """
    pause_s = 0.0
    while not is_stopped_in(pause_s):
        pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
        try:
            return catalog.load()
        except ClosingError:
            break
        except Exception as error:
            on_failure()
            hint = hint_for(error)
            log.exception("cannot load %s, trying again in %.2f s%s", data_dir, pause_s, hint)
    return None


def announce(report: LoadReport, data_dir: str) -> None:
    """Log what a start has found in the directory."""
    log.info(
        "%d basebackups loaded from %s, %d superseded ones removed",
        report.entry_count,
        data_dir,
        report.superseded_count,
    )
    if report.foreign_files:
        log.warning(
            "%d foreign files in %s count against its limits: %s",
            len(report.foreign_files),
            data_dir,
            ", ".join(map(repr, report.foreign_files[:10])),
        )
