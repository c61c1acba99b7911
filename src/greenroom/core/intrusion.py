"""Intrusion detection: what happened goes in, findings come out. Pure; each table is bounded.

A rule looks at one subject (a source, a key, a principal, an agent, the node) in a sliding window. It finds something
once, and again only after it has been quiet for `QUIET_S`: who goes on is one finding. docs/intrusion-detection.md has
the rules.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import msgspec

from greenroom.core.networks import limited_as

QUIET_S = 600.0
MAX_SUBJECTS = 4_000  # of each table; who has been quiet for the longest goes first
MAX_MARKS = 32  # of one subject in one window: enough to say "too many"
MAX_OPEN = 1_000  # findings of one rule that are not over: a flood of one is to flood no log, and to hide no other
HOUR_S = 3600.0
NETWORK_BITS = {4: 24, 6: 48}


class Rule(enum.StrEnum):
    """By the names of `settings.Intrusion`."""

    FAILED_LOGINS = "failed_logins"
    MANY_NETWORKS = "many_networks"
    SCOPE_PROBING = "scope_probing"
    FOREIGN_IDS = "foreign_ids"
    FORGED_REQUESTS = "forged_requests"
    BLOCKED_AGENT = "blocked_agent"
    SUDDEN_LOAD = "sudden_load"
    BROKEN_AUDIT = "broken_audit"
    CLOCK_JUMP = "clock_jump"


SERIOUS = frozenset({Rule.MANY_NETWORKS, Rule.FORGED_REQUESTS, Rule.BLOCKED_AGENT, Rule.BROKEN_AUDIT})
"""What is never an accident, and nobody's knocking: see `is_serious`."""


class Subject(msgspec.Struct, frozen=True):
    """*kind* is source, key, principal, agent or node."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


def is_serious(rule: Rule, kind: str) -> bool:
    """Tell whether a finding of *rule* about a subject of this *kind* is serious: a stranger, who is a source, can
    forge requests as he likes; from somebody who was let in they are.

    >>> is_serious(Rule.FORGED_REQUESTS, "principal"), is_serious(Rule.FORGED_REQUESTS, "source")
    (True, False)
    """
    return rule in SERIOUS and kind != "source"


class Threshold(msgspec.Struct, frozen=True):
    """*count* marks within *window_s*."""

    count: int
    window_s: float


# A client that is set up wrongly asks again and again, too: it is to be found, but not one who mistypes a few times.
REJECTED_OF_SOURCE = Threshold(20, 60.0)
REJECTED_OF_KEY = Threshold(10, 60.0)
NETWORKS = Threshold(4, 300.0)
REFUSED = Threshold(20, 300.0)
SCOPES = Threshold(5, 300.0)  # different things among them: who asks the same again is set up wrongly
FOREIGN = Threshold(20, 300.0)
PROBING_PCT = 50  # of a principal's requests
FORGED = Threshold(3, 300.0)
BLOCKED = Threshold(3, 300.0)
LOAD_WINDOW_S = 60.0
LOAD_LEAST = 300  # tasks in that window: less is never sudden
LOAD_TIMES = 10.0  # what it used to be
LOAD_KNOWN = 10  # windows of which a principal's usual load is known
CLOCK_S = 5.0


class Finding(msgspec.Struct, frozen=True):
    rule: Rule
    subject: Subject
    reason: str


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Table(Generic[Key, Value]):
    """Values by subject, the one that was touched last at the end."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._make = make

    def touch(self, subject: Key) -> Value:
        value = self._values.get(subject)
        if value is None:
            value = self._values[subject] = self._make()
            if len(self._values) > MAX_SUBJECTS:
                self._values.popitem(last=False)
        self._values.move_to_end(subject)
        return value

    def get(self, subject: Key) -> Value | None:
        return self._values.get(subject)

    def drop(self, subject: Key) -> None:
        self._values.pop(subject, None)

    def items(self) -> list[tuple[Key, Value]]:
        return list(self._values.items())


class _Marks(msgspec.Struct):
    """When something happened last, of each different *what*: instants that only grow."""

    at_s: OrderedDict[Hashable, float] = msgspec.field(default_factory=OrderedDict)

    def add(self, what: Hashable, now_s: float, window_s: float) -> int:
        """Note *what*, and return how many different ones there are in the window."""
        self.at_s[what] = now_s
        self.at_s.move_to_end(what)
        while self.at_s and (next(iter(self.at_s.values())) <= now_s - window_s or len(self.at_s) > MAX_MARKS):
            self.at_s.popitem(last=False)
        return len(self.at_s)


