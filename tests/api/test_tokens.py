"""Tokens of issuers: a good one is who it says; of a hundred forged ones each is refused, and looks like any other."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import forge
import nodes
from forge import Forge, encoded, signer
from greenroom import errors, telemetry
from greenroom.api import auth

pytestmark = pytest.mark.asyncio(loop_scope="module")

ISSUER = "https://id.example/{}"
AUDIENCE = "greenroom"
KINDS = {
    "EdDSA": "Ed25519",
    "ES256": "P-256",
    "ES384": "P-384",
    "RS256": "RSA-2048",
    "PS256": "RSA-2048",
    "HS256": "oct",
}
_sources = (f"10.9.{a}.{b}" for a, b in itertools.product(range(256), repeat=2))


def _claims(algorithm: str, **more: Any) -> dict[str, Any]:
    now_s = int(time.time())
    return {
        "iss": ISSUER.format(algorithm),
        "aud": AUDIENCE,
        "sub": "ann",
        "jti": "j-1",
        "iat": now_s,
        "exp": now_s + 600,
        **more,
    }


FORGES = {
    algorithm: Forge(forge.make(kind), algorithm, _claims(algorithm), kid=f"k-{algorithm}")
    for algorithm, kind in KINDS.items()
}
IDENTITY = Forge(
    forge.make("P-256"), "ES256", _claims("id", roles=["x", "staff"], org="acme", name="Ann"), kid="id", type="JWT"
)
ED, ES, RS, HS = (FORGES[name] for name in ("EdDSA", "ES256", "RS256", "HS256"))
STRANGER = forge.make("Ed25519")


def _issuer(folder: Path, name: str, made: Forge, **more: Any) -> dict[str, Any]:
    path = folder / f"{name}.jwks"
    path.write_text(json.dumps({"keys": [forge.public_jwk(made.key, kid=made.kid)]}))
    path.chmod(0o600)
    return {
        "issuer": ISSUER.format(name),
        "audience": AUDIENCE,
        "algorithms": [made.algorithm],
        "key_file": str(path),
        **more,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[nodes.Api]:
    folder = tmp_path_factory.mktemp("tokens")
    issuers = [_issuer(folder, name, made, tenant="acme", role="user") for name, made in FORGES.items()]
    staff = {"roles_claim": "roles", "roles": {"boss": "admin", "staff": "viewer"}}
    issuers.append(_issuer(folder, "id", IDENTITY, type="JWT", tenant_claim="org", name_claim="name", **staff))
    issuers.append(_issuer(folder, "narrow", _of("narrow"), tenant="acme", role="user", scopes_claim="scope"))
    issuers.append(_issuer(folder, "home", _of("home"), tenant="default", roles_claim="realm.roles"))
    async with nodes.opened(folder / "data", {}, security={"issuers": issuers, "tenants_below_t2": True}) as opened:
        yield opened


_NARROW, _HOME = forge.make("Ed25519"), forge.make("Ed25519")


def _of(name: str, **claims: Any) -> Forge:
    key = {"narrow": _NARROW, "home": _HOME}[name]
    return Forge(key, "EdDSA", _claims(name, **claims))


async def _asked(api: nodes.Api, token: str, path: str = "/v1/agents", method: str = "GET") -> httpx.Response:
    return await api.of(token, source=next(_sources)).http.request(method, path)


def _without_id(response: httpx.Response) -> tuple[Any, ...]:
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return response.status_code, headers, re.sub(rb'"request_id":"[0-9a-f]+"', b"", response.content)


# Good ones


@pytest.mark.parametrize("algorithm", KINDS)
async def test_a_good_token_is_taken(api: nodes.Api, algorithm: str) -> None:
    token = FORGES[algorithm].token()
    for _ in range(2):  # the second time it is known
        assert (await _asked(api, token)).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": {"aud": ["other", AUDIENCE]}},
        {"claims": {"nbf": 0}},
        {"claims": {"iat": int(time.time()) + 30, "exp": int(time.time()) + 600}},
        {"claims": {"exp": int(time.time()) + 3590}},
        {"header": {"typ": "application/at+jwt"}},
        {"header": {"typ": "AT+JWT"}},
        {"header": {"x5t": "abc", "foo": [1]}},
        {"claims": {"foo": {"bar": [1, 2.5, None]}, "sub": "ünï côde"}},
    ],
)
async def test_what_a_good_token_may_say_beside(api: nodes.Api, changes: dict[str, Any]) -> None:
    assert (await _asked(api, ED.token(**changes))).status_code == 200


async def test_who_a_token_stands_for(api: nodes.Api) -> None:
    principal = await api.running.access.auth.authenticate(
        {b"authorization": f"Bearer {IDENTITY.token()}".encode()}, source="here"
    )
    assert (principal.id, principal.kind) == ("https://id.example/id#ann", "token")
    assert (principal.tenant, principal.name, principal.role) == ("acme", "Ann", "viewer")
    task = await _asked(api, ED.token(claims={"sub": "bob"}), "/v1/tasks")
    assert task.status_code == 200


@pytest.mark.parametrize(
    ("roles", "status"),
    [(["boss", "staff"], 404), (["staff", "boss"], 404), ("boss", 404), ("staff", 403), (["admin"], 403), ({}, 403)],
)
async def test_the_settings_say_which_roles_of_the_issuer_are_roles_here(
    api: nodes.Api, roles: Any, status: int
) -> None:
    token = IDENTITY.token(claims={"roles": roles})
    assert (await _asked(api, token, "/v1/keys/0", "DELETE")).status_code == status  # only an admin may


async def test_without_a_table_a_claim_names_the_role_itself_and_may_be_deep(api: nodes.Api) -> None:
    for realm, status in (({"roles": ["x", "viewer"]}, 200), ({"roles": ["x"]}, 403), ("roles", 403), (None, 403)):
        assert (await _asked(api, _of("home", realm=realm).token())).status_code == status


async def test_a_token_without_a_role_of_ours_is_told_so(api: nodes.Api) -> None:
    refused = await _asked(api, _of("home", realm={"roles": ["x"]}).token())
    assert refused.json()["detail"] == (
        "cannot GET /v1/agents: the token, which names no role that is known here, does not grant agent:read"
    )


async def test_a_token_makes_no_key_that_outlives_it(api: nodes.Api) -> None:
    mine = api.of(_of("home", realm={"roles": ["admin"]}).token(), source=next(_sources))
    for later, status in ((None, 403), (86_400, 403), (10, 201)):
        body = {"name": "n", "role": "user"} | ({} if later is None else {"expires_in_s": later})
        assert (await mine.call("POST", "/v1/keys", body)).status_code == status


async def test_scopes_narrow_the_role_where_the_settings_name_their_claim(api: nodes.Api) -> None:
    for scope, status in (("agent:read openid", 200), (["agent:*"], 200), ("openid", 403), (..., 403), ("*", 200)):
        assert (await _asked(api, _of("narrow").token(claims={"scope": scope}))).status_code == status
    assert (await _asked(api, _of("narrow").token(claims={"scope": "*"}), "/v1/keys")).status_code == 403


async def test_identity_tokens_may_leave_out_that_they_are_tokens(api: nodes.Api) -> None:
    assert (await _asked(api, IDENTITY.token(header={"typ": ...}, claims={"jti": ...}))).status_code == 200


# Forged ones


def _soon(after_s: float) -> int:
    return int(time.time() + after_s)


def _hs(key: bytes) -> forge.Sign:
    return signer(key, "HS256")


def _unsigned(text: str, suffix: str = "") -> str:
    return text.rpartition(".")[0] + "." + suffix


def _raw(text: str) -> bytes:
    """The claims of a good token, with *text* in front of the first."""
    return b"{" + text.encode() + b"," + json.dumps(dict(ED.claims)).encode()[1:]


def _der(data: bytes) -> bytes:
    assert isinstance(ES.key, ec.EllipticCurvePrivateKey)
    return ES.key.sign(data, ec.ECDSA(hashes.SHA256()))


FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: _unsigned(ED.token(header={"alg": "none"})),
    "alg None, signed": lambda: ED.token(header={"alg": "None"}),
    "alg nOnE with a signature": lambda: ED.token(header={"alg": "nOnE"}),
    "no alg": lambda: ED.token(header={"alg": ...}),
    "alg is a list": lambda: ED.token(header={"alg": ["EdDSA"]}),
    "alg is null": lambda: ED.token(header={"alg": None}),
    "alg in another case": lambda: ED.token(header={"alg": "eddsa"}),
    "no signature": lambda: _unsigned(ED.token()),
    "empty signature of zeros": lambda: _unsigned(ED.token(), encoded(bytes(64))),
    "HS256 with the public key as PEM": lambda: RS.token(header={"alg": "HS256"}, sign=_hs(forge.pem(RS.key))),
    "HS256 with the public key as JWK": lambda: ES.token(
        header={"alg": "HS256"}, sign=_hs(json.dumps(forge.public_jwk(ES.key)).encode())
    ),
    "HS256 with the key's own bytes": lambda: ED.token(
        header={"alg": "HS256"},
        sign=_hs(ED.key.public_key().public_bytes_raw()),  # type: ignore[union-attr]
    ),
    "HS256 with an empty key": lambda: HS.token(sign=_hs(b"")),
    "HS256 with another key": lambda: HS.token(sign=_hs(b"k" * 32)),
    "HS384 with the right key": lambda: HS.token(header={"alg": "HS384"}),
    "RS256 where PS256 is expected": lambda: FORGES["PS256"].token(
        header={"alg": "RS256"}, sign=signer(FORGES["PS256"].key, "RS256")
    ),
    "RS256 signature said to be PS256": lambda: FORGES["PS256"].token(sign=signer(FORGES["PS256"].key, "RS256")),
    "RS512 where RS256 is expected": lambda: RS.token(header={"alg": "RS512"}, sign=signer(RS.key, "RS512")),
    "ES384 where ES256 is expected": lambda: ES.token(
        header={"alg": "ES384"}, sign=signer(FORGES["ES384"].key, "ES384")
    ),
    "ES256 of zeros (psychic signature)": lambda: ES.token(sign=lambda _: bytes(64)),
    "ES256 in DER": lambda: ES.token(sign=_der),
    "another key": lambda: ED.token(sign=signer(STRANGER, "EdDSA")),
    "another issuer's key": lambda: ED.token(sign=signer(_NARROW, "EdDSA")),
    "another issuer's key and its kid": lambda: ED.token(header={"kid": "k1"}, sign=signer(_NARROW, "EdDSA")),
    "changed claims": lambda: _spliced(ED.token(), 1, encoded({**ED.claims, "sub": "root"})),
    "changed header": lambda: _spliced(ED.token(), 0, encoded({**ED.header, "x": 1})),
    "changed signature": lambda: _flipped(ED.token()),
    "cut signature": lambda: ED.token()[:-4],
    "signature with spare bits": lambda: _spare_bits(ED.token()),
    "no kid": lambda: ED.token(header={"kid": ...}),
    "unknown kid": lambda: ED.token(header={"kid": "k-2"}),
    "kid is null": lambda: ED.token(header={"kid": None}),
    "kid is a number": lambda: ED.token(header={"kid": 1}),
    "kid is a list": lambda: ED.token(header={"kid": [ED.kid]}),
    "kid climbs": lambda: ED.token(header={"kid": "../../../../dev/null"}, sign=_hs(b"")),
    "kid is SQL": lambda: ED.token(header={"kid": "' union select 'k"}, sign=_hs(b"k")),
    "kid is a URL": lambda: ED.token(header={"kid": "https://evil.example/keys"}),
    "jku": lambda: ED.token(header={"jku": "https://evil.example/jwks"}),
    "x5u": lambda: ED.token(header={"x5u": "https://evil.example/cert"}),
    "jwk, signed by it": lambda: ED.token(
        header={"jwk": forge.public_jwk(STRANGER)},
        sign=signer(STRANGER, "EdDSA"),
    ),
    "jwk beside a right signature": lambda: ED.token(header={"jwk": forge.public_jwk(ED.key)}),
    "x5c": lambda: ED.token(header={"x5c": ["MII"]}),
    "unknown crit": lambda: ED.token(header={"crit": ["exp2"], "exp2": 1}),
    "empty crit": lambda: ED.token(header={"crit": []}),
    "crit b64": lambda: ED.token(header={"crit": ["b64"], "b64": True}),
    "b64 false": lambda: ED.token(header={"b64": False}),
    "zip": lambda: ED.token(header={"zip": "DEF"}),
    "typ of an identity token": lambda: ED.token(header={"typ": "JWT"}),
    "no typ": lambda: ED.token(header={"typ": ...}),
    "typ is a list": lambda: ED.token(header={"typ": ["at+jwt"]}),
    "access token for identity": lambda: IDENTITY.token(header={"typ": "at+jwt"}),
    "no iss": lambda: ED.token(claims={"iss": ...}),
    "another iss": lambda: ED.token(claims={"iss": "https://id.example/other"}),
    "another known iss": lambda: ED.token(claims={"iss": ISSUER.format("ES256")}),
    "iss with a slash": lambda: ED.token(claims={"iss": ISSUER.format("EdDSA") + "/"}),
    "iss in capitals": lambda: ED.token(claims={"iss": ISSUER.format("EdDSA").upper()}),
    "iss is a list": lambda: ED.token(claims={"iss": [ISSUER.format("EdDSA")]}),
    "no aud": lambda: ED.token(claims={"aud": ...}),
    "another aud": lambda: ED.token(claims={"aud": "greenroom2"}),
    "aud among none": lambda: ED.token(claims={"aud": []}),
    "aud with what is no text": lambda: ED.token(claims={"aud": [AUDIENCE, 1]}),
    "aud contains it as a part": lambda: ED.token(claims={"aud": "my greenroom"}),
    "aud is an object": lambda: ED.token(claims={"aud": {AUDIENCE: 1}}),
    "aud of a thousand": lambda: ED.token(claims={"aud": [AUDIENCE] * 1000}),
    "shared identity token of another client": lambda: IDENTITY.token(claims={"aud": [AUDIENCE, "b"], "azp": "b"}),
    "no sub": lambda: ED.token(claims={"sub": ...}),
    "sub is a number": lambda: ED.token(claims={"sub": 1}),
    "empty sub": lambda: ED.token(claims={"sub": ""}),
    "sub of two lines": lambda: ED.token(claims={"sub": "ann\nadmin"}),
    "long sub": lambda: ED.token(claims={"sub": "a" * 256}),
    "no jti": lambda: ED.token(claims={"jti": ...}),
    "jti is a number": lambda: ED.token(claims={"jti": 7}),
    "no exp": lambda: ED.token(claims={"exp": ...}),
    "exp in the past": lambda: ED.token(claims={"iat": _soon(-700), "exp": _soon(-1)}),
    "exp too far": lambda: ED.token(claims={"exp": _soon(3700)}),
    "exp in a day and more": lambda: ED.token(claims={"exp": _soon(90_000)}),
    "exp is text": lambda: ED.token(claims={"exp": str(_soon(60))}),
    "exp is a fraction": lambda: ED.token(claims={"exp": _soon(60) + 0.5}),
    "exp is huge": lambda: ED.token(claims={"exp": 1e308}),
    "exp is NaN": lambda: ED.token(
        claims=json.dumps({**ED.claims, "exp": 0}).replace('"exp": 0', '"exp": NaN').encode()
    ),
    "exp is infinite": lambda: ED.token(
        claims=json.dumps({**ED.claims, "exp": 0}).replace('"exp": 0', '"exp": 1e999').encode()
    ),
    "exp is true": lambda: ED.token(claims={"exp": True}),
    "exp is null": lambda: ED.token(claims={"exp": None}),
    "exp before iat": lambda: ED.token(claims={"iat": _soon(50), "exp": _soon(40)}),
    "exp beyond 64 bits": lambda: ED.token(claims={"exp": 2**64}),
    "no iat": lambda: ED.token(claims={"iat": ...}),
    "iat in the future": lambda: ED.token(claims={"iat": _soon(120)}),
    "iat is negative": lambda: ED.token(claims={"iat": -1}),
    "iat long ago, and a long life": lambda: ED.token(claims={"iat": _soon(-86_400)}),
    "iat is text": lambda: ED.token(claims={"iat": "now"}),
    "nbf in the future": lambda: ED.token(claims={"nbf": _soon(120)}),
    "nbf is null": lambda: ED.token(claims={"nbf": None}),
    "two exp": lambda: ED.token(claims=_raw(f'"exp":{_soon(60)}')),
    "two sub": lambda: ED.token(claims=_raw('"sub":"root"')),
    "two alg": lambda: ED.token(header=b'{"alg":"none","alg":"EdDSA","typ":"at+jwt","kid":"k-EdDSA"}'),
    "claims are a list": lambda: ED.token(claims=b"[]"),
    "claims are no JSON": lambda: ED.token(claims=b"{'sub': 1}"),
    "claims with a tail": lambda: ED.token(claims=json.dumps(dict(ED.claims)).encode() + b"{}"),
    "claims in UTF-16": lambda: ED.token(claims=json.dumps(dict(ED.claims)).encode("utf-16")),
    "claims that are nested deep": lambda: ED.token(claims=b"[" * 2000 + b"]" * 2000),
    "header is a list": lambda: ED.token(header=b'["EdDSA"]'),
    "header is null": lambda: ED.token(header=b"null"),
    "large header": lambda: ED.token(header={"x": "x" * 3000}),
    "large claims": lambda: ED.token(claims={"x": "x" * 8000}),
    "four parts": lambda: ED.token() + ".e30",
    "five parts, as of an encrypted one": lambda: f"{ED.token()}.e30.e30",
    "padding": lambda: ED.token().replace(".", "=.", 1),
    "standard base64": lambda: _unsigned(ED.token(), "+/+/" * 20),
    "a line end inside": lambda: ED.token().replace(".", ".\t", 1),
    "tenant of the node's owner by claim": lambda: IDENTITY.token(claims={"org": "default"}),
    "no tenant": lambda: IDENTITY.token(claims={"org": ...}),
    "a tenant that is no name": lambda: IDENTITY.token(claims={"org": "../acme"}),
    "a tenant with a line end": lambda: IDENTITY.token(claims={"org": "acme\n"}),
    "tenants as a list": lambda: IDENTITY.token(claims={"org": ["acme"]}),
}


def _spliced(token: str, part: int, text: str) -> str:
    parts = token.split(".")
    parts[part] = text
    return ".".join(parts)


def _flipped(token: str) -> str:
    head, _, signature = token.rpartition(".")
    return f"{head}.{'B' if signature[0] != 'B' else 'C'}{signature[1:]}"


def _spare_bits(token: str) -> str:
    """The same signature in another text: 64 bytes leave four bits of the last letter unused."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) | 1]


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_is_refused_and_looks_like_any_other(api: nodes.Api, name: str) -> None:
    made = FORGED[name]()
    usual = _without_id(await api.of("gr_garbage", source=next(_sources)).http.get("/v1/agents"))
    for _ in range(2):  # nor is it known afterwards
        refused = await _asked(api, made)
        assert _without_id(refused) == usual
    assert usual[0] == 401
    assert usual[1]["www-authenticate"] == "Bearer"


