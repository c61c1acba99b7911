"""Makes tokens and key sets for tests, good and forged, with nothing between them and the bytes: no library judges."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | bytes
Sign = Callable[[bytes], bytes]

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def encoded(value: Any) -> str:
    """Return *value* (JSON, or bytes as they are) as base64url."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return encoded(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def make(kind: str) -> Private:
    """Make a private key: Ed25519, P-256, P-384, or RSA with so many bits (RSA-2048); oct: 32 bytes."""
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind])
    if kind == "oct":
        return bytes(range(32))
    return rsa.generate_private_key(65537, int(kind.removeprefix("RSA-")))


def public_jwk(key: Private, **more: Any) -> dict[str, Any]:
    jwk: dict[str, Any]
    match key:
        case ed25519.Ed25519PrivateKey():
            jwk = {"kty": "OKP", "crv": "Ed25519", "x": encoded(key.public_key().public_bytes_raw())}
        case ec.EllipticCurvePrivateKey():
            point, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
            name = {256: "P-256", 384: "P-384"}[key.key_size]
            jwk = {"kty": "EC", "crv": name, "x": number(point.x, size), "y": number(point.y, size)}
        case rsa.RSAPrivateKey():
            numbers = key.public_key().public_numbers()
            jwk = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        case _:
            jwk = {"kty": "oct", "k": encoded(key)}
    return jwk | more


def pem(key: Private) -> bytes:
    assert not isinstance(key, bytes)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(path: Path) -> Path:
    """Write a certificate for 127.0.0.1 that nobody but itself has signed, with its key, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def signer(key: Private, algorithm: str) -> Sign:
    """Return what signs as *algorithm*, whatever it is said to be in the header."""
    if algorithm == "HS256":
        assert isinstance(key, bytes)
        return lambda data: hmac.digest(key, data, hashlib.sha256)
    if algorithm == "EdDSA":
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key.sign
    digest = _HASHES[algorithm[2:]]
    if algorithm.startswith("ES"):
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        size = (key.key_size + 7) // 8

        def sign(data: bytes) -> bytes:
            r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")

        return sign
    assert isinstance(key, rsa.RSAPrivateKey)
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm.startswith("PS"):
        scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
    return lambda data: key.sign(data, scheme, digest)


@dataclass
class Forge:
    """An issuer that signs what it is asked to. *claims* and *header* are a good token's."""

    key: Private
    algorithm: str
    claims: Mapping[str, Any]
    kid: str | None = "k1"
    type: str | None = "at+jwt"
    header: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        given = {"alg": self.algorithm, "typ": self.type, "kid": self.kid}
        self.header = {name: value for name, value in given.items() if value is not None}

    def token(
        self,
        *,
        header: Mapping[str, Any] | bytes | None = None,
        claims: Mapping[str, Any] | bytes | None = None,
        sign: Sign | None = None,
    ) -> str:
        """Return a signed token; what is given changes the good one's members (... drops them), bytes replace them."""
        parts = [
            encoded(given if isinstance(given, bytes) else _changed(good, given or {}))
            for good, given in ((self.header, header), (self.claims, claims))
        ]
        signed = ".".join(parts)
        return f"{signed}.{encoded((sign or signer(self.key, self.algorithm))(signed.encode()))}"


def _changed(good: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**good, **given}.items() if value is not ...}
