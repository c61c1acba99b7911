"""The grade of a security report: nobody can raise it by knocking, and where nobody looks nothing is good."""

from __future__ import annotations

import pytest

from greenroom.core.intrusion import SERIOUS, Rule
from greenroom.core.posture import grade

ON = [("audit log", "on"), ("intrusion rules", "on"), ("isolation", "on")]
OUTER, INNER = "source", "principal"


@pytest.mark.parametrize(
    ("controls", "found", "expected"),
    [
        (ON, [], "good"),
        ([*ON, ("tls", "off by setting")], [], "good"),
        ([("audit log", "off by setting"), ("intrusion rules", "on")], [], "not watched"),
        ([("audit log", "on"), ("intrusion rules", "off by setting")], [], "not watched"),
        ([], [], "not watched"),
        (ON, [(Rule.FAILED_LOGINS, OUTER)] * 1000, "warning"),
        (ON, [(rule, INNER) for rule in Rule if rule not in SERIOUS], "warning"),
        ([*ON, ("audit export", "degraded")], [], "warning"),
        (ON, [(Rule.FAILED_LOGINS, OUTER), (Rule.MANY_NETWORKS, INNER)], "critical"),
        (ON, [(rule, OUTER) for rule in Rule], "warning"),
        (ON, [(Rule.FORGED_REQUESTS, OUTER), (Rule.FORGED_REQUESTS, INNER)], "critical"),
        ([*ON[:2], ("isolation", "off by setting")], [], "warning"),
        ([*ON[:2], ("isolation", "not possible here")], [], "warning"),
        (ON, [(Rule.BROKEN_AUDIT, "node")], "critical"),
        ([("audit log", "degraded"), ("intrusion rules", "off by setting")], [], "critical"),
    ],
)
def test_the_grade(controls: list[tuple[str, str]], found: list[tuple[Rule, str]], expected: str) -> None:
    assert grade(controls, found)[0] == expected
