"""How far an agent's room is closed: the tier that a machine can have, and what an egress list lets through.

`engine.rooms` finds out what the kernel and the user permit, `node` decides with it at start, `settings.rules` checks
egress lists. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Literal

import msgspec

LEAST_ABI = 6  # of Landlock: from here on it closes abstract sockets and signals, too
MACHINES = ("x86_64", "aarch64")  # whose system calls the filter knows
CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_PTRACE")
"""What a node needs to give agents users of their own and still to see to them."""
HTTPS, DNS = 443, 53
Asked = Literal["auto", "T0", "T1", "T2"]


class Tier(StrEnum):
    """From open to closed. T3, a container or a virtual machine for each agent, is what somebody else starts."""

    T0 = "T0"  # the node's user, with limits
    T1 = "T1"  # the node's user, in a room that the kernel closes
    T2 = "T2"  # that, and a user or namespaces of the agent's own


class Means(StrEnum):
    """How agents are kept from the node and from each other in T2."""

    USERS = "users"  # which takes root
    NAMESPACES = "namespaces"


class Powers(msgspec.Struct, frozen=True):
    """What the kernel and the user permit. *landlock_abi* is 0 where there is none; *unreachable* are folders that
    every replica needs and that other users cannot enter; *are_uids_mapped*: the users of `T2` exist here.
    *without_namespaces* says why agents cannot have namespaces, None: they can.
    """

    landlock_abi: int
    has_seccomp: bool
    machine: str
    capabilities: frozenset[str] = frozenset()
    unreachable: tuple[str, ...] = ()
    are_uids_mapped: bool = True
    without_namespaces: str | None = "nobody has tried"


class Decision(msgspec.Struct, frozen=True):
    """*lacks* says what keeps the machine from each higher tier; *refusal* that what was asked for cannot be had.

    *means* are those of T2: users where they can be had, which hold also where a namespace leaks.
    """

    tier: Tier
    lacks: tuple[str, ...] = ()
    refusal: str | None = None
    means: Means | None = None


def decide(asked: Asked, powers: Powers) -> Decision:
    """Return the tier to run agents in: what was asked for or nothing; of "auto" T1, where that can be had."""
    without_t1, without_users = tuple(_without_t1(powers)), tuple(_without_users(powers))
    if asked == "auto":
        return Decision(Tier.T0, without_t1) if without_t1 else Decision(Tier.T1)
    means = Means.NAMESPACES if without_users else Means.USERS
    without_t2 = () if means is Means.USERS else _without_namespaces(powers, without_users)
    lacks = {Tier.T0: (), Tier.T1: without_t1, Tier.T2: (*without_t1, *without_t2)}[Tier(asked)]
    if not lacks:
        return Decision(Tier(asked), means=means if asked == Tier.T2 else None)
    instead = 'take security.isolation = "auto", or '
    if not without_t1:
        instead = 'take security.isolation = "T1", or '
    return Decision(
        Tier.T0 if without_t1 else Tier.T1,
        lacks,
        f"cannot isolate agents as security.isolation = {asked!r} says: {'; '.join(lacks)}; {instead}run the node where"
        " that is given",
    )


def _without_t1(powers: Powers) -> Iterator[str]:
    if powers.landlock_abi < LEAST_ABI:
        has = f"has version {powers.landlock_abi} of it" if powers.landlock_abi else "has it not, or it is off"
        yield f"the kernel's Landlock has to be version {LEAST_ABI} (Linux 6.12) or newer, and this one {has}"
    if powers.machine not in MACHINES:
        yield f"system calls are filtered on {' and '.join(MACHINES)} only, and this is {powers.machine or 'unknown'}"
    elif not powers.has_seccomp:
        yield "the kernel does not let this process filter system calls (seccomp)"


def _without_namespaces(powers: Powers, without_users: tuple[str, ...]) -> tuple[str, ...]:
    if powers.without_namespaces is None:
        return ()
    return (
        *without_users,
        f"namespaces of the agents' own, which need no root, cannot be had: {powers.without_namespaces}",
    )


def why_without_namespaces(error: str, switches: Mapping[str, str]) -> str:
    """Return what keeps this machine from namespaces where trying them failed with *error*.

    *switches* are the kernel's settings of `SWITCHES`, those that it has.
    """
    for name, (off, remedy) in SWITCHES.items():
        if switches.get(name, "").strip() == off:
            return f"{name} is {off}; {remedy} ({error})"
    if error.startswith("mount /proc"):
        return f"the container that the node runs in hides parts of /proc ({error})"
    if error.startswith("unshare"):
        return f"the container or the service that the node runs in forbids them ({error})"
    return error


SWITCHES = {
    "user.max_user_namespaces": ("0", "allow some with sysctl"),
    "kernel.unprivileged_userns_clone": ("0", "set it to 1 with sysctl"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "give the node's Python an AppArmor profile with userns"),
}
"""Settings of the kernel that forbid namespaces: the value that does, and what to do about it."""


def _without_users(powers: Powers) -> Iterator[str]:
    missing = [name for name in CAPABILITIES if name not in powers.capabilities]
    if missing:
        yield f"users of the agents' own need a node that is started as root with {', '.join(missing)}"
    elif not powers.are_uids_mapped:
        yield "the agents' users (security.first_agent_uid and on) do not exist in this user namespace"
    for folder in powers.unreachable:
        yield f"other users cannot enter {folder}, which every replica reads: install Python and Greenroom elsewhere"


# --- egress


class Egress(msgspec.Struct, frozen=True):
    """What of the network is open. *ports* are those of TCP that may be connected to, on any host; None: all, and UDP.

    *resolves*: names are looked up, by TCP.
    """

    ports: tuple[int, ...] | None
    resolves: bool = False


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
ANY = "any"


def egress(destinations: Sequence[str]) -> Egress:
    """Return what *destinations* let through; raises ValueError with what is wrong with them.

    >>> egress(["api.openai.com", "127.0.0.1:8080"])
    Egress(ports=(53, 443, 8080), resolves=True)
    """
    if ANY in destinations:
        if len(destinations) > 1:
            raise ValueError('"any" lets everything through, and the others say nothing beside it; remove one of them')
        return Egress(None, resolves=True)
    ports: set[int] = set()
    resolves = False
    for destination in destinations:
        host, port = _host_and_port(destination)
        ports.add(port)
        resolves = resolves or not (_is_address(host) or host.lower() == "localhost")
    return Egress(tuple(sorted(ports | ({DNS} if resolves else set()))), resolves)


def _host_and_port(destination: str) -> tuple[str, int]:
    host, port = destination, ""
    if "/" in destination:
        raise ValueError(
            f"{destination!r} is no destination; expected HOST, HOST:PORT or any, without https:// or paths"
        )
    if destination.startswith("["):
        host, bracket, rest = destination[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not _is_address(host):
            raise ValueError(f"{destination!r} is no address in brackets; expected [ADDRESS]:PORT")
        port = rest[1:] if rest else ""
        if rest == ":":
            raise ValueError(f"{destination!r} names no port after its colon")
    elif destination.count(":") == 1:
        host, _, port = destination.partition(":")
        if not port:
            raise ValueError(f"{destination!r} names no port after its colon")
    if not _is_address(host) and (_NAME.fullmatch(host) is None or host.replace(".", "").isdecimal()):
        raise ValueError(f"{destination!r} is no destination; expected HOST, HOST:PORT or any")
    if not port:
        return host, HTTPS
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65_535):
        raise ValueError(f"{destination!r} names no port from 1 to 65535")
    return host, int(port)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
