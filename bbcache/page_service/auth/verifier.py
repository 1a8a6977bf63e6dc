"""The verification of tokens, as a service uses it."""

from __future__ import annotations

from typing import Protocol

from bbcache.page_service.auth.permission import Permission
from bbcache.page_service.errors import BadTokenError, PageServiceError


class Verifier(Protocol):
    """Verifies tokens, as `bbcache.page_service.auth.tokens.TokenKeys` does. Thread-safe."""

    def verify(self, token: str) -> Permission:
        """Return what the token allows; raise `BadTokenError` if it is not valid."""
        ...


def verified(verifier: Verifier, token: str) -> Permission:
    """Return what a token allows. If the verifier fails, only its type of error is told."""
    try:
        return verifier.verify(token)
    except PageServiceError:
        raise
    except Exception as error:  # noqa: BLE001 - its text and traceback may have the token
        kind = type(error).__name__
    raise BadTokenError(f"the token cannot be verified: {kind}")
