"""Where requests of the node's own may go: public addresses, by a table of our own. Pure.

Python's ``is_private`` and ``is_global`` know neither all that is reserved nor what hides in an IPv6 address, and have
changed between releases. The table follows the IANA registries of special-purpose addresses (IPv4, IPv6; RFC 6890 and
what has come since), is stricter where they allow what no receiver has, and knows what clouds give their metadata.

A URL is taken only as one would write it: what parsers read in different ways is refused, not guessed at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

import msgspec

HTTPS_PORT, HTTP_PORT = 443, 80
MAX_URL = 2_000  # characters

# What is not global unicast, with what it is, for people.
_RESERVED_IPV4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "a carrier's inner network",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's own services",
    "169.254.0.0/16": "link-local",  # where clouds keep their metadata
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved for protocols",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "a sink of name servers",
    "192.52.193.0/24": "multicast tunnels",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "a sink of name servers",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
# Of IPv6 only 2000::/3 is global unicast at all, and of that not these.
_GLOBAL_IPV6 = "2000::/3"
_RESERVED_IPV6 = {
    "2001::/23": "reserved for protocols",  # Teredo, benchmarks, ORCHID and drones among them
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "a sink of name servers",
    "3ffe::/16": "a test network of the past",
    "3fff::/20": "documentation",
}
_WORDS_IPV6 = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "64:ff9b:1::/48": "local translation",
    "100::/64": "discarded",
    "5f00::/16": "segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}


def _networks(table: dict[str, str]) -> tuple[tuple[int, int, str], ...]:
    """Return first address, last address and words of each network."""
    found = []
    for text, words in table.items():
        network = ipaddress.ip_network(text)
        found.append((int(network.network_address), int(network.broadcast_address), words))
    return tuple(found)


_IPV4, _IPV6 = _networks(_RESERVED_IPV4), _networks(_RESERVED_IPV6)
_ELSE_IPV6 = _networks(_WORDS_IPV6)
((_GLOBAL_FIRST, _GLOBAL_LAST, _),) = _networks({_GLOBAL_IPV6: ""})

_MAPPED = 0xFFFF << 32  # ::ffff:a.b.c.d
_NAT64 = 0x0064_FF9B << 96  # 64:ff9b::a.b.c.d
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # the first half of an interface's number, before a.b.c.d
_LOW = (1 << 32) - 1


def not_public(address: str) -> str | None:
    """Return what *address* is where it is not a public one; None where it is. What cannot be read is not public.

    An IPv4 address inside of one of IPv6 is judged, too.

    >>> not_public("::ffff:169.254.169.254")
    'link-local'
    """
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(read, ipaddress.IPv4Address):
        return _within(_IPV4, int(read))
    if read.scope_id is not None:
        return "bound to an interface"
    return _not_public_ipv6(int(read))


def _not_public_ipv6(number: int) -> str | None:
    low = number & _LOW
    if number - low in (_MAPPED, _NAT64):
        return _within(_IPV4, low)
    if not _GLOBAL_FIRST <= number <= _GLOBAL_LAST:
        return _within(_ELSE_IPV6, number) or "not assigned"
    if number >> 32 & _LOW in _ISATAP and (inner := _within(_IPV4, low)) is not None:
        return inner
    return _within(_IPV6, number)


def _within(networks: tuple[tuple[int, int, str], ...], number: int) -> str | None:
    return next((words for first, last, words in networks if first <= number <= last), None)


class Policy(msgspec.Struct, frozen=True):
    """*ports* may be used beside 443; *inner_hosts* may be inner addresses, and be spoken to by plain HTTP."""

    ports: Collection[int] = ()
    inner_hosts: Collection[str] = ()


class Target(msgspec.Struct, frozen=True):
    """A URL that was judged. *host* is a name in lower case, or an address; *path* has the query.

    *is_inner*: whatever address it has may be used.
    """

    scheme: str
    host: str
    port: int
    path: str
    is_inner: bool = False

    @property
    def authority(self) -> str:
        """What the request's header Host says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_address(self) -> bool:
        return ":" in self.host or self.host.rpartition(".")[2].isdigit()


_PORTS = {"https": HTTPS_PORT, "http": HTTP_PORT}
# As RFC 3986 writes it, without user information and fragment; nothing that needs to be guessed at.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[^\[\]/?#@]*\]|[^\[\]/?#@:]*)(?::(?P<port>[^/?#@]*))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_CLEAN = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_QUAD = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})(?:\.(?!\Z)|\Z)){4}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# Names that mean this machine or network, whatever a name server says (RFC 6761, 6762, 7686, 8375, 9476; ICANN 2024).
_INNER_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "onion", "alt", "invalid")


def host_of(url: str) -> str:
    """Return what stands for the host in *url*, sound or not, to be told: without a user and password."""
    authority = re.split(r"[/?#\\]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    if not authority.startswith("["):
        authority = re.sub(r":(?![0-9]+\Z).*", "", authority, flags=re.DOTALL)  # it may be a password, with a slash
    return re.sub(r"[^!-~]", "?", authority)[:255]


def judge(url: str, policy: Policy) -> Target | str:
    """Return where *url* leads, or why nothing may be sent there.

    The addresses of a host's name are judged by `not_public` when they are known.
    """
    if len(url) > MAX_URL:
        return f"it has more than {MAX_URL} characters"
    if not _CLEAN.fullmatch(url):
        return "it has characters that a URL cannot have; write names in ASCII (xn--…) and the rest as %XX"
    match = _URL.fullmatch(url)
    if match is None:
        return "it is not of the form https://HOST/PATH, without a user, password or #fragment"
    scheme, host = match["scheme"].lower(), match["host"].lower()
    is_inner = host.strip("[]") in {name.lower() for name in policy.inner_hosts}
    if scheme != "https" and not (scheme == "http" and is_inner):
        return "it does not begin with https://; plain http is for hosts of server.webhook_hosts"
    port = _PORTS[scheme]
    if match["port"] is not None:
        if not _PORT.fullmatch(match["port"]) or int(match["port"]) > 65_535:
            return "its port is not a number from 1 to 65535"
        port = int(match["port"])
    if port != HTTPS_PORT and port not in policy.ports:
        return f"its port is {port}, and 443 or one of server.webhook_ports is allowed"
    target = Target(scheme, host.strip("[]"), port, (match["path"] or "/") + (match["query"] or ""), is_inner)
    return _wrong_host(host, is_inner=is_inner) or target


def _wrong_host(host: str, *, is_inner: bool) -> str | None:
    if host.startswith("["):
        inside = host[1:-1]
        try:
            ipaddress.IPv6Address(inside)
        except ValueError:
            return "its host is not an IPv6 address"
        return None if is_inner else _told(not_public(inside))
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "its host is not a name: labels of letters, digits and -, parted by single dots"
    if _NUMBER.fullmatch(labels[-1]):  # an address, then, in whatever way it is written
        if not _QUAD.fullmatch(host) or any(int(label) > 255 for label in labels):
            return "its host is not an IPv4 address of four decimal numbers"
        return None if is_inner else _told(not_public(host))
    if not is_inner and (len(labels) == 1 or any(f".{host}".endswith(f".{name}") for name in _INNER_NAMES)):
        return "its host is a name of an inner network"
    return None


def _told(words: str | None) -> str | None:
    return None if words is None else f"its host is not a public address ({words})"
