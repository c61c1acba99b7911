"""The rules of an issuer of tokens that concern more than one key, or more than a type can say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from greenroom.settings import addresses
from greenroom.settings.problems import quoted
from greenroom.settings.rules import Rule
from greenroom.settings.schema import Issuer, Security

_LOOPBACK = "plain HTTP is for addresses on this machine alone (127.0.0.1, ::1, localhost): give one of https://…"


def _issuer_is_an_address(issuer: Issuer) -> str | None:
    if not addresses.is_plain(issuer.issuer):
        return "expected a URL without user, query and fragment, exactly as the claim iss has it"
    return None


def _issuer_is_safe(issuer: Issuer) -> str | None:
    return None if issuer.key_file is not None else _not_safe(issuer.issuer)


def _keys_are_safe(issuer: Issuer) -> str | None:
    return None if issuer.jwks_url is None else _not_safe(issuer.jwks_url)


def _not_safe(url: str) -> str | None:
    return None if addresses.is_https(url) or addresses.is_loopback_http(url) else _LOOPBACK


def _keys_have_one_place(issuer: Issuer) -> str | None:
    if issuer.jwks_url is not None and issuer.key_file is not None:
        return "is given beside key_file: keys come from one place; remove one of them"
    return None


def _secrets_are_alone(issuer: Issuer) -> str | None:
    if "HS256" not in issuer.algorithms:
        return None
    if issuer.key_file is None:
        return "HS256 needs key_file: its key is a secret, which nobody publishes"
    if len(issuer.algorithms) > 1:
        return (
            "HS256 goes with no other algorithm: a public key must never be taken for a secret; give an issuer one kind"
        )
    return None


def _algorithms_differ(issuer: Issuer) -> str | None:
    twice = [name for name, count in Counter(issuer.algorithms).items() if count > 1]
    return f"names {twice[0]} twice; remove one" if twice else None


def _tenant_is_said(issuer: Issuer) -> str | None:
    if issuer.tenant is None and issuer.tenant_claim is None:
        return 'is missing: whose principals are they? Give tenant = "NAME", or tenant_claim'
    if issuer.tenant is not None and issuer.tenant_claim is not None:
        return "is given beside tenant_claim: one of them says it; remove the other"
    return None


def _role_is_said_once(issuer: Issuer) -> str | None:
    if issuer.role is not None and issuer.roles:
        return "is given beside roles: all have it, or a claim says it; remove one"
    return None


def _roles_are_names(issuer: Issuer) -> str | None:
    for claim, role in issuer.roles.items():
        if not isinstance(role, str):
            return f"expected the name of a role for {quoted(claim)}"
    return None


ISSUER_RULES: tuple[Rule[Issuer], ...] = (
    Rule((("issuer",),), _issuer_is_an_address),
    Rule((("issuer",), ("key_file",)), _issuer_is_safe),
    Rule((("jwks_url",),), _keys_are_safe),
    Rule((("jwks_url",), ("key_file",)), _keys_have_one_place),
    Rule((("algorithms",), ("key_file",)), _secrets_are_alone),
    Rule((("algorithms",),), _algorithms_differ),
    Rule((("tenant",), ("tenant_claim",)), _tenant_is_said),
    Rule((("role",), ("roles",)), _role_is_said_once),
    Rule((("roles",),), _roles_are_names),
)


def unknown_role(security: Security, known: Collection[str]) -> str | None:
    """Say which role of an issuer is none of *known*; None where all are."""
    for issuer in security.issuers:
        for role in (issuer.role, *issuer.roles.values()):
            if role is not None and role not in known:
                return f"{issuer.issuer} names the role {quoted(str(role))}; there are {', '.join(known)}"
    return None


def _issuers_differ(security: Security) -> str | None:
    twice = [name for name, count in Counter(each.issuer for each in security.issuers).items() if count > 1]
    return f"{twice[0]} stands there twice; give it one audience, or another name" if twice else None


SECURITY_RULES: tuple[Rule[Security], ...] = (Rule((("issuers",),), _issuers_differ),)
