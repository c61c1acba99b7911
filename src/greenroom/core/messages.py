"""What receivers of alerts are sent, in the form of each. Pure.

Reasons hold what agents have said: nothing of it may be read as markup, nor ring everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from greenroom.core.notifications import LIVES_S, Told

MOST_REASON = 500  # characters of each alert, in a message for people
MOST_SHOWN = 10  # alerts, in a message for people
MARKS = {"firing": "FIRING", "acknowledged": "TAKEN", "resolved": "RESOLVED"}


def alertmanager(told: Sequence[Told], *, now_us: int, url: str | None) -> list[dict[str, Any]]:
    """Return the body of ``POST /api/v2/alerts``; what fires ends by itself unless it is sent again."""
    lives_us = int(LIVES_S * 1e6)
    documents = []
    for each in told:
        labels = {"alertname": each.kind, "severity": each.severity, "alert": each.id, "service": "greenroom"}
        if each.agent is not None:
            labels["agent"] = each.agent
        annotations = {"summary": _line(each.reason), "description": each.reason}
        if each.by is not None:
            annotations["acknowledged_by"] = each.by
        document: dict[str, Any] = {
            "labels": labels,
            "annotations": {name: value for name, value in annotations.items() if value},
            "startsAt": _instant(each.begun_at),
            "endsAt": _instant(now_us + lives_us if each.ended_at is None else each.ended_at),
        }
        if url is not None:
            document["generatorURL"] = url
        documents.append(document)
    return documents


def webhook(told: Sequence[Told], *, now_us: int, url: str | None) -> dict[str, Any]:
    """Return the payload of a Standard Webhook, with all alerts of the message."""
    events = {each.event for each in told}
    return {
        "type": f"alert.{events.pop()}" if len(events) == 1 else "alert.changed",
        "timestamp": _instant(now_us),
        "data": {
            "url": url,
            "alerts": [
                {
                    "id": each.id,
                    "kind": each.kind,
                    "agent": each.agent,
                    "severity": each.severity,
                    "reason": each.reason,
                    "state": each.event,
                    "acknowledged_by": each.by,
                    "begun_at": _instant(each.begun_at),
                    "ended_at": None if each.ended_at is None else _instant(each.ended_at),
                }
                for each in told
            ],
        },
    }


def slack(told: Sequence[Told], *, url: str | None) -> dict[str, Any]:
    """Return what an incoming webhook of Slack, or one that understands the same, shows."""
    blocks: list[dict[str, Any]] = [{"type": "header", "text": _plain(title(told)[:150])}]
    blocks += [{"type": "section", "text": _plain(text)} for text in _shown(told)]
    if url is not None:
        blocks.append({"type": "section", "text": _plain(url)})
    return {"text": _for_slack(title(told)), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def text(told: Sequence[Told], *, url: str | None) -> str:
    """Return the message as plain text."""
    return "\n\n".join([*_shown(told), *filter(None, [url])])


def title(told: Sequence[Told]) -> str:
    """Return the message as one line, for a subject."""
    first = told[0]
    where = f" of {first.agent}" if first.agent is not None else ""
    more = f" and {len(told) - 1} more" if len(told) > 1 else ""
    return f"[{MARKS[first.event]}] {first.severity}: {_line(first.kind)}{where}{more}"


def _shown(told: Sequence[Told]) -> list[str]:
    lines = [f"{MARKS[each.event]} {each.id}: {_line(each.reason)}{_taken(each)}" for each in told[:MOST_SHOWN]]
    if len(told) > MOST_SHOWN:
        lines.append(f"and {len(told) - MOST_SHOWN} more: greenroom alerts ls")
    return lines


def _taken(told: Told) -> str:
    return "" if told.by is None else f" (taken by {_line(told.by)})"


def _line(said: str) -> str:
    """Return *said* as one line without control characters."""
    whole = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    return whole if len(whole) <= MOST_REASON else f"{whole[: MOST_REASON - 1]}…"


def _plain(said: str) -> dict[str, Any]:
    """Return a text in which Slack looks for neither markup nor emoji; its three characters are escaped all the same,
    for those who only speak like it.
    """
    return {"type": "plain_text", "text": _for_slack(said), "emoji": False}


def _for_slack(said: str) -> str:
    return said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _instant(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
