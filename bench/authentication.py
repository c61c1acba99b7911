"""What it costs a node to know who calls: each kind of credential, the first time and again, in process."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import Figure
from bench.scale import Scale
from cryptography.hazmat.primitives.asymmetric import ed25519

from greenroom import errors, node, settings

ISSUER = "https://id.example"
CALLS = 2000  # of each credential in a round
_sources = map(str, itertools.count())  # of rejections, which are counted for each


def authentication(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Microseconds for each credential; the first time everything is verified, then it is known by its digest."""
    took_us = asyncio.run(_measured(folder, scale.rounds))
    aims = {"key, first": "≤ 50 µs"}
    for name, values in took_us.items():
        yield Figure(f"credential: {name}", "µs", values, aim=aims.get(name, ""))


async def _measured(folder: Path, rounds: int) -> dict[str, list[float]]:
    signing = ed25519.Ed25519PrivateKey.generate()
    issuer = {"issuer": ISSUER, "tenant": "default", "role": "user", "key_file": str(folder / "jwks.json")}
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": _encoded(signing.public_key().public_bytes_raw())}
    (folder / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    (folder / "jwks.json").chmod(0o600)
    found = settings.load(overrides={"security": {"issuers": [issuer]}}, environ={})
    options = node.Options(settings=found, folder=folder, data_dir=folder / "data", port=0)
    async with node.opened(options, grace_s=0) as running:
        auth = running.access.auth
        key = f"Bearer {(folder / 'data' / 'local.key').read_text().strip()}"
        row = running.access.keys.rows(tenant=node.TENANT)[0]
        begun = await auth.logins.begin(await auth.logins.link(row.key_id))
        assert begun is not None
        ways: dict[str, tuple[Mapping[bytes, bytes], Callable[[], None]]] = {
            "key, first": (_bearing(key), running.access.keys._proven.clear),
            "key, again": (_bearing(key), _nothing),
            "token (Ed25519), first": (_bearing(f"Bearer {_token(signing)}"), auth.forget_tokens),
            "token, again": (_bearing(f"Bearer {_token(signing)}"), _nothing),
            "login": (
                {b"cookie": f"greenroom_session={begun.cookie}".encode(), b"sec-fetch-site": b"same-origin"},
                _nothing,
            ),
        }
        took_us: dict[str, list[float]] = {name: [] for name in (*ways, "rejection of a key")}
        for _ in range(rounds):
            for name, (headers, forget) in ways.items():
                took_us[name].append(await _each_us(partial(auth.authenticate, headers, source="bench"), forget))
            took_us["rejection of a key"].append(await _each_us(partial(_rejected, auth), _nothing))
        return took_us


async def _each_us(ask: Callable[[], Awaitable[Any]], forget: Callable[[], None]) -> float:
    total_ns = 0
    for _ in range(CALLS):
        forget()
        begun_ns = time.perf_counter_ns()
        await ask()
        total_ns += time.perf_counter_ns() - begun_ns
    return total_ns / CALLS / 1000


async def _rejected(auth: Any) -> None:
    try:
        await auth.authenticate(_bearing("Bearer gr_garbage"), source=next(_sources))
    except errors.Unauthenticated:
        return
    raise AssertionError("it was taken")


def _nothing() -> None:
    pass


def _bearing(authorization: str) -> Mapping[bytes, bytes]:
    return {b"host": b"x", b"authorization": authorization.encode(), b"content-type": b"application/json"}


def _token(signing: ed25519.Ed25519PrivateKey) -> str:
    now_s = int(time.time())
    claims = {"iss": ISSUER, "aud": "greenroom", "sub": "ann", "jti": "j", "iat": now_s, "exp": now_s + 3000}
    parts = (_encoded(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "typ": "at+jwt", "kid": "k"}, claims))
    signed = ".".join(parts)
    return f"{signed}.{_encoded(signing.sign(signed.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
