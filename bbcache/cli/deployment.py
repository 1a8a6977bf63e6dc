"""A pageserver with its page service and its HTTP service, started and stopped together."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Final, Self

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from bbcache.cli.periodic import Periodic
from bbcache.cli.service_metrics import DeploymentMetrics
from bbcache.config import LIMITS, BasebackupCacheConfig
from bbcache.errors import ConfigError
from bbcache.http_service.recent_errors import RecentErrors
from bbcache.http_service.routes import Routes
from bbcache.http_service.server import HttpService
from bbcache.http_service.status import StatusReader
from bbcache.page_service.auth.tls import Certificate
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from bbcache.pageserver import Pageserver, PgdataTimeline, make_root
from bbcache.pageserver.rescan import Rescanner
from bbcache.setting_rows import settings_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from bbcache.http_service.config import HttpConfig
    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.page_service.auth.tokens import TokenKeys
    from bbcache.page_service.config import Address, PageServiceConfig
    from bbcache.tier import ObjectTier

_CLOSE_TIMEOUT_S: Final = 10.0
_LOGGER: Final = "bbcache"
_NO_TENANT_HINT: Final = "Is --root spelled right, and is its file system mounted?"

log = logging.getLogger(__name__)


class Deployment:
    """Everything that ``bbcache serve`` runs. A context manager; for one thread.

    Args:
        root: the pageserver's directory.
        cache_config: the cache's settings.
        service_config: the page service's.
        http_config: the HTTP service's; None runs without one.
        listeners: sockets of the page service that listen already.
        http_listeners: sockets of the HTTP service that listen already.
        auth_keys: the public key, or the directory of them, that tokens are verified with;
            None lets every client read every tenant.
        tls_cert: the certificate; None for a service without TLS.
        tls_key: its key, if that is in another file.
        create: whether the pageserver's directory is made if it does not exist.

    Attributes:
        pageserver: the pageserver.
        service: the page service.
        http: the HTTP service, if there is one.

    Raises:
        ConfigError: a service is open to other machines, which the settings do not allow; a key or
            certificate is invalid; or there is no directory `root`. Nothing on disk has been
            touched.
        StoreError: the root or the cache's directory is locked or cannot be used, or the tenants
            cannot be listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        cache_config: BasebackupCacheConfig,
        service_config: PageServiceConfig,
        http_config: HttpConfig | None,
        listeners: Sequence[socket.socket] = (),
        http_listeners: Sequence[socket.socket] = (),
        auth_keys: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        create: bool = False,
    ) -> None:
        self._keys = None if auth_keys is None else _read_keys(auth_keys)
        self._certificate = None if tls_cert is None else Certificate(tls_cert, tls_key)
        has_tokens, has_tls = self._keys is not None, self._certificate is not None
        service_config.check_exposure(has_tokens=has_tokens, has_tls=has_tls)
        self._cache_config = cache_config
        registry = _registry()
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            errors = RecentErrors()
            logging.getLogger(_LOGGER).addHandler(errors)
            opening.callback(logging.getLogger(_LOGGER).removeHandler, errors)
            if create:
                make_root(root)
            self._tier = tier = _make_tier(cache_config, registry)
            self.pageserver = Pageserver(root, None, cache_config, registry, tier=tier)
            opening.callback(self.pageserver.close, _CLOSE_TIMEOUT_S)
            self._rescanner = Rescanner(self.pageserver.tenants)
            self._rescans = Periodic(
                self._rescanner.rescan, cache_config.cleanup_period, "bbcache-rescan"
            )
            opening.callback(self._rescans.stop, _CLOSE_TIMEOUT_S)
            if not create and not self.pageserver.tenants.known():
                log.warning("no tenant is in %s\nhint: %s", root / "tenants", _NO_TENANT_HINT)
            source = self._source(root, service_config)
            self.service = PageService(
                source,
                service_config,
                verifier=self._keys,
                tls=self._certificate,
                registry=registry,
                listeners=listeners,
            )
            opening.callback(self.service.close, _CLOSE_TIMEOUT_S)
            self._reader = reader = StatusReader(
                cache=self.pageserver.cache,
                cache_config=cache_config,
                service=self.service,
                registry=registry,
                errors=errors,
                has_tokens=has_tokens,
                has_tls=has_tls,
                broken=self.pageserver.tenants.broken.list,
                host_degraded_reason=lambda: self._rescanner.degraded_reason,
            )
            if tier is not None:
                reader.tier_problem = lambda: tier.problem
            DeploymentMetrics(
                registry,
                self._limit,
                lambda: math.nan if self._certificate is None else self._certificate.expires_at_s,
                lambda: source.uncached_size_bytes,
                lambda: self._rescanner.degraded_reason is not None,
            )
            self.http: HttpService | None = None
            if http_config is not None:
                self.http = HttpService(
                    http_config, Routes(reader, registry).respond, http_listeners
                )
                opening.callback(self.http.close, _CLOSE_TIMEOUT_S)
            self._opened = opening.pop_all()

    def start(self) -> Address:
        """Start the services.

        Returns:
            Where clients connect.

        Raises:
            ConfigError: a service cannot listen on its address.
        """
        address = self.service.start()
        if self.http is not None:
            self.http.start()
        self._rescans.start()
        return address

    def reload(self, cache_config: BasebackupCacheConfig | None = None) -> None:
        """Read keys and certificate again, apply settings, and rescan the tenants.

        A file that cannot be read is logged, and what was read before stays in use.

        Args:
            cache_config: the cache's settings as they are now; None where they are not known.
        """
        for what in (self._keys, self._certificate):
            try:
                if what is not None:
                    what.reload()
            except ConfigError as error:
                log.error("the key or certificate from before stays in use: %s", error)  # noqa: TRY400 - no news in the traceback
        if self._tier is not None:
            self._tier.refresh_keys()
        if cache_config is not None:
            self._apply(cache_config)
        self._rescanner.rescan()
        log.info("keys, certificate, settings and tenants were read again")

    def _apply(self, new: BasebackupCacheConfig) -> None:
        """Apply the limits of new settings, and name those that a start takes."""
        old = self._cache_config
        self.pageserver.cache.set_limits(new)
        self._cache_config = self._reader.cache_config = old.with_limits_of(new)
        for key in settings_of(BasebackupCacheConfig):
            if getattr(new, key) != getattr(old, key):
                when = "now" if key in LIMITS else "from the next start on"
                log.info("%s is %s %s", key, getattr(new, key), when)

    def _limit(self, key: str) -> float:
        config = self._cache_config if hasattr(self._cache_config, key) else self.service.config
        value = getattr(config, key)
        return math.nan if value is None else float(value)

    def timelines(self) -> list[tuple[TenantId, TimelineId, Lsn]]:
        """The timelines that clients can ask for, each with its tip."""
        return [
            (tenant.tenant_id, timeline.timeline_id, timeline.get_last_record_lsn())
            for _, tenant in self.pageserver.tenants.list()
            if tenant is not None
            for timeline in tenant.list_timelines()
            if isinstance(timeline, PgdataTimeline)
        ]

    def close(self) -> None:
        """Close the services and the pageserver, and disconnect all clients."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _source(self, root: Path, config: PageServiceConfig) -> CacheSource:
        build_dir = root / "uncached_builds"
        build_dir.mkdir(mode=0o700, exist_ok=True)
        return CacheSource(
            self.pageserver.tenants,
            self.pageserver.cache,
            config,
            build_dir=str(build_dir),
        )


def _read_keys(path: Path) -> TokenKeys:
    """The keys for tokens; a service without them need not import what verifies a token."""
    from bbcache.page_service.auth.tokens import TokenKeys  # noqa: PLC0415 - needs an extra

    return TokenKeys(path)


def _make_tier(config: BasebackupCacheConfig, registry: CollectorRegistry) -> ObjectTier | None:
    """The second tier of the settings; raises `ConfigError` if it cannot be used."""
    if config.tier is None:
        return None
    from bbcache.tier import ObjectTier  # noqa: PLC0415 - needs an extra

    return ObjectTier(config.tier, registry)


def _registry() -> CollectorRegistry:
    """A registry with the metrics of the process itself."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
