"""The autoscaler: decides how many replicas each agent should have, and writes it down with the reason.

The only writer of that number where scaling is automatic, but for a person who asks the API for another; the host makes
it so. Every step samples what waits and what is busy, asks `core.scaling`, and commits what changes. It looks every
second, and at once when tasks become ready for an agent that has no free slot.

Where scaling is manual it decides nothing, and only records the load, as it does everywhere: see `control.loads`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from greenroom import clock as clocks
from greenroom import errors, settings, telemetry
from greenroom.control.bounds import Bounds, sharing
from greenroom.control.dying import dying
from greenroom.control.loads import Loads
from greenroom.control.starving import Starving
from greenroom.core import scaling
from greenroom.core.resources import Use
from greenroom.core.scaling import Decision, Memory, Policy, Rule, Sample
from greenroom.store import scaling as rows
from greenroom.store.deployments import Limits
from greenroom.store.directory import Entry
from greenroom.store.news import News
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
AGAIN_S = 0.1  # an agent whose queue has just been looked at is not heard of before
MANY = 5_000  # tasks that wait: counting them is for another thread, and not for ten times a second
QUIET_EVERY_S, TELL_EVERY_S = 60.0, 10.0  # between two notes of an agent that keeps its number
_QUIET = frozenset({Rule.ENOUGH, Rule.STABILISING})


class _Case(msgspec.Struct):
    """An agent, as it is remembered while the node lives."""

    memory: Memory
    replicas: int  # as this loop has written or found them last
    told: tuple[str, bool] | None = None  # the rule that was stored last, and whether it has changed the number
    told_s: float = 0.0
    tried: Decision | None = None  # written, and not answered yet: the answer may be lost
    woken_s: float = -math.inf  # when it had a replica first, after it had none

    def find(self, replicas: int, now_s: float) -> None:
        """Take in how many there should be by now: by this loop, by a person, or by a deployment."""
        tried, self.tried = self.tried, None
        if replicas == self.replicas:
            return
        if tried is not None and tried.replicas == replicas:
            self.memory = scaling.after(self.memory, now_s, tried)
        else:
            self.memory = scaling.noted(self.memory, now_s, before=self.replicas, replicas=replicas)
        self.came_to(replicas, now_s)

    def came_to(self, replicas: int, now_s: float) -> None:
        if replicas and not self.replicas:
            self.woken_s = now_s
        self.replicas = replicas


class _Look(msgspec.Struct, frozen=True):
    """What is seen of an agent in one step."""

    entry: Entry
    policy: Policy
    sample: Sample

    @property
    def name(self) -> str:
        return self.entry.agent.name


class Autoscaler:
    name = "autoscaler"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        cluster: settings.Cluster,
        *,
        use: Callable[[], Use | None] = lambda: None,
    ) -> None:
        self._store, self._clock, self._facts, self._cluster, self._use = store, clock, facts, cluster, use
        self.wakeup = asyncio.Event()
        self._room = Limits.of(cluster)
        self._cases: dict[str, _Case] = {}
        self._looked_s: dict[str, float] = {}  # at the queues of agents that have one
        self._later: asyncio.TimerHandle | None = None
        self._is_large = self._is_stopping = False
        self._loads, self._starving = Loads(store, clock, facts), Starving(store, facts)
        store.hub.subscribe(self._hear)

    def stop(self) -> None:
        """Decide nothing more: what is drained from here on says nothing about the load."""
        self._is_stopping = True

    async def step(self) -> float:
        if self._is_stopping:
            return STEP_EVERY_S
        entries = await self._store.directory.refresh()
        counts = await self._store.tasks.claimable_counts(is_large=self._is_large)
        self._is_large = sum(counts.values()) > MANY
        now_s = self._clock.monotonic_s()
        samples = {
            name: self._sample(entry, counts.get(name, 0), now_s)
            for name, entry in entries.items()
            if not entry.is_dropped
        }
        await self._loads.note(samples)
        if not self._cluster.autoscaling:
            return STEP_EVERY_S
        for gone in self._cases.keys() - samples.keys():
            del self._cases[gone]
        looks = self._look(entries, samples)
        replicas = await self._store.agents.replicas()
        waiting = [look.entry for look in looks if look.sample.waiting]
        failing = await dying(self._store, self._clock, waiting, replicas)
        bounds = Bounds(self._cluster, entries, replicas, self._use(), dying=failing)
        decided = self._decide(looks, bounds)
        await self._write(looks, decided)
        await self._starving.note(now_s, self._held_asleep(looks, decided))
        self._looked_s = {look.name: now_s for look in looks if look.sample.waiting}
        return STEP_EVERY_S

    def _hear(self, news: News) -> None:
        if self._cluster.autoscaling and any(self._is_short(agent) for agent in {agent for agent, _ in news.ready}):
            self.wakeup.set()

    def _is_short(self, agent: str) -> bool:
        """Whether tasks of *agent* find no free slot. One whose queue was looked at just now is heard of a bit later:
        under load each commit tells of it.
        """
        usage = self._store.board.usage(agent)
        if usage.busy < usage.slots:
            return False
        early_s = self._looked_s.get(agent, -AGAIN_S) + (1.0 if self._is_large else AGAIN_S) - self._clock.monotonic_s()
        if early_s <= 0:
            return True
        if self._later is None or self._later.when() <= asyncio.get_running_loop().time():
            self._later = asyncio.get_running_loop().call_later(early_s, self.wakeup.set)
        return False

    # --- what is seen

    def _sample(self, entry: Entry, waiting: int, now_s: float) -> Sample:
        usage = self._store.board.usage(entry.agent.name)
        return Sample(now_s, waiting, usage.busy, usage.replicas)

    def _look(self, entries: Mapping[str, Entry], samples: Mapping[str, Sample]) -> list[_Look]:
        """Return what is seen, and take it into what is remembered."""
        looks = []
        for name, sample in samples.items():
            entry = entries[name]
            policy = settings.scaling_policy(entry.spec, most=self._cluster.max_replicas)
            case = self._cases.get(name)
            if case is None:
                case = self._cases[name] = _Case(Memory.empty(policy), entry.agent.replicas)
            case.memory = case.memory.resized(policy)
            case.find(entry.agent.replicas, sample.at_s)
            case.memory = scaling.observe(policy, case.memory, sample)
            looks.append(_Look(entry, policy, sample))
        return looks

    # --- what is decided

    def _decide(self, looks: Sequence[_Look], bounds: Bounds) -> dict[str, Decision]:
        """Decide about each agent alone, and where that comes to more than there may be, with its share."""
        alone = {look.name: self._decide_one(look, bounds) for look in looks}
        if sum(decision.replicas for decision in alone.values()) <= self._cluster.max_replicas:
            return alone
        wants = {
            look.name: (min(look.policy.min_replicas, alone[look.name].replicas), alone[look.name].replicas)
            for look in looks
        }
        shares = scaling.share(self._cluster.max_replicas, wants, turns=self._turns())
        bounds.forget_taken()
        return {look.name: self._decide_one(look, bounds, shares=shares, wants=wants) for look in looks}

    def _turns(self) -> dict[str, int]:
        """Say whose turn it is where there are more agents than replicas: who sleeps, and has slept the longest; then
        who has been awake the shortest. A turn lasts as long as it takes to be cut again, `stabilisation_s`.
        """
        cases = self._cases
        order = sorted(
            cases,
            key=lambda name: (cases[name].replicas > 0, cases[name].woken_s * (-1 if cases[name].replicas else 1)),
        )
        return {name: place for place, name in enumerate(order)}

    def _decide_one(
        self,
        look: _Look,
        bounds: Bounds,
        *,
        shares: Mapping[str, int] | None = None,
        wants: Mapping[str, tuple[int, int]] | None = None,
    ) -> Decision:
        case, name = self._cases[look.name], look.name
        caps = bounds.caps(look.entry, look.sample, limit=self._store.board.limit_of(name))
        if shares is not None and wants is not None and shares[name] < wants[name][1]:
            told = sharing(name, shares[name], wants, most=self._cluster.max_replicas)
            caps = msgspec.structs.replace(caps, allotment=shares[name], sharing=told)
        decision, _ = scaling.decide(look.policy, case.memory, look.sample, case.replicas, caps)
        bounds.take(look.entry, decision.replicas - decision.before)
        return decision

    # --- what is written

    async def _write(self, looks: Sequence[_Look], decided: dict[str, Decision]) -> None:
        """Store what has changed and what is worth telling: first those that give something up. What the store refuses
        is held, and *decided* says so then.
        """
        if self._is_stopping:  # since it was seen
            return
        due = [look for look in looks if self._is_due(decided[look.name], self._cases[look.name], look.sample.at_s)]
        due.sort(key=lambda look: decided[look.name].replicas - decided[look.name].before)
        if not due:
            return
        for look in due:
            self._cases[look.name].tried = decided[look.name]
        items = [self._item(look.name, decided[look.name]) for look in due]
        answers = await self._store.scaling.decide(items)
        for look, answer in zip(due, answers, strict=True):
            decision = decided[look.name]
            if not isinstance(answer, errors.StoreUnavailable):
                self._cases[look.name].tried = None
            if answer is True:
                self._note(look, decision)
            elif isinstance(answer, errors.Conflict):  # there is no room before another one has given some up
                held = msgspec.structs.replace(
                    decision, replicas=decision.before, rule=Rule.CLUSTER, sentence=str(answer)
                )
                decided[look.name] = held
                if self._is_due(held, self._cases[look.name], look.sample.at_s):
                    await self._store.scaling.decide([self._item(look.name, held)])
                    self._note(look, held)
            elif isinstance(answer, Exception) and not isinstance(answer, errors.NotFound):
                raise answer
        if any(decided[look.name].has_changed for look in due):
            await self._store.directory.refresh()

    def _is_due(self, decision: Decision, case: _Case, now_s: float) -> bool:
        """Whether to store it: every change, and now and then what else holds the number than before."""
        if decision.has_changed or case.told is None:
            return True
        every_s = QUIET_EVERY_S if decision.rule in _QUIET else TELL_EVERY_S
        return (decision.rule, False) != case.told and now_s >= case.told_s + every_s

    def _held_asleep(self, looks: Sequence[_Look], decided: Mapping[str, Decision]) -> dict[str, str]:
        """Return the agents whose tasks wait for a replica that may not be, and why."""
        return {
            look.name: decided[look.name].sentence
            for look in looks
            if look.sample.waiting
            and not (look.sample.ready or self._cases[look.name].replicas or decided[look.name].replicas)
        }

    def _item(self, agent: str, decision: Decision) -> rows.Scale:
        return rows.Scale(
            agent=agent,
            replicas=decision.replicas,
            room=self._room,
            rule=decision.rule,
            by=rows.AUTOSCALER,
            reason=decision.sentence,
            inputs=msgspec.json.encode({**decision.inputs, "wanted": decision.wanted}),
            before=decision.before,
        )

    def _note(self, look: _Look, decision: Decision) -> None:
        case = self._cases[look.name]
        case.memory = scaling.after(case.memory, look.sample.at_s, decision)
        case.came_to(decision.replicas, look.sample.at_s)
        case.told, case.told_s = (decision.rule, decision.has_changed), look.sample.at_s
        self._facts.emit(telemetry.ScalingDecided(look.name, decision.replicas, decision.rule))
        if decision.has_changed:
            self._facts.emit(
                telemetry.AgentScaled(
                    look.name,
                    before=decision.before,
                    replicas=decision.replicas,
                    rule=decision.rule,
                    reason=decision.sentence,
                    by=rows.AUTOSCALER,
                )
            )