MADE_UP = (
    *("alg none", "alg nOnE with a signature", "no alg", "no signature", "HS256 with the public key as PEM"),
    *("HS256 with an empty key", "another key", "changed claims", "changed header", "changed signature"),
    *("ES256 of zeros (psychic signature)", "jku", "x5u", "jwk, signed by it", "jwk beside a right signature"),
    *("unknown crit", "b64 false", "another issuer's key", "another known iss"),
)
MISTAKES = (
    *("exp in the past", "exp too far", "nbf in the future", "another aud", "another iss", "unknown kid"),
    *("typ of an identity token", "no jti", "no tenant", "four parts", "padding"),
)


@pytest.mark.parametrize(
    ("name", "why"), [*((name, "forged") for name in MADE_UP), *((name, "unknown") for name in MISTAKES)]
)
async def test_who_makes_a_token_up_is_told_from_who_makes_a_mistake(api: nodes.Api, name: str, why: str) -> None:
    heard: list[telemetry.CredentialRejected] = []
    kinds = (telemetry.CredentialRejected, telemetry.RequestRefused, telemetry.RequestForged)
    api.running.facts.subscribe(heard.append, *kinds)
    try:
        source = next(_sources)
        await api.of(FORGED[name](), source=source).http.get("/v1/agents")
    finally:
        for kind in kinds:
            api.running.facts.unsubscribe(heard.append, kind)
    assert heard == [telemetry.CredentialRejected(source, "", why)]


