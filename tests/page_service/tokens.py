"""Keys and tokens for the tests, made new each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support.helpers import TENANT

if TYPE_CHECKING:
    from pathlib import Path


class Signer:
    """A key that signs tokens."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()

    def write_public(self, path: Path) -> Path:
        """Write the public key in PEM."""
        pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path.write_bytes(pem)
        return path

    def write_private(self, path: Path) -> Path:
        """Write the private key in PEM."""
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem)
        return path

    def sign(self, **claims: Any) -> str:
        """A token with the claims; for the tenant of the tests unless they say otherwise."""
        claims = claims or {"scope": "tenant", "tenant_id": str(TENANT)}
        return jwt.encode(claims, self.key, algorithm="EdDSA")
