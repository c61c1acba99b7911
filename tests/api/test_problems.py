"""Problem documents: what people read in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import nodes
from greenroom import errors, settings, telemetry
from greenroom.api import problems

CANARY = "what-no-caller-is-to-see"


@pytest.mark.asyncio(loop_scope="session")
async def test_a_bug_is_told_once_to_the_log_and_by_no_word_to_the_caller(
    api: nodes.Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[telemetry.RequestCrashed] = []

    async def breaks(*_: object, **__: object) -> None:
        raise KeyError(CANARY)

    async def cannot_be_sent(*_: object, **__: object) -> list[object]:
        return [object()]

    api.running.facts.subscribe(heard.append, telemetry.RequestCrashed)
    try:
        for broken in (breaks, cannot_be_sent):
            monkeypatch.setattr(api.running.store.webhooks, "all", broken)
            answer = await api.http.get("/v1/webhooks")
            document = answer.json()
            assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
            assert (document["type"], answer.headers["cache-control"]) == ("internal-error", "no-store")
            assert CANARY not in answer.text
            (fact,) = heard
            assert (fact.request_id, fact.method, fact.path) == (document["request_id"], "GET", "/v1/webhooks")
            assert (broken.__name__ in fact.traceback) is (broken is breaks)
            heard.clear()
    finally:
        api.running.facts.unsubscribe(heard.append, telemetry.RequestCrashed)


def _kinds(kind: type[errors.GreenroomError] = errors.GreenroomError) -> Iterator[type[errors.GreenroomError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


def test_every_title_is_a_sentence_for_people() -> None:
    titles = {kind.__qualname__: problems.problem(kind.__new__(kind), "request-1")["title"] for kind in _kinds()}
    assert "Overloaded" in titles
    assert not {name: title for name, title in titles.items() if not re.fullmatch(r"[A-Z][^`*_\n]+\.", title)}


def test_the_title_is_of_the_code_and_not_of_a_class_that_carries_more() -> None:
    error = settings.SettingsInvalid([settings.Problem("cluster.cpu", "is odd")])
    assert problems.problem(error, "request-1")["title"] == errors.SettingsInvalid.__doc__
