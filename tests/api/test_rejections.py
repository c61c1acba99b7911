"""A rejection takes the same time whatever its reason: what nobody can measure nobody can learn (Welch's t-test)."""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import nodes
from greenroom import errors
from greenroom.api import auth
from greenroom.security import keys

SAMPLES = int(os.environ.get("GREENROOM_TEST_SAMPLES", "20000"))  # of each
LIMIT = 4.5


async def _reasons(api: nodes.Api) -> dict[str, bytes]:
    good = await api.key("admin")
    expired = await api.key("admin", expires_in_s=1e-6)
    revoked = await api.key("admin")
    parsed = keys.parse(revoked)
    assert parsed is not None
    await api.running.access.auth.revoke(parsed.id, tenant="default")
    environment, _, secret = good.split("_")[1:4]
    other = keys.mint("dev", b"another pepper").text
    wrong_body = "_".join(["gr", environment, good.split("_")[2], secret[::-1]])
    texts = {
        "unknown id": other,
        "wrong secret": f"{wrong_body}_{keys._checksum(wrong_body)}",
        "mistyped": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "revoked": revoked,
        "expired": expired,
        "malformed": "gr_garbage",
        "long": "gr_" + "x" * 480,
    }
    return {name: f"Bearer {text}".encode() for name, text in texts.items()}


def welch_t(one: Sequence[float], other: Sequence[float]) -> float:
    variances = [statistics.variance(each) / len(each) for each in (one, other)]
    return (statistics.fmean(one) - statistics.fmean(other)) / math.sqrt(sum(variances))


async def _samples(api: nodes.Api, reasons: dict[str, bytes], count: int) -> dict[str, list[float]]:
    """Interleaved, in an order of chance, so that no reason has the better moments of the machine."""
    authenticator = api.running.access.auth
    order = [name for name in reasons for _ in range(count)]
    random.Random(1).shuffle(order)
    took: dict[str, list[float]] = {name: [] for name in reasons}
    for number, name in enumerate(order):
        headers, source = {b"authorization": reasons[name]}, f"source-{number}"
        begun_ns = time.perf_counter_ns()
        with pytest.raises((errors.Unauthenticated, errors.RateLimited)):  # the latter by the key that it names
            await authenticator.authenticate(headers, source=source)
        took[name].append(float(time.perf_counter_ns() - begun_ns))
    return took


@pytest.mark.slow
@pytest.mark.timed
async def test_no_reason_for_a_rejection_can_be_told_by_its_time(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {}) as api:
        reasons = await _reasons(api)
        await _samples(api, reasons, 50)
        took = await _samples(api, reasons, SAMPLES)
    usual = took["unknown id"]
    told = {name: welch_t(times, usual) for name, times in took.items() if name != "unknown id"}
    assert max(map(abs, told.values())) < LIMIT, told


async def test_no_rejection_comes_before_its_time(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {}) as api:
        took = await _samples(api, await _reasons(api), 20)
    assert min(map(min, took.values())) >= auth.REJECTION_NS


async def test_every_reason_is_decided_well_within_the_time_of_a_rejection(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {}) as api:
        for reason in (await _reasons(api)).values():
            times_ns = []
            for _ in range(200):
                begun_ns = time.perf_counter_ns()
                assert not api.running.access.auth.is_valid(reason)
                times_ns.append(time.perf_counter_ns() - begun_ns)
            assert min(times_ns) < auth.REJECTION_NS / 2  # the machine may be busy
