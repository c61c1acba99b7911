"""The table of pages and of what their forms do: routes, rights and navigation follow from it.

Also the stream that keeps a page live.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import unquote

import msgspec

from greenroom import errors
from greenroom.api import login
from greenroom.api.dashboard import (
    agents,
    alerts,
    assets,
    audit,
    forms,
    frame,
    keys,
    live,
    overview,
    rollouts,
    scaling,
    sessions,
    system,
    tasks,
)
from greenroom.api.dashboard.forms import Act
from greenroom.api.dashboard.frame import Entry
from greenroom.api.request import Answer, Call, Stream
from greenroom.api.routes import PAGE, Route
from greenroom.core.permissions import Action
from greenroom.core.sessions import NAME_PATTERN

PAGES = (
    Entry("/", "Overview", overview.show, Action.LOGIN_MANAGE, "Now", "o"),
    Entry("/agents", "Agents", agents.show_all, Action.AGENT_READ, "Now", "a"),
    Entry("/agents/{name}", "Agent", agents.show, Action.AGENT_READ),
    Entry("/tasks", "Tasks", tasks.show_all, Action.TASK_READ, "Now", "t"),
    Entry("/tasks/{id}", "Task", tasks.show, Action.TASK_READ),
    Entry("/sessions", "Sessions", sessions.show_all, Action.SESSION_READ, "Now", "e"),
    Entry("/sessions/{id}", "Session", sessions.show, Action.SESSION_READ),
    Entry("/rollouts", "Rollouts", rollouts.show_all, Action.AGENT_OBSERVE, "Now", "r"),
    Entry("/rollouts/{id}", "Rollout", rollouts.show, Action.AGENT_OBSERVE),
    Entry("/scaling", "Scaling", scaling.show_all, Action.AGENT_OBSERVE, "Now", "s"),
    Entry("/scaling/{name}", "Scaling", scaling.show, Action.AGENT_OBSERVE),
    Entry("/alerts", "Alerts", alerts.show, Action.ALERT_READ, "Now", "l"),
    Entry("/system", "System", system.show, Action.STATUS_READ, "Node", "n"),
    Entry("/keys", "Keys", keys.show, Action.KEY_READ, "Node", "k"),
    Entry("/audit", "Audit", audit.show, Action.AUDIT_READ, "Node", "u"),
)
ACTS = (*agents.ACTS, *tasks.ACTS, *sessions.ACTS, *rollouts.ACTS, *alerts.ACTS, *system.ACTS, *keys.ACTS)

LIVE = "/ui/live"
BEAT_S = 10.0  # a stream that says nothing for longer is dead
CHECK_S = 5.0  # how long a page may go on that somebody has logged out of


def find(path: str) -> tuple[Entry, dict[str, str]] | None:
    """Return the page at *path*, and the parameters in it."""
    for entry in PAGES:
        pattern = re.sub(r"\{(\w+)\}", rf"(?P<\1>{NAME_PATTERN})", entry.path)
        if (match := re.fullmatch(pattern, unquote(path))) is not None:
            return entry, match.groupdict()
    return None


async def keep_live(call: Call) -> Stream:
    """Stream what changes on ``?page=``, beginning with what differs from the versions that the page ``?have=``."""
    path, _, query = (call.query("page") or "/").partition("?")
    found = find(path)
    if found is None or not query.isascii():
        raise errors.NotFound(f"cannot find the page {path[:100]!r}")
    entry, path_params = found
    rights = call.principal.rights
    if not rights.allows(entry.action):
        raise errors.Forbidden(f"cannot show {path[:100]}: {rights.why(entry.action)}")
    scope = {**call.scope, "path": unquote(path), "query_string": query.encode()}
    page = msgspec.structs.replace(call, scope=scope, path_params=path_params)
    return Stream(_events(page, entry, set((call.query("have") or "").split("."))))


async def _events(call: Call, entry: Entry, have: set[str]) -> AsyncIterator[bytes]:
    services, token = call.services, forms.token(call).encode()

    async def render() -> live.Regions:
        return (await frame.render(call, entry)).regions

    key = (frame.here(call), call.principal.tenant, call.principal.rights.layers)
    now_s = services.clock.monotonic_s
    checked_s = beat_s = now_s()
    trouble = ""
    yield b"retry: 2000\nevent: beat\ndata: {}\n\n"
    async for seen in services.feeds.watch(key, render):
        if services.stopping.is_set():
            return
        if now_s() - checked_s >= CHECK_S:
            checked_s = now_s()
            if not await services.auth.is_current(call.principal, call.headers, is_tls=call.is_tls) or not call.is_live:
                yield b"event: end\ndata: {}\n\n"
                return
        versions = {region.version for region in seen.regions.values()}
        for id, region in seen.regions.items():
            if region.version not in have:
                yield _event("region", {"id": id, "html": region.html}).replace(forms.TOKEN.encode(), token)
                beat_s = now_s()
        have = versions or have
        if seen.trouble != trouble or now_s() - beat_s >= BEAT_S:
            trouble, beat_s = seen.trouble, now_s()
            yield _event("beat", {"trouble": trouble} if trouble else {})


def _event(type: str, document: dict[str, str]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (type.encode(), msgspec.json.encode(document))


def _page(entry: Entry) -> Callable[[Call], Awaitable[Answer]]:
    async def show(call: Call) -> Answer:
        return await frame.answer(call, entry, PAGES)

    return show


def _act(act: Act) -> Callable[[Call], Awaitable[Answer]]:
    async def do(call: Call) -> Answer:
        done = await forms.answer(call, act, is_page=lambda path: find(path) is not None)
        return done if isinstance(done, Answer) else frame.shown(call, done, PAGES)

    return do


async def log_out(call: Call) -> Answer:
    """End the login of the browser that asks, and show it where to begin another."""
    forms.check(call)
    ended = await login.end(call)
    return Answer(None, status=303, headers=(*ended.headers, (b"location", login.PATH.encode())))


ROUTES = (
    *(Route("GET", entry.path, _page(entry), entry.action, {200: PAGE}) for entry in PAGES),
    *(Route("POST", act.path, _act(act), act.action, {200: PAGE, 303: None}, str) for act in ACTS),
    Route("POST", "/ui/logout", log_out, Action.LOGIN_MANAGE, {303: None}, str),
    Route("GET", LIVE, keep_live, Action.LOGIN_MANAGE, {200: "text/event-stream"}, None, ("page", "have")),
    Route("GET", assets.PATH, assets.show, Action.LOGIN_MANAGE, {200: "text/css"}),
)
