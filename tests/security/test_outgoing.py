"""Requests to addresses that others name: where they go, and what is read of the answer."""

# ruff: noqa: ARG001, ARG002 - what stands for a function has its parameters

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

import receivers
from greenroom.core.addresses import Policy
from greenroom.security import outgoing
from greenroom.security.outgoing import Outgoing
from receivers import Receiver

HEADERS = {"Content-Type": "application/json", "webhook-id": "msg_1"}


class Names:
    """A name server: each look-up of a name gets the next of its answers, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
async def trap() -> AsyncIterator[Receiver]:
    async with receivers.receiving() as receiver:
        yield receiver


def sender(trap: Receiver, names: Names, **given: object) -> Outgoing:
    return Outgoing(Policy(ports=(trap.port,)), user_agent="greenroom/test", resolve=names.resolve, **given)  # type: ignore[arg-type]


async def post(sent_by: Outgoing, url: str) -> outgoing.Answer:
    return await sent_by.post(url, headers=HEADERS, body=b"{}")


INNER = [
    ["127.0.0.1"],
    ["::1"],
    ["::ffff:127.0.0.1"],
    ["64:ff9b::7f00:1"],
    ["0.0.0.0"],
    ["169.254.169.254"],
    ["10.0.0.1"],
    ["100.64.0.1"],
    ["fe80::1%eth0"],
    ["not an address"],
    # One that is public among them saves nobody, wherever it stands.
    ["8.8.8.8", "127.0.0.1"],
    ["127.0.0.1", "8.8.8.8"],
    ["2606:4700:4700::1111", "::ffff:10.0.0.1"],
]


@pytest.mark.parametrize("found", INNER, ids=",".join)
async def test_a_name_with_any_inner_address_gets_nothing(trap: Receiver, found: list[str]) -> None:
    answer = await post(sender(trap, Names(found)), f"https://hooks.example.com:{trap.port}/")
    assert answer.is_refused
    assert answer.status is None
    assert not [address for address in found if address in str(answer.error)]
    assert trap.connections == 0


async def test_a_name_server_is_asked_once_and_its_second_answer_changes_nothing(
    trap: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: public when it is judged, loopback when somebody would ask again."""
    names, reached = Names(["203.0.114.7"], ["127.0.0.1"]), []
    create = asyncio.get_running_loop().create_connection

    async def connect(factory: object, host: str, port: int, **options: object) -> object:
        reached.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    answer = await post(sender(trap, names), f"https://hooks.example.com:{trap.port}/")
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create)
    assert (answer.error, names.asked) == ("no connection", 1)
    assert set(reached) == {"203.0.114.7"}
    again = await post(sender(trap, names), f"https://hooks.example.com:{trap.port}/")
    assert again.is_refused
    assert trap.connections == 0


async def test_the_certificate_is_verified_for_the_name_and_the_request_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.core.addresses.not_public", lambda _: None)  # loopback stands for a public address
    server, trust = receivers.certificate(tmp_path, "hooks.example.com")
    async with receivers.receiving(tls=server) as receiver:
        known = sender(receiver, Names(["127.0.0.1"]), trust=trust)
        answer = await post(known, f"https://hooks.example.com:{receiver.port}/in?x=1")
        assert (answer.status, answer.error) == (204, None)
        (message,) = receiver.messages
        assert message.line == "POST /in?x=1 HTTP/1.1"
        assert message.headers["host"] == f"hooks.example.com:{receiver.port}"
        assert message.headers["user-agent"] == "greenroom/test"
        for other in ("other.example.com", "hooks.example.org"):
            answer = await post(known, f"https://{other}:{receiver.port}/")
            assert answer.error == "the host's certificate cannot be trusted"
        strange = await post(sender(receiver, Names(["127.0.0.1"])), f"https://hooks.example.com:{receiver.port}/")
        assert strange.error == "the host's certificate cannot be trusted"
        assert len(receiver.messages) == 1


