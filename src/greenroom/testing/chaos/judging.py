"""The verdict on a run: what clients were told, what really ran, and what the node has recorded, compared. Pure.

Each comparison yields *violations*, sentences that name the task. A run also fails that injected fewer faults, or
completed fewer tasks, than were planned: it has not shown what it was made to show.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from greenroom.core import tasks as states
from greenroom.sdk import models
from greenroom.testing.chaos import agent, recovery
from greenroom.testing.chaos.history import History, Outcome, Sent
from greenroom.testing.chaos.ledger import Run

MOST_EXAMPLES = 20
SUSPECT_AFTER = 2  # replicas that died under a task
POISON = "poison"  # the error of a task that has killed the replica which it had for itself
_KILLS = (states.Reason.REPLICA_LOST, states.Reason.OOM)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was asked of the run and what the nemesis did: *planned* faults by kind, *replicas* as they came and went,
    how many are *desired*, and why which kinds were not planned because they were *unavailable*.
    """

    seed: int
    tasks: int
    planned: Mapping[str, int] = field(default_factory=dict)
    injected: Sequence[recovery.Injection] = ()
    replicas: Sequence[recovery.Sighting] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    desired: int = 1


class FaultCount(msgspec.Struct, frozen=True):
    planned: int
    injected: int
    why_not: tuple[str, ...] = ()
    resumed: recovery.Times | None = None
    ready: recovery.Times | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What happened; *violations* are broken promises, *shortfalls* what was planned and not done."""

    seed: int
    planned_tasks: int
    submitted: int
    acknowledged: int
    refused: int
    unknown: int
    resolved: int
    """Fates that were unknown at first, and known after the same Idempotency-Key had asked again."""
    succeeded: int
    failed: Mapping[str, int]
    """By error type, or by state where there is no error."""
    sub_tasks: int
    run_twice: int
    recorded_twice: int
    lost: int
    refused_but_run: int
    session_disorders: int
    session_overlaps: int
    session_states_broken: int
    session_states_restored: int
    """Tasks that had lost two replicas, and began with the session's last good state instead of the last one."""
    faults: Mapping[str, FaultCount]
    resumed: recovery.Times | None
    """Over all faults: from the fault to the first task that it hit running again."""
    ready: recovery.Times | None
    """Over all faults: from the fault to all replicas ready again."""
    violations: Mapping[str, tuple[str, ...]]
    """Examples of each, at most 20."""
    unavailable: Mapping[str, str]
    """Kinds of faults that cannot be injected here, and why."""
    shortfalls: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.violations and not self.shortfalls


def judge(history: History, ledger: Sequence[Run] | None, tasks: Mapping[str, models.Task], seen: Seen) -> Report:
    """Compare *history*, *ledger* (None: the agent keeps none) and the documents of all *tasks*, by id, at the end."""
    evidence = _Evidence(history, ledger, tasks, seen)
    found = {name: list(check(evidence)) for name, check in _CHECKS.items()}
    acknowledged = list(history.of(Outcome.ACKNOWLEDGED))
    ended = [task for sent in acknowledged if (task := tasks.get(sent.task or "")) is not None and task.ended]
    faults = _faults(seen, tasks.values())
    all_times = recovery.recoveries(seen.injected, tasks.values(), seen.replicas, desired=seen.desired)
    return Report(
        seed=seen.seed,
        planned_tasks=seen.tasks,
        submitted=len(history.sent),
        acknowledged=len(acknowledged),
        refused=sum(1 for _ in history.of(Outcome.REFUSED)),
        unknown=sum(1 for _ in history.of(Outcome.UNKNOWN)),
        resolved=sum(sent.was_unknown for sent in acknowledged),
        succeeded=sum(task.succeeded for task in ended),
        failed=Counter(_why(task) for task in ended if not task.succeeded),
        sub_tasks=sum(task.parent is not None for task in tasks.values()),
        run_twice=evidence.run_twice(),
        recorded_twice=len(found["recorded twice"]),
        lost=len(found["lost"]),
        refused_but_run=len(found["refused, but run"]),
        session_disorders=len(found["out of a session's order"]),
        session_overlaps=len(found["at once in a session"]),
        session_states_broken=len(found["state of a session broken"]),
        session_states_restored=_restored_states(evidence),
        faults=faults,
        resumed=recovery.times(each.resumed_s for each in all_times),
        ready=recovery.times(each.ready_s for each in all_times),
        violations={name: tuple(sentences[:MOST_EXAMPLES]) for name, sentences in found.items() if sentences},
        unavailable=seen.unavailable,
        shortfalls=tuple(_shortfalls(seen.tasks, len(ended), faults)),
    )


