"""``bbcache serve``: its arguments, its signals, and what it prints."""

from __future__ import annotations

import argparse
import logging
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from bbcache.cli import arguments
from bbcache.cli.descriptors import ClientLimits, fit_clients
from bbcache.cli.log_output import FORMATS, LEVELS, logging_to_stderr
from bbcache.cli.output import lasting_stdout
from bbcache.cli.stop_signals import ServiceSignals, Stopped
from bbcache.cli.systemd import inherited_listeners, notify, notify_reloading
from bbcache.config import TOML_TABLE, BasebackupCacheConfig, read_document
from bbcache.durations import parse_duration_s
from bbcache.errors import BbcacheError, ConfigError, MissingExtraError
from bbcache.http_service.config import DEFAULT_ADDRESS, HttpConfig
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.serving.listening import address_of, adopt_listeners
from bbcache.setting_rows import settings_of

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from bbcache.cli.deployment import Deployment

log = logging.getLogger(__name__)

_SETTINGS: Final = settings_of(PageServiceConfig)
_SLICE_S: Final = 0.05
_MOST_SHOWN: Final = 20
_DESCRIPTION = """\
Serve the basebackups of a pageserver's timelines to compute nodes, psql and every
other PostgreSQL client. They come from a cache; a basebackup that is not in the cache
is built once for all clients that ask for it. HTTP has status, metrics and health.
"""
_EPILOG = """\
a first try:
  bbcache demo --dir /tmp/bb --rounds 2     makes a tenant with a timeline, and keeps it
  bbcache serve --root /tmp/bb              prints the tenant and the timeline
  psql "host=127.0.0.1 port=64000" -c "basebackup TENANT TIMELINE gzip" > base.tar.gz

access control:
  Without --auth-keys anyone who can connect can read every tenant; the service then
  listens on loopback only, unless --allow-unauthenticated is given. With --auth-keys
  the password of a client is its token: a JWT, signed with Ed25519, with the scope
  "tenant" and a tenant_id, or "pageserverapi" for all tenants. Make a key with
    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem     (for --auth-keys)

signals:
  TERM, INT   take no new clients, finish running commands, then exit; a second signal
              exits at once; before the service is ready, the first one does
  HUP         read keys, certificate and settings again, and look for tenants and timelines
              that have appeared or gone

systemd:
  Type=notify-reload, or notify, is told when the service is ready; a socket unit may
  listen for it, where FileDescriptorName=http is HTTP. See examples/systemd/.

exit codes:
  0 stopped by a signal, 2 cannot start; a closed stdout does not stop the service
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``serve`` command."""
    parser = commands.add_parser(
        "serve",
        help="serve basebackups to PostgreSQL clients over the network",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--root",
        type=arguments.path,
        required=True,
        metavar="DIR",
        help="the pageserver's directory, with tenants/ and basebackup_cache/ in it; "
        "used by one pageserver at a time",
    )
    parser.add_argument(
        "--create",
        action="store_true",
        help="create the directory if it does not exist; without this option that is an error",
    )
    _add_listening(parser)
    _add_security(parser)
    _add_logging(parser)
    parser.add_argument(
        "--config",
        type=arguments.path,
        metavar="FILE",
        help="a pageserver.toml: its table [basebackup_cache_config] has the cache's settings "
        "(default: those of docs/operations.md)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=_seconds,
        default="30s",
        metavar="TIME",
        help="how long clients have to finish their commands (default: %(default)s)",
    )
    parser.add_argument(
        "--max-fullbackup-size-bytes",
        type=int,
        metavar="N",
        help=f"{_SETTINGS['max_fullbackup_size_bytes'].text} (default: no limit)",
    )
    parser.set_defaults(run=run)


def _add_listening(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("addresses")
    group.add_argument(
        "--listen",
        action="append",
        metavar="HOST:PORT",
        help="address for PostgreSQL clients; may be given several times; port 0 takes any free "
        f"port, [::] is every address of both families (default: {_SETTINGS['listen'].default})",
    )
    group.add_argument(
        "--http",
        action="append",
        metavar="HOST:PORT",
        help="address for status, metrics and health; may be given several times "
        f"(default: {DEFAULT_ADDRESS})",
    )
    group.add_argument("--no-http", action="store_true", help="serve no HTTP")
    group.add_argument(
        "--max-connections",
        type=int,
        default=_SETTINGS["max_connections"].default,
        metavar="N",
        help=f"{_SETTINGS['max_connections'].text} (default: %(default)s)",
    )


def _add_security(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access control")
    group.add_argument(
        "--auth-keys",
        type=arguments.path,
        metavar="PATH",
        help="a public key in PEM, or a directory of them: clients need a token signed with one",
    )
    group.add_argument(
        "--tls-cert", type=arguments.path, metavar="FILE", help="PEM file; clients must use TLS"
    )
    group.add_argument(
        "--tls-key",
        type=arguments.path,
        metavar="FILE",
        help="its private key (default: in the same file)",
    )
    group.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="listen beyond loopback without tokens: anyone who can connect can read every tenant",
    )
    group.add_argument(
        "--allow-cleartext-tokens",
        action="store_true",
        help="listen beyond loopback with tokens but without TLS: everyone on the network path "
        "can read the tokens",
    )
    group.add_argument(
        "--allow-unauthenticated-http",
        action="store_true",
        help="serve HTTP beyond loopback: everyone can see the status and the ids of the tenants",
    )


def _add_logging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("log, on stderr")
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default="text",
        help="json writes one record per line (default: %(default)s)",
    )
    group.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="lowest level to log (default: %(default)s)",
    )
    group.add_argument(
        "--no-access-log",
        action="store_true",
        help="do not log commands that succeed",
    )


