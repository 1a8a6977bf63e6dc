"""Listing the bucket once at the start: to a GET, a bucket that is missing is an absent object."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from bbcache.tier.bucket import BucketError

if TYPE_CHECKING:
    from bbcache.tier.bucket import Bucket

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0

log = logging.getLogger(__name__)


def hint_for(url: str) -> str:
    """What to look at if the bucket at a URL cannot be used, as a sentence."""
    if url.startswith("file:"):
        return "Is the directory there, mounted, and open to this user?"
    return "Check bucket, endpoint and credentials."


class StartCheck:
    """Finds out whether the bucket can be used, and tries again until it can. Thread-safe.

    Args:
        bucket: the bucket.
        url: names it in the log.
        epoch: the names with this prefix are listed.

    Attributes:
        problem: why the bucket cannot be used, in one line; None if it can, or is not listed yet.
    """

    def __init__(self, bucket: Bucket, url: str, epoch: str) -> None:
        self.problem: str | None = None
        self._bucket = bucket
        self._url = url
        self._epoch = epoch
        self._is_stopped = threading.Event()
        self._has_listed = threading.Event()

    def run(self) -> None:
        """List until that succeeds or `stop` is called: the life of one thread."""
        pause_s = _FIRST_PAUSE_S
        while not self._list():
            self._has_listed.set()
            if self._is_stopped.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._has_listed.set()

    def _list(self) -> bool:
        try:
            for _ in self._bucket.list(self._epoch):
                break
        except BucketError as error:
            if self.problem is None:
                log.error(  # noqa: TRY400 - no news in the traceback
                    "the tier %s cannot be used: %s\n"
                    "hint: %s The cache works without the tier, and tries it again.",
                    self._url,
                    error,
                    hint_for(self._url),
                )
            self.problem = f"the tier {self._url} cannot be used: {error}"
            return False
        if self.problem is not None:
            log.info("the tier %s can be used now", self._url)
        self.problem = None
        return True

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the bucket was listed once; False if time runs out."""
        return self._has_listed.wait(timeout_s)

    def stop(self) -> None:
        """End the thread soon."""
        self._is_stopped.set()
