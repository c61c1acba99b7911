"""Which addresses are public, and which URLs something may be sent to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import addresses
from greenroom.core.addresses import Policy, Target
from urls import REFUSED_URLS, plain

ALLOWED_URLS = {
    "https://hooks.example.com": ("hooks.example.com", "/"),
    "https://hooks.example.com/": ("hooks.example.com", "/"),
    "HTTPS://Hooks.Example.COM/A?b=C": ("hooks.example.com", "/A?b=C"),
    "https://hooks.example.com?x=1": ("hooks.example.com", "/?x=1"),
    "https://hooks.example.com:443/x/../y": ("hooks.example.com", "/x/../y"),
    "https://xn--bcher-kva.example/%C3%BC": ("xn--bcher-kva.example", "/%C3%BC"),
    "https://8.8.8.8/": ("8.8.8.8", "/"),
    "https://[2606:4700:4700::1111]/": ("2606:4700:4700::1111", "/"),
    "https://[64:ff9b::808:808]/": ("64:ff9b::808:808", "/"),
    "https://1.example/": ("1.example", "/"),
    "https://a.b.0x7f.example/": ("a.b.0x7f.example", "/"),
}


def test_there_are_more_than_sixty_ways() -> None:
    assert len(set(REFUSED_URLS)) == len(REFUSED_URLS) > 60


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_what_does_not_clearly_lead_to_a_public_receiver_is_refused(url: str) -> None:
    why = addresses.judge(plain(url), Policy())
    assert isinstance(why, str)
    assert why.startswith(("it ", "its "))


@pytest.mark.parametrize("url", ALLOWED_URLS)
def test_what_is_written_as_one_would_is_taken(url: str) -> None:
    target = addresses.judge(url, Policy())
    assert isinstance(target, Target), target
    assert (target.host, target.path) == ALLOWED_URLS[url]
    assert (target.scheme, target.port, target.is_inner) == ("https", 443, False)


def test_a_url_that_is_longer_than_any_is_refused() -> None:
    assert isinstance(addresses.judge("https://hooks.example.com/" + "x" * addresses.MAX_URL, Policy()), str)


def test_other_ports_have_to_be_named() -> None:
    policy = Policy(ports=(8443,))
    assert isinstance(addresses.judge("https://hooks.example.com:8443/", policy), Target)
    assert isinstance(addresses.judge("https://hooks.example.com/", policy), Target)
    assert isinstance(addresses.judge("https://hooks.example.com:8444/", policy), str)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/x", "http://[::1]:9000/", "https://Receiver:9000/"])
def test_hosts_of_ones_own_may_be_inner_andplain(url: str) -> None:
    policy = Policy(ports=(9000,), inner_hosts=("127.0.0.1", "::1", "receiver"))
    target = addresses.judge(url, policy)
    assert isinstance(target, Target), target
    assert target.is_inner


def test_a_host_of_ones_own_opens_no_other() -> None:
    policy = Policy(ports=(80,), inner_hosts=("receiver.example", "127.0.0.1"))
    for url in ("http://127.0.0.2/", "https://127.0.0.2/", "http://x.receiver.example/", "http://127.1/"):
        assert isinstance(addresses.judge(url, policy), str), url


def test_the_authority_is_what_a_host_header_says() -> None:
    assert [each.authority for each in map(_target, ("https://a.example/", "https://[2606:4700::1]/"))] == [
        "a.example",
        "[2606:4700::1]",
    ]
    assert _target("https://a.example:8443/", Policy(ports=(8443,))).authority == "a.example:8443"


def _target(url: str, policy: Policy = Policy()) -> Target:  # noqa: B008 - it is frozen
    target = addresses.judge(url, policy)
    assert isinstance(target, Target), target
    return target


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://a.example/x", "a.example"),
        ("https://user:password@a.example:22/", "a.example:22"),
        ("https://a.example@b.example#c", "b.example"),
        ("https://user:p/w@b.example", "user"),
        ("https://a\r\nb\x1b[31m\u2028/", "a??b?[31m?"),
        ("https://?user:password@x", ""),
        ("nothing", ""),
        ("https://[::1]:443/", "[::1]:443"),
    ],
)
def test_what_is_told_of_a_url_is_its_host_alone(url: str, host: str) -> None:
    assert addresses.host_of(url) == host


# Python's own judgement, on each supported version, takes these for public or not private; a table of ours does not.
@pytest.mark.parametrize(
    "address",
    ["100.64.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "224.0.0.1", "192.88.99.1"],
)
def test_what_python_lets_through_is_not_public(address: str) -> None:
    assert addresses.not_public(address) is not None


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
    ):
        is_translated = address in ipaddress.ip_network("64:ff9b::/96") or getattr(address, "ipv4_mapped", None)
        assert addresses.not_public(str(address)) is not None or is_translated


@given(st.ip_addresses(v=4))
def test_an_address_inside_of_another_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    inner = int(address)
    mapped, translated = (str(ipaddress.IPv6Address(prefix | inner)) for prefix in (0xFFFF << 32, 0x64FF9B << 96))
    assert addresses.not_public(mapped) == addresses.not_public(translated) == addresses.not_public(str(address))


@given(st.text(max_size=60))
def test_no_text_is_too_odd_to_be_judged(text: str) -> None:
    for url in (text, f"https://{text}/", f"https://[{text}]/", f"https://a.example:{text}"):
        judged = addresses.judge(url, Policy())
        assert isinstance(judged, str) or (judged.host.isascii() and judged.port == 443)
    assert addresses.not_public(text) is None or isinstance(addresses.not_public(text), str)
