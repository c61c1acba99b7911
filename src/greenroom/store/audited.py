"""Which operations of the store are acts, and what each says of itself in the audit log. Every one stands in one of the
two tables: a new operation without a place fails a test.

An act is what somebody may be asked about later: who changed what runs, who may call, what is kept. The way of a task
is no act: its row says who submitted it, and its events what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from greenroom.core import addresses
from greenroom.core.alerts import Silence, State
from greenroom.core.scaling import Rule
from greenroom.core.tasks import TERMINAL
from greenroom.security import audit as chain
from greenroom.store import (
    advice,
    agents,
    alerts,
    audit,
    deployments,
    history,
    logins,
    logs,
    measures,
    notifications,
    principals,
    rates,
    recovery,
    resealing,
    results,
    rollouts,
    rows,
    scaling,
    sessions,
    transitions,
    vault,
    webhooks,
)
from greenroom.store.audit import Act
from greenroom.store.commits import Operation
from greenroom.store.deployments import Action

DONE, REFUSED = "done", "refused"
NO_SUCH = {"why": "there is no such thing"}


def _outcome(is_done: object) -> str:
    return DONE if is_done else REFUSED


def _cancel(item: rows.Cancel, before: str | None) -> Act:
    detail = NO_SUCH if before is None else {"was": before}
    outcome = _outcome(before is not None and before not in TERMINAL)
    return Act("task.cancel", f"task:{item.id}", outcome, detail, tenant=item.tenant)


def _remove_session(item: sessions.Removal, answer: int) -> Act:
    outcome = _outcome(answer > 0)
    return Act("session.delete", f"session:{item.id}", outcome, {"agent": item.agent}, tenant=item.tenant)


def _scale_by_hand(item: agents.Scale, is_done: bool) -> Act:
    detail = {"replicas": item.replicas}
    return Act("agent.scale", f"agent:{item.agent}", _outcome(is_done), detail, is_routine=True)


def _release(item: agents.Release, is_done: bool) -> Act:
    return Act("agent.release", f"agent:{item.agent}", _outcome(is_done))


def _deploy(item: deployments.Deployment, result: deployments.Deployed | Exception) -> Act:
    detail: dict[str, Any] = {"digest": item.digest, "by": item.by}
    if isinstance(result, Exception):
        return Act("agent.deploy", f"agent:{item.agent}", REFUSED, detail | {"why": str(result)})
    detail |= {"revision": result.revision, "rollout": result.rollout, "comes_to": str(result.action)}
    # A node that starts on unchanged code deploys nothing.
    return Act("agent.deploy", f"agent:{item.agent}", detail=detail, is_routine=result.action is not Action.BEGIN)


def _switch(item: rollouts.Switch, rollout: int | None) -> Act:
    detail = {"to": item.to, "reason": item.reason, "by": item.by, "rollout": rollout}
    return Act("rollout.switch", f"agent:{item.agent}", _outcome(rollout is not None), detail)


def _move_rollout(item: rollouts.Put, is_done: bool) -> Act:
    detail = {"agent": item.agent, "phase": str(item.state.phase), "stage": item.state.stage + 1}
    verb = item.verb or "move"
    return Act(f"rollout.{verb}", f"rollout:{item.id}", _outcome(is_done), detail, is_routine=True)


def _delete_agent(item: agents.Remove, is_done: bool) -> Act:
    return Act("agent.delete", f"agent:{item.agent}", _outcome(is_done))


def _create_key(item: principals.Principal, _: None) -> Act:
    detail = {"name": item.name, "role": item.role, "expires_at": item.expires_at}
    return Act("key.create", f"key:{item.key_id}", detail=detail, tenant=item.tenant)


def _revoke_key(item: principals.Revocation, is_done: bool) -> Act:
    return Act("key.revoke", f"key:{item.key_id}", _outcome(is_done), tenant=item.tenant)


def _begin_login(item: logins.Exchange, login: logins.Login | None) -> Act | None:
    """Who uses a link that is none has been rejected, and is told of as that."""
    return None if login is None else Act("login.begin", f"key:{login.key_id}")


def _end_login(item: logins.End, _: None) -> Act:
    return Act("login.end", f"key:{item.key_id}", detail={"all": item.id is None})


def _create_webhook(item: webhooks.NewEndpoint, at: int | None) -> Act:
    # The rest of an address may be a secret of the receiver's.
    detail = {"host": addresses.host_of(item.url), "events": item.events, "include_output": item.include_output}
    return Act("webhook.create", f"webhook:{item.id}", _outcome(at is not None), detail, tenant=item.tenant)


def _change_webhook(item: webhooks.Change, is_done: bool) -> Act:
    named = {"state": item.state, "events": item.events, "include_output": item.include_output}
    detail = {name: value for name, value in named.items() if value is not None}
    return Act("webhook.change", f"webhook:{item.id}", _outcome(is_done), detail, tenant=item.tenant)


def _rotate_webhook(item: webhooks.Rotation, is_done: bool) -> Act:
    return Act("webhook.rotate", f"webhook:{item.id}", _outcome(is_done), tenant=item.tenant)


def _remove_webhook(item: webhooks.Removal, is_done: bool) -> Act:
    return Act("webhook.delete", f"webhook:{item.id}", _outcome(is_done), tenant=item.tenant)


def _rotate_encryption(item: vault.Rotation, keys: int) -> Act:
    return Act("encryption.rotate", "store", detail={"data_keys": keys})


def _acknowledge(item: alerts.Acknowledgement, before: str | None) -> Act | None:
    """Who takes what somebody has taken changes nothing, and is refused nothing."""
    if before == State.ACKNOWLEDGED:
        return None
    detail = NO_SUCH if before is None else {"was": before}
    return Act("alert.acknowledge", f"alert:{item.id}", _outcome(before == State.FIRING), detail)


def _silence(item: alerts.NewSilence, result: Silence | Exception) -> Act:
    detail: dict[str, Any] = {"alert": item.alert, "kind": item.kind, "agent": item.agent, "severity": item.severity}
    detail = {name: pattern for name, pattern in detail.items() if pattern is not None} | {"comment": item.comment}
    if isinstance(result, Exception):
        return Act("alert.silence", "alerts", REFUSED, detail | {"why": str(result)})
    return Act("alert.silence", f"silence:{result.id}", detail=detail | {"until": result.until_at})


def _unsilence(item: alerts.End, is_done: bool) -> Act:
    return Act("alert.unsilence", f"silence:{item.silence}", _outcome(is_done))


def _scale(item: scaling.Scale, result: bool | Exception) -> Act:
    detail: dict[str, Any] = {"replicas": item.replicas, "by": item.by}
    if isinstance(result, Exception):
        detail["why"] = str(result)
    is_by_person = item.rule == Rule.SET and item.by != "optimizer"
    outcome = _outcome(result is True)
    return Act("agent.scale", f"agent:{item.agent}", outcome, detail, is_routine=not is_by_person)


def _erase(item: audit.Erasure, seqs: list[int]) -> Act | None:
    return Act(chain.ERASE, "audit", detail={"seqs": seqs}, tenant=item.tenant) if seqs else None


def _take(item: measures.Measure, _: None) -> Act:
    detail = {"rule": item.rule, "reason": item.reason, "until": item.until_us}
    return Act(f"security.{item.kind}", item.subject, detail=detail)


def _lift(item: measures.Lift, is_done: bool) -> Act:
    return Act("security.unlock", item.subject, _outcome(is_done))


AUDITED: Mapping[Operation, Callable[[Any, Any], Act | list[Act] | None]] = {
    transitions.cancel: _cancel,
    sessions.remove: _remove_session,
    agents.scale: _scale_by_hand,
    agents.release: _release,
    deployments.deploy: _deploy,
    rollouts.switch: _switch,
    rollouts.put: _move_rollout,
    rollouts.remove: _delete_agent,
    principals.create: _create_key,
    principals.revoke: _revoke_key,
    logins.exchange: _begin_login,
    logins.end: _end_login,
    webhooks.create: _create_webhook,
    webhooks.change: _change_webhook,
    webhooks.rotate: _rotate_webhook,
    webhooks.remove: _remove_webhook,
    resealing.rotate: _rotate_encryption,
    alerts.acknowledge: _acknowledge,
    alerts.silence: _silence,
    alerts.unsilence: _unsilence,
    scaling.scale: _scale,
    audit.note: lambda act, _: act,
    audit.take_pending: lambda _, acts: acts,
    audit.erase: _erase,
    measures.take: _take,
    measures.lift: _lift,
}

NOT_AUDITED: Mapping[Operation, str] = {
    results.submit: "a task's row says who submitted it",
    transitions.append: "what a running task emits is in its events",
    transitions.call: "a sub-task's row names its parent",
    transitions.resume: "a move of a task, in its events",
    transitions.finish: "a move of a task, in its events",
    transitions.renew: "a lease of the node's own",
    transitions.rescue: "a move of a task, in its events",
    transitions.tick: "moves of tasks, in their events",
    agents.observe: "what the node sees of an agent",
    agents.put_replicas: "what the node sees of its replicas",
    agents.close_nodes: "what the node sees of its replicas",
    recovery.note: "a failure's row says what was done about it",
    alerts.tell: "an alert's row is its own record",
    advice.open_all: "advice is a row, and what is done about it an act of its own",
    advice.move: "advice is a row, and what is done about it an act of its own",
    scaling.record: "a measurement",
    history.put: "a measurement",
    logs.put: "what was said, and what befell replicas and tasks",
    logs.trim: "lines that were kept for as long as they should be",
    history.expire: "measurements that were kept for as long as they should be",
    results.expire: "results that were kept for as long as they should be",
    results.drop: "results that were kept for as long as they should be",
    audit.seal: "a checkpoint is its own record",
    audit.advance: "how far an export has come",
    principals.use: "when a key was used last",
    logins.link: "a link that nobody has used yet opens nothing",
    logins.use: "when a login was used last",
    rates.settle: "a measurement",
    rates.forget: "measurements that are over",
    webhooks.test: "a delivery's row is its own record",
    webhooks.claim: "a lease of a delivery",
    webhooks.note: "what became of a delivery is in its row",
    webhooks.prune: "deliveries that were kept for as long as they should be",
    notifications.route: "what a receiver is owed follows from the alert's row",
    notifications.claim: "a lease of a notification",
    notifications.note: "how a receiver does is in its row",
    notifications.keep: "receivers that the settings no longer name",
    resealing.reseal: "the rotation that it belongs to is the act",
    resealing.rehash: "the rotation that it belongs to is the act",
    resealing.drop_results: "results that were kept under the old names",
    resealing.conclude: "the rotation that it belongs to is the act",
    measures.expire: "the act that took the measure says until when",
}
