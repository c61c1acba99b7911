"""Receivers: what is taken, and what is refused. Compared with the standard's own package."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

import greenroom
from greenroom import errors, webhooks
from greenroom.core import webhooks as core

SECRET, OTHER = core.secret_text(b"s" * 32), core.secret_text(b"o" * 32)
NOW_S = 1_900_000_000
BODY = b'{"type":"task.succeeded","data":{"id":"1"}}'


def headers(
    body: bytes = BODY, *secrets: str, id: str = "msg_1", at_s: int = NOW_S, names: str = "webhook"
) -> dict[str, str]:
    signed = [core.sign(core.secret_bytes(each), id=id, timestamp_s=at_s, body=body) for each in secrets or (SECRET,)]
    return {f"{names}-id": id, f"{names}-timestamp": str(at_s), f"{names}-signature": " ".join(signed)}


def test_what_is_signed_is_taken() -> None:
    assert webhooks.verify(BODY, headers(), SECRET, now_s=NOW_S) == json.loads(BODY)
    assert webhooks.verify(BODY, headers(names="Webhook"), SECRET, now_s=NOW_S) == json.loads(BODY)


def test_it_is_a_public_name() -> None:
    assert greenroom.webhooks.verify is webhooks.verify


def test_while_a_secret_is_rotated_either_is_enough() -> None:
    both = headers(BODY, OTHER, SECRET)
    for secrets in ((SECRET,), (OTHER,), (SECRET, OTHER)):
        assert webhooks.verify(BODY, both, *secrets, now_s=NOW_S)
    assert webhooks.verify(BODY, headers(), OTHER, SECRET, now_s=NOW_S)


@pytest.mark.parametrize("skew_s", [-300, -299, 0, 299, 300])
def test_clocks_may_differ_by_five_minutes(skew_s: int) -> None:
    assert webhooks.verify(BODY, headers(), SECRET, now_s=NOW_S + skew_s)


@pytest.mark.parametrize("skew_s", [-(10**9), -301, 301, 3600, 10**9])
def test_what_is_of_another_time_is_refused(skew_s: int) -> None:
    with pytest.raises(errors.WebhookRefused, match="300 s before or after"):
        webhooks.verify(BODY, headers(), SECRET, now_s=NOW_S + skew_s)


FORGED: dict[str, dict[str, str]] = {
    "no headers": {},
    "no id": {**headers(), "webhook-id": ""},
    "another id": {**headers(), "webhook-id": "msg_2"},
    "a long id": {**headers(), "webhook-id": "x" * 256},
    "another time": {**headers(), "webhook-timestamp": str(NOW_S + 1)},
    "no time": {**headers(), "webhook-timestamp": ""},
    "a time that is no number": {**headers(), "webhook-timestamp": "1e9"},
    "a time in other digits": {**headers(), "webhook-timestamp": "١٩٠٠٠٠٠٠٠٠"},
    "no signature": {**headers(), "webhook-signature": ""},
    "another version": {**headers(), "webhook-signature": headers()["webhook-signature"].replace("v1,", "v1a,")},
    "no version": {**headers(), "webhook-signature": headers()["webhook-signature"].removeprefix("v1,")},
    "a part of it": {**headers(), "webhook-signature": headers()["webhook-signature"][:-4]},
    "another's": headers(BODY, OTHER),
    "not ASCII": {**headers(), "webhook-signature": "v1,ü"},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_what_nobody_signed_is_refused(forged: dict[str, str]) -> None:
    with pytest.raises(errors.WebhookRefused):
        webhooks.verify(BODY, forged, SECRET, now_s=NOW_S)


def test_a_body_that_was_changed_is_refused() -> None:
    for body in (BODY + b" ", BODY.replace(b"1", b"2"), b"", json.dumps(json.loads(BODY)).encode()):
        with pytest.raises(errors.WebhookRefused):
            webhooks.verify(body, headers(), SECRET, now_s=NOW_S)


def test_without_a_secret_nothing_is_verified() -> None:
    with pytest.raises(ValueError, match="without a secret"):
        webhooks.verify(BODY, headers(), now_s=NOW_S)
    with pytest.raises(ValueError, match="the secret"):
        webhooks.verify(BODY, headers(), "", now_s=NOW_S)


def test_the_same_message_is_taken_once() -> None:
    seen = webhooks.Seen()
    assert webhooks.verify(BODY, headers(), SECRET, seen=seen, now_s=NOW_S)
    for skew_s in (0, 200, 299):
        with pytest.raises(errors.WebhookRepeated):
            webhooks.verify(BODY, headers(), SECRET, seen=seen, now_s=NOW_S + skew_s)
    with pytest.raises(errors.WebhookRepeated):  # a retry is signed anew, and is the same message
        webhooks.verify(BODY, headers(at_s=NOW_S + 60), SECRET, seen=seen, now_s=NOW_S + 60)
    assert webhooks.verify(BODY, headers(id="msg_2"), SECRET, seen=seen, now_s=NOW_S)


def test_what_could_not_be_done_may_come_again() -> None:
    seen = webhooks.Seen()
    webhooks.verify(BODY, headers(), SECRET, seen=seen, now_s=NOW_S)
    seen.forget("msg_1")
    assert webhooks.verify(BODY, headers(), SECRET, seen=seen, now_s=NOW_S)


def test_what_was_refused_is_not_remembered() -> None:
    seen = webhooks.Seen()
    with pytest.raises(errors.WebhookRefused):
        webhooks.verify(BODY, headers(BODY, OTHER), SECRET, seen=seen, now_s=NOW_S)
    assert webhooks.verify(BODY, headers(), SECRET, seen=seen, now_s=NOW_S)


def test_the_memory_is_bounded_and_forgets_nothing_that_could_come_again() -> None:
    seen = webhooks.Seen(most=3)
    for number in range(3):
        webhooks.verify(BODY, headers(id=f"msg_{number}"), SECRET, seen=seen, now_s=NOW_S)
    with pytest.raises(errors.WebhookRefused, match="make Seen larger"):
        webhooks.verify(BODY, headers(id="msg_3"), SECRET, seen=seen, now_s=NOW_S)
    later_s = NOW_S + 601  # the oldest three are worthless now, and make room
    assert webhooks.verify(BODY, headers(id="msg_3", at_s=later_s), SECRET, seen=seen, now_s=later_s)


def test_where_there_is_room_a_message_is_known_for_a_day() -> None:
    seen = webhooks.Seen(most=3)
    assert seen.first("msg_1", now_s=NOW_S)
    assert not seen.first("msg_1", now_s=NOW_S + 86_400)
    assert seen.first("msg_2", now_s=NOW_S + 90_000)
    assert seen.first("msg_1", now_s=NOW_S + 90_000)


@given(
    st.binary(max_size=200), st.binary(min_size=24, max_size=64), st.from_regex(r"msg_[0-9a-z_]{1,40}", fullmatch=True)
)
def test_signatures_are_the_standards_own(body: bytes, secret: bytes, id: str) -> None:
    theirs = standardwebhooks.Webhook(base64.b64encode(secret).decode())
    text = body.decode("latin-1")  # theirs signs text
    at = datetime.fromtimestamp(NOW_S, UTC)
    assert core.sign(secret, id=id, timestamp_s=NOW_S, body=text.encode()) == theirs.sign(id, at, text)


def test_the_standards_own_receiver_takes_ours_and_we_take_theirs() -> None:
    now = datetime.now(UTC)
    theirs = standardwebhooks.Webhook(SECRET)
    assert theirs.verify(BODY, headers(BODY, OTHER, SECRET, at_s=int(now.timestamp()))) == json.loads(BODY)
    signed = {"webhook-id": "x", "webhook-timestamp": str(int(now.timestamp()))}
    signed["webhook-signature"] = theirs.sign("x", now, BODY.decode())
    assert webhooks.verify(BODY, signed, SECRET) == json.loads(BODY)
