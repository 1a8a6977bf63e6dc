"""A token opens what it says, if a key has signed it, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from page_service.tokens import Signer
from support.helpers import TENANT, TIMELINE

from bbcache.errors import ConfigError
from bbcache.ids import TenantId, TimelineId
from bbcache.page_service.auth.permission import EVERYTHING, Permission
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.errors import BadTokenError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T, TL = str(TENANT), str(TIMELINE)
NOW_S = 1_800_000_000.0


@pytest.fixture
def signer() -> Signer:
    """A key."""
    return Signer()


@pytest.fixture
def keys(signer: Signer, tmp_path: Path) -> TokenKeys:
    """The service's keys, of which it is one."""
    return TokenKeys(signer.write_public(tmp_path / "key.pem"))


def opens(
    permission: Permission, tenant: TenantId = TENANT, timeline: TimelineId = TIMELINE
) -> bool:
    """Whether it opens the timeline."""
    try:
        permission.check(tenant, timeline, NOW_S)
    except UnauthorizedError:
        return False
    return True


@pytest.mark.parametrize(
    ("claims", "own", "sibling", "other"),
    [
        ({"scope": "pageserverapi"}, True, True, True),
        ({"scope": "pageserverapi", "tenant_id": T}, True, True, True),
        ({"scope": "tenant", "tenant_id": T}, True, True, False),
        ({"scope": "tenant", "tenant_id": T.upper(), "endpoint_id": ""}, True, True, False),
        ({"scope": "timeline", "tenant_id": T, "timeline_id": TL}, True, False, False),
        ({"scope": "tenant", "tenant_id": T, "exp": 2_000_000_000}, True, True, False),
        *(
            ({"scope": scope, "tenant_id": T, "timeline_id": TL}, False, False, False)
            for scope in ("tenantendpoint", "safekeeperdata", "admin", "Tenant", "x" * 99)
        ),
    ],
)
def test_what_a_token_opens(
    signer: Signer,
    keys: TokenKeys,
    claims: dict[str, Any],
    *,
    own: bool,
    sibling: bool,
    other: bool,
) -> None:
    """Its tenant's timelines, its timeline, everything or nothing, by its scope."""
    permission = keys.verify(signer.sign(**claims))
    assert opens(permission) == own
    assert opens(permission, timeline=TimelineId.generate()) == sibling
    assert opens(permission, tenant=TenantId.generate()) == other


@pytest.mark.parametrize(
    "claims",
    [
        {"tenant_id": T},
        {"scope": "tenant"},
        {"scope": "tenant", "tenant_id": None},
        {"scope": "tenant", "tenant_id": T[:-1]},
        {"scope": "tenant", "tenant_id": 7},
        {"scope": "tenant", "tenant_id": [T]},
        {"scope": "timeline", "tenant_id": T},
        {"scope": "timeline", "timeline_id": TL},
        {"scope": ["tenant"], "tenant_id": T},
        {"scope": None, "tenant_id": T},
        {"scope": "tenant", "tenant_id": T, "exp": 1_000_000_000},
        {"scope": "tenant", "tenant_id": T, "exp": "soon"},
        {"scope": "tenant", "tenant_id": T, "exp": 1e999},
        {"scope": "tenant", "tenant_id": T, "exp": 10**400},
        {"scope": "tenant", "tenant_id": T, "nbf": 4_000_000_000},
        {"scope": "tenant", "tenant_id": T, "aud": "another service"},
    ],
)
def test_claims_that_open_nothing(signer: Signer, keys: TokenKeys, claims: dict[str, Any]) -> None:
    """A good signature alone is not enough."""
    with pytest.raises(BadTokenError):
        keys.verify(signer.sign(**claims))


def encoded(part: object) -> bytes:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


def test_no_other_algorithm(signer: Signer, keys: TokenKeys, tmp_path: Path) -> None:
    """Not none, and not a symmetric one with the public key for a secret."""
    claims = encoded({"scope": "pageserverapi"})
    unsigned = encoded({"alg": "none", "typ": "JWT"}) + b"." + claims + b"."
    head = encoded({"alg": "HS256", "typ": "JWT"}) + b"." + claims
    public = signer.write_public(tmp_path / "public.pem").read_bytes()
    mac = hmac.digest(public, head, hashlib.sha256)
    confused = head + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")
    for token in (unsigned, confused):
        with pytest.raises(BadTokenError):
            keys.verify(token.decode())


def test_another_key(keys: TokenKeys) -> None:
    """A token that somebody else has signed proves nothing."""
    with pytest.raises(BadTokenError, match="none of the keys"):
        keys.verify(Signer().sign())