class _Distinct:
    """How many different things each subject has done within a threshold's window."""

    def __init__(self, threshold: Threshold) -> None:
        self._threshold = threshold
        self._marks: _Table[Hashable, _Marks] = _Table(_Marks)
        self._serial = 0

    def add(self, subject: Hashable, now_s: float, what: Hashable = None) -> int:
        """Return how many, if that is too many; else 0. Without *what*, each counts."""
        self._serial += 1
        mark = self._serial if what is None else what
        count = self._marks.touch(subject).add(mark, now_s, self._threshold.window_s)
        return count if count >= self._threshold.count else 0


class Rates:
    """How often each subject has done something within a window."""

    BUCKETS = 12  # of a window: what is older leaves it by that fraction

    def __init__(self, window_s: float) -> None:
        self._window_s, self._width_s = window_s, window_s / self.BUCKETS
        self._buckets: _Table[str, deque[tuple[float, int]]] = _Table(deque)

    def add(self, subject: str, count: int, now_s: float) -> int:
        buckets = self._buckets.touch(subject)
        if buckets and now_s - buckets[-1][0] < self._width_s:
            since_s, before = buckets.pop()
            buckets.append((since_s, before + count))
        else:
            buckets.append((now_s, count))
        while buckets[0][0] <= now_s - self._window_s:
            buckets.popleft()
        return self.of(subject, now_s)

    def of(self, subject: str, now_s: float) -> int:
        buckets = self._buckets.get(subject) or ()
        return sum(count for since_s, count in buckets if since_s > now_s - self._window_s)

    def all(self, now_s: float) -> list[tuple[str, int]]:
        """Return the subjects that have done it, with how often, the most frequent first."""
        found = [(subject, self.of(subject, now_s)) for subject, _ in self._buckets.items()]
        return sorted(((subject, count) for subject, count in found if count), key=lambda each: -each[1])