def _why(task: models.Task) -> str:
    return task.error.type if task.error is not None else task.state


def _faults(seen: Seen, tasks: Iterable[models.Task]) -> dict[str, FaultCount]:
    tasks, counts = list(tasks), {}
    for kind, planned in seen.planned.items():
        of_kind = [fault for fault in seen.injected if fault.kind == kind]
        times = recovery.recoveries(of_kind, tasks, seen.replicas, desired=seen.desired)
        counts[kind] = FaultCount(
            planned=planned,
            injected=len(times),
            why_not=tuple(dict.fromkeys(fault.why_not for fault in of_kind if fault.why_not is not None)),
            resumed=recovery.times(each.resumed_s for each in times),
            ready=recovery.times(each.ready_s for each in times),
        )
    return counts


def _shortfalls(planned: int, ended: int, faults: Mapping[str, FaultCount]) -> Iterator[str]:
    if ended < planned:
        yield f"{ended} of {planned} planned tasks were completed"
    for kind, count in faults.items():
        if count.injected < count.planned:
            why = f" ({'; '.join(count.why_not)})" if count.why_not else ""
            yield f"{kind}: {count.injected} of {count.planned} planned faults were injected{why}"


class _Evidence:
    """The accounts, with the indexes that the checks look things up in."""

    def __init__(
        self, history: History, ledger: Sequence[Run] | None, tasks: Mapping[str, models.Task], seen: Seen
    ) -> None:
        self.history, self.tasks, self.has_ledger, self.seen = history, tasks, ledger is not None, seen
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.tasks_of_key: dict[str, set[str]] = defaultdict(set)
        for run in ledger or ():
            self.runs[run.task].append(run)
            self.tasks_of_key[run.key].add(run.task)

    def run_twice(self) -> int:
        if self.has_ledger:
            return sum(len(runs) > 1 for runs in self.runs.values())
        return sum(len(task.attempts) > 1 for task in self.tasks.values())

    def sessions(self) -> Iterator[list[tuple[Sent, models.Task]]]:
        """Yield each session's acknowledged tasks, in the order in which they were submitted."""
        by_session: dict[str, list[tuple[Sent, models.Task]]] = defaultdict(list)
        for sent in self.history.of(Outcome.ACKNOWLEDGED):
            if sent.session is not None and (task := self.tasks.get(sent.task or "")) is not None:
                by_session[sent.session].append((sent, task))
        for members in by_session.values():
            yield sorted(members, key=lambda member: member[0].order)


def _lost(evidence: _Evidence) -> Iterator[str]:
    for sent in evidence.history.of(Outcome.ACKNOWLEDGED):
        task = evidence.tasks.get(sent.task or "")
        if task is None:
            yield f"task {sent.task} was acknowledged, and there is no such task"
        elif not task.ended:
            yield f"task {task.id} was acknowledged, and is {task.state} still"
    for task in evidence.tasks.values():
        if task.parent is not None and not task.ended:
            yield f"sub-task {task.id} of {task.parent} is {task.state} still"


def _recorded_twice(evidence: _Evidence) -> Iterator[str]:
    for sent in evidence.history.sent.values():
        ids = {sent.task, *sent.others, *evidence.tasks_of_key.get(sent.key, ())} - {None}
        if len(ids) > 1:
            yield f"key {sent.key} stands for {len(ids)} tasks: {', '.join(sorted(map(str, ids)))}"
        final = evidence.tasks.get(sent.task or "")
        if sent.was_cancelled and final is not None and final.state != states.State.CANCELLED:
            yield f"task {final.id} was cancelled for good, and is {final.state}"
    for end in evidence.history.ends:
        final = evidence.tasks.get(end.task)
        if final is not None and (final.state, _epoch(final)) != (end.state, end.epoch):
            yield f"task {end.task} had ended {end.state} in epoch {end.epoch}, and is {final.state} in {_epoch(final)}"


def _stale_results(evidence: _Evidence) -> Iterator[str]:
    """A result is that of the last attempt, and of one that ran to its end."""
    if not evidence.has_ledger:
        return
    for task in evidence.tasks.values():
        if not task.succeeded:
            continue
        finished = {run.epoch for run in evidence.runs.get(task.id, ()) if run.ended_at is not None}
        recorded = _field(task, "epoch")
        if recorded != _epoch(task):
            yield f"task {task.id} has the result of epoch {recorded}, and its last attempt is epoch {_epoch(task)}"
        elif recorded not in finished:
            yield f"task {task.id} has a result of epoch {recorded}, which never ran to its end"


