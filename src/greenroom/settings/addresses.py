"""Addresses: which of them nobody on the way can read or change."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit


def is_https(url: str) -> bool:
    parts = _parts(url)
    return parts is not None and parts.scheme == "https"


def is_loopback_http(url: str) -> bool:
    """Tell whether *url* is plain HTTP that surely stays on this machine."""
    parts = _parts(url)
    return parts is not None and parts.scheme == "http" and is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; of those only this one is certain to stay on the machine
        return host.lower() == "localhost"


def is_plain(url: str) -> bool:
    """Tell whether *url* has nothing but scheme, host, port and path."""
    parts = _parts(url)
    return parts is not None and "?" not in url and "#" not in url and parts.username is None


def _parts(url: str) -> SplitResult | None:
    """Return the parts of *url*; None where it has no host, or a port that is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None
