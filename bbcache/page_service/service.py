"""The parts that all sessions of one service share."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from bbcache.page_service.auth.permission import Verifier
from bbcache.page_service.clients import Clients
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.metrics import ServiceMetrics
from bbcache.page_service.source import BasebackupSource


@dataclass(frozen=True)
class Service:
    """The parts that all sessions of one service share. Thread-safe.

    Attributes:
        source: where archives come from.
        config: the settings.
        metrics: counts.
        clients: all clients.
        verifier: proves tokens; None if none is asked for.
        tls_context: gives the context for a new connection; None without TLS.
        must_yield: see `bbcache.serving.workers.Workers.must_yield`.
    """

    source: BasebackupSource
    config: PageServiceConfig
    metrics: ServiceMetrics
    clients: Clients
    verifier: Verifier | None
    tls_context: Callable[[], ssl.SSLContext] | None
    must_yield: Callable[..., bool]
