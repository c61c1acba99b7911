"""What receivers of alerts are sent: the form of each, and nothing of a reason is more than text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenroom.core import messages
from greenroom.core.notifications import Route, Told

NOW_US = 1_900_000_000_000_000
HOSTILE = "<!channel> *bold* <https://evil.example|here> & \x1b[31m\u202e\nline"


def told(reason: str = "it is slow", **given: Any) -> Told:
    known: dict[str, Any] = {"id": "a", "kind": "slow", "agent": "echo", "severity": "critical", "event": "firing"}
    return Told(**(known | {"reason": reason, "begun_at": NOW_US - 1_000_000} | given))


def test_what_fires_ends_by_itself_unless_alertmanager_hears_of_it_again() -> None:
    (document,) = messages.alertmanager([told()], now_us=NOW_US, url="https://greenroom.example/")
    assert document == {
        "labels": {
            "alertname": "slow",
            "severity": "critical",
            "alert": "a",
            "service": "greenroom",
            "agent": "echo",
        },
        "annotations": {"summary": "it is slow", "description": "it is slow"},
        "startsAt": "2030-03-17T17:46:39.000Z",
        "endsAt": "2030-03-17T17:50:40.000Z",
        "generatorURL": "https://greenroom.example/",
    }
    (document,) = messages.alertmanager([told(event="resolved", ended_at=NOW_US)], now_us=NOW_US + 5, url=None)
    assert document["endsAt"] == "2030-03-17T17:46:40.000Z"


def test_a_hostile_reason_is_inert_in_slack() -> None:
    document = messages.slack([told(HOSTILE), told(HOSTILE, id="b")], url=None)
    shown = json.dumps(document, ensure_ascii=False)
    assert "<" not in shown
    assert ">" not in shown
    assert all(block["text"]["type"] == "plain_text" for block in document["blocks"])
    assert all(letter.isprintable() for block in document["blocks"] for letter in block["text"]["text"])


def test_a_message_for_people_is_bounded_whatever_it_tells_of() -> None:
    many = [told("x" * 100_000, id=f"a{number}") for number in range(50)]
    document = messages.slack(many, url=None)
    assert len(document["blocks"]) <= 13
    assert all(len(block["text"]["text"]) < 3000 for block in document["blocks"])
    assert "and 40 more" in messages.text(many, url=None)
    assert "\n" not in messages.title([told(kind="a\nb")])


def test_a_webhook_of_one_event_is_named_by_it() -> None:
    one = messages.webhook([told(by="ann", event="acknowledged")], now_us=NOW_US, url=None)
    assert one["type"] == "alert.acknowledged"
    assert one["data"]["alerts"][0]["acknowledged_by"] == "ann"
    assert messages.webhook([told(), told(event="resolved")], now_us=NOW_US, url=None)["type"] == "alert.changed"


@pytest.mark.parametrize(
    ("route", "is_wanted"),
    [
        (Route("r", "slack"), True),
        (Route("r", "slack", severities=("critical",)), True),
        (Route("r", "slack", severities=("warning",)), False),
        (Route("r", "slack", kinds=("queue", "slow")), True),
        (Route("r", "slack", kinds=("queue",)), False),
        (Route("r", "slack", agents=("ec*",)), True),
        (Route("r", "slack", agents=("other", "e")), False),
        (Route("r", "slack", agents=("ech?",)), False),  # as in rules and silences, * alone stands for something
    ],
)
def test_a_route_wants_what_fits_each_of_its_conditions(route: Route, *, is_wanted: bool) -> None:
    assert route.wants(kind="slow", agent="echo", severity="critical") is is_wanted
    assert route.wants(kind="slow", agent=None, severity="critical") is (is_wanted and not route.agents)