def test_a_changed_token(signer: Signer, keys: TokenKeys) -> None:
    """Claims of one token under the signature of another prove nothing."""
    head, _, signature = signer.sign().split(".")
    with pytest.raises(BadTokenError):
        keys.verify(".".join([head, encoded({"scope": "pageserverapi"}).decode(), signature]))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "..",
        "a.b.c",
        "\0",
        "\N{SNOWMAN}" * 9,
        base64.b64encode(b"[" * 30_000).decode() + ".e30.x",
    ],
)
def test_what_is_no_token(keys: TokenKeys, token: str) -> None:
    """Any text that is no token is a bad token."""
    with pytest.raises(BadTokenError) as raised:
        keys.verify(token)
    assert raised.value.simple_text() == "JWT authentication error"
    assert raised.value.detail() is None


_SIGNER = Signer()


@pytest.fixture(scope="module")
def fuzzed_keys(tmp_path_factory: pytest.TempPathFactory) -> TokenKeys:
    """Keys that many examples share."""
    return TokenKeys(_SIGNER.write_public(tmp_path_factory.mktemp("keys") / "key.pem"))


@given(text=st.text(max_size=60), at=st.integers(0, 200), has_head=st.booleans())
def test_hostile_tokens(fuzzed_keys: TokenKeys, text: str, at: int, *, has_head: bool) -> None:
    """Nothing that was not signed is let in."""
    good = _SIGNER.sign()
    token = good[:at] + text + good[at + len(text) :] if has_head else text
    try:
        permission = fuzzed_keys.verify(token)
    except BadTokenError:
        return
    assert permission == fuzzed_keys.verify(good)


def test_leeway(signer: Signer, keys: TokenKeys) -> None:
    """A token that has expired half a minute ago is good for as long again."""
    expired_s = int(time.time()) - 30
    permission = keys.verify(signer.sign(scope="pageserverapi", exp=expired_s))
    permission.check(TENANT, TIMELINE, expired_s + 59.9)
    with pytest.raises(UnauthorizedError, match="expired"):
        permission.check(TENANT, TIMELINE, expired_s + 60)


def test_a_directory_of_keys(signer: Signer, tmp_path: Path) -> None:
    """Each of its keys is good until it is removed and the keys are read again."""
    other = Signer()
    signer.write_public(tmp_path / "a.pem")
    second = other.write_public(tmp_path / "b.pem")
    (tmp_path / "sub").mkdir()
    keys = TokenKeys(tmp_path)
    assert len(keys) == 2
    token = other.sign()
    assert opens(keys.verify(token))
    second.unlink()
    assert opens(keys.verify(token))
    assert keys.reload() == 1
    with pytest.raises(BadTokenError):
        keys.verify(token)


def test_a_failed_reload_keeps_the_keys(signer: Signer, keys: TokenKeys, tmp_path: Path) -> None:
    """A half-written key refuses no client."""
    (tmp_path / "key.pem").write_text("-----BEGIN")
    with pytest.raises(ConfigError):
        keys.reload()
    assert opens(keys.verify(signer.sign()))


def private(path: Path) -> None:
    """The wrong half of a key."""
    Signer().write_private(path)


def other_curve(path: Path) -> None:
    """A key of another kind."""
    key = ed448.Ed448PrivateKey.generate().public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def rsa_key(path: Path) -> None:
    """A key of yet another kind."""
    key = rsa.generate_private_key(65537, 2048).public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def rubbish(path: Path) -> None:
    """No key."""
    path.write_bytes(b"\xff\0")


@pytest.mark.parametrize("write", [private, other_curve, rsa_key, rubbish])
def test_what_is_no_key(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """It is named, and how to make one is said."""
    path = tmp_path / "key.pem"
    write(path)
    with pytest.raises(ConfigError, match=r"key\.pem is not an Ed25519 public key") as raised:
        TokenKeys(path)
    assert "openssl genpkey -algorithm ed25519" in str(raised.value)


def test_no_keys(tmp_path: Path) -> None:
    """An empty directory, or a path that is not there, is an error at the start."""
    with pytest.raises(ConfigError, match="there are no keys in"):
        TokenKeys(tmp_path)
    with pytest.raises(ConfigError, match="cannot read the keys in"):
        TokenKeys(tmp_path / "nowhere")


def test_without_tokens_all_is_open() -> None:
    """A client that needs no token may read everything."""
    assert opens(EVERYTHING, tenant=TenantId.generate())


def test_the_algorithm_is_the_one_that_neon_signs_with(signer: Signer) -> None:
    """The tests sign what they say they sign."""
    assert jwt.get_unverified_header(signer.sign())["alg"] == "EdDSA"
