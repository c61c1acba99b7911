"""A request as routes see it, and what they answer. The ASGI details end here."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from greenroom import errors
from greenroom.api import schemas
from greenroom.api.services import Services
from greenroom.core.permissions import Principal
from greenroom.store import database
from greenroom.store.audit import Act
from greenroom.store.store import Store


class Answer(msgspec.Struct, frozen=True):
    """A document to send as JSON; None for no body, bytes as they are. *headers* are beside the usual ones."""

    document: Any
    status: int = 200
    media_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(msgspec.Struct, frozen=True):
    """Server-sent events."""

    events: AsyncIterator[bytes]


class Call(msgspec.Struct, frozen=True, eq=False):
    """One authenticated, permitted request. *id* goes into problems and logs."""

    id: str
    principal: Principal
    services: Services
    scope: Mapping[str, Any]
    headers: Mapping[bytes, bytes]
    path_params: Mapping[str, str]
    body: bytes
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]]
    trace: str | None = None  # the context that its tasks are stored with

    async def gone(self) -> None:
        """Return when the caller has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def store(self) -> Store:
        return self.services.store

    def require_live(self) -> None:
        """Raise `errors.Unauthenticated` if the credential was revoked, or has expired, since the request came, and
        `errors.Forbidden` if its principal was locked.
        """
        if not self.services.auth.is_live(self.principal):
            raise errors.Unauthenticated("cannot go on: the credential is no longer valid")
        if self._is_locked:
            raise errors.Forbidden("cannot go on: you are locked")

    @property
    def is_live(self) -> bool:
        """Whether the request may go on; see `require_live`."""
        return self.services.auth.is_live(self.principal) and not self._is_locked

    @property
    def _is_locked(self) -> bool:
        services = self.services
        return services.measures.is_locked(f"principal:{self.principal.id}", services.clock.monotonic_s())

    @property
    def is_tls(self) -> bool:
        return bool(self.scope.get("scheme") == "https")

    async def audit(self, action: str, object: str, **detail: Any) -> None:
        """Write an act that is no write to the store, before it is done: what cannot be written is not to be done."""
        await self.store.audit.note(Act(action, object, detail=detail))

    def path(self, name: str) -> str:
        return self.path_params[name]

    def header(self, name: str) -> str | None:
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def query(self, name: str) -> str | None:
        """Return a query parameter; the last if it is given several times."""
        raw = self.scope["query_string"]
        if not raw:
            return None
        value = _parsed(raw).get(name)
        if value is not None and "\0" in value:  # PostgreSQL has no such text
            raise errors.QueryInvalid(f"cannot take ?{name}: it holds NUL")
        return value

    def number(self, name: str, *, default: int, least: int = 0, most: int) -> int:
        text = self.query(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            raise errors.QueryInvalid(f"cannot take ?{name}={text[:40]}: give a whole number from {least} to {most}")
        return int(text)

    def flag(self, name: str) -> bool:
        """Return whether a query parameter says true; False if it is not given."""
        text = self.query(name)
        if text not in {None, "true", "false"}:
            raise errors.QueryInvalid(f"cannot take ?{name}={text[:40]}: give true or false")
        return text == "true"

    def instant(self, name: str) -> int | None:
        """Return the microseconds of an instant with a time zone."""
        text = self.query(name)
        if text is None:
            return None
        try:
            return database.microseconds(msgspec.convert(text.replace(" ", "+"), schemas.Instant, strict=False))
        except (msgspec.ValidationError, OverflowError):
            raise errors.QueryInvalid(
                f"cannot take ?{name}={text[:40]}: give an instant, for example 2030-01-01T00:00:00Z"
            ) from None

    def seconds(self, name: str, *, most: float) -> float:
        text = self.query(name)
        if text is None:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise errors.QueryInvalid(f"cannot take ?{name}={text[:40]}: give seconds from 0 to {most:g}")
        return value


@functools.lru_cache(maxsize=256)
def _parsed(query: bytes) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(query.decode("ascii"), max_num_fields=20))
    except (UnicodeDecodeError, ValueError):
        raise errors.QueryMalformed("cannot read the query: it is malformed") from None
