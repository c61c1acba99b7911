"""The keys of issuers: read from a file once, or fetched from where the issuer publishes them (OpenID Connect).

Fetched in the background, so that no request waits; but a token whose key is not known yet waits for one fetch that all
such tokens share, and there is at most one in `AGAIN_S`, whatever names of keys strangers think of. While the provider
is down its last keys go on, for `STALE_S`. What it answers is bounded in size and time, redirects are not followed, and
it has to name itself exactly as the settings do.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from greenroom import clock as clocks
from greenroom import errors, strict_json, telemetry
from greenroom.security import token_keys
from greenroom.security.token_keys import NO_KEYS, Key, KeySet, KeysRefused
from greenroom.settings import Issuer, addresses

FRESH_S = 300.0  # keys are fetched again after it
AGAIN_S = 30.0  # between two fetches, whatever they are for
STALE_S = 6 * 3600.0  # for which keys go on that could not be fetched again
FETCH_S = 5.0  # for all that one fetch asks for
MAX_URL = 2000  # characters


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Trust whom the system trusts (``SSL_CERT_FILE`` names others), and the usual ones where it has no list."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


class Published:
    """The keys that one issuer publishes."""

    def __init__(
        self,
        issuer: Issuer,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        changed: Callable[[], None],
    ) -> None:
        self._issuer, self._clock, self._facts, self._changed = issuer, clock, facts, changed
        self._keys = NO_KEYS
        self._fetched_at_s: float | None = None
        self._tried_at_s: float | None = None
        self.trouble = ""
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Key | None:
        """Return the key of that name, if need be after one fetch."""
        key = self._known(kid)
        if key is None and (self._fetching is not None or self._may_try()):
            await self._fetch()
            key = self._known(kid)
        return key

    async def refresh(self) -> float:
        """Fetch the keys if it is time; return the seconds until it will be again."""
        if self.due_in_s() <= 0:
            await self._fetch()
        return self.due_in_s()

    def due_in_s(self) -> float:
        now_s = self._clock.monotonic_s()
        if self._tried_at_s is None:
            return 0.0
        if self.trouble or self._fetched_at_s is None:
            return max(0.0, self._tried_at_s + AGAIN_S - now_s)
        return max(0.0, self._fetched_at_s + FRESH_S - now_s)

    def _known(self, kid: str | None) -> Key | None:
        self._forget_stale()
        return self._keys.find(kid)

    def _forget_stale(self) -> None:
        fetched_at_s = self._fetched_at_s
        if fetched_at_s is not None and self._clock.monotonic_s() >= fetched_at_s + STALE_S:
            self._fetched_at_s = None
            self._take(NO_KEYS)

    def _may_try(self) -> bool:
        return self._tried_at_s is None or self._clock.monotonic_s() >= self._tried_at_s + AGAIN_S

    async def _fetch(self) -> None:
        """Join the fetch that is under way, or begin one; it ends well, whatever the provider does."""
        if self._fetching is None:
            self._tried_at_s = self._clock.monotonic_s()
            self._fetching = asyncio.create_task(self._fetch_once(), name="greenroom-issuer")
        await asyncio.shield(self._fetching)  # whoever goes away must not take it from the others

    async def _fetch_once(self) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                keys = await self._read()
        except TimeoutError:
            self._note(f"no answer within {FETCH_S:g} s")
        except (KeysRefused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            self._note(str(error) or type(error).__name__)
        else:
            self._note("")
            self._fetched_at_s = self._clock.monotonic_s()
            self._take(keys)
        finally:
            self._fetching = None
            self._forget_stale()

    def _take(self, keys: KeySet) -> None:
        before, self._keys = self._keys, keys
        if any(keys.find_same(key) is None for key in before.keys.values()):
            self._changed()  # the tokens of a key that is gone are not to be known any more

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self._facts.emit(telemetry.IssuerChanged(self._issuer.issuer, "unreachable" if trouble else "ok", trouble))
        self.trouble = trouble

    async def _read(self) -> KeySet:
        async with httpx.AsyncClient(
            timeout=FETCH_S, follow_redirects=False, trust_env=False, verify=_authorities()
        ) as http:
            url = self._issuer.jwks_url or await self._discover(http)
            return token_keys.read_set(await _get(http, url), self._issuer.algorithms)

    async def _discover(self, http: httpx.AsyncClient) -> str:
        """Return where the keys are, by the issuer's own document (OpenID Connect Discovery, 4)."""
        wanted = self._issuer.issuer
        try:
            document = strict_json.loads(await _get(http, f"{wanted.rstrip('/')}/.well-known/openid-configuration"))
        except errors.JsonRefused as error:
            raise KeysRefused(f"cannot use its openid-configuration: {error}") from None
        named = document.get("issuer") if isinstance(document, dict) else None
        if named != wanted:
            raise KeysRefused(
                f"cannot use its openid-configuration: it is of the issuer {ascii(named)[:200]}, not of {wanted}"
            )
        url = document.get("jwks_uri")
        if not isinstance(url, str) or len(url) > MAX_URL or not _is_safe(url, like=wanted):
            raise KeysRefused("cannot use its openid-configuration: jwks_uri is no address of https://…")
        return url


class FromFile:
    """The keys of an issuer that a file of the node's own holds: for good."""

    trouble = ""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    async def find(self, kid: str | None) -> Key | None:
        return self._keys.find(kid)

    async def refresh(self) -> float:
        return FRESH_S


def from_file(issuer: Issuer, path: Path) -> FromFile:
    """Read *issuer*'s keys; raises `errors.StartRefused` where they cannot be trusted."""
    try:
        mode, content = path.stat().st_mode & 0o777, path.read_bytes()
        if len(content) > token_keys.MAX_BYTES:
            raise KeysRefused(f"cannot use the keys: more than {token_keys.MAX_BYTES} bytes")
        keys = token_keys.read_file(content, issuer.algorithms)
    except OSError as error:
        raise errors.StartRefused(f"cannot read {path}, the keys of {issuer.issuer}: {error.strerror}") from None
    except KeysRefused as error:
        raise errors.StartRefused(f"{error} ({path}, for {issuer.issuer})") from None
    readable, why = (0o077, "read") if "HS256" in issuer.algorithms else (0o022, "write")
    if mode & readable:
        raise errors.StartRefused(
            f"cannot trust {path}: others may {why} it (mode {mode:o}), and make tokens of {issuer.issuer}; "
            "run: chmod 600 on it"
        )
    return FromFile(keys)


async def _get(http: httpx.AsyncClient, url: str) -> bytes:
    pieces, size = [], 0
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with http.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:
            raise KeysRefused(f"GET {url} is answered with {response.status_code}, expected 200 (no redirect)")
        async for piece in response.aiter_raw():  # never unpacked: what is small may unpack to much
            pieces.append(piece)
            size += len(piece)
            if size > token_keys.MAX_BYTES:
                raise KeysRefused(f"GET {url} is answered with more than {token_keys.MAX_BYTES} bytes")
    return b"".join(pieces)


def _is_safe(url: str, *, like: str) -> bool:
    """Tell whether keys may come from *url*: by TLS, or from this machine where the issuer itself is on it."""
    return url.isprintable() and (
        addresses.is_https(url) or (addresses.is_loopback_http(url) and addresses.is_loopback_http(like))
    )
