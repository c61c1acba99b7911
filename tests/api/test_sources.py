"""Where requests come from, whatever they say themselves."""

from __future__ import annotations

import pytest

from greenroom.api import sources
from greenroom.core import networks

TRUSTED = sources.Sources(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])


def _of(peer: str | None, *forwarded: str, of: sources.Sources = TRUSTED) -> str:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode("latin-1")) for value in forwarded)]
    return of.of(None if peer is None else (peer, 4711), headers)


def test_without_trusted_proxies_nobody_chooses_its_source() -> None:
    assert _of("198.51.100.1", "203.0.113.9", of=sources.Sources([])) == "198.51.100.1"
    assert _of("127.0.0.1", "203.0.113.9", of=sources.Sources([])) == "127.0.0.1"
    assert _of(None, "203.0.113.9", of=sources.Sources([])) == "local"


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),  # no proxy of ours
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", [""], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.1.1.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # the first was invented by whoever is the second
        ("10.1.1.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),  # two lines are one list
        ("10.1.1.1", ["203.0.113.9, 10.2.2.2 ,192.0.2.7"], "203.0.113.9"),
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),  # all of them are ours
        ("10.1.1.1", ["203.0.113.9, unknown"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.9, ' or 1=1 --"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.9, 10.2.2.2, \xff\xfe"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.9,,"], "10.1.1.1"),
        ("10.1.1.1", ["x" * 100_000 + ", 203.0.113.9"], "203.0.113.9"),
        ("10.1.1.1", [", ".join(["10.2.2.2"] * 10_000)], "10.2.2.2"),
        ("10.1.1.1", ["203.0.113.9:55555"], "203.0.113.9"),
        ("10.1.1.1", ["[2001:db8::1]:55555"], "2001:db8::1"),
        ("10.1.1.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.1.1.1", ["fe80::1%eth0"], "fe80::1"),
        ("10.1.1.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.1.1.1", ["203.0.113.9"], "203.0.113.9"),
        ("fd00::1", ["203.0.113.9"], "203.0.113.9"),
        ("testclient", ["203.0.113.9"], "testclient"),
    ],
)
def test_the_last_hop_that_is_not_ours_is_the_source(peer: str, forwarded: list[str], source: str) -> None:
    assert _of(peer, *forwarded) == source


def test_an_ipv6_customer_is_limited_as_one() -> None:
    assert networks.limited_as("2001:db8::1") == networks.limited_as("2001:db8::ffff:1:2:3") == "2001:db8::/64"
    assert networks.limited_as("2001:db8:0:1::1") != networks.limited_as("2001:db8::1")
    assert networks.limited_as("::ffff:192.0.2.1") == networks.limited_as("192.0.2.1")
    assert networks.limited_as("local") == "local"
