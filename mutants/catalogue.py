"""The guards, what the code is without each, and the tests that have to fail then.

An edit replaces text that is in its file exactly once (`tests/test_mutants.py` sees to that). The tests are those that
are closest to the guard: that they notice says more than that something somewhere does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """*before* becomes *after* in *file*, a path below ``src/greenroom``."""

    file: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """*without* says what is missing, for people; *tests* are arguments for pytest."""

    without: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def _mutant(without: str, file: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(without, (Edit(file, before, after),), tests)


CONTRACT, DISPATCHER, HOST = (
    "tests/store/test_contract.py",
    "tests/control/test_dispatcher.py",
    "tests/control/test_host.py",
)
TRANSITIONS = "store/transitions.py"
RESULTS = "tests/store/test_results.py"
VAULT, CIPHER, KEY_SOURCES = (
    "tests/store/test_vault.py",
    "tests/security/test_vault.py",
    "tests/security/test_key_sources.py",
)
ROLLOUTS, STRUCK = "tests/store/test_rollouts.py", "tests/simulation/test_rollouts.py"

CATALOGUE = (
    # --- fences, leases and ends
    Mutant(
        "the epoch in the statement that ends an attempt",
        (
            Edit(
                TRANSITIONS,
                "where id = :id and epoch = :epoch and state in ('running', 'waiting') for update\"\"\"\n# What",
                "where id = :id and epoch >= :epoch and state in ('running', 'waiting') for update\"\"\"\n# What",
            ),
            Edit(
                TRANSITIONS,
                "leased = {(row[_ID], row[_EPOCH]): row for row in found}",
                "leased = {(row[_ID], item.epoch): row for row, item in zip(found, items, strict=False)}",
            ),
            Edit(
                TRANSITIONS,
                "where seq = :seq and epoch = :epoch and state in",
                "where seq = :seq and epoch >= :epoch and state in",
            ),
        ),
        (CONTRACT,),
    ),
    _mutant(
        "the lease in the statement that rescues",
        TRANSITIONS,
        "where {_IS_LEASED} and (lease_until < :now or owner <> :not_owner)",
        "where {_IS_LEASED} and (cast(:now as bigint) > 0 or owner <> :not_owner)",
        CONTRACT,
    ),
    _mutant(
        "what a jump of its own clock spares a node",
        "control/janitor.py",
        "rescue(spared=self._store.claims.owner, jitter",
        "rescue(jitter",
        "tests/control/test_janitor.py",
    ),
    _mutant(
        "the trigger that makes ends final",
        "store/migrations/0002_initial.sqlite.sql",
        "begin select raise(rollback, 'terminal states are absorbing'); end;",
        "begin select 1; end;",
        CONTRACT,
    ),
    _mutant(
        "the refund of an attempt that was drained",
        TRANSITIONS,
        "attempts_charged = attempts_charged - :refund,",
        "attempts_charged = attempts_charged - 0 * :refund,",
        CONTRACT,
        DISPATCHER,
    ),
    _mutant(
        "the bound on attempts",
        "core/tasks.py",
        "if attempts_charged >= policy.max_attempts:",
        "if attempts_charged >= 1000:",
        "tests/core/test_tasks.py",
    ),
    _mutant(
        "the stop of what was cancelled while it ran",
        "control/dispatcher.py",
        "        if news.stopped and self._attempts:",
        "        if not news.stopped and self._attempts:",
        DISPATCHER,
    ),
    _mutant(
        "the deadline of an attempt",
        "control/dispatcher.py",
        "elif now_s >= attempt.deadline_s:",
        "elif now_s >= attempt.deadline_s + 1e9:",
        DISPATCHER,
    ),
    _mutant(
        "the check that a replica speaks for its own attempts",
        "control/dispatcher.py",
        "if attempt is None or attempt.claim.replica != replica:",
        "if attempt is None:",
        DISPATCHER,
    ),
    _mutant(
        "the end of an attempt that the store could not take at first",
        "control/dispatcher.py",
        "self._unwritten.append(finish)\n                    self._note_weather(str(answer))",
        "self._note_weather(str(answer))",
        DISPATCHER,
    ),
    _mutant(
        "the claim whose commit was answered by nobody",
        "control/dispatcher.py",
        "for id, epoch in held - before - self._attempts.keys() - self._writing - unwritten:",
        "for id, epoch in held & before - self._attempts.keys() - self._writing - unwritten:",
        DISPATCHER,
    ),
    # --- sessions and keys
    _mutant(
        "the order of a session's tasks",
        "store/submissions.py",
        "is_blocked=bool(is_blocked), pin=pin)",
        "is_blocked=False, pin=pin)",
        CONTRACT,
    ),
    _mutant(
        "the state of a session as it was, when a task fails",
        TRANSITIONS,
        'if item.session_state is not None and item.state == "succeeded":',
        "if item.session_state is not None:",
        CONTRACT,
    ),
    _mutant(
        "the fingerprint of a key's body",
        "store/submissions.py",
        "return Accepted(id, False, matches, created_at)",
        "return Accepted(id, False, True, created_at)",
        CONTRACT,
    ),
    _mutant(
        "the state that is known to be good",
        "store/claims.py",
        "is_restored = bool(restores) and state.has_good",
        "is_restored = state.has_good",
        CONTRACT,
    ),
    # --- recovery
    _mutant(
        "the isolation of a task that has killed two replicas",
        "store/claims.py",
        '_READY.format(whose=f"not ({IS_SUSPECT}) {{}}")',
        '_READY.format(whose="kills >= 0 {}")',
        CONTRACT,
        HOST,
    ),
    _mutant(
        "the innocence of one among several suspects",
        "control/attempts.py",
        "charged=suspects == 1,",
        "charged=suspects >= 1,",
        HOST,
        DISPATCHER,
    ),
    _mutant(
        "the doubt whether a SIGKILL was the task's own",
        "control/attempts.py",
        "is_poison = claim.is_alone and attempts == 1 and exit.is_its_own",
        "is_poison = claim.is_alone and attempts == 1",
        HOST,
    ),
    _mutant(
        "the pause before a crash loop's next start",
        "control/host.py",
        "is_time = self._clock.monotonic_s() >= record.start_not_before_s",
        "is_time = self._clock.monotonic_s() >= 0.0",
        HOST,
    ),
    _mutant(
        "the end of the ladder",
        "core/recovery.py",
        "    return Rung.QUARANTINE if record.fallback is None else Rung.ROLL_BACK",
        "    return Rung.MIGRATE if record.fallback is None else Rung.ROLL_BACK",
        "tests/core/test_recovery.py",
        HOST,
    ),
    _mutant(
        "the readiness without which no action has succeeded",
        "control/recovery.py",
        "                bereaved.remove(each)\n",
        '                bereaved.remove(each)\n                self._cases[agent].recovered.append(Recovered(each[0], "it was started"))\n',
        HOST,
    ),
    _mutant(
        "the memory of the ladder after the node's death",
        "control/recovery.py",
        "            known = recovery.moved(_decode(record), now_s - elapsed_s)",
        "            known = Record(_decode(record).revision, _decode(record).generation)",
        HOST,
    ),
    _mutant(
        "the age of the success that ends a climb",
        "core/recovery.py",
        "if record.last_death_s is not None and started_s < record.last_death_s:",
        "if record.last_death_s is None and started_s < 0:",
        "tests/core/test_recovery.py",
    ),
    _mutant(
        "the fence of a rollback against somebody's deployment",
        "store/rollouts.py",
        "if agent is None or not revision or agent.generation != item.generation:",
        "if agent is None or not revision:",
        CONTRACT,
        ROLLOUTS,
    ),
    # --- rollouts
    _mutant(
        "the version of a rollout that is moved",
        "store/rollouts.py",
        "where id = :id and version = :version returning agent",
        "where id = :id and version >= :version returning agent",
        ROLLOUTS,
    ),
    _mutant(
        "the end of what has retired, in the same commit",
        "store/rollouts.py",
        "    await _stand(tx, rollout.agent, rollout.state.standing)\n    news",
        "    news",
        ROLLOUTS,
    ),
    _mutant(
        "the way of sessions from what has retired",
        "store/rollouts.py",
        "    await tx.execute_many(_UNPIN, [params])",
        "",
        ROLLOUTS,
    ),
    _mutant(
        "the sessions' forgetting of what stands again",
        "store/rollouts.py",
        "    await tx.execute_many(_FORGET_PINS",
        "    _ = again\n    await tx.execute_many(_FORGET_PINS + ' and pin < 0'",
        ROLLOUTS,
        STRUCK,
    ),
    _mutant(
        "the way back that a node's start leaves alone",
        "store/deployments.py",
        "(number != before or last.state.is_open)",
        "number != before",
        ROLLOUTS,
    ),
    _mutant(
        "the revision that a session keeps to",
        "store/claims.py",
        'format("and (pin is null or pin = :revision)")',
        'format("and (pin is null or pin <> 0 * :revision)")',
        ROLLOUTS,
    ),
    _mutant(
        "the order of what is known of the traffic",
        "store/board.py",
        "known.version < traffic.version",
        "known.version != traffic.version",
        "tests/store/test_board.py",
    ),
    _mutant(
        "the doubt about traffic that may have been changed",
        "store/store.py",
        "                self.board.doubt(agent)",
        "                pass",
        f"{STRUCK}::test_a_rollout_that_is_struck_comes_to_rest_as_it_would_have",
    ),
    _mutant(
        "the proof without which nobody promotes",
        "core/rollouts.py",
        "    if not rollout.is_proven:\n",
        "    if rollout.stage < 0:\n",
        "tests/core/test_rollouts.py",
    ),
    _mutant(
        "the proof without which nothing moves on",
        "core/rollouts.py",
        "has_proof = rollout.is_proven or seen.proof is Proof.PASSED",
        "has_proof = True",
        "tests/core/test_rollouts.py",
        STRUCK,
    ),
    _mutant(
        "the capacity without which nothing moves on",
        "core/rollouts.py",
        "has_capacity = seen.ready >= strategies.replicas(stage.capacity_pct, seen.desired)",
        "has_capacity = True",
        "tests/core/test_rollouts.py",
    ),
    _mutant(
        "the deadline of a stage",
        "core/rollouts.py",
        "    left_s = rollout.progress_deadline_s - waited_s\n",
        "    left_s = rollout.progress_deadline_s\n",
        "tests/core/test_rollouts.py",
        STRUCK,
    ),
    _mutant(
        "the samples without which a canary gets no more",
        "core/strategies.py",
        "needs_samples=weight_pct < 100,",
        "needs_samples=False,",
        "tests/core/test_rollouts.py",
        STRUCK,
    ),
    _mutant(
        "the innocence of a revision whose replicas somebody has killed",
        "core/rollouts.py",
        "([death for death in those if death.kind not in _FROM_OUTSIDE] for those in (deaths, others))",
        "(list(deaths), ())",
        "tests/core/test_rollouts.py",
    ),
    # --- health
    _mutant(
        "the time in which the node itself stood still",
        "core/health.py",
        "    if look.is_late:\n        return look.now_s, Do.WAIT",
        "    if look.is_late and hang_after_s < 0:\n        return look.now_s, Do.WAIT",
        "tests/core/test_health.py",
    ),
    _mutant(
        "the deadline of a replica that answers nothing",
        "core/health.py",
        "Do.KILL if look.before_s - asked_s >= hang_after_s else Do.WAIT",
        "Do.WAIT",
        "tests/core/test_health.py",
    ),
    _mutant(
        "the doubt about a replica without evidence",
        "core/health.py",
        "    if own.trip_s is None and own.outcomes == own.errors:\n        return NO_EVIDENCE",
        "    if own.trip_s is None and own.outcomes < 0:\n        return NO_EVIDENCE",
        "tests/core/test_health.py",
    ),
    # --- backups
    _mutant(
        "the comparison of what a drill has restored",
        "backups/restoring.py",
        "    is_equal = (cutter.rows, cutter.sha256) == (content.rows, content.sha256)",
        "    is_equal = cutter.rows >= 0",
        "tests/backups/test_backups.py",
    ),
    Mutant(
        "the name that what is sealed is bound to",
        (
            Edit(
                "backups/sealing.py",
                "zlib.compress(content, LEVEL), name.encode())",
                'zlib.compress(content, LEVEL), b"")',
            ),
            Edit(
                "backups/sealing.py",
                "self._cipher.decrypt(nonce, rest, name.encode())",
                'self._cipher.decrypt(nonce, rest, b"")',
            ),
        ),
        ("tests/backups/test_backups.py",),
    ),
    _mutant(
        "the check of a store's file before anything is written",
        "store/sqlite.py",
        "                sqlite_checks.look_through(connection)\n    ",
        "                pass\n    ",
        "tests/node/test_backups.py::test_a_damaged_copy_is_refused_untouched_or_serves_every_task",
    ),
    # --- queues
    _mutant(
        "the turn of the tenant that holds the fewest slots",
        "core/fairness.py",
        "order = [(holding.get(tenant, 0), turns",
        "order = [(-holding.get(tenant, 0), turns",
        "tests/core/test_fairness.py",
        CONTRACT,
    ),
    _mutant(
        "the turns that lower priorities get",
        "core/fairness.py",
        "        return (self.count + slots) // LOWER_EVERY",
        "        return 0 * (self.count + slots)",
        "tests/core/test_fairness.py",
        CONTRACT,
    ),
    _mutant(
        "the place behind others of a task that its session lets go",
        TRANSITIONS,
        "rank = 1 + case",
        "rank = rank + case",
        CONTRACT,
    ),
    _mutant(
        "the end of a queued task whose time is over, at its claim",
        "store/claims.py",
        "row[_DEADLINE] <= tx.now_us]",
        "row[_DEADLINE] <= 0]",
        CONTRACT,
    ),
    _mutant(
        "the tenant behind whom those are listed who wait",
        "store/claims.py",
        "where agent = :agent and tenant > :behind and {_IS_READY}",
        "where agent = :agent and {_IS_READY}",
        CONTRACT,
    ),
    _mutant(
        "the commit that begins with who waited for a task that was late at its claim",
        "store/store.py",
        "            self.commits.nudge()",
        "            pass",
        RESULTS,
    ),
    _mutant(
        "the part of a full queue that is each tenant's",
        "core/admission.py",
        "max(self.total - queued, self.door - own)",
        "self.total - queued",
        "tests/api/test_backlog.py",
    ),
    _mutant(
        "the callers who were refused before, in what the next one is told",
        "core/admission.py",
        "retry_after_s(places + sum(self._awaited.values()), ",
        "retry_after_s(places, ",
        "tests/api/test_backlog.py",
    ),
    _mutant(
        "the limit of an agent's running tasks for those that resume",
        "store/board.py",
        "self.running(agent) >= max(1, limit)",
        "self.running(agent) >= 10**9",
        "tests/store/test_board.py",
        DISPATCHER,
    ),
    _mutant(
        "the bound on connections",
        "api/connections.py",
        "self._is_surplus = len(self.connections) > self.most\n",
        "self._is_surplus = False\n",
        "tests/node/test_wire.py",
    ),
    # --- scaling
    _mutant(
        "what keeps the autoscaler from turning twice in a window",
        "core/scaling.py",
        "    if memory.direction in (0, direction) or turned_s is None or turned_s >= policy.stabilisation_s:\n",
        "    if turned_s is None or turned_s >= 0:\n",
        "tests/core/test_scaling.py",
    ),
    _mutant(
        "the window in which less must have been enough",
        "core/scaling.py",
        "    enough = max(1, memory.highest.value)\n",
        "    enough = max(1, _up(memory.short.value))\n",
        "tests/core/test_scaling.py",
    ),
    _mutant(
        "the comparison with the number that a scaling decision was made from",
        "store/scaling.py",
        "    if item.before is not None and agent.replicas != item.before:\n",
        "    if item.before is not None and agent.replicas < 0:\n",
        CONTRACT,
    ),
    _mutant(
        "the room that is looked at in the commit that scales",
        "store/scaling.py",
        "    if refusal is None and item.replicas > agent.replicas:\n",
        "    if refusal is None and item.replicas > 10_000:\n",
        CONTRACT,
    ),
    _mutant(
        "the one replica of a sleeping agent that its rollout is proven by",
        "core/rollouts.py",
        "    return max(1, desired) if rollout.is_open else desired\n",
        "    return desired\n",
        "tests/core/test_rollouts.py",
    ),
    # --- processes
    _mutant(
        "the sweep of what a dead node left running",
        "engine/processes.py",
        "            entry.startswith(prefix) and not lives(entry.removeprefix(prefix).decode()) for entry in environment",
        '            entry.startswith(prefix) and lives("1-0-0") for entry in environment',
        "tests/engine/test_local.py",
    ),
    _mutant(
        "the watchdog of a replica whose loop is blocked when its node goes",
        "engine/replica.py",
        "    _watch(channel.fileno())\n",
        "",
        "tests/engine/test_replica.py",
    ),
    _mutant(
        "the limit of a replica's memory",
        "engine/local.py",
        "if held_mb > limit_mb:",
        "if held_mb > 1e9:",
        "tests/engine/test_contract.py",
    ),
    # --- what fails though nobody dies
    _mutant(
        "the number of attempts that a breaker opens by",
        "core/breaker.py",
        "or ended < policy.min_attempts or not",
        "or not",
        "tests/core/test_breaker.py",
    ),
    _mutant(
        "the difference between a trial and an attempt from before",
        "core/breaker.py",
        "if breaker.state is not State.HALF_OPEN or began_s < breaker.since_s:",
        "if breaker.state is not State.HALF_OPEN:",
        "tests/core/test_breaker.py",
    ),
    _mutant(
        "the longest time of an open breaker",
        "core/breaker.py",
        "longest_s = min(max(MOST_OPEN_S, policy.open_s), policy.open_s * 2.0 ** min(trips - 1, _MOST_DOUBLINGS))",
        "longest_s = policy.open_s * 2.0 ** min(trips - 1, _MOST_DOUBLINGS)",
        "tests/core/test_breaker.py",
    ),
    _mutant(
        "what a breaker does not hold against the agent",
        "control/breakers.py",
        "if is_failure and self._store.board.is_distrusted(ended.replica):",
        "if is_failure and not ended.agent:",
        "tests/control/test_breakers.py",
    ),
    _mutant(
        "the chance that equal replicas differ",
        "core/outliers.py",
        "return chance(failed, ended, peers_failed, peers_ended) <= ALPHA",
        "return chance(failed, ended, peers_failed, peers_ended) <= 1e-3",
        "tests/core/test_outliers.py",
    ),
    _mutant(
        "the part of the replicas that may be ejected",
        "core/outliers.py",
        "recent < max(1, ready // LARGEST_PART)",
        "recent < ready",
        "tests/core/test_outliers.py",
    ),
    # --- the store's weather
    _mutant(
        "the reopening after an error of the disk",
        "store/sqlite.py",
        "                self._is_broken = isinstance(error.__cause__, apsw.Error)",
        "                self._is_broken = False",
        "tests/store/test_sqlite.py",
    ),
    _mutant(
        "the durability of a commit",
        "store/sqlite.py",
        '("synchronous", "full")',
        '("synchronous", "normal")',
        "tests/store/test_power_loss.py",
    ),
    _mutant(
        "the one node of a store",
        "store/sqlite.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "tests/store/test_sqlite.py",
    ),
    _mutant(
        "the innocents of a commit that one item breaks",
        "store/commits.py",
        "            await self._commit_apart(batch, error)",
        "            _fail(batch, error)",
        CONTRACT,
    ),
    # --- resources and advice
    _mutant(
        "the tasks that a recycled replica still ends",
        "control/host.py",
        "is_free = not (replica.runs_once or replica.recycled_for)",
        "is_free = not replica.runs_once",
        "tests/control/test_resources.py",
    ),
    _mutant(
        "the innocence of those who are killed for the others' sake",
        "control/dispatcher.py",
        "suspects = () if exit.reason == failures.Failure.EVICTED else self._suspects(replica, running)",
        "suspects = self._suspects(replica, running)",
        "tests/control/test_resources.py",
    ),
    _mutant(
        "the zygote's way into the envelope",
        "engine/zygote.py",
        '            Path(group).write_text("0")\n        if plan.cpus:\n            os.sched_setaffinity(0, plan.cpus)',
        "            Path(group).exists()",
        "tests/engine/test_envelope.py",
    ),
    _mutant(
        "the fair rise in each part of a leak",
        "core/resources.py",
        "    if any(after - before < fair_mb for before, after in itertools.pairwise(least)):",
        "    if least[-1] < least[0]:",
        "tests/core/test_resources.py",
    ),
    _mutant(
        "the charge for who alone is more than the envelope",
        "core/resources.py",
        "            found.append(Evict(each.id, alone, Failure.OOM))",
        "            found.append(Evict(each.id, alone))",
        "tests/core/test_resources.py",
        "tests/control/test_resources.py",
    ),
    _mutant(
        "the replicas that came since memory was measured",
        "control/bounds.py",
        "        self._counted = self._use.counted",
        "        self._counted = None",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "the turns of agents that sleep",
        "control/autoscaler.py",
        "wants, turns=self._turns())",
        "wants)",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "the memory of what was done and not written",
        "control/optimizer.py",
        "known.phase is optimizer.Phase.APPLIED and key not in self._ids:",
        "known.phase is optimizer.Phase.QUIET and key not in self._ids:",
        "tests/control/test_optimizer.py",
    ),
    _mutant(
        "the time that advice rests after its end",
        "core/optimizer.py",
        "            if now_s < standing.since_s + QUIET_S:",
        "            if now_s < standing.since_s:",
        "tests/core/test_optimizer.py",
    ),
    _mutant(
        "the alert of a user's rule that raises",
        "control/optimizer.py",
        "        if reason == before:",
        "        if reason:",
        "tests/control/test_optimizer.py",
    ),
    _mutant(
        "the outage that advice about slots keeps away from",
        "core/optimizer_rules.py",
        "    if agent.was_limited or (",
        "    if (",
        "tests/core/test_optimizer.py",
    ),
    _mutant(
        "the line of a session that is no wait for a slot",
        "store/tasks.py",
        "max(created, due or 0, released or 0)",
        "max(created, due or 0)",
        "tests/control/test_optimizer.py",
    ),
    # --- scaling, where it can do nothing
    _mutant(
        "the minute before people hear of who cannot wake",
        "control/starving.py",
        "            if now_s < self._since_s[agent] + AFTER_S:",
        "            if now_s > self._since_s[agent] + AFTER_S:",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "what refuses a wake after the same has sent to sleep",
        "control/autoscaler.py",
        "        return (decision.rule, False) != case.told and",
        "        return decision.rule != (case.told or ('',))[0] and",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "the deaths that keep a burst away",
        "control/bounds.py",
        '_failing(entry, sample) or self._dying.get(entry.agent.name, "")',
        "_failing(entry, sample)",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "the age that clears an agent of one death",
        "core/recovery.py",
        "record.last_death_s is None or oldest_s >= PERIOD_S:",
        "record.last_death_s is None:",
        "tests/control/test_autoscaler.py",
    ),
    _mutant(
        "the burst in a replay",
        "core/replays.py",
        "burst, opened = at_once(bucket, opened), ",
        "burst, opened = 0, ",
        "tests/core/test_replays.py",
    ),
    _mutant(
        "the second try of who found no room",
        "cli/deploy.py",
        "        is_hopeless = not done or ",
        "        is_hopeless = bool(done) or not done or ",
        "tests/cli/test_deploy.py",
    ),
    # --- the result cache
    _mutant(
        "the blocking of tasks whose key is in flight",
        "store/submissions.py",
        "is_blocked=result is None and item.parent is None)",
        "is_blocked=False)",
        f"{RESULTS}::TestSqlite::test_of_the_same_input_one_runs_and_answers_the_others",
        f"{RESULTS}::test_never_two_of_one_key_run_and_nobody_waits_for_ever",
    ),
    _mutant(
        "the turn of the next task of a key when the first one has no result",
        "store/results.py",
        "        await _let_go(tx, news, keys)\n",
        "",
        f"{RESULTS}::TestSqlite::test_the_next_one_takes_the_place_of_one_that_has_no_result",
        f"{RESULTS}::test_never_two_of_one_key_run_and_nobody_waits_for_ever",
    ),
    _mutant(
        "the time that a result is kept for",
        "store/results.py",
        "    and result_cache.expires_at > :now and task.state",
        "    and result_cache.expires_at + :now > 0 and task.state",
        f"{RESULTS}::TestSqlite::test_a_result_is_kept_for_its_time_by_the_databases_clock",
    ),
    _mutant(
        "the revision in the key of a result",
        "core/caching.py",
        "    return key if revision is None else",
        "    return key if key else",
        f"{RESULTS}::TestSqlite::test_a_result_belongs_to_the_revision_that_made_it",
    ),
    # --- encryption at rest
    _mutant(
        "the tenant that a data key is of",
        "store/vault.py",
        "        if key.tenant != tenant:\n",
        "        if key.tenant == '':\n",
        f"{VAULT}::TestTampering::test_a_row_that_is_given_to_another_tenant_does_not_open",
    ),
    _mutant(
        "the refusal of plain text where all is sealed",
        "store/vault.py",
        "            if self.mode is Mode.SEALED:\n",
        "            if self.mode is Mode.OFF:\n",
        f"{VAULT}::TestTampering::test_plain_text_is_refused_once_all_is_sealed",
    ),
    _mutant(
        "the row in what a value is bound to",
        "security/vault.py",
        "    key = joined([part.encode() for part in row])\n",
        "    key = joined([b'' for _ in row])\n",
        CIPHER,
        f"{VAULT}::TestTampering::test_nothing_opens_in_another_row_column_or_tenant",
    ),
    _mutant(
        "the column in what a value is bound to",
        "security/vault.py",
        "joined((column.encode(), self.id)),",
        "joined((self.id,)),",
        CIPHER,
        f"{VAULT}::TestTampering::test_nothing_opens_in_another_row_column_or_tenant",
    ),
    _mutant(
        "the lengths in what a value is bound to",
        "security/vault.py",
        'for part in (len(each).to_bytes(4, "big"), each)])',
        "for part in (each,)])",
        CIPHER,
    ),
    _mutant(
        "the columns that are sealed with a task",
        "store/submissions.py",
        "        sealed[index] = seals.seal(",
        "        sealed[index] = given[index] or seals.seal(",
        f"{VAULT}::TestWhatIsStored::test_no_payload_is_in_the_tables",
    ),
    _mutant(
        "the key of fingerprints",
        "store/submissions.py",
        "    sealed[_FINGERPRINT] = seals.fingerprint(item.tenant, item.fingerprint)\n",
        "",
        f"{VAULT}::TestWhatIsStored::test_hashes_of_payloads_are_keyed",
    ),
    _mutant(
        "the new seal of a state that becomes the good one",
        "store/transitions.py",
        "    if news.seals.vault.is_used and not item.is_restored:",
        "    if item.is_restored:",
        f"{VAULT}::TestWhatIsStored::test_no_payload_is_in_the_tables",
        "tests/store/test_encrypted_contract.py::TestSqlite"
        "::test_a_task_begins_with_its_sessions_last_good_state_only_when_it_has_to",
    ),
    _mutant(
        "the new seal of a result that answers another task",
        "store/results.py",
        '    answers = [(seal(end.tenant, "task", "output", (id,), end.output)',
        '    answers = [(seal(end.tenant, "task", "output", (end.task,), end.output)',
        "tests/store/test_encrypted_contract.py::TestResultsOnSqlite"
        "::test_of_the_same_input_one_runs_and_answers_the_others",
    ),
    _mutant(
        "the doubt about keys of a commit that has failed",
        "store/vault.py",
        "            keys.forget(self._leased)\n",
        "",
        f"{VAULT}::TestKeys::test_a_key_that_was_made_in_a_commit_that_failed_seals_nothing_that_is_lost",
    ),
    _mutant(
        "the count of messages ahead of them",
        "store/data_keys.py",
        '"some": LEASED}',
        '"some": 1}',
        f"{VAULT}::TestWhatIsStored::test_a_key_seals_no_more_than_is_counted",
    ),
    _mutant(
        "the new seals of what a rotation retires",
        "store/vault.py",
        "                keys.active.clear()\n",
        "",
        f"{VAULT}::TestResealing",
    ),
    _mutant(
        "the pass that is owed after a restart",
        "store/vault.py",
        "        self.changes = int(is_stale)\n",
        "",
        f"{VAULT}::TestResealing::test_a_pass_that_was_cut_off_is_begun_again",
    ),
    _mutant(
        "the overwriting of what was deleted",
        "store/sqlite.py",
        '        ("secure_delete", "on"),',
        '        ("secure_delete", "off"),',
        f"{VAULT}::TestWhatIsStored::test_a_store_that_is_encrypted_later_keeps_no_payload_in_its_files",
    ),
    _mutant(
        "the end of the log that has what was written over",
        "store/resealing.py",
        "            await self._db.truncate_log()",
        "            self._db.truncate_log",
        f"{VAULT}::TestWhatIsStored::test_a_store_that_is_encrypted_later_keeps_no_payload_in_its_files",
    ),
    _mutant(
        "the strictness about what is stored as it is",
        "store/vault.py",
        "class _Waiting(msgspec.Struct, forbid_unknown_fields=True):",
        "class _Waiting(msgspec.Struct):",
        f"{VAULT}::TestTampering::test_only_a_pause_is_stored_as_it_is",
    ),
    _mutant(
        "the refusal of a store whose keys were dropped",
        "store/vault.py",
        "        if is_sealed:\n            raise errors.StoreDamaged(",
        "        if is_sealed is None:\n            raise errors.StoreDamaged(",
        f"{VAULT}::TestTampering::test_the_record_cannot_be_forged_or_dropped",
    ),
    _mutant(
        "the id of the key that a file has to hold",
        "security/key_sources.py",
        "            if key.id == id:\n",
        "            if key.id:\n",
        KEY_SOURCES,
    ),
    _mutant(
        "the mode of a key file",
        "security/key_sources.py",
        "    if mode & 0o077:\n",
        "    if mode & 0o007:\n",
        KEY_SOURCES,
    ),
    _mutant(
        "the id of the key that a service has to give back",
        "security/key_sources.py",
        "        if key.id != id:\n",
        "        if not key.id:\n",
        KEY_SOURCES,
    ),
    _mutant(
        "the failure of a task whose input was tampered with",
        "control/dispatcher.py",
        "        if claim.damage is not None:\n",
        "        if claim.damage == '':\n",
        "tests/node/test_encryption.py::test_a_task_whose_input_was_tampered_with_fails_and_is_told",
    ),
)
