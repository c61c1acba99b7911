"""The head of a request that every reader takes for the same one, and nothing else. Pure.

What a proxy before this node could read differently is refused: who is let in there, or what is one request there,
could be another one here (request smuggling). The parser's own strictness comes before.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from greenroom import errors

MAX_HEADERS = 64
MAX_HEAD_BYTES = 16 * 1024
MAX_URL_BYTES = 8 * 1024

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_ONCE = frozenset(
    (b"host", b"authorization", b"content-length", b"content-type", b"idempotency-key", b"transfer-encoding")
)
_NEVER = (b"CONNECT", b"TRACE")
_VERSIONS = ("1.1", "1.0")


class RequestMalformed(errors.GreenroomError):
    """This is no request that everybody reads alike."""

    code = "malformed-request"
    status = 400


class HeadTooLarge(errors.GreenroomError):
    """The request has more headers, or larger ones, than the server takes."""

    code = "head-too-large"
    status = 431


class UrlTooLong(errors.GreenroomError):
    """The URL is longer than the server takes."""

    code = "url-too-long"
    status = 414


class MethodRefused(errors.GreenroomError):
    """This method is for proxies, or for what shows credentials."""

    code = "method-not-allowed"
    status = 405


def too_large() -> HeadTooLarge:
    return HeadTooLarge(f"cannot take the head: at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes are taken")


def malformed(why: str) -> RequestMalformed:
    return RequestMalformed(f"cannot read the request: {why}")


def fault(
    method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> errors.GreenroomError | None:
    """Return why a request is refused, None if it is not; the names of *headers* are in small letters."""
    if len(headers) > MAX_HEADERS:
        return too_large()
    if len(url) > MAX_URL_BYTES:
        return UrlTooLong(f"cannot take a URL of more than {MAX_URL_BYTES} bytes")
    if version not in _VERSIONS:
        return malformed(f"HTTP/{version} is not spoken here; send HTTP/1.1")
    if method in _NEVER:
        return MethodRefused(f"cannot {method.decode()}: it is not taken here")
    found = dict(headers)
    if len(found) < len(headers) and (twice := _twice(headers)) is not None:
        return malformed(f"{twice.decode()} is there twice")
    host = found.get(b"host")
    if host is None or not _is_host(host):
        return malformed("send one Host header, of a name and a port")
    encoding = found.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or version == "1.0" or b"content-length" in found):
        return malformed("of transfer encodings chunked is taken, alone and without a content-length")
    return None if url[:1] == b"/" and url.isascii() and b"#" not in url else _fault_of_target(url, host)


def _twice(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    names = Counter(name for name, _ in headers if name in _ONCE)
    return next((name for name, count in names.items() if count > 1), None)


def _fault_of_target(url: bytes, host: bytes) -> errors.GreenroomError | None:
    if not url.isascii() or b"#" in url:
        return malformed("the target is no path with a query; encode what is none with %")
    try:
        parts = urlsplit(url.decode("ascii"))
    except ValueError:
        return malformed("the target is no URL")
    if parts.scheme in {"http", "https"} and parts.netloc.lower() == host.decode("ascii").lower():
        return None
    return malformed("the target has to be a path, or a URL of the host that the Host header names")


@functools.lru_cache(maxsize=256)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def size(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> int:
    """Return the bytes of a head, but for its spaces and line ends."""
    return len(url) + sum(len(name) + len(value) for name, value in headers)
