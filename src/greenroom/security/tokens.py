"""Tokens of others (JWT, RFC 7519; RFC 8725, 9068): what one says, once it is proven that its issuer says it.

Stricter than any library's default: what a token says of how to verify it (``jku``, ``x5u``, ``jwk``, ``crit`` …) is a
reason to refuse it, every claim that bounds it has to be there, and nothing is decoded before it is known to be small.
Pure: keys and time are given. None is the one answer for all that is refused; nobody is told why.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Container, Mapping
from datetime import datetime
from typing import Any

import jwt
import msgspec

from greenroom import errors, strict_json
from greenroom.core.permissions import HOME, NO_ROLE
from greenroom.security.token_keys import Key
from greenroom.settings import Issuer

MAX_TOKEN_BYTES = 8192
MAX_HEADER_BYTES = 2048  # of its text
LEEWAY_S = 60  # that another's clock may be ahead of ours; none is given at the end
MAX_KEYS = 200  # of one object
MAX_SUBJECT = 255  # characters; OpenID Connect Core, 2
MAX_NAME = 200  # characters
MAX_AUDIENCES = 50
MAX_INSTANT_S = 253_402_300_799  # the year 9999

_FORM = re.compile(
    r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)"
)  # nothing signs what has the algorithm "none"
_REFUSED_HEADERS = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64", "zip", "enc"})
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_verifier = jwt.PyJWS()


class Unverified(msgspec.Struct, frozen=True):
    """A token that is well-formed, and of which nothing is proven."""

    text: str
    header: dict[str, Any]
    claims: dict[str, Any]

    @property
    def issuer(self) -> str:
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else ""

    @property
    def kid(self) -> str | None:
        return self.header.get("kid")


class Proven(msgspec.Struct, frozen=True):
    """Whom a verified token stands for, until *expires_at_s* (seconds since 1970). *scopes* None: the role alone."""

    id: str
    tenant: str
    name: str
    role: str
    scopes: tuple[str, ...] | None
    expires_at_s: int


def parse(text: str) -> Unverified | None:
    """Return what *text* claims to be; None where it is not a signed token of three parts."""
    if len(text) > MAX_TOKEN_BYTES or (match := _FORM.fullmatch(text)) is None:
        return None
    first, second, third = match.groups()
    if len(first) > MAX_HEADER_BYTES:
        return None
    try:
        header, claims = _object(_decoded(first)), _object(_decoded(second))
        _decoded(third)
    except (errors.JsonRefused, binascii.Error):
        return None
    if header is None or claims is None or not isinstance(header.get("kid", ""), str):
        return None
    return Unverified(text, header, claims)


def is_made_up(token: Unverified, issuer: Issuer) -> bool:
    """Tell whether *token* says of how to verify it what *issuer* never does: to choose the key, or the algorithm."""
    return bool(_REFUSED_HEADERS & token.header.keys()) or token.header.get("alg") not in issuer.algorithms


def may_be_of(token: Unverified, issuer: Issuer) -> bool:
    """Tell whether *token* is worth a look at *issuer*'s keys: all that needs none of them is right."""
    if token.issuer != issuer.issuer or is_made_up(token, issuer):
        return False
    return _is_of_type(token.header.get("typ"), issuer.type)


def is_signed(token: Unverified, key: Key | None) -> bool:
    """Tell whether *key* has signed *token*, by the algorithm that the header names and the key is bound to."""
    bound = key.bound.get(token.header["alg"]) if key is not None else None
    if bound is None:
        return False
    try:
        _verifier.decode_complete(token.text, bound, algorithms=[bound.algorithm_name])
    except (jwt.PyJWTError, ValueError):
        return False
    return True


