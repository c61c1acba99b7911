"""The frame around every page: its head, the navigation, what a form has said, and the rules for the browser.

Jinja is loaded with the first page: a node that nobody looks at pays nothing for it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec

from greenroom import errors
from greenroom.api.dashboard import assets, charts, formats, forms
from greenroom.api.dashboard.forms import Page as Page  # noqa: PLC0414 - a page needs this module alone
from greenroom.api.dashboard.live import Region
from greenroom.api.request import Answer, Call
from greenroom.core import costs
from greenroom.core.permissions import AGENT, Action, Rights

if TYPE_CHECKING:
    import jinja2

HTML = "text/html; charset=utf-8"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
)

_TOLD = (errors.NotFound, errors.Forbidden, errors.QueryInvalid, errors.StoreUnavailable, errors.StoreDamaged)


class Entry(msgspec.Struct, frozen=True):
    """A page of the table. *group* is where the navigation has it, "" nowhere; ``g`` and *key* lead to it."""

    path: str
    title: str
    show: Callable[[Call], Awaitable[Page]]
    action: Action
    group: str = ""
    key: str = ""


class Viewer:
    """What the person who looks may do, for templates: a button that they may not press says why."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    def may(self, action: str, agent: str | None = None) -> bool:
        return self._rights.allows(Action(action), None if agent is None else AGENT + agent)

    def why_not(self, action: str, agent: str | None = None) -> str:
        """Return why not; nothing where they may."""
        if self.may(action, agent):
            return ""
        return self._rights.why(Action(action), None if agent is None else AGENT + agent)


class Rendered(msgspec.Struct, frozen=True):
    """A page's own part, with `forms.TOKEN` in the place of the viewer's, and what of it is live."""

    title: str
    html: str
    regions: Mapping[str, Region]


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    folder = Path(__file__).parent / "templates"
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters |= {
        "number": formats.number,
        "size": formats.size,
        "duration": formats.duration,
        "dollars": costs.told,
    }
    found.filters |= {"exact": formats.exact, "in_url": lambda text: quote(text, safe="")}
    found.globals |= {"ago": formats.ago, "percent": formats.percent, "draw": charts.chart, "asset": assets.path_of}
    return found


async def render(call: Call, entry: Entry) -> Rendered:
    """Render a page's own part: the same for all who have the same rights."""
    page = await entry.show(call)
    return _rendered(call, page, page.title or entry.title)


def _rendered(call: Call, page: Page, title: str) -> Rendered:
    from markupsafe import Markup, escape

    regions: dict[str, Region] = {}

    def live(id: str, label: str, *, caller: Callable[[], str]) -> Markup:
        body = caller().strip()
        version = hashlib.sha256(body.encode()).hexdigest()[:12]
        html = f'<section data-live="{version}" id="{escape(id)}" aria-label="{escape(label)}">{body}</section>'
        regions[id] = Region(version, html)
        return Markup(html)  # noqa: S704 - made of what a template has escaped

    html = (
        _environment()
        .get_template(page.template)
        .render(
            page.context,
            live=live,
            viewer=Viewer(call.principal.rights),
            now=call.services.clock.now(),
            here=here(call),
            token=forms.TOKEN,
        )
    )
    return Rendered(title, html, regions)


def asking(call: Call, **query: str | int | None) -> Call:
    """Return *call* with another query, as a route of the API expects it."""
    given = {name: value for name, value in query.items() if value is not None}
    return msgspec.structs.replace(call, scope={**call.scope, "query_string": urlencode(given).encode()})


def address(path: str, **query: str) -> str:
    """Return the address of the page at *path* with a query."""
    return path + (f"?{urlencode(query)}" if query else "")


def here(call: Call) -> str:
    """Return the address of the page, from the node's root on."""
    query = call.scope["query_string"].decode("ascii", "replace")
    return quote(call.scope["path"], safe="/:@") + (f"?{query}" if query else "")


async def answer(call: Call, entry: Entry, entries: Sequence[Entry]) -> Answer:
    """Show a page in its frame; what is wrong with the request is shown there, too."""
    current = entry.path if entry.group else _parent(entry.path)
    try:
        rendered = await render(call, entry)
    except _TOLD as error:
        page = Page("error.html", {"message": str(error), "status": error.status})
        title = "Not here" if error.status == 404 else "Not possible"
        return _framed(call, _rendered(call, page, title), entries, current=current, status=error.status)
    return _framed(call, rendered, entries, current=current)


def shown(call: Call, page: Page, entries: Sequence[Entry]) -> Answer:
    """Show, in the frame, what a form has led to."""
    return _framed(call, _rendered(call, page, page.title), entries, current="")


def _framed(call: Call, rendered: Rendered, entries: Sequence[Entry], *, current: str, status: int = 200) -> Answer:
    flash, principal = forms.flash_of(call), call.principal
    visible = [each for each in entries if each.group and principal.rights.allows(each.action)]
    text = (
        _environment()
        .get_template("frame.html")
        .render(
            title=rendered.title,
            content=_safe(rendered.html),
            is_live=bool(rendered.regions),
            groups=_grouped(visible),
            current=current,
            principal=principal,
            environment=call.services.settings.environment,
            node=call.services.node,
            flash=flash,
            here=here(call),
            token=forms.TOKEN,
        )
    )
    headers = _HEADERS if flash is None else (*_HEADERS, forms.FORGET)
    body = text.replace(forms.TOKEN, forms.token(call)).encode()
    return Answer(body, status=status, media_type=HTML, headers=headers)


def _safe(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)  # noqa: S704 - a template has made it


def _grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.group, []).append(entry)
    return found


def _parent(path: str) -> str:
    """Return the page of the navigation that one without a place there belongs to."""
    return "/" + path.split("/")[1]
