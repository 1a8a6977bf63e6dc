"""What proves tokens for a service."""

from __future__ import annotations

from typing import Protocol

from bbcache.page_service.auth.permission import Permission
from bbcache.page_service.errors import BadTokenError, PageServiceError


class Verifier(Protocol):
    """Proves tokens; `bbcache.page_service.auth.tokens.TokenKeys` is one. Thread-safe."""

    def verify(self, token: str) -> Permission:
        """Return what the token opens; raises `BadTokenError` where it proves nothing."""
        ...


def verified(verifier: Verifier, token: str) -> Permission:
    """Return what a token opens; of a verifier that fails, only the kind of failure is told."""
    try:
        return verifier.verify(token)
    except PageServiceError:
        raise
    except Exception as error:  # noqa: BLE001 - its text and traceback may have the token
        kind = type(error).__name__
    raise BadTokenError(f"the token cannot be verified: {kind}")
