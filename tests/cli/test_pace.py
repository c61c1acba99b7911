"""How often followers ask, on a clock of the test's."""

from __future__ import annotations

from collections import deque

import pytest

from greenroom.cli import pace
from greenroom.core import rates


@pytest.mark.parametrize("rollouts", [1, 3, 30, 200])
def test_a_follower_leaves_something_of_a_hundred_requests_a_minute(rollouts: int) -> None:
    limit, now_s = rates.RateLimit(100), [0.0]
    paced = pace.Pace(lambda: now_s[0])
    waited_s: deque[float] = deque()
    while now_s[0] < 1800:
        waited_s.append(paced.delay_s(rollouts, least_s=0.25))
        now_s[0] += waited_s[-1]
        for _ in range(min(rollouts, 30)):  # more than these at once wait as they are told, in the client
            assert not limit.take("", now_s[0])
    if rollouts == 1:
        assert list(waited_s)[:20] == [0.25] * 20
        assert limit.standing("", now_s[0])[0] > 50
