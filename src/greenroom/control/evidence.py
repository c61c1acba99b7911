"""Evidence: counts how users' tasks end on the revisions of a rollout, for `control.reconciler`.

An attempt counts where it began: what was on its way when a stage was entered says nothing about that stage. What is
counted is kept in the rollout's own row, and goes on from there after a crash; what tells slow tasks and costly ones
from others is learnt from what the serving revision did last.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from msgspec.structs import replace

from greenroom import telemetry
from greenroom.core import analysis, health, refusals, rollouts

MAX_SAMPLES = 100  # of each agent's serving revision, which limits are learnt from


@dataclass(slots=True)
class _Account:
    """What is known of an agent's revisions since its rollout has the weight that it has."""

    key: tuple[int, int]  # the rollout, and how many weights it has had
    serving: int
    tallies: dict[int, analysis.Tally]
    limits: analysis.Limits
    running: dict[tuple[str, int], int] = field(default_factory=dict)  # attempts that began since then: their revisions


class Evidence:
    def __init__(self, facts: telemetry.Telemetry) -> None:
        self._facts = facts
        self._accounts: dict[str, _Account] = {}
        self._samples: dict[str, deque[analysis.Sample]] = defaultdict(lambda: deque(maxlen=MAX_SAMPLES))
        facts.subscribe(self._end, telemetry.AttemptSeen)

    def watch(self, agent: str, id: int, rollout: rollouts.Rollout) -> None:
        """Count for the rollout *id*; where its weight has changed, or it is another one, begin with what it says."""
        if rollout.from_revision is None or not rollout.evidence:
            return
        key, account, last = (id, len(rollout.evidence)), self._accounts.get(agent), rollout.evidence[-1]
        if account is not None and account.key == key:
            return
        is_same = account is not None and account.key[0] == id
        limits = account.limits if account is not None and is_same else analysis.limits(self._samples[agent])
        if not self._accounts:
            self._facts.subscribe(self._begin, telemetry.AttemptBegan)
        tallies = {rollout.from_revision: last.serving, rollout.to_revision: last.candidate}
        self._accounts[agent] = _Account(key, rollout.from_revision, tallies, limits)

    def keep(self, agents: AbstractSet[str], *, watched: AbstractSet[str]) -> None:
        """Forget what belongs to no agent, and the counts of those that are not *watched*."""
        for gone in self._samples.keys() - agents:
            del self._samples[gone]
        for gone in self._accounts.keys() - watched:
            del self._accounts[gone]
            if not self._accounts:
                self._facts.unsubscribe(self._begin, telemetry.AttemptBegan)

    def tallies(self, agent: str) -> Mapping[int, analysis.Tally]:
        """Return what was counted on each revision, those that still run included."""
        account = self._accounts.get(agent)
        if account is None:
            return {}
        running = list(account.running.values())
        return {
            revision: replace(tally, running=running.count(revision)) for revision, tally in account.tallies.items()
        }

    def _begin(self, began: telemetry.AttemptBegan) -> None:
        account = self._accounts.get(began.agent)
        if account is not None and began.revision in account.tallies:
            account.running[began.task, began.epoch] = began.revision

    def _end(self, seen: telemetry.AttemptSeen) -> None:
        account, is_error = self._accounts.get(seen.agent), health.is_error(seen.reason)
        if account is None:
            if is_error is False:  # in quiet times all are the serving revision's
                sample = analysis.Sample(
                    is_error=False, is_refusal=False, duration_s=seen.duration_s, tokens=seen.tokens
                )
                self._samples[seen.agent].append(sample)
            return
        revision = account.running.pop((seen.task, seen.epoch), None)
        if revision is None or is_error is None:
            return
        is_refusal = refusals.is_refusal(seen.output, seen.error_type)
        sample = analysis.Sample(
            is_error=is_error, is_refusal=is_refusal, duration_s=seen.duration_s, tokens=seen.tokens
        )
        account.tallies[revision] = analysis.counted(account.tallies[revision], sample, account.limits)
        if revision == account.serving and account.limits == analysis.Limits():
            self._samples[seen.agent].append(sample)
            account.limits = analysis.limits(self._samples[seen.agent])