async def test_a_token_that_has_ended_is_known_no_more(api: nodes.Api) -> None:
    token = ED.token(claims={"iat": _soon(0), "exp": _soon(0) + 2})
    assert (await _asked(api, token)).status_code == 200
    await nodes.eventually(lambda: _is_refused(api, token), within_s=5)


async def _is_refused(api: nodes.Api, token: str) -> bool:
    return (await _asked(api, token)).status_code == 401


async def test_a_token_makes_no_logins_and_no_keys_beyond_its_role(api: nodes.Api) -> None:
    assert (await _asked(api, ED.token(), "/v1/logins", "POST")).status_code == 403
    assert (await _asked(api, ED.token(), "/v1/logins", "DELETE")).status_code == 403


@pytest.mark.parametrize("name", ["another iss", "changed signature", "exp in the past"])
async def test_a_rejected_token_takes_the_same_time_whatever_is_wrong(api: nodes.Api, name: str) -> None:
    """It waits for a moment that is later than any verdict, and costs nothing meanwhile."""
    headers = {b"authorization": f"Bearer {FORGED[name]()}".encode()}
    for _ in range(3):
        begun_s = time.perf_counter()
        with pytest.raises(errors.Unauthenticated):
            await api.running.access.auth.authenticate(headers, source=next(_sources))
        assert time.perf_counter() - begun_s >= auth.TOKEN_REJECTION_S * 0.8  # timers count whole milliseconds
