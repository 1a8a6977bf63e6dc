"""Tokens: JWTs signed with Ed25519, and the public keys that they are verified with.

The claims are those of Neon's pageserver: ``scope``, ``tenant_id``, and ``exp`` and
``nbf`` where a token has them; for the scope ``timeline`` also ``timeline_id``. No
algorithm but EdDSA (RFC 8037) is accepted, whatever a token's header says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from bbcache.arguments import check_passable
from bbcache.errors import ConfigError, MissingExtraError, ParseError
from bbcache.ids import TenantId, TimelineId
from bbcache.page_service.auth.permission import Permission
from bbcache.page_service.errors import BadTokenError

try:
    import jwt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
except ImportError as error:
    raise MissingExtraError(
        "bbcache.page_service.auth.tokens cannot be imported", "serve", error
    ) from error


_ALGORITHM: Final = "EdDSA"
_LEEWAY_S: Final = 60  # that of Neon's pageserver
_MAX_KEY_SIZE_BYTES: Final = 64 * 1024


class TokenKeys:
    """The keys of one PEM file, or of all files of a directory. Thread-safe.

    Args:
        path: the file, or the directory, whose subdirectories are ignored.

    Raises:
        ConfigError: there is no key, or a file is not an Ed25519 public key in PEM.
    """

    def __init__(self, path: Path) -> None:
        check_passable("the path of the keys", path, ConfigError)
        self._path = path
        self._keys = _load(path)

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._keys)

    def reload(self) -> int:
        """Read the keys again; connections that an old key has admitted stay.

        Returns:
            The number of keys.

        Raises:
            ConfigError: as at the start; the old keys stay in use.
        """
        self._keys = _load(self._path)
        return len(self._keys)

    def verify(self, token: str) -> Permission:
        """Return what the token allows.

        Raises:
            BadTokenError: no key has signed it, it has expired, or its claims are not those of
                a token for this service.
        """
        return _permission(self._claims(token))

    def _claims(self, token: str) -> dict[str, Any]:
        for key in self._keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token, key, algorithms=[_ALGORITHM], leeway=_LEEWAY_S
                )
            except jwt.InvalidSignatureError:
                continue
            except Exception as error:  # noqa: BLE001 - hostile bytes may make the parser raise anything
                kind = type(error).__name__  # not the error itself: it may have the token
            else:
                return claims
            raise BadTokenError(f"the token is bad: {kind}")
        raise BadTokenError("the token is signed with none of the keys")


def _permission(claims: dict[str, Any]) -> Permission:
    try:
        scope = claims.get("scope")
        tenant_id = _read(TenantId, claims.get("tenant_id"))
        timeline_id = _read(TimelineId, claims.get("timeline_id"))
        expires_s = claims.get("exp")
        expires_at_s = None if expires_s is None else float(expires_s) + _LEEWAY_S
    except (ParseError, ValueError, TypeError, OverflowError):
        raise BadTokenError("the token's claims are not for this service") from None
    if not isinstance(scope, str):
        raise BadTokenError("the token has no scope")
    if scope == "pageserverapi":
        return Permission(expires_at_s=expires_at_s)
    if scope == "tenant" and tenant_id is not None:
        return Permission(tenant_id, expires_at_s=expires_at_s)
    if scope == "timeline" and tenant_id is not None and timeline_id is not None:
        return Permission(tenant_id, timeline_id, expires_at_s)
    if scope in ("tenant", "timeline"):
        raise BadTokenError(f"a token of scope {scope} lacks an id")
    refusal = "a token of this scope opens no basebackup"  # its name is a part of the token
    return Permission(expires_at_s=expires_at_s, refusal=refusal)


def _read(kind: type[Any], claim: object) -> Any:
    return None if claim is None else kind.from_str(claim)


def _load(path: Path) -> list[Ed25519PublicKey]:
    try:
        paths = (
            sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        )
        keys = [_load_key(each) for each in paths]
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from error
    if not keys:
        raise ConfigError(f"there are no keys in {path}\nhint: Put a public key in PEM there.")
    return keys


def _load_key(path: Path) -> Ed25519PublicKey:
    with path.open("rb") as file:
        pem = file.read(_MAX_KEY_SIZE_BYTES)
    try:
        key = load_pem_public_key(pem)
    except Exception:  # noqa: BLE001 - a file on which the parser fails is not a key
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            f"{path} is not an Ed25519 public key in PEM\n"
            "hint: Make one with `openssl genpkey -algorithm ed25519 -out key.pem` and "
            "`openssl pkey -in key.pem -pubout -out key.pub.pem`, and name key.pub.pem."
        )
    return key
