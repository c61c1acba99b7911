"""Who is locked is refused until that is over; who is slowed down, for a while each time."""

from __future__ import annotations

import pytest

from greenroom import errors
from greenroom.core.measures import THROTTLED_EVERY_S, Measures, Standing


def test_who_is_locked_is_refused_and_told_for_how_long() -> None:
    measures = Measures()
    measures.put("principal:a", Standing("lock", "why", 100.0))
    assert measures.is_any
    with pytest.raises(errors.Forbidden, match="another 40 s"):
        measures.check("principal:a", 60.0)
    measures.check("principal:b", 60.0)
    measures.check("principal:a", 100.0)
    measures.drop("principal:a")
    assert not measures.is_any


def test_a_source_is_told_to_come_again() -> None:
    measures = Measures()
    measures.put("source:192.0.2.1", Standing("lock", "why", 100.0))
    with pytest.raises(errors.Overloaded) as caught:
        measures.check("source:192.0.2.1", 60.0)
    assert caught.value.retry_after_s == 40.0


def test_who_is_slowed_down_is_let_in_now_and_then_also_after_a_refresh() -> None:
    measures = Measures()
    standing = Standing("throttle", "why", 1000.0)
    measures.put("principal:a", standing)
    admitted = 0
    for tenth in range(600):
        if tenth % 50 == 0:
            measures.replace({"principal:a": Standing("throttle", "why", 1000.0)})
        try:
            measures.check("principal:a", tenth / 10)
        except errors.Overloaded as error:
            assert 0 < error.retry_after_s <= THROTTLED_EVERY_S
        else:
            admitted += 1
    assert admitted == 60 / THROTTLED_EVERY_S
