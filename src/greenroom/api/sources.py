"""Where a request comes from: the connection's address, or what a trusted proxy says of it.

Anybody can write an ``X-Forwarded-For``; it is believed of `server.trusted_proxies` alone, and read from the right:
each proxy appends whom it saw, and the last one that is not trusted is the source. What stands to its left may be
invented.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence

LOCAL = "local"  # no address: a unix socket
MAX_HOPS = 20
MAX_FORWARDED_BYTES = 2048

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Sources:
    def __init__(self, trusted_proxies: Iterable[str]) -> None:
        self._trusted = [ipaddress.ip_network(text, strict=False) for text in trusted_proxies]
        self._read = functools.lru_cache(maxsize=1024)(self._behind)

    def of(self, client: Sequence[object] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the source of a request from *client*, (host, port)."""
        peer = str(client[0]) if client else LOCAL
        if not self._trusted:
            return peer
        return self._read(peer, b",".join(value for name, value in headers if name == b"x-forwarded-for"))

    def _behind(self, peer: str, forwarded: bytes) -> str:
        """Return the last hop that is not trusted; where what it should be cannot be read, the last that can."""
        source = _address(peer)
        if source is None:
            return peer
        hops = forwarded[-MAX_FORWARDED_BYTES:].decode("latin-1").split(",")
        for hop in reversed(hops[-MAX_HOPS:]):
            if not self._is_trusted(source):
                break
            before = _address(hop.strip())
            if before is None:
                break
            source = before
        return str(source)

    def speaks_for_many(self, peer: str) -> bool:
        """Tell whether many callers may come from this address: a trusted proxy, or this machine."""
        address = _address(peer)
        return address is None or address.is_loopback or self._is_trusted(address)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> _Address | None:
    """Return the address that *text* is, with a port or brackets or without."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
