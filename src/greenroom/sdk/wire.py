"""Calls over httpx: how one is sent, and what its answers and failures mean. Shared by both clients."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import httpx

from greenroom import __version__, errors
from greenroom.sdk import calls, discovery, flows, trust

STREAM_IDLE_S = 60.0  # the node says something at least every 15 s


class Options(TypedDict):
    """What `httpx.Client` and `httpx.AsyncClient` are both made with."""

    base_url: str
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool
    trust_env: bool


class Request(TypedDict):
    """What `request` and `stream` of both take."""

    method: str
    url: str
    params: Mapping[str, str | int | float]
    content: bytes | None
    headers: Mapping[str, str]
    timeout: httpx.Timeout


def options(address: discovery.Address, folder: Path) -> Options:
    """Return how to reach *address*; *folder* is the data directory."""
    headers = {"User-Agent": f"greenroom/{__version__}"}
    if address.key is not None:
        headers["Authorization"] = f"Bearer {address.key}"
    return Options(
        base_url=address.url,
        headers=headers,
        verify=trust.verification(address.url, folder),
        trust_env=not discovery.is_loopback(address.url),  # no proxy leads back to this machine
    )


def request(call: calls.Call[Any], timeout_s: float) -> Request:
    headers = dict(call.headers)
    if call.body is not None:
        headers.setdefault("Content-Type", "application/json")
    return Request(
        method=call.method,
        url=call.path,
        params={name: value for name, value in call.query.items() if value is not None},
        content=call.body,
        headers=headers,
        timeout=httpx.Timeout(timeout_s, read=timeout_s + call.wait_s),
    )


def stream_request(call: calls.Call[Any], timeout_s: float) -> Request:
    sent = request(call, timeout_s)
    sent["timeout"] = httpx.Timeout(timeout_s, read=max(timeout_s, STREAM_IDLE_S))
    return sent


def reply(response: httpx.Response) -> calls.Reply:
    try:
        retry_after_s = max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:  # absent, or a date
        retry_after_s = None
    return calls.Reply(response.status_code, response.content, retry_after_s)


def lost(error: httpx.RequestError, url: str) -> flows.Lost:
    """No answer from *url*: whether the request was sent, and what to tell whoever waits."""
    sent = not isinstance(
        error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol
    )
    why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    if (advice := trust.advice(error, url)) is not None:
        message = f"cannot speak with the node at {url}: {advice}"
    elif sent:
        hint = "; if it speaks TLS, use https://" if isinstance(error, httpx.RemoteProtocolError) else ""
        message = (
            f"cannot get an answer from the node at {url}: {why.rstrip('.')}{hint}; "
            "it may have done what was asked: look first"
        )
    else:
        message = f"cannot reach a node at {url}: {why}; start one with `greenroom up`, or set GREENROOM_URL"
    return flows.Lost(errors.NodeUnreachable(message), sent=sent)
