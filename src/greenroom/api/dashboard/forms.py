"""Forms of pages: they do what the API's routes do, by the same functions, and answer with the page that they were on.

What a form sends counts only with the cookie of a login, which comes from our own pages alone (`cookies.is_ours`), and
with a token that only a page of this login has: two locks on one door, so that a mistake in either opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from greenroom import errors
from greenroom.api import cookies
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import Action

TOKEN = f"form-token-{secrets.token_hex(16)}"  # stands in shared HTML for each viewer's own
FLASH = "greenroom_flash"
MAX_FLASH, MAX_FIELDS = 500, 40

Fields = Mapping[str, str]


class Page(msgspec.Struct, frozen=True):
    """A template and what it shows; *title* where the table's says too little."""

    template: str
    context: Mapping[str, Any]
    title: str = ""


class Done(msgspec.Struct, frozen=True):
    """A sentence that says what was done, and the page that shows it where it is not the one of the form."""

    text: str
    place: str


class Act(msgspec.Struct, frozen=True):
    """What the button of a form does at *path*, for who may *action*: *does* returns a sentence that says it is done,
    with it where to go on, or a page of its own, for what may be in no address and no cookie.

    Errors of Greenroom are told on the page.
    """

    path: str
    does: Callable[[Call, Fields], Awaitable[str | Done | Page]]
    action: Action


class Flash(msgspec.Struct, frozen=True):
    """What a page says once, of the form that led to it."""

    kind: str  # ok or error
    text: str


def token(call: Call) -> str:
    """Return what forms of this credential hold: nobody can make it who does not have that, nor it from this."""
    secure, plain = (cookies.cookie_of(call.headers, name) for name in (cookies.SECURE, cookies.PLAIN))
    return token_of(call.headers.get(b"authorization") or (secure or plain).encode("latin-1"))


def token_of(credential: bytes) -> str:
    return hmac.digest(credential, b"greenroom form", hashlib.sha256).hex()


def with_body(call: Call, document: Any) -> Call:
    """Return *call* as a route of the API expects it."""
    return msgspec.structs.replace(call, body=b"" if document is None else msgspec.json.encode(document))


def check(call: Call) -> dict[str, str]:
    """Return the fields of a form; raises `errors.Forbidden` unless it is of a page of this login."""
    try:
        fields = dict(parse_qsl(call.body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise errors.BodyInvalid("cannot read the form") from None
    if not hmac.compare_digest(fields.pop("token", "").encode(), token(call).encode()):
        raise errors.Forbidden("cannot take the form: it is of another login; reload the page and try again")
    return fields


async def answer(call: Call, act: Act, *, is_page: Callable[[str], bool]) -> Answer | Page:
    """Do what a form asks for, and send the browser back to its page, which says how that went."""
    fields = check(call)
    back = fields.pop("back", "/")
    try:
        done = await act.does(call, fields)
        if isinstance(done, Page):
            return done
        text, back = (done, back) if isinstance(done, str) else (done.text, done.place)
        flash = Flash("ok", text)
    except errors.GreenroomError as error:
        flash = Flash("error", str(error))
    place = back if back.isascii() and back.isprintable() and is_page(back.partition("?")[0]) else "/"
    headers = ((b"location", place.encode()), (b"set-cookie", _cookie(flash)))
    return Answer(None, status=303, headers=headers)


def flash_of(call: Call) -> Flash | None:
    """Return what the page is to say; whoever shows it has the browser `forget` it."""
    kind, _, text = unquote(cookies.cookie_of(call.headers, FLASH)).partition(":")
    return Flash(kind, text) if kind in ("ok", "error") and text else None


def _cookie(flash: Flash) -> bytes:
    text = quote(f"{flash.kind}:{flash.text[:MAX_FLASH]}", safe="")
    return f"{FLASH}={text}; Path=/; Max-Age=60; HttpOnly; SameSite=Strict".encode()


FORGET = (b"set-cookie", f"{FLASH}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict".encode())
