"""What a node answers about its audit log and its security, as values; see `sdk.models`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from greenroom.sdk.models import Instant


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the audit log. *actor* and what else may be personal is null where it was erased."""

    seq: int
    at: Instant | None = None
    tenant: str = ""
    actor: str | None = None
    source: str | None = None
    action: str
    object: str | None = None
    outcome: str = ""
    request_id: str = ""
    detail: dict[str, Any] | None = None
    is_erased: bool = False
    hash: str = ""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A signature over the entries *first* to *last*, and over the checkpoint before. *time* in microseconds."""

    number: int
    time: int
    first: int
    last: int
    root: str
    head: str
    previous: str
    key: str
    signature: str


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """How many entries were erased; *is_more*: there are others."""

    entries: int
    is_more: bool = False


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """A control: *state* is ``on``, ``off by setting``, ``not possible here`` or ``degraded``, and *why*."""

    name: str
    state: str
    why: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule of intrusion detection has found about *subject*, and what was done."""

    at: datetime
    rule: str
    subject: str
    reason: str = ""
    done: str = ""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How often within the last hour. *share_pct* is of all the requests of the subject, where those are counted."""

    subject: str
    count: int
    per_minute: float
    share_pct: float | None = None


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is locked, or slowed down (throttle), by a rule, until *until*."""

    subject: str
    kind: str
    rule: str = ""
    reason: str = ""
    until: datetime | None = None


class SecurityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the node is protected. *grade* is good, warning, critical, or ``not watched``: nothing was looked at.

    *found_last_day* has what rules have found, latest first, in this life of the node; the audit log has all of it.
    """

    grade: str
    reason: str = ""
    controls: list[Control] = []
    found_last_hour: int = 0
    found_last_day: list[Found] = []
    rejected: list[Rate] = []
    refused: list[Rate] = []
    requests: list[Rate] = []
    measures: list[Measure] = []
