"""`AsyncClient`: the API of a node as Python calls to await. See `client`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from greenroom.sdk import calls, discovery, flows, streams, wire
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

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited; `events` and `iter_tasks` are asynchronous iterators."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        data_dir: str | Path | None = None,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        folder = discovery.data_dir(data_dir)
        address = discovery.address(url, key, folder)
        self.url = address.url
        self._patience = flows.Patience(timeout_s)
        self._http = httpx.AsyncClient(**wire.options(address, folder), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    # Tasks

    async def submit(
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
        return await self._send(
            calls.submit(submission, idempotency_key, wait_s=wait_s, or_cancel=or_cancel, traceparent=traceparent)
        )

    async def submit_many(
        self,
        submissions: Sequence[Submission | Mapping[str, Any]],
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> list[Task | Problem]:
        return await self._send(calls.submit_many(submissions, idempotency_key, traceparent=traceparent))

    async def task(self, id: str) -> Task:
        return await self._send(calls.task(id))

    async def tasks(
        self,
        agent: str | None = None,
        state: str | None = None,
        *,
        session: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[Task]:
        return await self._send(calls.tasks(agent=agent, state=state, session=session, cursor=cursor, limit=limit))

    async def iter_tasks(
        self, agent: str | None = None, state: str | None = None, *, session: str | None = None
    ) -> AsyncIterator[Task]:
        cursor = None
        while True:
            page = await self.tasks(agent, state, session=session, cursor=cursor)
            for task in page.items:
                yield task
            cursor = page.next_cursor
            if cursor is None:
                return

    async def wait(self, id: str, timeout_s: float | None = None) -> Task:
        return await self._run(flows.until_ended(id, timeout_s, self._patience))

    async def result(self, id: str, timeout_s: float | None = None) -> Any:
        return await self._run(flows.result(id, timeout_s, self._patience))

    async def cancel(self, id: str) -> Task:
        return await self._send(calls.cancel(id))

    async def retry(self, id: str) -> Task:
        return await self._send(calls.retry(id))

    async def events(self, id: str, *, after: int | None = None) -> AsyncIterator[Event]:
        following = streams.Following(id, after=after, patience=self._patience)
        while not following.has_ended():
            sent = wire.stream_request(following.connect(), self._patience.timeout_s)
            try:
                async with self._http.stream(**sent) as response:
                    if response.status_code == streams.NOTHING_LEFT:
                        return
                    if response.is_success:
                        async for chunk in response.aiter_bytes():
                            for event in following.feed(chunk):
                                yield event
                            if following.has_ended():
                                return
                    else:
                        await response.aread()
            except httpx.RequestError as error:
                delay_s = following.broken(wire.lost(error, self.url).error)
            else:
                if response.is_success:
                    delay_s = following.closed(await self.task(id))
                else:
                    delay_s = following.refused(wire.reply(response))
            await asyncio.sleep(delay_s)

    # Sessions

    async def session(self, id: str, agent: str | None = None) -> Session:
        return await self._send(calls.session(id, agent))

    async def sessions(self, *, cursor: str | None = None, limit: int | None = None) -> Page[Session]:
        return await self._send(calls.sessions(cursor=cursor, limit=limit))

    async def delete_session(self, id: str, agent: str | None = None) -> None:
        await self._send(calls.delete_session(id, agent))

    # Agents and replicas

    async def agents(self) -> list[Agent]:
        return await self._run(flows.everything(calls.agents, self._patience))

    async def agent(self, name: str) -> Agent:
        return await self._send(calls.agent(name))

    async def put_agent(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        code: str | None = None,
        strategy: str | None = None,
        hold_s: float | None = None,
    ) -> Agent:
        return await self._send(calls.put_agent(name, spec, code=code, strategy=strategy, hold_s=hold_s))

    async def plan_agent(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        code: str | None = None,
        sessions: bool = False,
        strategy: str | None = None,
        hold_s: float | None = None,
    ) -> Plan:
        return await self._send(
            calls.plan_agent(name, spec, code=code, sessions=sessions, strategy=strategy, hold_s=hold_s)
        )

    async def upload_code(self, archive: bytes) -> Code:
        return await self._send(calls.upload_code(archive))

    async def delete_agent(self, name: str) -> None:
        await self._send(calls.delete_agent(name))

    async def scale(self, name: str, replicas: int) -> Agent:
        return await self._send(calls.scale(name, replicas))

    async def scaling(self, name: str, *, cursor: str | None = None, limit: int | None = None) -> AgentScaling:
        """How the agent is scaled and why, with one page of what was decided, the latest first."""
        return await self._send(calls.scaling(name, cursor=cursor, limit=limit))

    async def load(self, name: str, *, hours: int | None = None) -> list[Load]:
        """The load of the last *hours* (24; at most a week) in steps of ten seconds, the oldest first."""
        return list((await self._send(calls.load(name, hours=hours))).items)

    async def history(
        self, name: str, *, since: datetime | None = None, step_s: int | None = None
    ) -> list[HistoryBucket]:
        """What became of the agent's attempts and how long they took since *since* (an hour ago), the oldest first, in
        steps of *step_s* (60; or 300, 900, 3600, 86400): only steps in which some ended.
        """
        return list((await self._send(calls.history(name, since=since, step_s=step_s))).items)

    async def agent_health(self, name: str) -> AgentHealth:
        """How the agent is: its grade, what that comes from, and how its SLO stands."""
        return await self._send(calls.agent_health(name))

    async def logs(
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
        which = calls.LogQuery(agent, task, replica, level, since)
        return await self._send(calls.logs(which, cursor=cursor, limit=limit))

    async def follow_logs(
        self,
        *,
        agent: str | None = None,
        task: str | None = None,
        replica: str | None = None,
        level: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
    ) -> AsyncIterator[LogLine]:
        which = calls.LogQuery(agent, task, replica, level, since)
        following = streams.Lines(which, limit=limit, patience=self._patience)
        while True:
            sent = wire.stream_request(following.connect(), self._patience.timeout_s)
            try:
                async with self._http.stream(**sent) as response:
                    if response.is_success:
                        async for chunk in response.aiter_bytes():
                            for line in following.feed(chunk):
                                yield line
                    else:
                        await response.aread()
            except httpx.RequestError as error:
                delay_s = following.broken(wire.lost(error, self.url).error)
            else:
                delay_s = following.closed() if response.is_success else following.refused(wire.reply(response))
            await asyncio.sleep(delay_s)

    async def release(self, name: str) -> Agent:
        """Have a quarantined agent judged anew: its replicas are started again."""
        return await self._send(calls.release(name))

    async def failures(
        self, agent: str | None = None, *, cursor: str | None = None, limit: int | None = None
    ) -> Page[Failure]:
        """How replicas failed and what was done about it, the latest first, one page."""
        return await self._send(calls.failures(agent, cursor=cursor, limit=limit))

    async def advice(self, *, cursor: str | None = None, limit: int | None = None) -> Page[Advice]:
        """What the optimizer advises, what is open first, one page."""
        return await self._send(calls.advice(cursor=cursor, limit=limit))

    async def alerts(self, *, state: str | None = None, agent: str | None = None) -> list[Alert]:
        """Those that fire first, then acknowledged, pending and resolved ones."""
        listed = functools.partial(calls.alerts, state=state, agent=agent)
        return await self._run(flows.everything(listed, self._patience))

    async def receivers(self) -> list[Receiver]:
        """Those who are told of alerts, and how they do."""
        return await self._run(flows.everything(calls.receivers, self._patience))

    async def test_receiver(self, name: str) -> ReceiverTest:
        """Send a receiver a test alert; the answer tells what became of it."""
        return await self._send(calls.test_receiver(name))

    async def acknowledge_alert(self, id: str) -> Alert:
        return await self._send(calls.acknowledge_alert(id))

    async def alert_rules(self) -> list[AlertRule]:
        return await self._run(flows.everything(calls.alert_rules, self._patience))

    async def silences(self) -> list[Silence]:
        return await self._run(flows.everything(calls.silences, self._patience))

    async def silence(
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
        return await self._send(
            calls.silence(for_s, alert=alert, kind=kind, agent=agent, severity=severity, comment=comment)
        )

    async def unsilence(self, id: str) -> None:
        await self._send(calls.unsilence(id))

    async def replicas(self) -> list[Replica]:
        return await self._run(flows.everything(calls.replicas, self._patience))

    async def restart_replica(self, id: str) -> Replica:
        return await self._send(calls.restart_replica(id))

    async def drain_replica(self, id: str) -> Replica:
        return await self._send(calls.drain_replica(id))

    # Revisions and rollouts

    async def revisions(self, name: str) -> list[Revision]:
        return await self._run(flows.everything(functools.partial(calls.revisions, name), self._patience))

    async def rollouts(self, name: str, *, limit: int | None = None) -> list[Rollout]:
        return await self._run(flows.everything(functools.partial(calls.rollouts, name, limit=limit), self._patience))

    async def rollout(self, id: int) -> Rollout:
        return await self._send(calls.rollout(id))

    async def promote_rollout(self, id: int, stage: int | None = None) -> Rollout:
        return await self._send(calls.promote_rollout(id, stage))

    async def pause_rollout(self, id: int) -> Rollout:
        return await self._send(calls.pause_rollout(id))

    async def resume_rollout(self, id: int) -> Rollout:
        return await self._send(calls.resume_rollout(id))

    async def abort_rollout(self, id: int) -> Rollout:
        return await self._send(calls.abort_rollout(id))

    async def roll_back(self, name: str, to: int | None = None) -> Rollout:
        return await self._send(calls.roll_back(name, to))

    # Webhooks

    async def webhooks(self) -> list[Webhook]:
        return await self._run(flows.everything(calls.webhooks, self._patience))

    async def webhook(self, id: str) -> Webhook:
        return await self._send(calls.webhook(id))

    async def create_webhook(
        self, url: str, events: Sequence[str] | None = None, *, description: str = "", include_output: bool = False
    ) -> Webhook:
        """Have the ends of tasks told there, those of *events* only if they are given.

        The answer holds the secret, which is not to be had again.
        """
        return await self._send(
            calls.create_webhook(url, events=events, description=description, include_output=include_output)
        )

    async def change_webhook(
        self,
        id: str,
        *,
        enabled: bool | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        include_output: bool | None = None,
    ) -> Webhook:
        return await self._send(
            calls.change_webhook(
                id, enabled=enabled, events=events, description=description, include_output=include_output
            )
        )

    async def rotate_webhook(self, id: str) -> Webhook:
        """The answer holds the new secret; for a day the old one signs, too."""
        return await self._send(calls.rotate_webhook(id))

    async def delete_webhook(self, id: str) -> None:
        await self._send(calls.delete_webhook(id))

    async def test_webhook(self, id: str) -> Delivery:
        """Have it sent something, once; `deliveries` tells how that went."""
        return await self._send(calls.test_webhook(id))

    async def deliveries(self, id: str, *, cursor: str | None = None, limit: int | None = None) -> Page[Delivery]:
        """What the webhook was sent, or is to be, the latest first, one page."""
        return await self._send(calls.deliveries(id, cursor=cursor, limit=limit))

    # The node

    async def status(self) -> dict[str, Any]:
        return await self._send(calls.status())

    async def backups(self) -> list[Backup]:
        return await self._run(flows.everything(calls.backups, self._patience))

    async def create_backup(self) -> Backups:
        return await self._send(calls.create_backup())

    async def encryption(self) -> Encryption:
        return await self._send(calls.encryption())

    async def rotate_encryption(self, *, data_keys: bool = True) -> Encryption:
        return await self._send(calls.rotate_encryption(data_keys=data_keys))

    async def keys(self, *, tenant: str | None = None) -> list[Key]:
        return await self._run(flows.everything(functools.partial(calls.keys, tenant=tenant), self._patience))

    async def key(self, id: str, *, tenant: str | None = None) -> Key:
        return await self._send(calls.key(id, tenant))

    async def key_can(self, id: str, action: str, resource: str | None = None, *, tenant: str | None = None) -> Verdict:
        return await self._send(calls.key_can(id, action, resource, tenant))

    async def create_key(
        self,
        name: str,
        role: str,
        *,
        scopes: Sequence[str] | None = None,
        expires_in_s: float | None = None,
        tenant: str | None = None,
    ) -> Key:
        wanted = calls.create_key(name, role, scopes=scopes, expires_in_s=expires_in_s, tenant=tenant)
        return await self._send(wanted)

    async def revoke_key(self, id: str, *, tenant: str | None = None) -> None:
        await self._send(calls.revoke_key(id, tenant))

    async def shut_down(self) -> Shutdown:
        return await self._send(calls.shut_down())

    async def create_login(self) -> Login:
        return await self._send(calls.create_login())

    async def end_logins(self) -> None:
        await self._send(calls.end_logins())

    async def health(self) -> bool:
        return await self._send(calls.health())

    async def ready(self) -> bool:
        return await self._send(calls.ready())

    # Audit log and security

    async def audit(
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
        return await self._send(
            calls.audit(actor=actor, action=action, object=object, since=since, after=after, cursor=cursor, limit=limit)
        )

    async def audit_checkpoints(self) -> list[Checkpoint]:
        """The signatures over the audit log, oldest first."""
        return await self._run(flows.everything(calls.audit_checkpoints, self._patience))

    async def erase_audit(self, actor: str, *, tenant: str | None = None) -> Erased:
        """Erase what may be personal in the entries of *actor*; again while there are more."""
        return await self._send(calls.erase_audit(actor, tenant=tenant))

    async def security(self) -> SecurityReport:
        """Each control with its state, what intrusion detection has found, and a grade."""
        return await self._send(calls.security_report())

    async def unlock(self, subject: str) -> None:
        """End what is done to *subject* (``principal:…`` or ``source:…``); raises `errors.NotFound`."""
        await self._send(calls.unlock(subject))

    # How calls are sent

    async def _send(self, call: calls.Call[T]) -> T:
        return await self._run(flows.answer(call, self._patience))

    async def _run(self, flow: flows.Flow[T]) -> T:
        came: calls.Reply | flows.Lost | None = None
        while True:
            try:
                step = flow.send(came)
            except StopIteration as end:
                value: T = end.value
                return value
            match step:
                case flows.Pause(delay_s):
                    await asyncio.sleep(delay_s)
                    came = None
                case _:
                    came = await self._exchange(step)

    async def _exchange(self, call: calls.Call[Any]) -> calls.Reply | flows.Lost:
        try:
            return wire.reply(await self._http.request(**wire.request(call, self._patience.timeout_s)))
        except httpx.RequestError as error:
            return wire.lost(error, self.url)
