"""What the front door costs each request: limits, the look at the head; and the main path with limits beside none."""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import servers
from bench.figures import Figure
from bench.scale import Scale
from bench.switches import BODY, ECHO

from greenroom import clock, errors, settings, strict_json, telemetry
from greenroom.api import heads
from greenroom.api.limits import Limits
from greenroom.api.sources import Sources
from greenroom.core.permissions import Principal, rights

MOST = 1_000_000  # a minute: what is measured is never refused
CALLS, ROUNDS = 20_000, 9
LIMITED = f"[security]\nrate_limit_per_minute = {MOST}\ntenant_rate_limit_per_minute = {MOST}\n"
HEADERS = (
    (b"host", b"127.0.0.1:7080"),
    (b"user-agent", b"greenroom/1"),
    (b"accept", b"*/*"),
    (b"authorization", b"Bearer " + b"x" * 80),
    (b"content-type", b"application/json"),
    (b"content-length", b"220"),
    (b"idempotency-key", b"0123456789abcdef"),
)


def door(folder: Path, scale: Scale) -> Iterator[Figure]:
    """A request's part of the limits and the guard, in this process; then a node with limits beside one without."""
    yield from _parts()
    nodes = (
        servers.greenroom(folder / word, {"echo": ECHO}, settings=text) for word, text in (("off", ""), ("on", LIMITED))
    )
    with next(nodes) as off, next(nodes) as on:
        for node in (off, on):
            _rate(node, 0.5)
        rates = [[_rate(node, scale.seconds) for node in (off, on)] for _ in range(scale.rounds)]
    without, with_it = zip(*rates, strict=True)
    yield Figure("64 connections, ?wait, limits beside none", "tasks/s", with_it, without, aim="ratio ≥ 0.97")


def _parts() -> Iterator[Figure]:
    given = {"rate_limit_per_minute": MOST, "tenant_rate_limit_per_minute": MOST}
    security = settings.load(None, {}, overrides={"security": given}).security
    limits = Limits(security, clock.SystemClock(), telemetry.Telemetry())
    caller = Principal("0123456789abcdef", "key", "default", "ci", "user", rights("user", tenant="default"))

    def limited() -> None:
        limits.admit("127.0.0.1")
        limits.spend(caller)
        limits.headers(caller)

    proxied = (*HEADERS, (b"x-forwarded-for", b"203.0.113.9, 10.0.0.7"))
    behind, plain = Sources(["10.0.0.0/8"]), Sources([])
    yield _each("limits of a request, with their headers", limited, aim="≤ 5 µs")
    yield _each("the look at a head", lambda: heads.fault(b"POST", b"/v1/tasks?wait=30", "1.1", HEADERS), aim="≤ 3 µs")
    yield _each("the source of a request", lambda: plain.of(("127.0.0.1", 1), HEADERS))
    yield _each("the source of a request, behind a proxy", lambda: behind.of(("10.0.0.7", 1), proxied))
    keys = json.dumps({str(number): number for number in range(80_000)}).encode()
    yield Figure("1 MB of JSON with 80,000 keys, refused", "ms", _took_ms(lambda: _refused(keys)))
    zeros = b"[" + b"0," * 500_000 + b"0]"
    yield Figure("1 MB of JSON of zeros, read", "ms", _took_ms(lambda: strict_json.loads(zeros)))
    empty = b"[" + b"{}," * 340_000 + b"{}]"
    yield Figure("1 MB of JSON of empty objects, read", "ms", _took_ms(lambda: strict_json.loads(empty)))


def _refused(body: bytes) -> None:
    try:
        strict_json.loads(body)
    except errors.JsonRefused:
        return
    raise AssertionError


def _each(name: str, act: Callable[[], object], *, aim: str = "") -> Figure:
    took_us = [
        took_s / CALLS * 1e6 for took_s in timeit.repeat(act, timer=time.process_time, number=CALLS, repeat=ROUNDS)
    ]
    return Figure(name, "µs", sorted(took_us)[: ROUNDS // 3], aim=aim)


def _took_ms(act: Callable[[], object]) -> list[float]:
    return [took_s * 1e3 for took_s in timeit.repeat(act, timer=time.process_time, number=1, repeat=5)]


def _rate(node: servers.Server, seconds: float) -> float:
    return node.load("/v1/tasks?wait=30", [BODY], connections=64, seconds=seconds).rate
