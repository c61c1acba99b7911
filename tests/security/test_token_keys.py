"""Which keys tokens are verified with: what is weak, secret, ambiguous or of another kind is refused, and said why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import forge
from greenroom import errors, settings
from greenroom.security import oidc, token_keys
from greenroom.security.token_keys import KeysRefused

ED, P256, P384, RSA = (forge.make(kind) for kind in ("Ed25519", "P-256", "P-384", "RSA-2048"))
ALL = ("EdDSA", "ES256", "ES384", "RS256", "PS256")


def _set(*entries: Any) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def _private(key: Any) -> bytes:
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_a_key_serves_the_algorithms_that_fit_it_and_the_settings_name() -> None:
    entries = [forge.public_jwk(key, kid=name) for name, key in (("e", ED), ("2", P256), ("3", P384), ("r", RSA))]
    keys = token_keys.read_set(_set(*entries), ALL).keys
    assert {kid: set(key.bound) for kid, key in keys.items()} == {
        "e": {"EdDSA"},
        "2": {"ES256"},
        "3": {"ES384"},
        "r": {"RS256", "PS256"},
    }
    one = token_keys.read_set(_set(forge.public_jwk(RSA, kid="r", alg="PS256", use="sig", key_ops=["verify"])), ALL)
    assert set(one.keys["r"].bound) == {"PS256"}


def test_a_key_without_a_name_is_found_without_one_where_it_is_alone() -> None:
    alone = token_keys.read_set(_set(forge.public_jwk(ED)), ALL)
    assert alone.find(None) is not None
    assert alone.find("x") is None
    two = token_keys.read_set(_set(forge.public_jwk(ED), forge.public_jwk(P256, kid="b")), ALL)
    assert two.find(None) is None
    named = token_keys.read_set(_set(forge.public_jwk(ED, kid="a")), ALL)
    assert named.find(None) is None


def _rsa(bits: int, exponent: int = 65537) -> dict[str, Any]:
    return forge.public_jwk(rsa.generate_private_key(exponent, bits), kid="k")


def _huge_rsa() -> dict[str, Any]:
    return {"kty": "RSA", "kid": "k", "n": forge.number((1 << 16_383) + 1), "e": "AQAB"}


NO_NUMBERS: tuple[Any, ...] = (None, 5, [], {}, "", "*", "A", "ä", 1.5, True)
NO_WORDS: tuple[Any, ...] = (5, [], {}, "", True, ["x"], {"verify": 1})
REFUSED: dict[str, Any] = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "no keys": _set(),
    "keys that are no list": b'{"keys": {}}',
    "a hundred and one": _set(*[forge.public_jwk(ED, kid=str(n)) for n in range(101)]),
    "too many bytes": b" " * (token_keys.MAX_BYTES + 1),
    "two members of one name": b'{"keys": [], "keys": []}',
    "a key that is no object": _set("k"),
    "a kid that is a number": _set(forge.public_jwk(ED, kid=1)),
    "an empty kid": _set(forge.public_jwk(ED, kid="")),
    "a long kid": _set(forge.public_jwk(ED, kid="k" * 201)),
    "two of one kid": _set(forge.public_jwk(ED, kid="k"), forge.public_jwk(P256, kid="k")),
    "a key for encryption": _set(forge.public_jwk(ED, kid="k", use="enc")),
    "a key for signing": _set(forge.public_jwk(ED, kid="k", key_ops=["sign"])),
    "another alg": _set(forge.public_jwk(ED, kid="k", alg="HS256")),
    "a private part": _set(forge.public_jwk(ED, kid="k", d="AAAA")),
    "a published secret": _set(forge.public_jwk(bytes(32), kid="k")),
    "a curve that is none": _set({**forge.public_jwk(P256, kid="k"), "crv": "P-257"}),
    "a point off the curve": _set({**forge.public_jwk(P256, kid="k"), "x": forge.encoded(bytes(32))}),
    "half a point": _set({"kty": "EC", "crv": "P-256", "kid": "k"}),
    "RSA of 1024 bits": _set(_rsa(1024)),
    "RSA of 16384 bits": _set(_huge_rsa()),
    "RSA with the exponent 3": _set(_rsa(2048, 3)),
    **{
        f"{member} is {value!r}": _set({**forge.public_jwk(key, kid="k"), member: value})
        for key, members in ((RSA, "ne"), (P256, "xy"), (ED, "x"))
        for member in members
        for value in NO_NUMBERS
    },
    **{
        f"{name} is {value!r}": _set(forge.public_jwk(ED, kid="k", **{name: value}))
        for name in ("use", "key_ops", "alg", "kty", "crv")
        for value in NO_WORDS
    },
    "an unknown kind": _set({"kty": "XYZ", "kid": "k"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_key_is_refused(name: str) -> None:
    with pytest.raises(KeysRefused):
        token_keys.read_set(REFUSED[name], (*ALL, "HS256"))


def test_beside_a_sound_key_others_are_left_out_with_the_reason() -> None:
    keys = token_keys.read_set(_set(forge.public_jwk(ED, kid="k"), {"kty": "XYZ"}), ALL)
    assert set(keys.keys) == {"k"}
    assert "is for none of" in keys.refused[0]


@pytest.mark.parametrize("key", [ED, P256, P384, RSA])
def test_a_public_key_as_pem_is_read(key: forge.Private) -> None:
    (found,) = token_keys.read_file(forge.pem(key), ALL).keys.values()
    assert found.kid is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_private(ED), "openssl pkey"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (forge.pem(ec.generate_private_key(ec.SECP256K1())), "none of"),
        (_set(forge.public_jwk(bytes(31), kid="k")), "shorter than 32 bytes"),
        (_set({"kty": "oct", "k": "", "kid": "k"}), "malformed"),
        (_set(forge.public_jwk(ED, kid="k"), {"kty": "XYZ"}), "is for none of"),
    ],
)
def test_a_file_with_anything_wrong_is_refused_whole(content: bytes, told: str) -> None:
    algorithms = ("HS256",) if b"oct" in content else ALL
    with pytest.raises(KeysRefused, match=told):
        token_keys.read_file(content, algorithms)


@pytest.mark.parametrize(("algorithm", "mode"), [("EdDSA", 0o666), ("HS256", 0o640)])
def test_a_file_that_others_may_change_or_a_secret_that_they_may_read_is_not_trusted(
    tmp_path: Path, algorithm: str, mode: int
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(_set(forge.public_jwk(ED if algorithm == "EdDSA" else bytes(32), kid="k")))
    issuer = settings.Issuer(issuer="https://id.example", algorithms=(algorithm,), tenant="acme")  # type: ignore[arg-type]
    path.chmod(0o600)
    oidc.from_file(issuer, path)
    path.chmod(mode)
    with pytest.raises(errors.StartRefused, match="others may"):
        oidc.from_file(issuer, path)


def test_a_file_that_is_missing_is_one_message(tmp_path: Path) -> None:
    issuer = settings.Issuer(issuer="https://id.example", tenant="acme")
    with pytest.raises(errors.StartRefused, match="cannot read"):
        oidc.from_file(issuer, tmp_path / "missing")
