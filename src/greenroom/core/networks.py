"""Addresses that are one stranger's. Pure."""

from __future__ import annotations

import functools
import ipaddress


def limited_as(source: str) -> str:
    """Return the name under which *source* is limited: IPv6 by /64, of which one customer has 2**64 addresses.

    >>> limited_as("192.0.2.7"), limited_as("2001:db8:0:1:2::9"), limited_as("::ffff:192.0.2.7"), limited_as("local")
    ('192.0.2.7', '2001:db8:0:1::/64', '192.0.2.7', 'local')
    """
    return source if ":" not in source else _network_of(source)


@functools.lru_cache(maxsize=1024)
def _network_of(source: str) -> str:
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
