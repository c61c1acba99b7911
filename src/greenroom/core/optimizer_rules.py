"""The optimizer's rules: what is looked for, what helps, and by how much. Pure.

Each rule says what truly helps on one machine, and is silent where nothing does: more replicas do not cool a CPU that
is busy, and none of this makes an agent correct.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from greenroom.core.measurements import MIN_SAMPLES, Agent, Measurements, Replica
from greenroom.core.optimizer import (
    Found,
    LimitAdmission,
    LowerSpares,
    Restart,
    Rule,
    Scale,
    TrimCache,
)

WAITING_PART = 0.3  # of the response time: from here on it is the wait that is to be shortened
FULL_PCT = 80.0  # of the slots, on average
WAITS_FOR_OTHERS = 0.3  # CPUs of a replica whose slots are full: below it does not compute
MEMORY_PCT, CPU_PCT = 80.0, 90.0
UNEVEN = 3.0  # times the CPU of its agent's other replicas
COLD_STARTS = 5
HIT_PCT, LOOKUPS = 1.0, 200
IDLE_S = 3600.0
ERROR_PCT = 10.0
MOST_MORE = 2.0  # times as many replicas, in one step
PLENTY = 20  # tasks for each slot: the queue is not made shorter than that


# --- response time


def _is_slow(agent: Agent, seen: Measurements, easing: float) -> bool:
    return agent.response_s is not None and agent.response_s.mean > seen.target_response_s * easing


def _waiting_part(agent: Agent) -> float:
    if agent.response_s is None or agent.wait_s is None or not agent.response_s.mean:
        return 0.0
    return agent.wait_s.mean / agent.response_s.mean


def _lacks_slots(agent: Agent, seen: Measurements, easing: float) -> bool:
    """Whether it is slots that its tasks wait for, and not a breaker, `max_running`, or what they call."""
    if not _is_slow(agent, seen, easing) or _waiting_part(agent) < WAITING_PART * easing:
        return False
    if agent.was_limited or (agent.max_running is not None and agent.slots >= agent.max_running):
        return False
    return agent.busy_pct is not None and agent.busy_pct >= FULL_PCT * easing


def _waits_for_others(agent: Agent) -> bool:
    is_full = agent.busy_pct is not None and agent.busy_pct >= FULL_PCT
    return is_full and agent.replicas > 0 and agent.cpu / agent.replicas < WAITS_FOR_OTHERS


def _is_hot(seen: Measurements) -> bool:
    return seen.cpu_pct is not None and seen.cpu_pct > CPU_PCT


def _told(agent: Agent, seen: Measurements) -> str:
    assert agent.response_s is not None
    waited_s = agent.wait_s.mean if agent.wait_s is not None else 0.0
    return (
        f"tasks take {agent.response_s.mean:.1f} s on average (p95 {agent.response_s.p95:.1f} s, "
        f"optimizer.target_response_s is {seen.target_response_s:g}), {waited_s:.1f} s of which they wait for a slot"
    )


def _more_replicas(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        if not _lacks_slots(agent, seen, easing) or _waits_for_others(agent) or _is_hot(seen) or not agent.replicas:
            continue
        assert agent.response_s is not None
        assert agent.wait_s is not None
        most = agent.max_replicas
        if agent.max_running is not None:  # no more than have slots for it
            most = min(most, math.ceil(agent.max_running / agent.concurrency))
        count = min(most, math.ceil(agent.replicas * min(MOST_MORE, 1 + _waiting_part(agent))))
        wanted_s = agent.response_s.mean - agent.wait_s.mean * (1 - agent.replicas / max(count, agent.replicas))
        name = f"agents.{agent.name}.scaling"
        if count <= agent.replicas:
            what = f"raise {name}.max_replicas: all {agent.replicas} that there may be are there"
        elif seen.is_autoscaled:
            what = f"let the autoscaler have more replicas sooner: lower {name}.target_queue_per_replica"
        else:
            what = f"have {count} replicas instead of {agent.replicas}: greenroom scale {agent.name} {count}"
        act = Scale(agent.name, count, agent.replicas) if count > agent.replicas and not seen.is_autoscaled else None
        yield Found(
            "more-replicas",
            agent.name,
            what,
            _told(agent, seen),
            f"a response time of about {wanted_s:.1f} s: the wait gets shorter as the slots get more",
            "response_s",
            agent.response_s.mean,
            wanted_s,
            act,
        )


def _more_concurrency(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        if not _lacks_slots(agent, seen, easing) or not _waits_for_others(agent):
            continue
        assert agent.response_s is not None
        assert agent.wait_s is not None
        more = agent.concurrency * 2
        wanted_s = agent.response_s.mean - agent.wait_s.mean / 2
        yield Found(
            "more-concurrency",
            agent.name,
            f"let each replica run {more} tasks at once: agents.{agent.name}.concurrency = {more}, if the agent is "
            "asynchronous or safe in threads",
            f"{_told(agent, seen)}; its slots are full ({agent.busy_pct:.0f} %) while its replicas use "
            f"{agent.cpu:.1f} CPUs: it waits for others",
            f"a response time of about {wanted_s:.1f} s with the memory of today",
            "response_s",
            agent.response_s.mean,
            wanted_s,
        )


def _slow_agent(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        is_work = agent.run_s is None or agent.run_s.mean > seen.target_response_s / 2  # not a session's line
        if is_work and _is_slow(agent, seen, easing) and _waiting_part(agent) < WAITING_PART / 2:
            assert agent.response_s is not None
            yield Found(
                "slow-agent",
                agent.name,
                "make the agent itself quicker, or raise optimizer.target_response_s: more replicas would not help",
                f"{_told(agent, seen)}; the rest is the agent's own work",
                "none by Greenroom's doing",
                "response_s",
                agent.response_s.mean,
            )


# --- memory


def _fattest(seen: Measurements, easing: float) -> Iterator[Found]:
    if seen.memory_pct is None or seen.memory_pct <= MEMORY_PCT * easing or not seen.replicas:
        return
    fattest = max(seen.replicas, key=lambda each: (each.memory_mb, each.id))
    others = [each.memory_mb for each in seen.replicas if each.agent == fattest.agent and each.id != fattest.id]
    usual_mb = fattest.successor_mb or min(others, default=fattest.memory_mb / 2)
    pct_per_mb = seen.memory_pct / max(sum(each.memory_mb for each in seen.replicas), 1.0)
    less_pct = pct_per_mb * (fattest.memory_mb - usual_mb)
    why = f"all replicas use {seen.memory_pct:.0f} % of cluster.memory_mb"
    if fattest.successor_mb and less_pct < 1:
        what = "raise cluster.memory_mb, or have fewer replicas: none holds more than a fresh one"
        yield Found("memory-fattest", None, what, why, "none by Greenroom's doing", "memory_pct", seen.memory_pct)
        return
    # Its successor is started beside it, and must not be what is too much.
    has_room = seen.memory_pct + pct_per_mb * fattest.successor_mb <= 100
    yield Found(
        "memory-fattest",
        None,
        f"replace the replica {fattest.id} of {fattest.agent}, which holds {fattest.memory_mb:.0f} MB: "
        f"greenroom replicas restart {fattest.id}",
        why,
        f"about {less_pct:.0f} % less, if a fresh one holds {usual_mb:.0f} MB",
        "memory_pct",
        seen.memory_pct,
        seen.memory_pct - less_pct,
        Restart(fattest.id, fattest.agent) if has_room else None,
    )


def _cache(seen: Measurements, easing: float) -> Iterator[Found]:
    if seen.memory_pct is not None and seen.memory_pct > MEMORY_PCT * easing and seen.cache_entries:
        yield Found(
            "memory-cache",
            None,
            "forget the older half of the cached results",
            f"all replicas use {seen.memory_pct:.0f} % of cluster.memory_mb, and the machine holds "
            f"{seen.cache_entries} cached results beside them",
            "room on the machine, none in the envelope: the cache is not in it",
            "cache_entries",
            float(seen.cache_entries),
            seen.cache_entries / 2,
            TrimCache(),
        )


def _spares(seen: Measurements, easing: float) -> Iterator[Found]:
    if seen.memory_pct is not None and seen.memory_pct > MEMORY_PCT * easing and seen.spares:
        yield Found(
            "memory-spares",
            None,
            f"let {seen.spares} interpreters go that are kept warm though no replica needs them",
            f"all replicas use {seen.memory_pct:.0f} % of cluster.memory_mb",
            "their memory; the next replica of their agents takes an import longer to start",
            "spares",
            float(seen.spares),
            0.0,
            LowerSpares(),
        )


# --- CPU


def _uneven(seen: Measurements, easing: float) -> Iterator[Found]:
    if seen.cpu_pct is None or seen.cpu_pct <= CPU_PCT * easing:
        return
    worst: tuple[float, Replica] | None = None
    for replica in seen.replicas:
        others = [each.cpu for each in seen.replicas if each.agent == replica.agent and each.id != replica.id]
        if not others or replica.cpu < 0.5:
            continue
        times = replica.cpu / max(sum(others) / len(others), 0.05)
        if times >= UNEVEN * easing and (worst is None or times > worst[0]):
            worst = times, replica
    if worst is not None:
        _, replica = worst
        yield Found(
            "cpu-uneven",
            None,
            f"drain the replica {replica.id} of {replica.agent} and put another in its place: "
            f"greenroom replicas restart {replica.id}",
            f"all replicas use {seen.cpu_pct:.0f} % of cluster.cpu, and this one uses {replica.cpu:.1f} CPUs, "
            f"{worst[0]:.0f} times what the others of its agent do",
            "its CPU, if something in it runs on that no task needs; none if its tasks are the heavy ones",
            "cpu_pct",
            seen.cpu_pct,
            max(0.0, seen.cpu_pct * (1 - replica.cpu / max(sum(each.cpu for each in seen.replicas), 0.01))),
            Restart(replica.id, replica.agent),
        )


def _hungriest(seen: Measurements, easing: float) -> Iterator[Found]:
    if seen.cpu_pct is None or seen.cpu_pct <= CPU_PCT * easing or not seen.agents:
        return
    hungriest = max(seen.agents, key=lambda each: (each.cpu, each.name))
    if hungriest.slots < 2 or hungriest.cpu <= 0:
        return
    fewer = f"greenroom scale {hungriest.name} {max(1, hungriest.replicas // 2)}"
    how = fewer if hungriest.replicas > 1 else f"agents.{hungriest.name}.concurrency = {hungriest.concurrency // 2}"
    yield Found(
        "cpu-hungry",
        hungriest.name,
        f"run fewer tasks of {hungriest.name} at once ({how}), or give the node more CPUs",
        f"all replicas use {seen.cpu_pct:.0f} % of cluster.cpu, {hungriest.cpu:.1f} CPUs of it by {hungriest.name} "
        f"with {hungriest.slots} slots",
        "as many results a second, each task quicker once it runs, and CPU for the other agents",
        "response_s",
        hungriest.response_s.mean if hungriest.response_s is not None else 0.0,
    )


def _admission(seen: Measurements, easing: float) -> Iterator[Found]:
    slots = sum(agent.slots for agent in seen.agents)
    if seen.cpu_pct is None or seen.cpu_pct <= CPU_PCT * easing or not slots or not seen.max_queued:
        return
    if seen.queued <= PLENTY * slots * easing:
        return
    pct = round(100 * seen.queued / seen.max_queued, 2)
    if pct < 100:
        yield Found(
            "cpu-admission",
            None,
            f"take no more than the {seen.queued} tasks into the queue that wait now (server.max_queued_tasks)",
            f"all replicas use {seen.cpu_pct:.0f} % of cluster.cpu, and {seen.queued} tasks wait for {slots} slots",
            "callers hear at once that it is too much (429), instead of waiting longer and longer",
            "queued",
            float(seen.queued),
            float(seen.queued),
            LimitAdmission(max(pct, 0.01)),
        )


# --- starts, caches, idle replicas, errors


def _cold_starts(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents if seen.is_autoscaled else ():
        if (
            agent.cold_starts < COLD_STARTS * easing
            or agent.start_s is None
            or agent.min_replicas >= agent.max_replicas
        ):
            continue
        least = agent.min_replicas + 1
        yield Found(
            "cold-starts",
            agent.name,
            f"keep {least} replicas at least: agents.{agent.name}.scaling.min_replicas = {least}",
            f"{agent.cold_starts} times in {seen.window_s / 60:.0f} minutes tasks waited because no replica was there; "
            f"one takes {agent.start_s:.2f} s to start",
            f"{agent.start_s:.2f} s less for the first task of each burst, for the memory of one replica",
            "cold_starts",
            float(agent.cold_starts),
            0.0,
        )


def _useless_cache(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        hit_pct = agent.hit_pct
        if hit_pct is None or agent.cache_hits + agent.cache_misses < LOOKUPS * easing or hit_pct >= HIT_PCT / easing:
            continue
        yield Found(
            "useless-cache",
            agent.name,
            f'switch its result cache off: agents.{agent.name}.cache.ttl_s = "off"',
            f"of {agent.cache_hits + agent.cache_misses} lookups {agent.cache_hits} found something ({hit_pct:.1f} %)",
            "what looking up and keeping each result costs",
            "missed",
            float(agent.cache_misses),
            0.0,
        )


def _idle(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        if agent.idle_s < IDLE_S * easing or not agent.replicas or agent.replicas > agent.min_replicas:
            continue  # more than the minimum are the autoscaler's business
        if agent.min_replicas == 0 or (agent.min_replicas == 1 and not seen.is_autoscaled):
            continue  # nothing would wake it
        least = agent.min_replicas - 1
        act = Scale(agent.name, least, agent.replicas) if not seen.is_autoscaled else None
        yield Found(
            "idle",
            agent.name,
            f"keep {least} replicas at least: agents.{agent.name}.scaling.min_replicas = {least}",
            f"its {agent.replicas} replicas have had nothing to do for {agent.idle_s / 60:.0f} minutes",
            f"the memory of a replica, {agent.memory_mb / agent.replicas:.0f} MB",
            "replicas",
            float(agent.replicas),
            float(least),
            act,
        )


def _errors(seen: Measurements, easing: float) -> Iterator[Found]:
    for agent in seen.agents:
        if agent.error_pct is None or agent.attempts < MIN_SAMPLES or agent.error_pct <= ERROR_PCT * easing:
            continue
        yield Found(
            "errors",
            agent.name,
            f"look at why: greenroom tasks ls --agent {agent.name} --state failed",
            f"{agent.error_pct:.0f} % of {agent.attempts} attempts failed",
            "none by Greenroom's doing: errors are not tuned",
            "error_pct",
            agent.error_pct,
        )


RULES = (
    Rule(
        "more-replicas",
        "response time over `optimizer.target_response_s`, "
        f"{WAITING_PART * 100:.0f} % of it is the wait for a slot, and the slots are full ({FULL_PCT:.0f} %)",
        "more replicas, at most twice as many in one step",
        "the wait shrinks as the slots grow",
        _more_replicas,
    ),
    Rule(
        "more-concurrency",
        f"the same, while a replica uses under {WAITS_FOR_OTHERS:g} CPUs",
        "more concurrency: the agent waits for others",
        "the wait halves, without more memory",
        _more_concurrency,
    ),
    Rule(
        "slow-agent",
        "response time over the target, and it is the agent's own work",
        "none: named only",
        "none",
        _slow_agent,
    ),
    Rule(
        "memory-fattest",
        f"memory over {MEMORY_PCT:.0f} % of the envelope",
        "replace the replica that holds the most",
        "what it holds more than a fresh one",
        _fattest,
    ),
    Rule(
        "memory-cache",
        f"memory over {MEMORY_PCT:.0f} % of the envelope, and results are cached",
        "trim the result cache",
        "room on the machine",
        _cache,
    ),
    Rule(
        "memory-spares",
        f"memory over {MEMORY_PCT:.0f} % of the envelope, and idle interpreters are kept warm",
        "let them go",
        "their memory",
        _spares,
    ),
    Rule(
        "cpu-uneven",
        f"CPU over {CPU_PCT:.0f} % of the envelope, and a replica uses {UNEVEN:g} times what its agent's others do",
        "drain it and put another in its place",
        "its CPU, if no task needs it",
        _uneven,
    ),
    Rule(
        "cpu-hungry",
        f"CPU over {CPU_PCT:.0f} % of the envelope",
        "fewer tasks of the hungriest agent at once",
        "each task quicker once it runs",
        _hungriest,
    ),
    Rule(
        "cpu-admission",
        f"CPU over {CPU_PCT:.0f} % of the envelope, and more than {PLENTY} tasks wait for each slot",
        "take no more into the queue than waits now, while that lasts",
        "callers hear 429 at once",
        _admission,
    ),
    Rule(
        "cold-starts",
        f"{COLD_STARTS} times in five minutes tasks waited because no replica was there",
        "one more `min_replicas`",
        "the start of a replica, for the first task of each burst",
        _cold_starts,
    ),
    Rule(
        "useless-cache",
        f"a result cache that hits under {HIT_PCT:g} % of {LOOKUPS} lookups and more",
        "switch it off",
        "what looking up costs",
        _useless_cache,
    ),
    Rule(
        "idle",
        "the replicas that an agent keeps at least have had nothing to do for an hour",
        "one less `min_replicas`",
        "the memory of a replica",
        _idle,
    ),
    Rule("errors", f"over {ERROR_PCT:.0f} % of the attempts fail", "none: named only", "none", _errors),
)
