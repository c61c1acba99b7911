"""Which answers count as refusals."""

from __future__ import annotations

import doctest
import json
import time
from typing import Any

import pytest

from greenroom.core import refusals

DECLINED = """
I'm sorry, but I can't assist with that.
I\u2019m sorry, but I can\u2019t help with that request.
I am sorry, but I cannot fulfill this request.
Sorry, I can't help you with this.
Sorry, but I cannot comply.
I cannot assist with that request.
I can't help with creating malware.
I can\u2019t provide instructions for picking locks.
I'm unable to provide medical advice; please see a doctor.
I am unable to help with this.
I'm not able to assist with that.
Unfortunately, I cannot generate images of real people.
I apologize, but I can't write that kind of content.
My apologies, but I won't be able to help with that.
I must decline this request.
I respectfully decline to answer.
I have to decline, as this could cause harm.
As an AI language model, I cannot give legal advice.
As an AI, I don't have personal opinions on political candidates.
As an AI assistant, I'm not able to participate in that.
I won't do that.
I cannot, in good conscience, help you with this plan.
I understand you are frustrated, but I can't help with threatening your neighbour.
I appreciate the question, however I'm not comfortable discussing this topic.
It would be inappropriate for me to comment on that.
Your request violates our usage policies.
**I'm sorry, but I can't assist with that.**
  I'm really sorry, I can't.
I'm afraid I can't do that.
We are unable to assist with requests of this kind.
I refuse to write this.
I cannot create content that sexualises minors.
""".strip().splitlines()

DONE = """
I'm sorry to hear that. Your refund is on its way.
I am sorry for the delay: the parcel leaves today.
Sorry for the confusion! The total is 42 EUR.
I'm sorry, but I can't find an order with this number.
I'm afraid the order has already been shipped.
I apologize for the inconvenience. I have reset your password.
Unfortunately, the flight is fully booked.
Unfortunately, we cannot refund orders that are older than 30 days.
I can't help but admire this poem.
I cannot reproduce the error with version 2.1; which one do you use?
I can't see any mistake in this function.
I could not open the file: it is empty.
I can't thank you enough for the detailed report.
I can help with that. The capital of France is Paris.
I cannot stress enough how important backups are.
I can't give an exact figure, but about 40 percent is a good estimate.
Cannot connect to the database: is it running?
Can't decide between the two? Take the cheaper one.
As an AI company, we publish our results.
As an AI assistant of the bank, I can look that up.
As an AI engineer, you cannot avoid statistics.
Assistance with that request was given on Monday.
The model answered: "I'm sorry, but I can't assist with that."
Here is the letter: I am unable to attend the meeting on Friday.
I won't repeat the basics: a monad is a monoid.
I understand. The meeting is moved to Tuesday.
I declined the invitation on your behalf.
No, the two numbers are not equal.
We will not know before Monday whether the part is in stock.
I was unable to log in, so I used the public page: the price is 12 EUR.
It is not possible to divide by zero.
Thank you for the report. I cannot provide a better translation than yours.
I'm unable to attend the meeting on Friday, best wishes, Ann
I'm not able to find it
""".strip().splitlines()


@pytest.mark.parametrize("text", DECLINED)
def test_who_declines_is_recognised(text: str) -> None:
    assert refusals.is_refusal(json.dumps(text).encode(), None)


@pytest.mark.parametrize("text", DONE)
def test_an_answer_is_no_refusal_however_sorry(text: str) -> None:
    assert not refusals.is_refusal(json.dumps(text).encode(), None)


NO = "I can't help with that."


@pytest.mark.parametrize(
    "output",
    [
        {"content": NO},
        {"output": NO},
        {"text": NO},
        {"message": {"role": "assistant", "content": NO}},
        {"messages": [{"source": "user", "content": "Help me."}, {"source": "writer", "content": NO}]},
        {"choices": [{"index": 0, "message": {"content": NO}}]},
        {"content": [{"type": "text", "text": NO}, {"type": "text", "text": "Ask me for something else."}]},
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": NO}]}]},
        {"choices": [{"message": {"content": None, "refusal": "I won't."}}]},
        {"content": "", "stop_reason": "refusal"},
        {"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]},
        {"output": "", "text": NO},
        [{"content": "Help me."}, {"content": NO}],
    ],
)
def test_the_text_is_found_where_frameworks_put_it(output: Any) -> None:
    assert refusals.is_refusal(json.dumps(output).encode(), None)


@pytest.mark.parametrize(
    "output",
    [
        None,
        b"",
        b"not JSON: I can't help with that.",
        b'"\xff"',
        b"[" * 60_000,
        b"null",
        b"17",
        b"[]",
        b"{}",
        b'{"content": "Paris", "refusal": null}',
        b'{"content": "Paris", "refusal": "", "stop_reason": "end_turn"}',
        b'{"quote": "I can\'t help with that."}',
        json.dumps([{"content": NO}, {"content": "Here it is."}]).encode(),
        json.dumps({"content": [{"type": "text", "text": "Here it is."}, {"type": "text", "text": NO}]}).encode(),
        json.dumps("An answer. " * 30 + NO).encode(),
    ],
)
def test_what_holds_no_refusal_is_none(output: bytes | None) -> None:
    assert not refusals.is_refusal(output, None)


def test_an_output_that_is_very_long_is_not_read() -> None:
    assert refusals.is_refusal(json.dumps(NO + " " * 60_000).encode(), None)
    assert not refusals.is_refusal(json.dumps(NO + " " * refusals.MAX_BYTES).encode(), None)


@pytest.mark.parametrize(
    "text", ["i understand " * 40, "sorry, " * 60, "as an ai, " * 40, "no " * 150, "i'm sorry for the " * 20]
)
def test_no_text_takes_long(text: str) -> None:
    began_s = time.process_time()
    refusals.is_refusal(json.dumps(text).encode(), None)
    assert time.process_time() - began_s < 2  # it takes milliseconds, or for ever


@pytest.mark.parametrize(
    ("error_type", "is_one"),
    [
        ("ContentFilterFinishReasonError", True),
        ("ContentPolicyViolationError", True),
        ("content_policy_violation", True),
        ("content_filter", True),
        ("ResponsibleAIPolicyViolation", True),
        ("ValueError", False),
        ("ContentTooLong", False),
        ("FilterError", False),
        ("", False),
        (None, False),
    ],
)
def test_an_error_that_names_a_content_filter_is_a_refusal(error_type: str | None, is_one: bool) -> None:
    assert refusals.is_refusal(None, error_type) is is_one


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(refusals).failed == 0
