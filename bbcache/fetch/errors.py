"""The errors of a fetch."""

from __future__ import annotations

from bbcache.errors import BbcacheError


class FetchError(BbcacheError):
    """A basebackup could not be fetched; `__cause__` has the reason if there is one."""


class RefusedError(FetchError):
    """The service refuses the request, and a retry does not help."""


class UnavailableError(FetchError):
    """The service could not be reached, or did not send everything; a retry may succeed."""
