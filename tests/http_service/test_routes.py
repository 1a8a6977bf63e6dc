"""The documents of the HTTP service, by path."""

from __future__ import annotations

import errno
import html
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support.cache_helpers import LSN_A, fail_with
from support.fill_helpers import fill

from bbcache.storage.files import TempFile

if TYPE_CHECKING:
    from http_service.conftest import Whole


def test_the_page(whole: Whole) -> None:
    """HTML with its policy, which may be put into no frame."""
    response = whole.routes.respond("/", "")
    assert (response.status, response.content_type) == (200, "text/html; charset=utf-8")
    assert response.body.startswith(b"<!DOCTYPE html>")
    headers = dict(response.headers)
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Frame-Options"] == "DENY"


def test_json(whole: Whole) -> None:
    """The same facts for programs."""
    whole.bench.harness.prepared()
    response = whole.routes.respond("/status.json", "")
    assert response.content_type == "application/json"
    document = json.loads(response.body)
    assert (document["entry_count"], document["entries"][0]["lsn"]) == (1, str(LSN_A))


def test_metrics(whole: Whole) -> None:
    """As Prometheus reads them, in the format that it asks for."""
    whole.bench.harness.prepared()
    response = whole.routes.respond("/metrics", "text/plain")
    names = {family.name for family in text_string_to_metric_families(response.body.decode())}
    assert {"pageserver_basebackup_cache_read", "bbcache_page_service_connected"} <= names
    response = whole.routes.respond("/metrics", "application/openmetrics-text; version=1.0.0")
    assert response.content_type.startswith("application/openmetrics-text")
    assert list(parse_openmetrics(response.body.decode()))  # type: ignore[no-untyped-call]  # it has no types


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=X",
        "application/openmetrics-text; version=",
        "application/openmetrics-text; escaping=x; version=1.0.0",
        ", ;=; q=",
        "\N{SNOWMAN}",
    ],
)
def test_metrics_for_a_client_with_a_strange_wish(whole: Whole, accept: str) -> None:
    """A format that cannot be read as one gets a format that can."""
    response = whole.routes.respond("/metrics", accept)
    assert response.status == HTTPStatus.OK
    assert b"bbcache_page_service_connected" in response.body


def test_health(whole: Whole) -> None:
    """Alive as long as it answers; ready as long as clients are served."""
    assert whole.routes.respond("/healthz", "")[0] == HTTPStatus.OK
    ready = whole.routes.respond("/readyz", "")
    assert (ready.status, ready.body) == (HTTPStatus.OK, b"ready\n")
    whole.bench.service.drain(0)
    ready = whole.routes.respond("/readyz", "")
    assert (ready.status, ready.body) == (HTTPStatus.SERVICE_UNAVAILABLE, b"draining\n")
    assert whole.routes.respond("/healthz", "")[0] == HTTPStatus.OK


def test_a_service_whose_cache_can_publish_nothing_is_degraded(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready all the same, and says why; once an archive is published it is well again."""
    harness = whole.bench.harness
    timeline = harness.timeline()
    with monkeypatch.context() as patch:
        fail_with(patch, TempFile, "sync", OSError(errno.EIO, "Input/output error"))
        with fill(harness, timeline) as file:
            assert file.source == "built"
    ready = whole.routes.respond("/readyz", "")
    assert ready.status == HTTPStatus.OK
    assert re.fullmatch(rb"degraded: cannot write .*: Input/output error\n", ready.body)
    status = json.loads(whole.routes.respond("/status.json", "").body)
    assert status["state"] == "degraded"
    assert f"degraded: {status['degraded_reason']}\n".encode() == ready.body
    page = whole.routes.respond("/", "").body.decode()
    assert html.escape(status["degraded_reason"]) in page
    harness.prepare(timeline)
    assert whole.routes.respond("/readyz", "").body == b"ready\n"
    assert 'id="degraded"' not in whole.routes.respond("/", "").body.decode()


def test_a_second_tier_that_fails_is_shown(whole: Whole) -> None:
    """The page says why; a service without a tier shows none."""
    assert "Second tier" not in whole.routes.respond("/", "").body.decode()
    whole.reader.tier_problem = lambda: "uploads pause after failures in a row"
    assert "uploads pause after failures in a row" in whole.routes.respond("/", "").body.decode()
    document = json.loads(whole.routes.respond("/status.json", "").body)
    assert document["tier"]["problem"] == "uploads pause after failures in a row"


@pytest.mark.parametrize("path", ["", "//", "/index.html", "/metrics/", "/../etc/passwd", "*"])
def test_what_there_is_not(whole: Whole, path: str) -> None:
    """It names what there is, and repeats nothing."""
    response = whole.routes.respond(path, "")
    assert response.status == HTTPStatus.NOT_FOUND
    known = "/ /status.json /metrics /healthz /readyz /why/TENANT/TIMELINE"
    assert response.body == f"not found; there are {known}\n".encode()
