"""The routes of alerts, of silences, and of the rules that raise alerts."""

from __future__ import annotations

from greenroom import errors
from greenroom.api import access, schemas, views
from greenroom.api.request import Answer, Call
from greenroom.core import alerts
from greenroom.core.permissions import EVERYTHING, Action
from greenroom.core.signals import OF_NODE, OVER_WINDOW, is_about
from greenroom.sdk import models
from greenroom.settings import AlertRule
from greenroom.store import database
from greenroom.store.alerts import NewSilence


async def list_all(call: Call) -> Answer:
    """List the alerts, firing ones first; those that are resolved stay for a month; ``?state= &agent=``."""
    rows = await call.store.alerts.list(
        state=_state(call), agent=call.query("agent"), agents=call.principal.rights.agents(Action.ALERT_READ)
    )
    now_us = _now_us(call)
    silences = await call.store.alerts.silences(now_us=now_us)
    items = [views.alert(row, alerts.silenced_by(row, silences, now_us=now_us)) for row in rows]
    return Answer({"items": items, "next_cursor": None})


def _state(call: Call) -> alerts.State | None:
    text = call.query("state")
    if text is None:
        return None
    try:
        return alerts.State(text)
    except ValueError:
        raise errors.QueryInvalid(f"cannot take ?state={text[:40]}: give one of {', '.join(alerts.State)}") from None


async def acknowledge(call: Call) -> Answer:
    """Note that you look after an alert; it stands until what it tells of is over, and so does that."""
    id = call.path("id")
    seen = await call.store.alerts.get(id)
    _check(call, seen.agent, missing=f"cannot find the alert {id[:200]}")
    row = await call.store.alerts.acknowledge(id, by=call.principal.name)
    now_us = _now_us(call)
    silences = await call.store.alerts.silences(now_us=now_us)
    return Answer(views.alert(row, alerts.silenced_by(row, silences, now_us=now_us)))


async def list_silences(call: Call) -> Answer:
    """List the silences that are not over, the first to end first."""
    agents = call.principal.rights.agents(Action.ALERT_READ)
    rows = await call.store.alerts.silences(now_us=_now_us(call), agents=agents)
    return Answer({"items": [views.silence(row) for row in rows], "next_cursor": None})


async def silence(call: Call) -> Answer:
    """Have nobody told of alerts that match all that is given, for a while. They are listed all the same."""
    wanted = schemas.read(call.body, schemas.NewSilence)
    agent = wanted.agent
    if wanted.alert is None and wanted.kind is None and agent is None and wanted.severity is None:
        raise errors.BodyInvalid("cannot add a silence of everything: give alert, kind, agent or severity")
    if wanted.alert is not None and agent is None and "*" not in wanted.alert:
        agent = (await call.store.alerts.get(wanted.alert)).agent
        _check(call, agent, missing=f"cannot find the alert {wanted.alert[:200]}")
    access.require(call, Action.ALERT_ACKNOWLEDGE, agent or EVERYTHING)
    made = await call.store.alerts.silence(
        NewSilence(
            alert=wanted.alert,
            kind=wanted.kind,
            agent=agent,
            severity=wanted.severity,
            comment=wanted.comment,
            created_by=call.principal.name,
            for_s=wanted.for_s,
        )
    )
    return Answer(views.silence(made), status=201)


async def unsilence(call: Call) -> Answer:
    """End a silence before its time."""
    id = call.path("id")
    seen = await call.store.alerts.get_silence(id, now_us=_now_us(call))
    _check(call, seen.agent, missing=f"cannot find the silence {id[:200]}")
    await call.store.alerts.unsilence(id)
    return Answer(None, status=204)


async def list_rules(call: Call) -> Answer:
    """List the rules that raise alerts, as the node's settings have them. Who may not see all alerts is shown the rules
    about agents of theirs.
    """
    rights = call.principal.rights
    names = None
    if not rights.on_all(Action.ALERT_READ):
        names = [name for name in sorted(call.store.directory.entries) if rights.on_agent(Action.ALERT_READ, name)]
    rules = call.services.settings.alerts.rules
    shown = [_rule(name, rule, names) for name, rule in rules.items() if names is None or rule.signal not in OF_NODE]
    return Answer({"items": [rule for rule in shown if names is None or rule.agents], "next_cursor": None})


def _check(call: Call, agent: str | None, *, missing: str) -> None:
    """Check that the caller may acknowledge and silence what is of *agent*; see `access.check_object`."""
    # What is of no agent is for those who may do it for all of them.
    whose = agent or EVERYTHING
    access.check_object(call, whose, read=Action.ALERT_READ, action=Action.ALERT_ACKNOWLEDGE, missing=missing)


def _rule(name: str, rule: AlertRule, names: list[str] | None) -> models.AlertRule:
    about = list(rule.agents) if names is None else [each for each in names if _is_about(rule, each)]
    return models.AlertRule(
        name=name,
        signal=rule.signal,
        agents=[] if rule.signal in OF_NODE else about,
        except_agents=list(rule.except_agents) if names is None else [],
        above=rule.above,
        below=rule.below,
        window_s=rule.window_s if rule.signal in OVER_WINDOW else None,
        min_volume=rule.min_volume,
        for_s=rule.for_s,
        keep_s=rule.keep_s,
        severity=rule.severity,
        enabled=rule.enabled,
    )


def _is_about(rule: AlertRule, agent: str) -> bool:
    return is_about(agent, agents=rule.agents, except_agents=rule.except_agents)


def _now_us(call: Call) -> int:
    return database.microseconds(call.services.clock.now())
