"""Which tier a machine can have, and what an egress list opens."""

from __future__ import annotations

import msgspec
import pytest

from greenroom.core.isolation import CAPABILITIES, Egress, Means, Powers, Tier, decide, egress, why_without_namespaces

ALL = Powers(landlock_abi=7, has_seccomp=True, machine="x86_64", capabilities=frozenset(CAPABILITIES))
LESS = {
    "its Landlock is old": {"landlock_abi": 5},
    "it has no Landlock": {"landlock_abi": 0},
    "it has no seccomp": {"has_seccomp": False},
    "its machine is unknown": {"machine": "riscv64"},
}
LESS_FOR_T2 = {
    "the node is not root": {"capabilities": frozenset[str]()},
    "it may not look into other users' processes": {"capabilities": frozenset(CAPABILITIES) - {"CAP_SYS_PTRACE"}},
    "its users do not exist": {"are_uids_mapped": False},
    "its interpreter is out of reach": {"unreachable": ("/root",)},
}


def test_automatic_is_t1_where_it_can_be_had_and_no_more() -> None:
    assert decide("auto", ALL) == decide("T1", ALL)
    assert decide("auto", ALL).tier is Tier.T1
    assert decide("auto", ALL).lacks == ()


@pytest.mark.parametrize("lack", LESS)
def test_automatic_falls_back_to_t0_and_says_why(lack: str) -> None:
    decision = decide("auto", msgspec.structs.replace(ALL, **LESS[lack]))  # type: ignore[arg-type]
    assert decision.tier is Tier.T0
    assert len(decision.lacks) == 1
    assert decision.refusal is None


@pytest.mark.parametrize("asked", ["T1", "T2"])
@pytest.mark.parametrize("lack", LESS)
def test_what_was_named_and_cannot_be_had_is_refused(lack: str, asked: str) -> None:
    decision = decide(asked, msgspec.structs.replace(ALL, **LESS[lack]))  # type: ignore[arg-type]
    assert decision.refusal is not None
    assert decision.lacks[0] in decision.refusal
    assert 'take security.isolation = "auto"' in decision.refusal


@pytest.mark.parametrize("lack", LESS_FOR_T2)
def test_t2_needs_more_than_t1(lack: str) -> None:
    powers = msgspec.structs.replace(ALL, **LESS_FOR_T2[lack])  # type: ignore[arg-type]
    assert decide("T1", powers).refusal is None
    refusal = decide("T2", powers).refusal
    assert refusal is not None
    assert 'take security.isolation = "T1"' in refusal


@pytest.mark.parametrize("lack", LESS_FOR_T2)
def test_t2_is_had_by_namespaces_where_users_cannot_be_had(lack: str) -> None:
    powers = msgspec.structs.replace(ALL, **LESS_FOR_T2[lack], without_namespaces=None)  # type: ignore[arg-type]
    decision = decide("T2", powers)
    assert (decision.tier, decision.means, decision.refusal) == (Tier.T2, Means.NAMESPACES, None)
    assert decide("T1", powers).means is None


def test_users_are_preferred_to_namespaces() -> None:
    assert decide("T2", msgspec.structs.replace(ALL, without_namespaces=None)).means is Means.USERS


def test_the_refusal_of_t2_says_what_keeps_it_from_either_means() -> None:
    powers = msgspec.structs.replace(ALL, capabilities=frozenset(), without_namespaces="the kernel says no")
    refusal = decide("T2", powers).refusal
    assert refusal is not None
    assert "started as root" in refusal
    assert "namespaces of the agents' own, which need no root, cannot be had: the kernel says no" in refusal


@pytest.mark.parametrize(
    ("error", "switches", "words"),
    [
        ("unshare: No space left on device", {"user.max_user_namespaces": "0\n"}, "allow some with sysctl"),
        ("unshare: Operation not permitted", {"kernel.unprivileged_userns_clone": "0"}, "set it to 1 with sysctl"),
        ("uid_map: x", {"kernel.apparmor_restrict_unprivileged_userns": "1"}, "an AppArmor profile with userns"),
        ("mount /proc: Operation not permitted", {}, "hides parts of /proc"),
        ("unshare: Operation not permitted", {"user.max_user_namespaces": "96365"}, "the container or the service"),
        ("move_mount: x", {"kernel.unprivileged_userns_clone": "1"}, "move_mount: x"),
    ],
)
def test_what_keeps_a_machine_from_namespaces_is_named(error: str, switches: dict[str, str], words: str) -> None:
    why = why_without_namespaces(error, switches)
    assert words in why
    assert error in why


@pytest.mark.parametrize("tier", Tier)
def test_a_machine_that_can_do_everything_gives_what_was_named(tier: Tier) -> None:
    decision = decide(tier.value, ALL)
    assert (decision.tier, decision.refusal) == (tier, None)


@pytest.mark.parametrize(
    ("destinations", "opens"),
    [
        (["any"], Egress(None, resolves=True)),
        ([], Egress(())),
        (["api.openai.com"], Egress((53, 443), resolves=True)),
        (["api.openai.com:8443", "b.example"], Egress((53, 443, 8443), resolves=True)),
        (["localhost:11434"], Egress((11434,))),
        (["127.0.0.1:80", "[::1]:81", "::1", "[::2]"], Egress((80, 81, 443))),
    ],
)
def test_an_egress_list_opens_the_ports_that_it_names(destinations: list[str], opens: Egress) -> None:
    assert egress(destinations) == opens


@pytest.mark.parametrize(
    "destinations",
    [
        ["any", "a"],
        [""],
        ["a:"],
        ["a:0"],
        ["a:65536"],
        ["a:-1"],
        ["a:1e3"],
        ["a:٣"],
        ["http://a"],
        ["*.a"],
        ["a b"],
        ["[a]:1"],
        ["[::1]x"],
        ["[::1]:"],
        ["1.2.3"],
        ["1.2.3.4.5"],
        ["a..b"],
        ["-a"],
    ],
)
def test_what_is_no_destination_is_refused(destinations: list[str]) -> None:
    with pytest.raises(ValueError, match=r"expected|names no port|say nothing|no address"):
        egress(destinations)
