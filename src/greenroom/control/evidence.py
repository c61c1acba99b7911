"""Evidence: counts how users' tasks end on the revisions of a rollout, for `control.reconciler`.

What is counted is kept in the rollout's own row, and goes on from there after a crash; what tells slow tasks and costly
ones from others is learnt anew from the serving revision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from greenroom import telemetry
from greenroom.core import analysis, health, refusals, rollouts

MAX_SAMPLES = 200  # of the serving revision, which limits are learnt from
LEARN_EVERY = 20  # samples


@dataclass(slots=True)
class _Account:
    """What is known of an agent's revisions since its rollout has the weight that it has."""

    key: tuple[int, int]  # the rollout, and how many weights it has had
    serving: int
    tallies: dict[int, analysis.Tally]
    samples: deque[analysis.Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    limits: analysis.Limits = field(default_factory=analysis.Limits)
    unlearnt: int = 0


class Evidence:
    def __init__(self, facts: telemetry.Telemetry) -> None:
        self._accounts: dict[str, _Account] = {}
        facts.subscribe(self._note, telemetry.AttemptSeen)

    def watch(self, agent: str, id: int, rollout: rollouts.Rollout) -> None:
        """Count for the rollout *id*; where its weight has changed, or it is another one, begin with what it says."""
        if rollout.from_revision is None or not rollout.evidence:
            return
        key, account, last = (id, len(rollout.evidence)), self._accounts.get(agent), rollout.evidence[-1]
        if account is not None and account.key == key:
            return
        tallies = {rollout.from_revision: last.serving, rollout.to_revision: last.candidate}
        fresh = _Account(key, rollout.from_revision, tallies)
        if account is not None and account.serving == rollout.from_revision:
            fresh.samples, fresh.limits = account.samples, account.limits
        self._accounts[agent] = fresh

    def forget(self, agent: str) -> None:
        self._accounts.pop(agent, None)

    def tallies(self, agent: str) -> Mapping[int, analysis.Tally]:
        account = self._accounts.get(agent)
        return {} if account is None else account.tallies

    def _note(self, seen: telemetry.AttemptSeen) -> None:
        account = self._accounts.get(seen.agent)
        if account is None or seen.revision not in account.tallies:
            return
        is_error = health.is_error(seen.reason)
        if is_error is None:
            return
        sample = analysis.Sample(
            is_error=is_error,
            is_refusal=refusals.is_refusal(seen.output, seen.error_type),
            duration_s=seen.duration_s,
            tokens=seen.tokens,
        )
        account.tallies[seen.revision] = analysis.counted(account.tallies[seen.revision], sample, account.limits)
        if seen.revision == account.serving:
            account.samples.append(sample)
            account.unlearnt += 1
            if account.unlearnt >= LEARN_EVERY:
                account.limits, account.unlearnt = analysis.limits(account.samples), 0
