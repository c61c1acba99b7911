"""`Client`: the API of a node as Python calls that block; `AsyncClient` is the same for asyncio.

For callers, for the command, for `greenroom.system`. Requests are made in `calls`, decided on in `flows` and
`streams`, put on the wire by `wire`; the clients only wait. Errors are those of `greenroom.errors`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from greenroom.sdk import calls, discovery, flows, streams, wire
from greenroom.sdk.async_client import AsyncClient
from greenroom.sdk.health import AgentHealth
from greenroom.sdk.models import (
    Advice,
    Agent,
    AgentScaling,
    Alert,
    AlertRule,
    Backup,
    Backups,
    Code,
    Delivery,
    Encryption,
    Event,
    Failure,
    HistoryBucket,
    Key,
    Load,
    Login,
    LogLine,
    Page,
    Plan,
    Problem,
    Receiver,
    ReceiverTest,
    Replica,
    Revision,
    Rollout,
    Session,
    Shutdown,
    Silence,
    Submission,
    Task,
    Verdict,
    Webhook,
)
from greenroom.sdk.security import AuditEntry, Checkpoint, Erased, SecurityReport

__all__ = ["AsyncClient", "Client", "Submission"]

T = TypeVar("T")


class Client:
    """A node's API, blocking. Safe to share between threads; close it, or use it in a ``with``.

    *url*: else ``GREENROOM_URL``, else what a running node wrote into *data_dir* (``GREENROOM_DATA_DIR``,
    else ``.greenroom``), else http://127.0.0.1:7080. *key*: else ``GREENROOM_KEY``, else the owner's key in
    *data_dir*. *timeout_s* bounds each request with its retries: three tries, of what can be repeated without
    doing it twice; submissions can, by their idempotency key. Who is told to come again later (429) does, within it.
    A node with TLS: see `greenroom.sdk.trust`.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        data_dir: str | Path | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        folder = discovery.data_dir(data_dir)
        address = discovery.address(url, key, folder)
        self.url = address.url
        self._patience = flows.Patience(timeout_s)
        self._http = httpx.Client(**wire.options(address, folder), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Tasks

    def submit(
        self,
        input: Any,
        agent: str | None = None,
        *,
        session: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        not_before: datetime | None = None,
        metadata: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        wait_s: float | None = None,
        or_cancel: bool = False,
        cache: bool = True,
        webhook: str | None = None,
        traceparent: str | None = None,
    ) -> Task:
        """Submit *input* to *agent*, or to whom the router chooses; the task is durable when this returns.

        With *wait_s* (at most 300) it returns when the task has ended, in whatever state, or after that time. With
        *or_cancel* the task is cancelled then, and as soon as this client is gone.
        *cache* false no kept result answers it, and its own is not kept. *traceparent* is the W3C context of the trace
        that the task belongs to; without it, OpenTelemetry's current one counts, where the caller uses that.
        """
        submission = Submission(
            input=input,
            agent=agent,
            session=session,
            priority=priority,
            timeout_s=timeout_s,
            not_before=not_before,
            metadata=metadata,
            cache=cache,
            webhook=webhook,
        )
        return self._send(
            calls.submit(submission, idempotency_key, wait_s=wait_s, or_cancel=or_cancel, traceparent=traceparent)
        )

    def submit_many(
        self,
        submissions: Sequence[Submission | Mapping[str, Any]],
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> list[Task | Problem]:
        """Submit many in one request; the answers stand in their order, a `Problem` where one was refused.

        Each is a `Submission`, or a dict of what one takes: ``{"input": …, "agent": …}``.
        """
        return self._send(calls.submit_many(submissions, idempotency_key, traceparent=traceparent))

    def task(self, id: str) -> Task:
        return self._send(calls.task(id))

    def tasks(
        self,
        agent: str | None = None,
        state: str | None = None,
        *,
        session: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[Task]:
        """The newest tasks first, one page."""
        return self._send(calls.tasks(agent=agent, state=state, session=session, cursor=cursor, limit=limit))

    def iter_tasks(
        self, agent: str | None = None, state: str | None = None, *, session: str | None = None
    ) -> Iterator[Task]:
        """All of them, page by page as they are consumed."""
        cursor = None
        while True:
            page = self.tasks(agent, state, session=session, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def wait(self, id: str, timeout_s: float | None = None) -> Task:
        """The task when it has ended, or as it is after *timeout_s* (None: however long it takes)."""
        return self._run(flows.until_ended(id, timeout_s, self._patience))

    def result(self, id: str, timeout_s: float | None = None) -> Any:
        """The task's output. Raises `errors.TaskFailed`, or `errors.TaskPending` after *timeout_s*."""
        return self._run(flows.result(id, timeout_s, self._patience))

    def cancel(self, id: str) -> Task:
        """Raises `errors.Conflict` if it has ended already."""
        return self._send(calls.cancel(id))

    def retry(self, id: str) -> Task:
        """Submit an ended task again; the answer is the new task."""
        return self._send(calls.retry(id))

    def events(self, id: str, *, after: int | None = None) -> Iterator[Event]:
        """The task's events from the first, or after the one numbered *after*, as they happen, to its end.

        A broken connection is resumed without loss or repetition.
        """
        following = streams.Following(id, after=after, patience=self._patience)
        while not following.has_ended():
            sent = wire.stream_request(following.connect(), self._patience.timeout_s)
            try:
                with self._http.stream(**sent) as response:
                    if response.status_code == streams.NOTHING_LEFT:
                        return
                    if response.is_success:
                        for chunk in response.iter_bytes():
                            yield from following.feed(chunk)
                            if following.has_ended():
                                return
                    else:
                        response.read()
            except httpx.RequestError as error:
                delay_s = following.broken(wire.lost(error, self.url).error)
            else:
                if response.is_success:
                    delay_s = following.closed(self.task(id))
                else:
                    delay_s = following.refused(wire.reply(response))
            time.sleep(delay_s)

    # Sessions

    def session(self, id: str, agent: str | None = None) -> Session:
        """One session with its state; *agent* where several agents have one of this id."""
        return self._send(calls.session(id, agent))

    def sessions(self, *, cursor: str | None = None, limit: int | None = None) -> Page[Session]:
        """Those used last first, one page."""
        return self._send(calls.sessions(cursor=cursor, limit=limit))

    def delete_session(self, id: str, agent: str | None = None) -> None:
        self._send(calls.delete_session(id, agent))

    # Agents and replicas

    def agents(self) -> list[Agent]:
        return self._run(flows.everything(calls.agents, self._patience))

    def agent(self, name: str) -> Agent:
        return self._send(calls.agent(name))

    def put_agent(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        code: str | None = None,
        strategy: str | None = None,
        hold_s: float | None = None,
    ) -> Agent:
        """Deploy the agent, or change it, and do not wait: its rollout tells how it goes.

        *spec* has the shape of the manifest's ``[agents.NAME]``. *code* is the digest of `upload_code`; None: the code
        is what lies in the node's own folder. *strategy* and *hold_s* go before the spec's for this time.
        """
        return self._send(calls.put_agent(name, spec, code=code, strategy=strategy, hold_s=hold_s))

    def plan_agent(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        code: str | None = None,
        sessions: bool = False,
        strategy: str | None = None,
        hold_s: float | None = None,
    ) -> Plan:
        """What `put_agent` would do; nothing is begun.

        With *sessions* the revision is tried, too: on a replica that gets no tasks, and on the states of the agent's
        stored sessions, of which nothing is kept. That takes as long as the agent takes; at most some minutes.
        """
        return self._send(calls.plan_agent(name, spec, code=code, sessions=sessions, strategy=strategy, hold_s=hold_s))

    def upload_code(self, archive: bytes) -> Code:
        """Bring code to the node, a gzipped tar of an agent's folder; raises `errors.Forbidden` where it takes none."""
        return self._send(calls.upload_code(archive))

    def delete_agent(self, name: str) -> None:
        self._send(calls.delete_agent(name))

    def scale(self, name: str, replicas: int) -> Agent:
        return self._send(calls.scale(name, replicas))

    def scaling(self, name: str, *, cursor: str | None = None, limit: int | None = None) -> AgentScaling:
        """How the agent is scaled and why, with one page of what was decided, the latest first."""
        return self._send(calls.scaling(name, cursor=cursor, limit=limit))

    def load(self, name: str, *, hours: int | None = None) -> list[Load]:
        """The load of the last *hours* (24; at most a week) in steps of ten seconds, the oldest first."""
        return list((self._send(calls.load(name, hours=hours))).items)

    def history(self, name: str, *, since: datetime | None = None, step_s: int | None = None) -> list[HistoryBucket]:
        """What became of the agent's attempts and how long they took since *since* (an hour ago), the oldest first, in
        steps of *step_s* (60; or 300, 900, 3600, 86400): only steps in which some ended.
        """
        return list(self._send(calls.history(name, since=since, step_s=step_s)).items)

    def agent_health(self, name: str) -> AgentHealth:
        """How the agent is: its grade, what that comes from, and how its SLO stands."""
        return self._send(calls.agent_health(name))

    def logs(
        self,
        *,
        agent: str | None = None,
        task: str | None = None,
        replica: str | None = None,
        level: str | None = None,
        since: datetime | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[LogLine]:
        """What replicas and tasks said and what befell them, the latest first, one page. *level* is the least."""
        which = calls.LogQuery(agent, task, replica, level, since)
        return self._send(calls.logs(which, cursor=cursor, limit=limit))

    def follow_logs(
        self,
        *,
        agent: str | None = None,
        task: str | None = None,
        replica: str | None = None,
        level: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
    ) -> Iterator[LogLine]:
        """The last *limit* lines, the oldest first, and then what comes, without end: follow until you have enough.

        A broken connection is resumed without loss or repetition, also while the node is started again.
        """
        which = calls.LogQuery(agent, task, replica, level, since)
        following = streams.Lines(which, limit=limit, patience=self._patience)
        while True:
            sent = wire.stream_request(following.connect(), self._patience.timeout_s)
            try:
                with self._http.stream(**sent) as response:
                    if response.is_success:
                        for chunk in response.iter_bytes():
                            yield from following.feed(chunk)
                    else:
                        response.read()
            except httpx.RequestError as error:
                delay_s = following.broken(wire.lost(error, self.url).error)
            else:
                delay_s = following.closed() if response.is_success else following.refused(wire.reply(response))
            time.sleep(delay_s)

    def release(self, name: str) -> Agent:
        """Have a quarantined agent judged anew: its replicas are started again."""
        return self._send(calls.release(name))

    def failures(
        self, agent: str | None = None, *, cursor: str | None = None, limit: int | None = None
    ) -> Page[Failure]:
        """How replicas failed and what was done about it, the latest first, one page."""
        return self._send(calls.failures(agent, cursor=cursor, limit=limit))

    def advice(self, *, cursor: str | None = None, limit: int | None = None) -> Page[Advice]:
        """What the optimizer advises, what is open first, one page."""
        return self._send(calls.advice(cursor=cursor, limit=limit))

    def alerts(self, *, state: str | None = None, agent: str | None = None) -> list[Alert]:
        """Those that fire first, then acknowledged, pending and resolved ones."""
        listed = functools.partial(calls.alerts, state=state, agent=agent)
        return self._run(flows.everything(listed, self._patience))

    def receivers(self) -> list[Receiver]:
        """Those who are told of alerts, and how they do."""
        return self._run(flows.everything(calls.receivers, self._patience))

    def test_receiver(self, name: str) -> ReceiverTest:
        """Send a receiver a test alert; the answer tells what became of it."""
        return self._send(calls.test_receiver(name))

    def acknowledge_alert(self, id: str) -> Alert:
        return self._send(calls.acknowledge_alert(id))

    def alert_rules(self) -> list[AlertRule]:
        return self._run(flows.everything(calls.alert_rules, self._patience))

    def silences(self) -> list[Silence]:
        return self._run(flows.everything(calls.silences, self._patience))

    def silence(
        self,
        for_s: float,
        *,
        alert: str | None = None,
        kind: str | None = None,
        agent: str | None = None,
        severity: str | None = None,
        comment: str = "",
    ) -> Silence:
        """Have nobody told of alerts that match all that is given, in which ``*`` stands for any text."""
        return self._send(calls.silence(for_s, alert=alert, kind=kind, agent=agent, severity=severity, comment=comment))

    def unsilence(self, id: str) -> None:
        self._send(calls.unsilence(id))

    def replicas(self) -> list[Replica]:
        return self._run(flows.everything(calls.replicas, self._patience))

    def restart_replica(self, id: str) -> Replica:
        """Put another in its place; it finishes its tasks first."""
        return self._send(calls.restart_replica(id))

    def drain_replica(self, id: str) -> Replica:
        """Let it finish its tasks and give it no more; another takes its place."""
        return self._send(calls.drain_replica(id))

    # Revisions and rollouts

    def revisions(self, name: str) -> list[Revision]:
        """Newest first."""
        return self._run(flows.everything(functools.partial(calls.revisions, name), self._patience))

    def rollouts(self, name: str, *, limit: int | None = None) -> list[Rollout]:
        """The agent's history, latest first."""
        return self._run(flows.everything(functools.partial(calls.rollouts, name, limit=limit), self._patience))

    def rollout(self, id: int) -> Rollout:
        return self._send(calls.rollout(id))

    def promote_rollout(self, id: int, stage: int | None = None) -> Rollout:
        """Leave its stage now. *stage*, counted from 1, is the one that is meant; None: whichever it is in.

        Raises `errors.Conflict` where it has left that stage or has ended, and where its revision has not proven
        itself or too few of its replicas are ready.
        """
        return self._send(calls.promote_rollout(id, stage))

    def pause_rollout(self, id: int) -> Rollout:
        """Stop it where it is; what fails is undone all the same."""
        return self._send(calls.pause_rollout(id))

    def resume_rollout(self, id: int) -> Rollout:
        """Let it go on; where it waits for a person, that promotes it."""
        return self._send(calls.resume_rollout(id))

    def abort_rollout(self, id: int) -> Rollout:
        """Undo it; one that has ended stays as it is."""
        return self._send(calls.abort_rollout(id))

    def roll_back(self, name: str, to: int | None = None) -> Rollout:
        """Let the revision before serve again, or *to*: at once while it stands, else by a rollout."""
        return self._send(calls.roll_back(name, to))

    # Webhooks

    def webhooks(self) -> list[Webhook]:
        return self._run(flows.everything(calls.webhooks, self._patience))

    def webhook(self, id: str) -> Webhook:
        return self._send(calls.webhook(id))

    def create_webhook(
        self, url: str, events: Sequence[str] | None = None, *, description: str = "", include_output: bool = False
    ) -> Webhook:
        """Have the ends of tasks told there, those of *events* only if they are given.

        The answer holds the secret, which is not to be had again.
        """
        return self._send(
            calls.create_webhook(url, events=events, description=description, include_output=include_output)
        )

    def change_webhook(
        self,
        id: str,
        *,
        enabled: bool | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        include_output: bool | None = None,
    ) -> Webhook:
        return self._send(
            calls.change_webhook(
                id, enabled=enabled, events=events, description=description, include_output=include_output
            )
        )

    def rotate_webhook(self, id: str) -> Webhook:
        """The answer holds the new secret; for a day the old one signs, too."""
        return self._send(calls.rotate_webhook(id))

    def delete_webhook(self, id: str) -> None:
        self._send(calls.delete_webhook(id))

    def test_webhook(self, id: str) -> Delivery:
        """Have it sent something, once; `deliveries` tells how that went."""
        return self._send(calls.test_webhook(id))

    def deliveries(self, id: str, *, cursor: str | None = None, limit: int | None = None) -> Page[Delivery]:
        """What the webhook was sent, or is to be, the latest first, one page."""
        return self._send(calls.deliveries(id, cursor=cursor, limit=limit))

    # The node

    def status(self) -> dict[str, Any]:
        return self._send(calls.status())

    def backups(self) -> list[Backup]:
        """Newest first."""
        return self._run(flows.everything(calls.backups, self._patience))

    def create_backup(self) -> Backups:
        """Have a backup made, and do not wait for it: the status tells how it goes.

        Raises `errors.Conflict` while another one is being made.
        """
        return self._send(calls.create_backup())

    def encryption(self) -> Encryption:
        """How the store is encrypted."""
        return self._send(calls.encryption())

    def rotate_encryption(self, *, data_keys: bool = True) -> Encryption:
        """Take new keys into use, and do not wait until all is encrypted anew: `encryption` tells how that goes."""
        return self._send(calls.rotate_encryption(data_keys=data_keys))

    def keys(self, *, tenant: str | None = None) -> list[Key]:
        """Those of *tenant*, else of one's own."""
        return self._run(flows.everything(functools.partial(calls.keys, tenant=tenant), self._patience))

    def key(self, id: str, *, tenant: str | None = None) -> Key:
        """The key, with all that it may do as its ``rights``."""
        return self._send(calls.key(id, tenant))

    def key_can(self, id: str, action: str, resource: str | None = None, *, tenant: str | None = None) -> Verdict:
        """Whether the key may do *action* (``task:submit``) on *resource* (``agent:research``), and why."""
        return self._send(calls.key_can(id, action, resource, tenant))

    def create_key(
        self,
        name: str,
        role: str,
        *,
        scopes: Sequence[str] | None = None,
        expires_in_s: float | None = None,
        tenant: str | None = None,
    ) -> Key:
        """The answer holds the secret, which is not to be had again.

        *scopes* narrow the role: ``["task:submit on agent:research"]``. Raises `errors.Forbidden` where the key could
        do more than one's own.
        """
        wanted = calls.create_key(name, role, scopes=scopes, expires_in_s=expires_in_s, tenant=tenant)
        return self._send(wanted)

    def revoke_key(self, id: str, *, tenant: str | None = None) -> None:
        """Make a key worthless: within a second, on every node."""
        self._send(calls.revoke_key(id, tenant))

    def shut_down(self) -> Shutdown:
        """Have the node that answers drain and stop, and do not wait for that."""
        return self._send(calls.shut_down())

    def create_login(self) -> Login:
        """Return a link that logs a browser in as this key, once: the node's address and the answer's path."""
        return self._send(calls.create_login())

    def end_logins(self) -> None:
        """End all logins of this key."""
        self._send(calls.end_logins())

    def health(self) -> bool:
        """Whether the node is alive. Raises `errors.NodeUnreachable` where there is none."""
        return self._send(calls.health())

    def ready(self) -> bool:
        """Whether every agent has had its replicas or is settled as failed, and the node is not draining."""
        return self._send(calls.ready())

    # Audit log and security

    def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        object: str | None = None,
        since: str | None = None,
        after: int | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[AuditEntry]:
        """Who did what, the latest first, one page; behind entry *after*, the oldest first. *since* is an instant."""
        return self._send(
            calls.audit(actor=actor, action=action, object=object, since=since, after=after, cursor=cursor, limit=limit)
        )

    def audit_checkpoints(self) -> list[Checkpoint]:
        """The signatures over the audit log, oldest first."""
        return self._run(flows.everything(calls.audit_checkpoints, self._patience))

    def erase_audit(self, actor: str, *, tenant: str | None = None) -> Erased:
        """Erase what may be personal in the entries of *actor*; again while there are more."""
        return self._send(calls.erase_audit(actor, tenant=tenant))

    def security(self) -> SecurityReport:
        """Each control with its state, what intrusion detection has found, and a grade."""
        return self._send(calls.security_report())

    def unlock(self, subject: str) -> None:
        """End what is done to *subject* (``principal:…`` or ``source:…``); raises `errors.NotFound`."""
        self._send(calls.unlock(subject))

    # How calls are sent

    def _send(self, call: calls.Call[T]) -> T:
        return self._run(flows.answer(call, self._patience))

    def _run(self, flow: flows.Flow[T]) -> T:
        came: calls.Reply | flows.Lost | None = None
        while True:
            try:
                step = flow.send(came)
            except StopIteration as end:
                value: T = end.value
                return value
            match step:
                case flows.Pause(delay_s):
                    time.sleep(delay_s)
                    came = None
                case _:
                    came = self._exchange(step)

    def _exchange(self, call: calls.Call[Any]) -> calls.Reply | flows.Lost:
        try:
            return wire.reply(self._http.request(**wire.request(call, self._patience.timeout_s)))
        except httpx.RequestError as error:
            return wire.lost(error, self.url)
