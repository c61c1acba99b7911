"""Receivers of alerts of each type, spoken to by sockets: what arrives, and what of a bad answer is told."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import json
from collections.abc import AsyncIterator, Callable

import pytest

import receivers
from greenroom import clock, settings, webhooks
from greenroom.control import apprise_process
from greenroom.control.receivers import Senders
from greenroom.core import webhooks as signing
from greenroom.core.notifications import Route, Told, Type
from greenroom.security import outgoing
from greenroom.security.outgoing import Answer, Outgoing
from receivers import Message, Receiver

HOSTILE = "<!channel> <b>& \x1b[31m\n.\nQUIT"
SECRET = b"s" * 32


def told(*, owed_at: int = 0) -> Told:
    return Told("a", "slow", "echo", "critical", HOSTILE, "firing", 1_900_000_000_000_000, owed_at=owed_at)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receivers.receiving() as made:
        yield made


async def send(type: Type, url: str, *, owed_at: int = 0) -> Answer:
    sender = Outgoing(settings.receiver_policy([url]), user_agent="greenroom/test")
    made = Senders(sender, clock.SystemClock(), link=None).receiver(Route("r", type), url=url, secret=SECRET)
    try:
        return await made.send([told(owed_at=owed_at)])
    finally:
        await sender.close()


async def test_a_webhook_is_signed_and_has_the_same_id_on_each_try(receiver: Receiver) -> None:
    for _ in range(2):
        assert (await send("webhook", f"http://127.0.0.1:{receiver.port}/in?token=t")).status == 204
    first, second = receiver.messages
    found = webhooks.verify(first.body, first.headers, signing.secret_text(SECRET))
    assert (found["type"], found["data"]["alerts"][0]["reason"]) == ("alert.firing", HOSTILE)
    assert first.id == second.id
    assert first.line == "POST /in?token=t HTTP/1.1"


async def test_a_repetition_is_a_message_of_its_own(receiver: Receiver) -> None:
    for owed_at in (0, 1):
        await send("webhook", f"http://127.0.0.1:{receiver.port}/in", owed_at=owed_at)
    first, second = receiver.messages
    assert first.id != second.id


async def test_slack_gets_text_without_markup(receiver: Receiver) -> None:
    assert (await send("slack", f"http://127.0.0.1:{receiver.port}/services/T/B/x")).status == 204
    document = json.loads(receiver.messages[0].body)
    assert document["blocks"][1]["text"]["text"] == "FIRING a: &lt;!channel&gt; &lt;b&gt;&amp; [31m . QUIT"


BAD: dict[str, tuple[Callable[[Message], bytes | None], Answer]] = {
    "500": (lambda _: receivers.status(500), Answer(500)),
    "429": (lambda _: receivers.status(429, "Retry-After: 7"), Answer(429, retry_after_s=7)),
    "a redirect": (lambda _: receivers.status(302, "Location: http://127.0.0.1:1/"), Answer(302)),
    "a huge body": (lambda _: receivers.status(200, body=b"x" * 2**22), Answer(200)),
    "nonsense": (lambda _: b"\x00\xff{}" * 1000, Answer(error="the connection broke before there was an answer")),
    "nothing": (lambda _: None, Answer(error="no answer within 0.2 s")),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_answer_is_told_in_a_few_words(
    receiver: Receiver, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "nothing":
        monkeypatch.setattr(outgoing, "TOTAL_TIMEOUT_S", 0.2)
    receiver.answer, expected = BAD[what]
    assert await send("alertmanager", f"http://127.0.0.1:{receiver.port}") == expected
    assert receiver.messages[0].line == "POST /api/v2/alerts HTTP/1.1"


class Smtp:
    """As much of a server for mail as takes a message; one that *hangs* says nothing after the greeting."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs, self.mails = hangs, list[bytes]()
        self.going = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        if self.hangs:
            await self.going.wait()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                match line[:4].upper().strip():
                    case b"DATA":
                        writer.write(b"354 go on\r\n")
                        self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
                        writer.write(b"250 taken\r\n")
                    case b"QUIT":
                        writer.write(b"221 bye\r\n")
                        break
                    case _:
                        writer.write(b"250 well\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def mailing(smtp: Smtp) -> AsyncIterator[str]:
    server = await asyncio.start_server(smtp.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"mailto://127.0.0.1:{port}/?from=node@greenroom.example&to=people@greenroom.example"
    finally:
        smtp.going.set()
        server.close()
        await server.wait_closed()


@pytest.mark.slow
async def test_an_email_arrives_with_its_text_as_it_is() -> None:
    smtp = Smtp()
    async with mailing(smtp) as url:
        assert await send("email", url) == Answer(200)
    mail = email.message_from_bytes(smtp.mails[0], policy=email.policy.default)
    assert "[FIRING] critical: slow of echo" in str(mail["Subject"])
    assert "people@greenroom.example" in str(mail["To"])
    body = mail.get_body(("plain",))
    assert body is not None
    assert "FIRING a: <!channel> <b>& [31m . QUIT" in body.get_content()


@pytest.mark.slow
async def test_a_mail_server_that_hangs_costs_a_process_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apprise_process, "TIMEOUT_S", 1.0)
    async with mailing(Smtp(hangs=True)) as url:
        assert await send("email", url) == Answer(error="no answer within 1 s")


@pytest.mark.slow
async def test_a_url_that_apprise_does_not_know_is_said_without_it() -> None:
    assert await send("apprise", "nosuchthing://secret@host") == Answer(error="its URL is none that apprise knows")
