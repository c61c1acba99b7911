"""The grade of a security report: nobody can raise it by knocking, and where nobody looks nothing is good."""

from __future__ import annotations

import pytest

from greenroom.core.intrusion import Rule
from greenroom.core.posture import grade

ON = [("audit log", "on"), ("intrusion rules", "on")]


@pytest.mark.parametrize(
    ("controls", "found", "expected"),
    [
        (ON, [], "good"),
        ([*ON, ("tls", "off by setting")], [], "good"),
        ([("audit log", "off by setting"), ("intrusion rules", "on")], [], "not watched"),
        ([("audit log", "on"), ("intrusion rules", "off by setting")], [], "not watched"),
        ([], [], "not watched"),
        (ON, [Rule.FAILED_LOGINS] * 1000, "warning"),
        (ON, [Rule.FAILED_LOGINS, Rule.SCOPE_PROBING, Rule.FOREIGN_IDS, Rule.SUDDEN_LOAD], "warning"),
        ([*ON, ("audit export", "degraded")], [], "warning"),
        (ON, [Rule.FAILED_LOGINS, Rule.MANY_NETWORKS], "critical"),
        (ON, [Rule.BROKEN_AUDIT], "critical"),
        ([("audit log", "degraded"), ("intrusion rules", "off by setting")], [], "critical"),
    ],
)
def test_the_grade(controls: list[tuple[str, str]], found: list[Rule], expected: str) -> None:
    assert grade(controls, found)[0] == expected