def _refused_but_run(evidence: _Evidence) -> Iterator[str]:
    refused = {sent.key for sent in evidence.history.of(Outcome.REFUSED)}
    for run_key, ids in evidence.tasks_of_key.items():
        key = run_key.partition("/")[0]
        if key in refused:
            yield f"key {key} was refused, and ran as task {', '.join(sorted(ids))}"


def _disorders(evidence: _Evidence) -> Iterator[str]:
    for (_, first), (_, second) in _successions(evidence):
        if _begun_at(evidence, second) < _begun_at(evidence, first):
            yield f"task {second.id} of session {first.session} began before task {first.id}, submitted before it"


def _overlaps(evidence: _Evidence) -> Iterator[str]:
    """The interval of a task is that of its runs, to its recorded end: what an ended attempt does later is fenced."""
    for (_, first), (_, second) in _successions(evidence):
        began_at = _begun_at(evidence, second)
        if first.finished_at is not None and _begun_at(evidence, first) <= began_at < first.finished_at.timestamp():
            yield f"task {second.id} began while task {first.id} of the same session {first.session} ran"


def _successions(
    evidence: _Evidence,
) -> Iterator[tuple[tuple[Sent, models.Task], tuple[Sent, models.Task]]]:
    """Yield the neighbours among those of a session that ran; one that was cancelled before never did."""
    for members in evidence.sessions():
        ran = [member for member in members if evidence.runs.get(member[1].id)]
        yield from itertools.pairwise(ran)


def _begun_at(evidence: _Evidence, task: models.Task) -> float:
    return min(run.begun_at for run in evidence.runs[task.id])


def _broken_states(evidence: _Evidence) -> Iterator[str]:
    """Each success of a session has seen the state that the one before it left; a suspect, perhaps an older one."""
    return (sentence for sentence in _session_states(evidence) if sentence is not None)


def _restored_states(evidence: _Evidence) -> int:
    return sum(sentence is None for sentence in _session_states(evidence))


def _session_states(evidence: _Evidence) -> Iterator[str | None]:
    """Yield what is wrong with a session's states, and None where a suspect has begun with the last good one.

    That is the state from which the success before it had begun: docs/recovery.md.
    """
    for members in evidence.sessions() if evidence.has_ledger else ():
        good, before = "", ""
        for sent, task in members:
            if not task.succeeded:
                continue
            seen = _field(task, "link")
            if seen == agent.link(before, sent.key):
                good, before = before, seen
            elif good and _is_suspect(task) and seen == agent.link(good, sent.key):
                before = seen
                yield None
            else:
                yield f"task {task.id} has not seen the state that the tasks before it left in session {sent.session}"
                break  # all that follow differ, too


def _is_suspect(task: models.Task) -> bool:
    return sum(attempt.reason in _KILLS for attempt in task.attempts) >= SUSPECT_AFTER


def _innocents_quarantined(evidence: _Evidence) -> Iterator[str]:
    """Of the built-in agent only: nobody knows which input kills somebody else's.

    A task whose replica a fault had stopped is left out: to a node it is one that hangs.
    """
    if not evidence.has_ledger:
        return
    innocent = {sent.task for sent in evidence.history.of(Outcome.ACKNOWLEDGED) if not sent.is_poison}
    stopped = {replica for fault in evidence.seen.injected if fault.kind == "stop" for replica in fault.hit}
    for task in evidence.tasks.values():
        is_innocent = (task.parent or task.id) in innocent
        if is_innocent and _why(task) == POISON and not (task.attempts and task.attempts[-1].replica in stopped):
            yield f"task {task.id} kills no replica, and failed as {POISON}"


def _not_ready_again(evidence: _Evidence) -> Iterator[str]:
    seen = evidence.seen
    yield from recovery.not_ready_again(seen.injected, seen.replicas, desired=seen.desired)


def _field(task: models.Task, name: str) -> Any:
    return task.output.get(name) if isinstance(task.output, dict) else None


def _epoch(task: models.Task) -> int:
    return task.attempts[-1].epoch if task.attempts else 0


_CHECKS = {
    "lost": _lost,
    "recorded twice": _recorded_twice,
    "result of another attempt": _stale_results,
    "refused, but run": _refused_but_run,
    "out of a session's order": _disorders,
    "at once in a session": _overlaps,
    "state of a session broken": _broken_states,
    "innocent quarantined": _innocents_quarantined,
    "not ready again": _not_ready_again,
}