def own(receiver: Receiver, *, ports: Sequence[int] = ()) -> Outgoing:
    policy = Policy(ports=(receiver.port, *ports), inner_hosts=("127.0.0.1",))
    return Outgoing(policy, user_agent="greenroom/test")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(trap: Receiver, code: int) -> None:
    async with receivers.receiving() as receiver:
        for place in (f"http://127.0.0.1:{trap.port}/", "http://169.254.169.254/latest/meta-data/", "/again"):
            receiver.answer = lambda _, place=place: receivers.status(code, f"Location: {place}")  # type: ignore[misc]
            answer = await post(own(receiver, ports=[trap.port]), f"http://127.0.0.1:{receiver.port}/")
            assert answer.status == code
    assert trap.connections == 0
    assert len(receiver.messages) == 3


async def test_no_proxy_of_the_environment_is_used(trap: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
    async with receivers.receiving() as receiver:
        assert (await post(own(receiver), f"http://127.0.0.1:{receiver.port}/")).status == 204
    assert trap.connections == 0


async def test_a_huge_answer_is_not_read_to_its_end() -> None:
    async with receivers.receiving() as receiver:
        receiver.lingers = True
        receiver.answer = lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + bytes(100_000)
        answer = await asyncio.wait_for(post(own(receiver), f"http://127.0.0.1:{receiver.port}/"), 10)
        assert answer.status == 200


async def test_what_is_compressed_is_not_expanded() -> None:
    async with receivers.receiving() as receiver:
        receiver.answer = lambda _: receivers.status(200, "content-encoding: gzip", body=b"not gzip at all")
        assert (await post(own(receiver), f"http://127.0.0.1:{receiver.port}/")).status == 200


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx"], ids=["mute", "endless"])
async def test_who_never_ends_is_left(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "TOTAL_TIMEOUT_S", 0.2)
    async with receivers.receiving() as receiver:
        receiver.lingers, receiver.answer = True, lambda _: answer
        told = await asyncio.wait_for(post(own(receiver), f"http://127.0.0.1:{receiver.port}/"), 10)
        assert told.status is None
        assert "no answer within" in str(told.error)


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000]
)
async def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    async with receivers.receiving() as receiver:
        receiver.answer = lambda _: answer
        told = await post(own(receiver), f"http://127.0.0.1:{receiver.port}/")
        assert told == outgoing.Answer(error="the connection broke before there was an answer")


async def test_a_name_that_nobody_knows_is_an_error_and_is_waited_for_only_so_long(
    trap: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "CONNECT_TIMEOUT_S", 0.05)

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError

    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    for resolve in (unknown, silent):
        found = Outgoing(Policy(), user_agent="greenroom/test", resolve=resolve)
        assert (await post(found, "https://hooks.example.com/")).error == "the host's name cannot be resolved"
    assert (await post(sender(trap, Names([])), f"https://hooks.example.com:{trap.port}/")).error == (
        "the host has no address"
    )


@pytest.mark.parametrize(("header", "seconds"), [("120", 120.0), ("Wed, 21 Oct 2030 07:28:00 GMT", None), ("-1", None)])
async def test_retry_after_is_told_in_seconds(header: str, seconds: float | None) -> None:
    async with receivers.receiving() as receiver:
        receiver.answer = lambda _: receivers.status(503, f"Retry-After: {header}")
        answer = await post(own(receiver), f"http://127.0.0.1:{receiver.port}/")
        assert (answer.status, answer.retry_after_s) == (503, seconds)


async def test_names_are_resolved_by_the_system_where_nobody_else_does() -> None:
    async with receivers.receiving() as receiver:
        policy = Policy(ports=(receiver.port,), inner_hosts=("localhost",))
        real = Outgoing(policy, user_agent="greenroom/test")
        assert (await post(real, f"http://localhost:{receiver.port}/")).status == 204
        assert receiver.messages[0].headers["host"] == f"localhost:{receiver.port}"
        await real.close()
        refused = Outgoing(Policy(ports=(receiver.port,)), user_agent="greenroom/test")
        assert (await post(refused, f"https://localhost:{receiver.port}/")).is_refused
        assert receiver.connections == 1
