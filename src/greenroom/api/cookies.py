"""Logins of browsers as a credential: a one-time link of a key becomes a cookie, which stands for the key.

A cookie comes with whatever page sends the browser here, so it counts only where the browser says that the page is
ours, and for what changes nothing also where a person has typed the address. What is forged is refused before any
look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from greenroom import clock as clocks
from greenroom.security import login_tokens
from greenroom.store import database, logins

LINK_S = 60
LOGIN_S = 8 * 3600
IDLE_S = 3600
LOOK_EVERY_S = 0.5  # how long an ended login may go on at another node
NOTE_EVERY_S = 60
MAX_SEEN = 10_000
SECURE, PLAIN = "__Host-greenroom_session", "greenroom_session"
SAFE = ("GET", "HEAD")

Headers = Mapping[bytes, bytes]


class Begun(NamedTuple):
    """A login that has just begun: what its cookie holds, and whose it is."""

    cookie: str
    key_id: str


class _Seen(NamedTuple):
    login: logins.Login
    at_s: float


class Logins:
    def __init__(self, store: logins.Logins, clock: clocks.Clock, *, key: bytes) -> None:
        self._store, self._clock, self._key = store, clock, key
        self._seen: dict[str, _Seen] = {}

    async def link(self, key_id: str) -> str:
        """Return what a link for *key_id* holds: good once, for `LINK_S`."""
        text, digest = login_tokens.mint("link", self._key)
        await self._store.link(logins.NewLink(digest, key_id, LINK_S * 1_000_000))
        return text

    async def begin(self, link: str) -> Begun | None:
        """Use a link; None where it is not one, or over, or used."""
        digest = login_tokens.digest_of(link, "link", self._key)
        if digest is None:
            return None
        text, cookie = login_tokens.mint("cookie", self._key)
        login = await self._store.exchange(logins.Exchange(digest, cookie, LOGIN_S * 1_000_000))
        return None if login is None else Begun(text, login.key_id)

    async def current(self, headers: Headers, *, method: str, is_tls: bool) -> logins.Login | None:
        """Return the login whose cookie came with a request; None where it may not stand for it."""
        digest = self._digest(headers, is_tls=is_tls)
        if digest is None or not is_ours(headers, method=method):
            return None
        now_s = self._clock.monotonic_s()
        seen = self._seen.get(digest)
        login = seen.login if seen is not None and now_s < seen.at_s + LOOK_EVERY_S else await self._store.get(digest)
        if login is None or not self._is_live(login):
            self._seen.pop(digest, None)
            return None
        login = await self._noted(login)
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen[digest] = _Seen(login, now_s)
        return login

    async def look(self, headers: Headers, *, is_tls: bool) -> logins.Login | None:
        """Return the login whose cookie came with a request that goes on, if it lives; it is not used by that."""
        digest = self._digest(headers, is_tls=is_tls)
        login = None if digest is None else await self._store.get(digest)
        return login if login is not None and self._is_live(login) else None

    async def end(self, login: logins.Login) -> None:
        """End it, at once here and soon elsewhere."""
        await self._store.end(logins.End(login.key_id, login.id))
        self._seen.clear()

    async def end_all(self, key_id: str) -> None:
        await self._store.end(logins.End(key_id))
        self._seen.clear()

    def _digest(self, headers: Headers, *, is_tls: bool) -> str | None:
        text = cookie_of(headers, SECURE) or ("" if is_tls else cookie_of(headers, PLAIN))
        return login_tokens.digest_of(text, "cookie", self._key)

    def _is_live(self, login: logins.Login) -> bool:
        now_us = database.microseconds(self._clock.now())
        return now_us < login.expires_at and now_us < login.used_at + IDLE_S * 1_000_000

    async def _noted(self, login: logins.Login) -> logins.Login:
        now_us = database.microseconds(self._clock.now())
        if now_us < login.used_at + NOTE_EVERY_S * 1_000_000:
            return login
        await self._store.use(logins.Use(login.id, now_us))
        return msgspec.structs.replace(login, used_at=now_us)


def cookie_of(headers: Headers, name: str) -> str:
    """Return the cookie of that name; nothing where it is missing, or there twice."""
    found = []
    for pair in headers.get(b"cookie", b"").split(b";"):
        each, _, value = pair.strip().partition(b"=")
        if each == name.encode():
            found.append(value.decode("latin-1"))
    return found[0] if len(found) == 1 else ""


def is_ours(headers: Headers, *, method: str) -> bool:
    """Tell whether a page of this node has sent the request, or, for what changes nothing, a person has."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin" or (site == b"none" and method in SAFE)
    origin = headers.get(b"origin")
    if origin is None:  # every browser sends it with what changes something
        return method in SAFE
    try:
        parts = urlsplit(origin.decode("latin-1"))
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.encode("latin-1") == headers.get(b"host")


def set_cookie(text: str, *, is_secure: bool) -> bytes:
    """Return the header that has a browser keep *text*; nothing: that has it forget."""
    name, more = (SECURE, "; Secure") if is_secure else (PLAIN, "")
    age_s = LOGIN_S if text else 0
    return f"{name}={text}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{more}".encode()
