"""Why a basebackup could not be fetched."""

from __future__ import annotations

from bbcache.errors import BbcacheError


class FetchError(BbcacheError):
    """A basebackup could not be fetched; the cause is chained where there is one."""


class RefusedError(FetchError):
    """The service has said no, and would say so again."""


class UnavailableError(FetchError):
    """The service could not be reached, or did not give all of it: another try may do."""
