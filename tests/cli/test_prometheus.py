"""A real Prometheus scrapes a real service, and answers what the dashboard and alerts ask."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_operators_examples import MONITORING, queries, tier_options
from cli.test_serve import place, serve  # noqa: F401 - fixtures
from page_service import wire
from support.cache_helpers import DEADLINE_S
from support.helpers import tool, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cli.test_serve import Place, Served

pytestmark = pytest.mark.postgres


class Prometheus:
    """A Prometheus that scrapes a service ten times a second, and its API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def values(self, query: str) -> list[float]:
        """The values of a query, one for each series."""
        return [float(each["value"][1]) for each in self.get("query", query=query)["result"]]


@contextmanager
def scraping(served: Served, directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the scrape configuration of the examples, but on other ports."""
    target = served.value("status on http://").rstrip("/")
    config = (MONITORING / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9898", target).replace(": 15s", ": 100ms")
    config = config.replace("alerts.yml", str(MONITORING / "alerts.yml"))
    (directory / "prometheus.yml").write_text(config)
    log_path = directory / "prometheus.log"
    options = [
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with (
        log_path.open("wb") as log,
        subprocess.Popen([tool("prometheus"), *options], stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: "Listening on" in log_path.read_text())
            (port,) = re.findall(r'"Listening on" address=127\.0\.0\.1:(\d+)', log_path.read_text())
            yield Prometheus(int(port))
        finally:
            process.kill()


def is_scraped(prometheus: Prometheus) -> bool:
    """Whether the service has been scraped, which an API that has just begun may not tell."""
    with suppress(OSError):
        return prometheus.values('up{job="bbcache"}') == [1.0]
    return False


def test_prometheus_answers_each_query(
    serve: Callable[..., Served],  # noqa: F811 - the fixture
    place: Place,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """Each panel of the dashboard has a value, and no alert fires on a healthy service."""
    place.forget()
    served = serve(place.root, *tier_options(tmp_path))
    with scraping(served, tmp_path) as prometheus:
        wait_until(lambda: is_scraped(prometheus))
        client = served.client()
        for text in (place.command("gzip"), place.command("gzip"), "wrong"):
            client.send(wire.query(text))
            client.until("Z")
        client.close()
        count = "pageserver_basebackup_query_seconds_count"
        hits = f'{count}{{result="ok",bbcache_source="hit"}}'
        wait_until(lambda: prometheus.values(f"rate({hits}[5m])") not in ([], [0.0]))
        for query in queries():
            values = prometheus.values(query.replace("$instance", ".*"))
            assert values or query.endswith("> 0"), query  # nothing was skipped
            assert not any(map(math.isnan, values)), query
        groups = prometheus.get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {(rule["health"], rule["state"]) for rule in rules} == {("ok", "inactive")}
        assert len(rules) == (MONITORING / "alerts.yml").read_text().count("- alert:")
