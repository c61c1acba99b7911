"""Logging in with a browser: a key asks for a link, whose page exchanges it for a cookie.

What the link holds stands behind its ``#``: no browser sends that to a server, so it is in no log and no Referer. The
page sends it when its button is pressed, not before: what only looks at links (previews, scanners) uses none up.
"""

from __future__ import annotations

import base64
import hashlib
import html

from starlette.responses import Response

from greenroom import errors, redaction, strict_json
from greenroom.api import cookies, problems
from greenroom.api.request import Answer, Call
from greenroom.api.services import Services
from greenroom.sdk import models

PATH = "/login"
MAX_BYTES = 1024  # of what is exchanged
HTML = "text/html; charset=utf-8"
_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}button{font:inherit}"
_LOGIN = """\
const held = location.hash.slice(1), say = document.getElementById("say");
history.replaceState(null, "", "/login");
const button = document.querySelector("button");
button.hidden = false;
if (!held) { button.hidden = true; say.textContent = "This page needs a link of its own: run greenroom dashboard."; }
button.addEventListener("click", async () => {
  button.disabled = true;
  const answer = await fetch("/login", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({link: held}), credentials: "same-origin", redirect: "error"});
  if (answer.ok) { location.replace("/"); }
  else { say.textContent = "This link is used or over: run greenroom dashboard for another."; }
});
"""


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(title: str, body: str, script: str = "", *, status: int = 200) -> Answer:
    """A page that loads nothing, is framed by nobody, and runs this one script."""
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(_STYLE)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{body}<script>{script}</script></body></html>\n"
    )
    headers = (
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"cross-origin-opener-policy", b"same-origin"),
    )
    return Answer(text.encode(), status=status, media_type=HTML, headers=headers)


LOGIN_PAGE = _page(
    "Greenroom: log in",
    '<h1>Greenroom</h1><p id="say">Log in to this node with the link that you have opened.</p>'
    "<p><button hidden>Log in</button></p><noscript><p>This page needs JavaScript.</p></noscript>",
    _LOGIN,
)


def refusal(error: errors.GreenroomError, request_id: str, headers: cookies.Headers, lines: bytes) -> Response | None:
    """Return a page that says to a person why they are refused; None where a program asks, which gets a problem.

    Of who is not logged in it says to all the same.
    """
    if headers.get(b"sec-fetch-dest") != b"document" or b"authorization" in headers:
        return None
    if isinstance(error, errors.Unauthenticated):
        title, told = "Log in", "Run <code>greenroom dashboard</code> and open the link that it prints."
        told += " If you have logged in already, and came by a link from elsewhere, load this page anew."
    else:
        title, told = (
            "Not possible",
            html.escape(redaction.text(str(error))) + '. Back to <a href="/">the overview</a>.',
        )
    page = _page(f"Greenroom: {title}", f"<h1>{title}</h1><p>{told}</p>", status=error.status)
    found = problems.response(error, request_id, lines=lines)
    kept = [(name, value) for name, value in found.raw_headers if name not in (b"content-type", b"content-length")]
    answer = Response(page.document, status_code=error.status, media_type=HTML)
    answer.raw_headers += [*kept, *page.headers]
    return answer


async def exchange(services: Services, headers: cookies.Headers, body: bytes, *, source: str, is_tls: bool) -> Answer:
    """Exchange what a link holds for a cookie; whatever is wrong is one rejection, the same as a bad key's."""
    link = _link(body)
    is_ours = cookies.is_ours(headers, method="POST")
    begun = await services.auth.logins.begin(link) if is_ours and link is not None else None
    if begun is None or not services.auth.is_of_living_key(begun.key_id):
        raise services.limits.reject(source, None)
    is_secure = is_tls or headers.get(b"origin", b"").startswith(b"https:")  # behind a proxy the browser's end counts
    return Answer(None, status=204, headers=((b"set-cookie", cookies.set_cookie(begun.cookie, is_secure=is_secure)),))


def _link(body: bytes) -> str | None:
    try:
        document = strict_json.loads(body) if len(body) <= MAX_BYTES else None
    except errors.JsonRefused:
        return None
    link = document.get("link") if isinstance(document, dict) else None
    return link if isinstance(link, str) else None


async def create(call: Call) -> Answer:
    """Make a link that logs a browser in, once, within a minute: the node's address and the answer's path.

    For keys alone: a login can make no other, and a token ends by itself.
    """
    if call.principal.kind != "key":
        raise errors.Forbidden("cannot make a login: only a key can; give one with GREENROOM_KEY")
    text = await call.services.auth.logins.link(call.principal.id)
    return Answer(models.Login(path=f"{PATH}#{text}", valid_s=cookies.LINK_S), status=201)


async def end(call: Call) -> Answer:
    """Log out: a browser ends its login, a key all that it has."""
    logins = call.services.auth.logins
    match call.principal.kind:
        case "login":
            login = await logins.current(call.headers, method=call.scope["method"], is_tls=call.is_tls)
            if login is not None:
                await logins.end(login)
        case "key":
            await logins.end_all(call.principal.id)
        case _:
            raise errors.Forbidden("cannot log out: a token has no logins; it ends by itself")
    gone = tuple((b"set-cookie", cookies.set_cookie("", is_secure=is_secure)) for is_secure in (True, False))
    return Answer(None, status=204, headers=gone)
