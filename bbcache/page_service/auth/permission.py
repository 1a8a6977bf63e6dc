"""What a client may ask for: scopes and their rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bbcache.ids import TenantId, TimelineId
from bbcache.page_service.errors import UnauthorizedError


class Scope(StrEnum):
    """The purpose of a token. All but `TIMELINE` are Neon's (``libs/utils/src/auth.rs``)."""

    TENANT = "tenant"
    PAGESERVER_API = "pageserverapi"
    TIMELINE = "timeline"  # ours: no pageserver of Neon's accepts it
    TENANT_ENDPOINT = "tenantendpoint"
    SAFEKEEPER_DATA = "safekeeperdata"
    GENERATIONS_API = "generations_api"
    ADMIN = "admin"
    INFRA = "infra"
    SCRUBBER = "scrubber"
    CONTROLLER_PEER = "controller_peer"


@dataclass(frozen=True, slots=True)
class Permission:
    """What a token allows. Immutable, hence thread-safe.

    Attributes:
        scope: its purpose; None where no token is asked for and everything is allowed.
        tenant_id: the only tenant that the token opens; None for every tenant.
        timeline_id: the only timeline that the token opens; None for every timeline.
        expires_at_s: when it expires, in seconds since 1970; None for never.
    """

    scope: Scope | None
    tenant_id: TenantId | None = None
    timeline_id: TimelineId | None = None
    expires_at_s: float | None = None

    def check(self, tenant_id: TenantId, timeline_id: TimelineId, now_s: float) -> None:
        """Refuse a command that it does not allow.

        Args:
            tenant_id: the tenant of the command.
            timeline_id: its timeline.
            now_s: seconds since 1970.

        Raises:
            UnauthorizedError: it does not allow the command, or has expired.
        """
        if self is EVERYTHING:
            return
        if self.expires_at_s is not None and now_s >= self.expires_at_s:
            raise UnauthorizedError("the token has expired. Permission denied")
        if self.scope in (None, Scope.PAGESERVER_API):
            return
        if self.scope not in (Scope.TENANT, Scope.TIMELINE):
            raise UnauthorizedError(f"a token of scope {self.scope} opens no basebackup")
        if self.tenant_id != tenant_id:
            raise UnauthorizedError("Tenant id mismatch. Permission denied")
        if self.scope is Scope.TIMELINE and self.timeline_id != timeline_id:
            raise UnauthorizedError("Timeline id mismatch. Permission denied")


EVERYTHING: Final = Permission(None)
