"""The keys that tokens are verified with: JWK sets (RFC 7517) and PEM files, of which only what is sound is taken.

A key serves the algorithms that its issuer's settings name and that fit it, and no other. Pure. What verifies a
signature is PyJWT; everything that it would take and we would not is refused here and in `tokens`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from greenroom import errors, strict_json

MAX_BYTES = 256 * 1024  # of a set
MAX_KEYS = 100  # of a set
MAX_KID = 200  # characters
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: as long as the hash
RSA_BITS = range(2048, 8192 + 1)  # more would let a signature cost a node much
MIN_RSA_EXPONENT = 65_537

# The kind of key and the curve of each algorithm that settings may name.
_FORMS: Mapping[str, tuple[str, str | None]] = {
    "EdDSA": ("OKP", "Ed25519"),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "HS256": ("oct", None),
}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class KeysRefused(errors.GreenroomError):
    """A set of keys cannot be used."""

    code = "keys-refused"


class Key(msgspec.Struct, frozen=True):
    """A key, bound to each of the algorithms that it may be used with."""

    kid: str | None
    bound: Mapping[str, jwt.PyJWK]
    fingerprint: bytes  # of all that was published of it


class KeySet(msgspec.Struct, frozen=True):
    """Keys by their ``kid``. *refused* says what was left out of the set, and why."""

    keys: Mapping[str | None, Key]
    refused: tuple[str, ...] = ()

    def find(self, kid: str | None) -> Key | None:
        """Return the key that *kid* names; without a name the only one there is, if that has none either."""
        return self.keys.get(kid) if kid is not None or len(self.keys) == 1 else None

    def find_same(self, key: Key) -> Key | None:
        """Return *key*, if it is there, unchanged."""
        found = self.keys.get(key.kid)
        return found if found is not None and found.fingerprint == key.fingerprint else None


NO_KEYS = KeySet({})


def read_set(document: bytes, algorithms: Sequence[str], *, is_local: bool = False) -> KeySet:
    """Read a JWK set; raises `KeysRefused` where none of its keys is of use for *algorithms*.

    Secrets (``oct``) are taken from a file of the node's own alone (*is_local*): nobody publishes them.
    """
    if len(document) > MAX_BYTES:
        raise KeysRefused(f"cannot use the keys: more than {MAX_BYTES} bytes")
    try:
        found = strict_json.loads(document)
    except errors.JsonRefused as error:
        raise KeysRefused(f"cannot use the keys: {error}") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_KEYS:
        raise KeysRefused(f'cannot use the keys: expected {{"keys": […]}} with 1 to {MAX_KEYS} of them')
    return _set_of(entries, algorithms, is_local=is_local)


def read_file(content: bytes, algorithms: Sequence[str]) -> KeySet:
    """Read a file of the node's own: a JWK set, or one public key as PEM. Whatever is wrong with it is an error."""
    if content.lstrip().startswith(b"-----BEGIN"):
        keys = _set_of([_jwk_of_pem(content)], algorithms, is_local=True)
    else:
        keys = read_set(content, algorithms, is_local=True)
    if keys.refused:
        raise KeysRefused(f"cannot use the keys: {keys.refused[0]}")
    return keys


def _set_of(entries: Sequence[Any], algorithms: Sequence[str], *, is_local: bool) -> KeySet:
    keys: dict[str | None, Key] = {}
    refused = []
    names = Counter(_kid(entry) for entry in entries)
    for entry in entries:
        try:
            key = _key(entry, algorithms, is_local=is_local)
            if names[key.kid] > 1:
                raise KeysRefused(f"two keys are named {_named(key.kid)}")
        except KeysRefused as error:
            refused.append(str(error))
        else:
            keys[key.kid] = key
    if not keys:
        raise KeysRefused(f"cannot use the keys: none is of use for {', '.join(algorithms)}: {refused[0]}")
    return KeySet(keys, tuple(refused))


def _kid(entry: Any) -> Any:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return kid if isinstance(kid, str) else None


def _key(entry: Any, algorithms: Sequence[str], *, is_local: bool) -> Key:
    if not isinstance(entry, dict):
        raise KeysRefused("a key is no object")
    kid = entry.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        raise KeysRefused(f"the name (kid) of a key is no text of 1 to {MAX_KID} characters")
    name = f"the key {_named(kid)}"
    kind = entry.get("kty")
    fitting = _fitting(entry, algorithms)
    if not fitting:
        raise KeysRefused(f"{name} is for none of {', '.join(algorithms)}")
    uses = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        raise KeysRefused(f"{name} is not for signatures")
    if kind == "oct":
        _check_secret(entry, name, is_local=is_local)
    elif _PRIVATE & entry.keys():
        raise KeysRefused(f"{name} holds its private part, which nobody but its owner may have: make a new one")
    try:
        bound = {algorithm: jwt.PyJWK(entry, algorithm=algorithm) for algorithm in fitting}
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError, UnsupportedAlgorithm):
        raise KeysRefused(f"{name} is malformed") from None
    if kind == "RSA":
        _check_rsa(next(iter(bound.values())).key, name)
    return Key(kid, bound, hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).digest())


def _fitting(entry: Mapping[str, Any], algorithms: Iterable[str]) -> list[str]:
    form = (entry.get("kty"), entry.get("crv") if entry.get("kty") in ("EC", "OKP") else None)
    own = entry.get("alg")
    return [each for each in algorithms if _FORMS[each] == form and own in (None, each)]


def _check_secret(entry: Mapping[str, Any], name: str, *, is_local: bool) -> None:
    if not is_local:
        raise KeysRefused(f"{name} is a secret (oct), and was published: whoever reads it makes tokens")
    text = entry.get("k")
    if not isinstance(text, str) or _BASE64URL.fullmatch(text) is None:
        raise KeysRefused(f"{name} is malformed")
    if len(text) * 6 // 8 < MIN_SECRET_BYTES:
        raise KeysRefused(f"{name} is shorter than {MIN_SECRET_BYTES} bytes: it can be guessed; make a longer one")


def _check_rsa(key: rsa.RSAPublicKey, name: str) -> None:
    if key.key_size not in RSA_BITS:
        raise KeysRefused(f"{name} has {key.key_size} bits; expected {RSA_BITS[0]} to {RSA_BITS[-1]}")
    if key.public_numbers().e < MIN_RSA_EXPONENT:
        raise KeysRefused(f"{name} has an exponent below {MIN_RSA_EXPONENT}")


def _jwk_of_pem(content: bytes) -> dict[str, Any]:
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise KeysRefused(
            "cannot use the keys: the file is no public key as PEM (openssl pkey -in KEY -pubout makes one)"
        ) from None
    match key:
        case rsa.RSAPublicKey():
            return jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True) | {"key_ops": ["verify"]}
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            return dict(jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True))
        case ed25519.Ed25519PublicKey():
            x = base64.urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode()
            return {"kty": "OKP", "crv": "Ed25519", "x": x}
        case _:
            raise KeysRefused("cannot use the keys: the PEM is of none of Ed25519, P-256, P-384 and RSA")


def _named(kid: object) -> str:
    """Return a name as it can be printed."""
    return ascii(kid)[:80] if isinstance(kid, str) else "without a name"
