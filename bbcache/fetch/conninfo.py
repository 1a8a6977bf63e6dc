"""The settings of a connection from its URL, and the secrets that no message may repeat."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable
from typing import Any, Final

from bbcache.arguments import fault_of
from bbcache.errors import ConfigError, MissingExtraError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise MissingExtraError("bbcache.fetch cannot be imported", "fetch", error) from error

_CONNECT_TIMEOUT_S: Final = 10
_LEAST_CONNECT_TIMEOUT_S: Final = 2  # the shortest of libpq
_USER: Final = "bbcache"  # page services ignore it, and a user in a container may have no name
_DEFAULTS: Final = {
    "fallback_application_name": "bbcache fetch",
    # A machine that has vanished is noticed within half a minute, even before the first byte.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_SCHEMES: Final = ("postgresql://", "postgres://")
_LEAST_SECRET_CHARACTERS: Final = 4  # a shorter one occurs in ordinary words
_QUOTED: Final = re.compile(r'".*"', re.DOTALL)
_URL_HINT: Final = (
    "hint: A URL is postgresql://user:password@host:port/, with %40 for @, %2F for / and %3F for ? "
    "in the password; better give that by --token-file or PGPASSWORD."
)


def check_texts(url: str, token: str | None) -> None:
    """Raise `ConfigError` for what libpq cannot take, without the text: it may have a password."""
    for what, text in ("URL", url), ("token", token):
        if text is not None and (fault := fault_of(text)) is not None:
            raise ConfigError(f"the {what} has {fault}")


def settings_of(url: str, token: str | None, left_s: float) -> dict[str, Any]:
    """The settings of a connection, with the defaults of a fetch.

    Args:
        url: a libpq connection string or URL.
        token: the password, whatever the URL has; None leaves it to libpq.
        left_s: how many seconds are left to connect.

    Raises:
        ConfigError: the URL cannot be understood, or has a service and no sslmode. The
            message has no part of the URL, because any part may be a password.
    """
    found = _parsed(url)
    settings: dict[str, Any] = {**_DEFAULTS, **found}
    if "user" not in found and "PGUSER" not in os.environ:
        settings["user"] = _USER
    if "sslmode" not in found and "PGSSLMODE" not in os.environ:
        settings |= _default_tls(found)
    if token is not None:
        settings["password"] = token
    wanted = found.get("connect_timeout", os.environ.get("PGCONNECT_TIMEOUT"))
    settings["connect_timeout"] = _connect_timeout_s(wanted, left_s / len(_hosts(found)))
    return settings


def without_quotes(error: Exception) -> str:
    """An error of libpq about a connection string, without the parts that it quotes."""
    return _QUOTED.sub('"..."', str(error)).strip()


def hidden(text: str, secrets: Iterable[str | None]) -> str:
    """A text that a service may have sent, without secrets that it may repeat."""
    known = {each for each in secrets if each and len(each) >= _LEAST_SECRET_CHARACTERS}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _parsed(url: str) -> dict[str, Any]:
    _check_escapes(url)
    try:
        found = conninfo_to_dict(url)
    except UnicodeEncodeError:  # bytes of a command line that are no text
        raise ConfigError("the URL is not UTF-8") from None
    except psycopg.ProgrammingError as error:
        reason = without_quotes(error)
    else:
        if all(port.isdecimal() for port in str(found.get("port") or "0").split(",") if port):
            return found
        reason = "its port is not a number"
    raise ConfigError(f"the URL cannot be understood: {reason}\n{_URL_HINT}")


def _check_escapes(url: str) -> None:
    """Refuse a URL in which libpq takes a part of the password for host or port."""
    scheme = next((each for each in _SCHEMES if url.startswith(each)), None)
    if scheme is None:
        return
    head = url.removeprefix(scheme).partition("?")[0]
    authority, _, path = head.partition("/")
    if authority.count("@") > 1 or "@" in path:
        raise ConfigError(f"the URL cannot be understood: it has one @ too many\n{_URL_HINT}")


def _connect_timeout_s(wanted: Any, left_s: float) -> int:
    """Whole seconds for one host, at most the time that is left."""
    try:
        wanted_s = int(wanted or _CONNECT_TIMEOUT_S)
    except ValueError:
        raise ConfigError("connect_timeout is not a whole number of seconds") from None
    most_s = max(_LEAST_CONNECT_TIMEOUT_S, math.ceil(left_s))
    return most_s if wanted_s <= 0 else max(_LEAST_CONNECT_TIMEOUT_S, min(wanted_s, most_s))


def _default_tls(found: dict[str, Any]) -> dict[str, str]:
    """The settings of TLS for a URL without sslmode."""
    if found.get("service") or os.environ.get("PGSERVICE"):
        raise ConfigError(
            "the URL names a libpq service, so its host is not known here\n"
            "hint: Add an sslmode such as verify-full to the URL. Without one, a password could go "
            "to another machine in the clear."
        )
    return {} if all(map(_is_loopback, _hosts(found))) else {"sslmode": "require"}


def _hosts(found: dict[str, Any]) -> list[str]:
    """The hosts of the connection; addresses take precedence over names."""
    addresses = found.get("hostaddr") or os.environ.get("PGHOSTADDR")
    hosts = addresses or found.get("host") or os.environ.get("PGHOST") or ""
    return str(hosts).split(",")


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, over loopback or a Unix socket."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