def proven(claims: Mapping[str, Any], issuer: Issuer, *, now: datetime, roles: Container[str]) -> Proven | None:
    """Return whom the signed *claims* stand for at *issuer*; None where they do not bound themselves as they have to.

    *roles* are those there are.
    """
    subject = claims.get("sub")
    is_meant = claims.get("iss") == issuer.issuer and _is_for(claims, issuer)
    if not (is_meant and _is_text(subject, MAX_SUBJECT) and _is_current(claims, issuer, now.timestamp())):
        return None
    if not _is_identity(issuer) and not _is_text(claims.get("jti"), MAX_NAME):
        return None  # RFC 9068, 2.2
    tenant = issuer.tenant or _tenant(_claim(claims, issuer.tenant_claim))
    if tenant is None:
        return None
    name = _claim(claims, issuer.name_claim)
    return Proven(
        id=f"{issuer.issuer}#{subject}",
        tenant=tenant,
        name=str(name) if _is_text(name, MAX_NAME) else str(subject),
        role=_role(claims, issuer, roles),
        scopes=_scopes(claims, issuer),
        expires_at_s=claims["exp"],
    )


def _decoded(part: str) -> bytes:
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():  # one token, one text
        raise binascii.Error
    return decoded


def _object(text: bytes) -> dict[str, Any] | None:
    value = strict_json.loads(text, max_keys=MAX_KEYS)
    return value if isinstance(value, dict) else None


def _is_identity(issuer: Issuer) -> bool:
    return issuer.type.lower() == "jwt"


def _is_of_type(given: object, wanted: str) -> bool:
    """Compare media types: ``application/`` may be left out (RFC 7515, 4.1.9). What is no more than "JWT" need not say
    so (RFC 7519, 5.1), and many providers' identity tokens do not.
    """
    if given is None:
        return wanted.lower() == "jwt"
    return isinstance(given, str) and given.lower().removeprefix("application/") == wanted.lower().removeprefix(
        "application/"
    )


def _is_for(claims: Mapping[str, Any], issuer: Issuer) -> bool:
    match claims.get("aud"):
        case str(audience):
            return audience == issuer.audience
        case [*audiences] if len(audiences) <= MAX_AUDIENCES and all(isinstance(each, str) for each in audiences):
            is_shared = _is_identity(issuer) and len(audiences) > 1  # then it says who asked for it
            return issuer.audience in audiences and (not is_shared or claims.get("azp") == issuer.audience)
        case _:
            return False


def _is_current(claims: Mapping[str, Any], issuer: Issuer, now_s: float) -> bool:
    issued_s, expires_s, begins_s = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
    if not (_is_instant(issued_s) and _is_instant(expires_s) and _is_instant(begins_s)):
        return False
    assert isinstance(issued_s, int)
    assert isinstance(expires_s, int)
    lifetime_s = expires_s - issued_s
    return 0 < lifetime_s <= issuer.max_lifetime_s and max(issued_s, begins_s) - LEEWAY_S <= now_s < expires_s


def _is_instant(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INSTANT_S


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _claim(claims: Mapping[str, Any], name: str | None) -> Any:
    """Return the claim of that name, else what the path of that name leads to (``realm_access.roles``)."""
    if name is None or name in claims:
        return claims.get(name or "")
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _tenant(claim: object) -> str | None:
    """Return the tenant that a claim names. Never the node's owner's: a provider that lets tenants choose their names
    would make one of them the owner.
    """
    if not isinstance(claim, str) or _TENANT.fullmatch(claim) is None or claim == HOME:
        return None
    return claim


def _role(claims: Mapping[str, Any], issuer: Issuer, roles: Container[str]) -> str:
    if issuer.role is not None:
        return issuer.role
    claim = _claim(claims, issuer.roles_claim)
    named = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    if issuer.roles:  # in the order of the settings: a provider's lists have none
        return next((role for value, role in issuer.roles.items() if value in named and role in roles), NO_ROLE)
    return next((role for role in named if isinstance(role, str) and role in roles), NO_ROLE)


def _scopes(claims: Mapping[str, Any], issuer: Issuer) -> tuple[str, ...] | None:
    if issuer.scopes_claim is None:
        return None
    claim = _claim(claims, issuer.scopes_claim)
    named = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return tuple(scope for scope in named if isinstance(scope, str))
