"""The grade of a security report. Pure.

What strangers can bring about by knocking, forged requests and rejected credentials among them, is a warning at most:
else anybody could have the system say that it is critical. Where nobody looks, or agents are not kept in, nothing is
good.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from greenroom.core.intrusion import Rule, is_serious


class State(enum.StrEnum):
    """How a control is."""

    ON = "on"
    OFF = "off by setting"
    IMPOSSIBLE = "not possible here"
    DEGRADED = "degraded"


class Grade(enum.StrEnum):
    GOOD = "good"
    WARNING = "warning"
    CRITICAL = "critical"
    NOT_WATCHED = "not watched"


WATCHING = ("audit log", "intrusion rules")
ISOLATION = "isolation"


def grade(controls: Sequence[tuple[str, str]], found: Sequence[tuple[Rule, str]]) -> tuple[Grade, str]:
    """Return the grade, and why, by the state of each control, and by what was found in the last hour: rules, and the
    kinds of those whom they were about.

    >>> grade([("audit log", "on"), ("intrusion rules", "on"), ("isolation", "on")], [])
    (<Grade.GOOD: 'good'>, 'the rules have found nothing in the last hour')
    """
    serious = sorted({str(rule) for rule, kind in found if is_serious(rule, kind)})
    degraded = [name for name, state in controls if state == State.DEGRADED]
    open_to = [state for name, state in controls if name == ISOLATION and state != State.ON]
    blind = [name for name in WATCHING if (name, State.ON) not in controls and name not in degraded]
    if serious:
        return Grade.CRITICAL, f"found in the last hour: {', '.join(serious)}"
    if "audit log" in degraded:
        return Grade.CRITICAL, "the audit log is not what was written"
    if found:
        return Grade.WARNING, f"found in the last hour: {', '.join(sorted({str(rule) for rule, _ in found}))}"
    if degraded:
        return Grade.WARNING, f"degraded: {', '.join(degraded)}"
    if blind:
        return Grade.NOT_WATCHED, f"nothing is looked at: {' and '.join(blind)} off"
    if open_to:
        return Grade.WARNING, f"agents run with the rights of the node: isolation {open_to[0]}"
    return Grade.GOOD, "the rules have found nothing in the last hour"
