"""The paths of the HTTP service."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from bbcache.errors import ParseError, printable
from bbcache.http_service.assets import CONTENT_SECURITY_POLICY
from bbcache.http_service.handler import Response, text_response
from bbcache.http_service.status import State, StatusReader
from bbcache.http_service.templates import render
from bbcache.ids import TenantId, TimelineId

_WHY: Final = "/why/"
_JSON: Final = ".json"
_PAGE_HEADERS: Final = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
)


class Routes:
    """Answers requests by their paths. Thread-safe.

    Args:
        status: returns the status that the page shows.
        registry: the metrics of ``/metrics``.
    """

    def __init__(self, status: StatusReader, registry: CollectorRegistry) -> None:
        self._status = status
        self._registry = registry
        self._pages = {
            "/": self._page,
            "/status.json": self._json,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    def respond(self, path: str, accept: str) -> Response:
        """Return the response to a request.

        Args:
            path: without its query.
            accept: the types that the client accepts; only ``/metrics`` uses it.
        """
        if path.startswith(_WHY):
            return self._why(path)
        page = self._pages.get(path)
        if page is None:
            known = " ".join([*self._pages, f"{_WHY}TENANT/TIMELINE"])
            return text_response(HTTPStatus.NOT_FOUND, f"not found; there are {known}")
        return page(accept)

    def _page(self, _: str) -> Response:
        body = render(self._status.read()).encode()
        return Response(HTTPStatus.OK, "text/html; charset=utf-8", body, _PAGE_HEADERS)

    def _json(self, _: str) -> Response:
        body = json.dumps(self._status.read().to_json(), indent=2).encode() + b"\n"
        return Response(HTTPStatus.OK, "application/json", body)

    def _why(self, path: str) -> Response:
        """Explain a timeline, as a text or, below ``.json``, for programs."""
        ids = path.removeprefix(_WHY).removesuffix(_JSON)
        tenant, _, timeline = ids.partition("/")
        try:
            tenant_id, timeline_id = TenantId.from_str(tenant), TimelineId.from_str(timeline)
        except ParseError as error:
            text = f"{printable(str(error))}\nhint: The path is {_WHY}TENANT/TIMELINE, two ids."
            return text_response(HTTPStatus.BAD_REQUEST, text)
        explanation = self._status.explain(tenant_id, timeline_id)
        if not path.endswith(_JSON):
            return text_response(HTTPStatus.OK, str(explanation))
        body = json.dumps(explanation.as_dict(), indent=2).encode() + b"\n"
        return Response(HTTPStatus.OK, "application/json", body)

    def _metrics(self, accept: str) -> Response:
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # noqa: BLE001 - it parses a header of the client
            encode, content_type = choose_encoder("")
        return Response(HTTPStatus.OK, content_type, encode(self._registry))

    def _healthz(self, _: str) -> Response:
        """Answer: a process that does not is one that a restart may help."""
        return text_response(HTTPStatus.OK, "ok")

    def _readyz(self, _: str) -> Response:
        """A degraded service is ready: it serves its entries, and builds the others."""
        state, reason = self._status.state(), self._status.degraded_reason()
        if state is State.DEGRADED and reason is not None:
            return text_response(HTTPStatus.OK, f"{state}: {reason}")
        is_ready = state in (State.READY, State.DEGRADED)
        return text_response(HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, state)
