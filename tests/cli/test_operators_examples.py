"""The files in examples/ that an operator copies are valid, and name what there is.

promtool (of the package prometheus) and systemd-analyze check them where they are installed.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_serve import serve  # noqa: F401 - a fixture
from page_service import wire
from support.helpers import tool, wait_until

from bbcache.cli.main import make_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cli.test_serve import Served

EXAMPLES = Path(__file__).parents[2] / "examples"
MONITORING = EXAMPLES / "monitoring"
SYSTEMD = EXAMPLES / "systemd"
# They are the words of PromQL, the labels, and the metrics of Prometheus itself.
NO_METRICS = {
    *("by", "sum", "rate", "increase", "le", "time", "or", "and", "histogram_quantile"),
    *("result", "bbcache_source", "reason", "sqlstate", "instance", "up", "job", "state"),
}
FROZEN = {
    *("bbcache_build_info", "bbcache_cleanup_errors_total", "bbcache_degraded"),
    *("bbcache_eviction_failures_total", "bbcache_fallback_builds_total", "bbcache_fills_total"),
    *("bbcache_free_disk_deficit_bytes", "bbcache_fullbackup_bytes", "bbcache_limit"),
    *("bbcache_pinned_entries", "bbcache_removals_total"),
    *("bbcache_loaded_entries", "bbcache_nonentry_bytes", "bbcache_page_service_connected"),
    *("bbcache_page_service_connections_total", "bbcache_page_service_copied_bytes_total"),
    *("bbcache_page_service_errors_total", "bbcache_pageserver_degraded"),
    *("bbcache_pageserver_foreign_names", "bbcache_pageserver_tenants"),
    *("bbcache_pageserver_timelines", "bbcache_prepare_archive_bytes_total"),
    *("bbcache_prepare_seconds", "bbcache_prepare_skips_total", "bbcache_prepare_tar_bytes_total"),
    *("bbcache_quarantined_total", "bbcache_tls_certificate_expiry_timestamp_seconds"),
    *("bbcache_tier_delete_total", "bbcache_tier_fetch_breaker_open", "bbcache_tier_fetch_seconds"),
    *("bbcache_tier_fetch_total", "bbcache_tier_fetched_bytes_total"),
    *("bbcache_tier_first_byte_seconds", "bbcache_tier_upload_breaker_open"),
    *("bbcache_tier_upload_queue_size", "bbcache_tier_upload_seconds"),
    *("bbcache_tier_upload_total", "bbcache_tier_uploaded_bytes_total"),
    *("bbcache_unlink_failures_total", "bbcache_unpublished_bytes"),
    *(
        "pageserver_basebackup_cache_entries_total",
        "pageserver_basebackup_cache_prepare_queue_size",
    ),
    *("pageserver_basebackup_cache_prepare_total", "pageserver_basebackup_cache_read_total"),
    *("pageserver_basebackup_cache_size_bytes", "pageserver_basebackup_query_seconds"),
    "pageserver_compute_commands_total",
}


def promtool(*words: object, stdin: str | None = None) -> str:
    """What promtool says; the test is skipped where there is none."""
    argv = [tool("promtool"), *map(str, words)]
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0 or stdin is not None, output
    return output


def tier_options(directory: Path) -> tuple[str, str]:
    """The options of a service whose second tier is in a directory."""
    (directory / "store").mkdir()
    path = directory / "tier.toml"
    path.write_text(
        f"[basebackup_cache_config.tier]\nurl = 'file://{directory}/store'\nallow_unsigned = true\n"
    )
    return "--config", str(path)


@pytest.fixture
def scrape(serve: Callable[..., Served], tmp_path: Path) -> str:  # noqa: F811 - the fixture
    """The metrics of a service with a second tier, after an error of a client."""
    served = serve(tmp_path / "root", "--create", *tier_options(tmp_path))
    client = served.client()
    client.send(wire.query("wrong"))
    client.until("Z")
    client.close()
    wait_until(lambda: b'errors_total{sqlstate="XX000"} 1.0' in served.http("metrics"))
    return served.http("metrics").decode()


def test_the_names_of_the_metrics_are_frozen(scrape: str) -> None:
    """A dashboard or an alert of an operator must not lose one."""
    names = set(re.findall(r"^# TYPE ((?:bbcache|pageserver)_\w+) ", scrape, re.MULTILINE))
    assert names - {name for name in names if name.endswith("_created")} == FROZEN


def test_promtool_has_nothing_to_say_of_the_metrics(scrape: str) -> None:
    """Promtool objects to Neon's names and to Python's own metrics, and to no other."""
    output = promtool("check", "metrics", stdin=scrape)
    complaints = [line for line in output.splitlines() if line.startswith("bbcache_")]
    assert complaints == []


def test_the_rules_of_the_alerts() -> None:
    """They are valid, and each fires when it should and at no other time."""
    promtool("check", "config", MONITORING / "prometheus.yml")
    promtool("test", "rules", MONITORING / "alerts_test.yml")


def test_each_alert_is_tested() -> None:
    """Each alert has a case in which it fires."""
    alerts = set(re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text()))
    tested = (MONITORING / "alerts_test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", tested))
    assert fired == alerts


def test_what_is_worth_an_alert_has_one(scrape: str) -> None:
    """Each metric whose help says so is in a rule."""
    worth = re.findall(r"^# HELP (\w+)(?<!_created) .*worth an alert", scrape, re.MULTILINE)
    alerts = (MONITORING / "alerts.yml").read_text()
    assert len(worth) > 5
    assert [name for name in worth if name not in alerts] == []


def queries() -> list[str]:
    """All queries of the dashboard."""
    document: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in document["panels"] for target in panel["targets"]]


def test_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """They are PromQL."""
    rules = {
        "groups": [
            {
                "name": "dashboard",
                "rules": [
                    {"record": f"q:{number}", "expr": query}
                    for number, query in enumerate(queries())
                ],
            }
        ]
    }
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps(rules))  # JSON is YAML
    promtool("check", "rules", path)


def metrics_in(expressions: Iterable[str]) -> set[str]:
    """The names of metrics in PromQL, without what Prometheus adds to them."""
    names: set[str] = set()
    for expression in expressions:
        bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
        names |= set(re.findall(r"[a-z_][a-z_0-9]*", bare)) - NO_METRICS
    return {re.sub(r"_(bucket|count)$", "", name) for name in names - {"setting"}}


def test_what_the_examples_name_is_there(scrape: str) -> None:
    """Every metric of the dashboard and of the alerts is in a scrape."""
    alerts = (MONITORING / "alerts.yml").read_text()
    expressions = re.findall(r"expr: (?!>)(.*)|^          (.*\(rate.*)", alerts, re.MULTILINE)
    there = set(re.findall(r"^# TYPE (\w+) ", scrape, re.MULTILINE))
    used = metrics_in([*queries(), *(one or other for one, other in expressions)])
    assert len(used) > 15
    assert used <= there


def test_the_files_of_the_compose_file_are_there() -> None:
    """Each file that it mounts is beside it."""
    mounted = re.findall(r"- \./(\S+?):", (MONITORING / "compose.yaml").read_text())
    assert len(mounted) == 5
    assert [name for name in mounted if not (MONITORING / name).is_file()] == []


def unit(name: str) -> configparser.RawConfigParser:
    """A unit of systemd."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(SYSTEMD / name)
    return parser


def test_the_unit_runs_the_command() -> None:
    """Its options are those of the command, and it ends before systemd's patience does."""
    command = shlex.split(unit("bbcache.service")["Service"]["ExecStart"])
    options = make_parser().parse_args(command[1:])
    assert options.command == "serve"
    patience_s = int(unit("bbcache.service")["Service"]["TimeoutStopSec"].removesuffix("s"))
    assert options.drain_timeout < patience_s
    assert unit("bbcache.socket")["Socket"]["FileDescriptorName"] != "http"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """As they are, but for the program, which is not installed there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze")
    for path in SYSTEMD.iterdir():
        text = path.read_text().replace("/opt/bbcache/bin/bbcache", "/bin/true")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        [program, "verify", *map(str, sorted(tmp_path.glob("bbcache.*")))],
        text=True,
        capture_output=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "bbcache" in line]
    # A systemd before 253 does not know the type, as the unit says.
    assert [line for line in ours if "notify-reload" not in line] == []
