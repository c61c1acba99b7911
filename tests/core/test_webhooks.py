"""What follows from the answer to a delivery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import webhooks
from greenroom.core.webhooks import GivenUp, Retry, Taken

DAY_S = 24 * 3600.0


def after(status: int | None, *, attempt: int = 1, age_s: float = 0, jitter: float = 0.0, **given: float) -> object:
    return webhooks.after(status, attempt=attempt, age_s=age_s, jitter=jitter, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_success_is_taken(status: int) -> None:
    assert after(status) == Taken()


@pytest.mark.parametrize("status", [None, 100, 199, 300, 302, 400, 401, 404, 429, 500, 503, 599])
def test_everything_else_is_tried_again(status: int | None) -> None:
    assert isinstance(after(status), Retry)


def test_who_is_gone_is_told_no_more() -> None:
    assert after(410) == GivenUp(is_gone=True)


def test_delays_double_up_to_an_hour() -> None:
    delays = [webhooks.after(500, attempt=n, age_s=0, jitter=1.0) for n in range(1, 14)]
    assert [each.delay_s for each in delays if isinstance(each, Retry)] == [
        *(5.0 * 2**n for n in range(10)),
        3600.0,
        3600.0,
        3600.0,
    ]


def test_those_that_failed_together_come_apart() -> None:
    assert (after(500, jitter=0.0), after(500, jitter=0.5)) == (Retry(2.5), Retry(3.75))


def test_a_receiver_may_ask_for_more_time_but_not_for_ever() -> None:
    assert after(503, retry_after_s=120) == Retry(120)
    assert after(503, retry_after_s=1e9) == Retry(3600)
    assert after(503, retry_after_s=1) == Retry(2.5)


def test_after_a_day_it_is_given_up() -> None:
    assert isinstance(after(500, attempt=40, age_s=DAY_S - 3601, jitter=1.0), Retry)
    assert after(500, attempt=40, age_s=DAY_S - 3599, jitter=1.0) == GivenUp()
    assert after(200, age_s=DAY_S + 1) == Taken()


def test_what_is_tried_once_is_not_tried_again() -> None:
    assert webhooks.after(500, attempt=1, age_s=0, jitter=0, is_once=True) == GivenUp()


@given(st.floats(0, 1, exclude_max=True))
def test_a_receiver_that_is_down_for_a_day_is_tried_some_dozen_times(jitter: float) -> None:
    age_s, attempt = 0.0, 1
    while isinstance(verdict := after(None, attempt=attempt, age_s=age_s, jitter=jitter), Retry):
        assert verdict.delay_s >= 2.5
        age_s, attempt = age_s + verdict.delay_s, attempt + 1
    assert 30 <= attempt <= 70
    assert DAY_S - 3600 <= age_s <= DAY_S


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_what_it_is_shown_as(secret: bytes) -> None:
    assert webhooks.secret_bytes(webhooks.secret_text(secret)) == secret


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_AAAA", "whsec_ä", "whsec_" + "A" * 31, "whsec_" + "A" * 200])
def test_what_is_no_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|has not 24 to 64 bytes"):
        webhooks.secret_bytes(text)