def run(options: argparse.Namespace) -> bool:
    """Serve until a signal stops the service.

    Returns:
        True: the service was stopped in order.

    Raises:
        BbcacheError: the service cannot start.
    """
    with lasting_stdout():
        try:
            _run(options)
        except Stopped:
            notify("STOPPING=1")
            print("stopped before it was ready", flush=True)
    return True


def _run(options: argparse.Namespace) -> None:
    with (
        ServiceSignals.heeded() as signals,
        logging_to_stderr(
            options.log_format, options.log_level, has_access_log=not options.no_access_log
        ),
        _deployment(options) as deployment,
    ):
        signals.end_start()
        deployment.start()
        _announce(deployment)
        notify("READY=1", f"STATUS=basebackups on {deployment.service.address}")
        _serve(deployment, signals, options)
        notify("STATUS=ended")


def _deployment(options: argparse.Namespace) -> Deployment:
    try:
        from bbcache.cli.deployment import Deployment  # noqa: PLC0415 - needs an extra
    except ImportError as error:
        raise MissingExtraError("the service cannot start", "serve", error) from error

    return Deployment(options.root.absolute(), create=options.create, **_settings(options))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    if options.tls_key is not None and options.tls_cert is None:
        raise ConfigError("--tls-key needs a certificate\nhint: Name it with --tls-cert.")
    cache_config = _cache_config(options.config)
    listeners, http_listeners = map(adopt_listeners, inherited_listeners())
    clients = fit_clients(
        ClientLimits(
            options.max_connections,
            _SETTINGS["max_pending_logins"].default,
            0 if options.no_http else settings_of(HttpConfig)["max_connections"].default,
        )
    )
    http_config = None
    if not options.no_http:
        http_config = HttpConfig(
            listen=_addresses(options.http, http_listeners, DEFAULT_ADDRESS),
            max_connections=clients.requests,
            allow_unauthenticated=options.allow_unauthenticated_http,
        )
    return {
        "cache_config": cache_config,
        "service_config": PageServiceConfig(
            listen=_addresses(options.listen, listeners, _SETTINGS["listen"].default),
            max_connections=clients.connections,
            max_pending_logins=clients.pending_logins,
            max_fullbackup_size_bytes=options.max_fullbackup_size_bytes,
            wait_lsn_timeout_s=cache_config.wait_lsn_timeout,
            allow_unauthenticated=options.allow_unauthenticated,
            allow_cleartext_tokens=options.allow_cleartext_tokens,
        ),
        "http_config": http_config,
        "listeners": listeners,
        "http_listeners": http_listeners,
        "auth_keys": options.auth_keys,
        "tls_cert": options.tls_cert,
        "tls_key": options.tls_key,
    }


def _addresses(
    texts: list[str] | None, listeners: list[socket.socket], default: Address
) -> tuple[Address, ...]:
    """Parse addresses; sockets that listen already take their place."""
    if listeners:
        return tuple(map(address_of, listeners))
    return tuple(Address.from_str(text, default.port) for text in texts or [str(default)])


def _cache_config(path: Path | None) -> BasebackupCacheConfig:
    """Read the cache's settings from a pageserver.toml; its other keys are ignored."""
    if path is None:
        return BasebackupCacheConfig()
    document = read_document(str(path))
    if TOML_TABLE not in document:
        raise ConfigError(
            f"{path} has no table {TOML_TABLE}, which means no cache to Neon's pageserver\n"
            f"hint: Add a line `[{TOML_TABLE}]`, which may stand alone, or leave --config out."
        )
    return BasebackupCacheConfig.from_toml(document)


def _serve(deployment: Deployment, signals: ServiceSignals, options: argparse.Namespace) -> None:
    """Handle signals until all clients are gone or the drain timeout is over."""
    while signals.wait() == signal.SIGHUP:
        notify_reloading()
        _reload(deployment, options.config)
        notify("READY=1")
    notify("STOPPING=1")
    drain_timeout_s = options.drain_timeout
    deadline_s = time.monotonic() + drain_timeout_s
    print(f"stopping: clients have {drain_timeout_s:g} s to finish their commands", flush=True)
    while not deployment.service.drain(_SLICE_S) and time.monotonic() < deadline_s:
        if signals.is_stop_waiting():
            break
    left = deployment.service.connection_count
    print(f"stopped; {left} clients were disconnected" if left else "stopped", flush=True)


def _reload(deployment: Deployment, config: Path | None) -> None:
    cache_config = None
    try:
        cache_config = _cache_config(config)
    except ConfigError as error:
        log.error("the settings from before stay in use: %s", error)  # noqa: TRY400 - no news in the traceback
    deployment.reload(cache_config)


def _announce(deployment: Deployment) -> None:
    for address in deployment.service.addresses:
        print(f"basebackups on {address}")
    for address in () if deployment.http is None else deployment.http.addresses:
        print(f"status on http://{address}/")
    timelines = deployment.timelines()
    for tenant_id, timeline_id, lsn in timelines[:_MOST_SHOWN]:
        print(f"tenant {tenant_id} timeline {timeline_id} at {lsn}")
    if len(timelines) > _MOST_SHOWN:
        print(f"and {len(timelines) - _MOST_SHOWN} more timelines")
    broken_count = len(deployment.pageserver.tenants.broken.list())
    if broken_count:
        print(f"{broken_count} tenants or timelines are broken: see the log")
    if not timelines:
        print("no timelines yet: `bbcache demo --dir DIR` makes one in an empty directory")
    print("ready; stop it with Ctrl-C", flush=True)


def _seconds(text: str) -> float:
    try:
        return parse_duration_s(text)
    except BbcacheError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
