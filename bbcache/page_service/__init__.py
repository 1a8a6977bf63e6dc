"""The page service: basebackups over the network, by the protocol of PostgreSQL's clients.

What a Neon pageserver answers to ``basebackup`` and ``fullbackup``, over any host and
cache: `server` listens, `source` is where the archives come from. The names here are the
public ones; `bbcache.page_service.auth.tokens.TokenKeys` needs ``bbcache[serve]`` and is
imported from its own module. Locks guard memory only. Must not import `http_service`, `fetch`
or the reference host.
"""

from bbcache.page_service.auth.tls import Certificate
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.errors import NotFoundError, PageServiceError
from bbcache.page_service.server import PageService
from bbcache.page_service.source import BasebackupSource, CacheSource, OpenBasebackup

__all__ = [
    "Address",
    "BasebackupSource",
    "CacheSource",
    "Certificate",
    "NotFoundError",
    "OpenBasebackup",
    "PageService",
    "PageServiceConfig",
    "PageServiceError",
]
