"""What a client may ask for, and the verifier that proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from bbcache.ids import TenantId, TimelineId
from bbcache.page_service.errors import BadTokenError, PageServiceError, UnauthorizedError


@dataclass(frozen=True, slots=True)
class Permission:
    """What a token allows. Immutable, hence thread-safe.

    Attributes:
        tenant_id: the only tenant that the token opens; None for every tenant.
        timeline_id: the only timeline that the token opens; None for every timeline.
        expires_at_s: when it expires, in seconds since 1970; None for never.
        refusal: why it opens nothing; None if it opens something.
    """

    tenant_id: TenantId | None = None
    timeline_id: TimelineId | None = None
    expires_at_s: float | None = None
    refusal: str | None = None

    def check(self, tenant_id: TenantId, timeline_id: TimelineId, now_s: float) -> None:
        """Refuse a command that it does not allow.

        Args:
            tenant_id: the tenant of the command.
            timeline_id: its timeline.
            now_s: seconds since 1970.

        Raises:
            UnauthorizedError: it does not allow the command, or has expired.
        """
        if self.expires_at_s is not None and now_s >= self.expires_at_s:
            raise UnauthorizedError("the token has expired. Permission denied")
        if self.refusal is not None:
            raise UnauthorizedError(self.refusal)
        if self.tenant_id not in (None, tenant_id):
            raise UnauthorizedError("Tenant id mismatch. Permission denied")
        if self.timeline_id not in (None, timeline_id):
            raise UnauthorizedError("Timeline id mismatch. Permission denied")


EVERYTHING: Final = Permission()


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