class _Load(msgspec.Struct):
    """A principal's load: this window's, and what it used to be in those before."""

    since_s: float | None = None
    count: int = 0
    usual: float = 0.0
    known: int = 0

    def add(self, count: int, now_s: float) -> None:
        since_s = now_s if self.since_s is None else self.since_s
        gone = int((now_s - since_s) // LOAD_WINDOW_S)
        for _ in range(min(gone, 2 * LOAD_KNOWN)):  # each that has passed counts, also those without any
            self.known += 1
            self.usual += (self.count - self.usual) / min(self.known, 6 * LOAD_KNOWN)
            self.count = 0
        self.since_s = since_s + gone * LOAD_WINDOW_S
        self.count += count

    @property
    def is_sudden(self) -> bool:
        usual = max(self.usual, 1.0)
        return self.known >= LOAD_KNOWN and self.count >= LOAD_LEAST and self.count >= LOAD_TIMES * usual


class Watch:
    """What was noted; `findings` takes out what the rules have found since. The rates are of the last hour."""

    def __init__(self) -> None:
        self._of_source, self._of_key = _Distinct(REJECTED_OF_SOURCE), _Distinct(REJECTED_OF_KEY)
        self._networks = _Distinct(NETWORKS)
        self._scopes, self._ids = _Distinct(SCOPES), _Distinct(FOREIGN)
        self._forged, self._blocked = _Distinct(FORGED), _Distinct(BLOCKED)
        self._asked, self._denied = Rates(REFUSED.window_s), Rates(REFUSED.window_s)
        self._absent = Rates(FOREIGN.window_s)
        self._loads: _Table[str, _Load] = _Table(_Load)
        self._seen_s: dict[tuple[Rule, Subject], float] = {}  # when each finding was true last
        self._open: Counter[Rule] = Counter()  # how many of those each rule has
        self._found: list[Finding] = []
        self.rejected_of_source, self.refused_of_principal = Rates(HOUR_S), Rates(HOUR_S)
        self.requests_of_principal = Rates(HOUR_S)

    # --- what happened

    def rejected(self, source: str, key_id: str, now_s: float) -> None:
        """A credential was rejected, or there was none."""
        source = limited_as(source)
        self.rejected_of_source.add(source, 1, now_s)
        if count := self._of_source.add(source, now_s):
            reason = f"{_many(count)} credentials were rejected within {REJECTED_OF_SOURCE.window_s:g} s"
            self._find(Rule.FAILED_LOGINS, Subject("source", source), reason, now_s)
        if key_id and (count := self._of_key.add(key_id, now_s)):
            reason = f"{_many(count)} wrong secrets were tried for this key within {REJECTED_OF_KEY.window_s:g} s"
            self._find(Rule.FAILED_LOGINS, Subject("key", key_id), reason, now_s)

    def requested(self, principal: str, source: str, count: int, now_s: float) -> None:
        """A principal was let in so many times, from *source*."""
        self.requests_of_principal.add(principal, count, now_s)
        self._asked.add(principal, count, now_s)
        if networks := self._networks.add(principal, now_s, network_of(source)):
            reason = f"it was used from {_many(networks)} networks within {NETWORKS.window_s:g} s"
            self._find(Rule.MANY_NETWORKS, Subject("principal", principal), reason, now_s)

    def refused(self, principal: str, what: str, now_s: float) -> None:
        """A principal was not allowed to do *what*."""
        self.refused_of_principal.add(principal, 1, now_s)
        refused = self._denied.add(principal, 1, now_s)
        different = self._scopes.add(principal, now_s, what)
        if different and refused >= REFUSED.count and self._is_most(principal, refused, now_s):
            reason = f"it was refused {refused} times within {REFUSED.window_s:g} s, most of its requests"
            self._find(Rule.SCOPE_PROBING, Subject("principal", principal), reason, now_s)

    def missed(self, principal: str, what: str, now_s: float) -> None:
        """What a principal asked for is not there, or is another tenant's."""
        missed = self._absent.add(principal, 1, now_s)
        different = self._ids.add(principal, now_s, what)
        if different and self._is_most(principal, missed, now_s):
            reason = f"it asked for {_many(different)} things that are not there within {FOREIGN.window_s:g} s"
            self._find(Rule.FOREIGN_IDS, Subject("principal", principal), reason, now_s)

    def forged(self, source: str, principal: str, what: str, now_s: float) -> None:
        subject = Subject("principal", principal) if principal else Subject("source", limited_as(source))
        if count := self._forged.add(subject, now_s):
            reason = f"{_many(count)} forged requests within {FORGED.window_s:g} s, the last one: {what}"
            self._find(Rule.FORGED_REQUESTS, subject, reason, now_s)

    def blocked(self, agent: str, what: str, now_s: float) -> None:
        if count := self._blocked.add(agent, now_s):
            reason = f"its code tried {_many(count)} times within {BLOCKED.window_s:g} s what is forbidden: {what}"
            self._find(Rule.BLOCKED_AGENT, Subject("agent", agent), reason, now_s)

    def submitted(self, principal: str, count: int, now_s: float) -> None:
        load = self._loads.touch(principal)
        load.add(count, now_s)
        if load.is_sudden:
            usual = f"{load.usual:.0f}" if load.usual >= 1 else "less than one"
            reason = f"it has submitted {load.count} tasks within {LOAD_WINDOW_S:g} s, and used to submit {usual}"
            self._find(Rule.SUDDEN_LOAD, Subject("principal", principal), reason, now_s)

    def audit_broken(self, reason: str, now_s: float) -> None:
        self._find(Rule.BROKEN_AUDIT, Subject("node", "audit"), reason, now_s)

    def clocks(self, *, wall_s: float, steady_s: float, now_s: float) -> None:
        """So many seconds have passed by the clock on the wall, and by one that nobody sets."""
        if steady_s - wall_s > CLOCK_S:
            reason = (
                f"the clock was set back by {steady_s - wall_s:.0f} s: the times of what is recorded are not in order"
            )
            self._find(Rule.CLOCK_JUMP, Subject("node", "clock"), reason, now_s)

    # --- what was found

    def findings(self) -> list[Finding]:
        """Take out what was found since."""
        found, self._found = self._found, []
        return found

    def over(self, now_s: float) -> list[tuple[Rule, Subject]]:
        """Take out what has been quiet for long enough."""
        ended = [key for key, seen_s in self._seen_s.items() if now_s - seen_s >= QUIET_S]
        for key in ended:
            del self._seen_s[key]
            self._open[key[0]] -= 1
        return ended

    def _is_most(self, principal: str, count: int, now_s: float) -> bool:
        """Whether *count* of its requests are most of them. What was let in is noted a little later than what was not,
        so that there may seem to be fewer than these.
        """
        return count * 100 >= max(count, self._asked.of(principal, now_s)) * PROBING_PCT

    def _find(self, rule: Rule, subject: Subject, reason: str, now_s: float) -> None:
        key = (rule, subject)
        if key in self._seen_s:
            self._seen_s[key] = now_s
        elif self._open[rule] < MAX_OPEN:
            self._seen_s[key] = now_s
            self._open[rule] += 1
            self._found.append(Finding(rule, subject, reason))


def network_of(source: str) -> str:
    """Return the network that *source* is in. Inner addresses are one: a program's copies have many of them.

    >>> network_of("203.0.113.77"), network_of("2001:db8:1:2::3"), network_of("10.1.2.3"), network_of("local")
    ('203.0.113.0/24', '2001:db8:1::/48', 'inner', 'inner')
    """
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return "inner"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in inner for inner in _INNER if inner.version == address.version):
        return "inner"
    return str(ipaddress.ip_network((address, NETWORK_BITS[address.version]), strict=False))


_INNER = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10", "::1/128", "fc00::/7")
)


def _many(count: int) -> str:
    return f"{count} or more" if count >= MAX_MARKS else str(count)
