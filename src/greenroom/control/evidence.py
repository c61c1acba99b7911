"""Evidence: counts how users' tasks end on the revisions of a rollout, for `control.reconciler`.

An attempt counts where it began: what was on its way when a stage was entered says nothing about that stage. What is
counted is kept in the rollout's own row, and goes on from there after a crash; what tells slow tasks and costly ones
from others is learnt from what the serving revision did last.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import msgspec
from msgspec.structs import replace

from greenroom import telemetry
from greenroom.core import analysis, health, refusals, rollouts, tasks

_Cost = tuple[float, int]  # of an attempt: seconds and tokens

MAX_SAMPLES = 100  # of each agent's serving revision, which limits are learnt from


class _Account(msgspec.Struct):
    """What is known of an agent's revisions since its rollout has the weight that it has."""

    key: tuple[int, int]  # the rollout, and how many weights it has had
    serving: int
    tallies: dict[int, analysis.Tally]
    limits: analysis.Limits
    running: dict[tuple[str, int], int] = {}  # attempts that began since then: their revisions


class Evidence:
    def __init__(self, facts: telemetry.Telemetry) -> None:
        self._facts = facts
        self._accounts: dict[str, _Account] = {}
        self._samples: dict[str, deque[_Cost]] = defaultdict(lambda: deque(maxlen=MAX_SAMPLES))
        facts.subscribe(self._end, telemetry.AttemptEnded)

    def watch(self, agent: str, id: int, rollout: rollouts.Rollout) -> None:
        """Count for the rollout *id*; where its weight has changed, or it is another one, begin with what it says."""
        if rollout.from_revision is None or not rollout.evidence:
            return
        key, account, last = (id, len(rollout.evidence)), self._accounts.get(agent), rollout.evidence[-1]
        if account is not None and account.key == key:
            return
        is_same = account is not None and account.key[0] == id
        limits = account.limits if account is not None and is_same else self._limits(agent)
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

    def _limits(self, agent: str) -> analysis.Limits:
        return analysis.limits(
            [
                analysis.Sample(is_error=False, is_refusal=False, duration_s=duration_s, tokens=tokens)
                for duration_s, tokens in self._samples[agent]
            ]
        )

    def _end(self, ended: telemetry.AttemptEnded) -> None:
        account, is_error = self._accounts.get(ended.agent), health.is_error(ended.reason)
        if account is None:
            if is_error is False:  # in quiet times all are the serving revision's
                self._samples[ended.agent].append((ended.duration_s, ended.tokens))
            return
        revision = account.running.pop((ended.task, ended.epoch), None)
        if revision is None or is_error is None:
            return
        error_type = ended.end.type if isinstance(ended.end, tasks.AgentFailed) else None
        is_refusal = refusals.is_refusal(ended.output, error_type)
        sample = analysis.Sample(
            is_error=is_error, is_refusal=is_refusal, duration_s=ended.duration_s, tokens=ended.tokens
        )
        account.tallies[revision] = analysis.counted(account.tallies[revision], sample, account.limits)
        is_good = not (is_error or is_refusal)
        if is_good and revision == account.serving and account.limits == analysis.Limits():
            self._samples[ended.agent].append((sample.duration_s, sample.tokens))
            account.limits = self._limits(ended.agent)
