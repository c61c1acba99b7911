"""The spans that a replica makes without any library: bounded, of values that a frame takes, in threads as well."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.engine import protocol, spans, task_context

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
ATTEMPT = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _no_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an agent's environment that has none."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)


class Sent(list[Any]):
    @property
    def spans(self) -> list[protocol.Span]:
        return [span for message in self if isinstance(message, protocol.Spans) for span in message.spans]


def context_of(sent: Sent, *, flags: int = 1, trace: str | None = TRACE) -> task_context.TaskContext:
    text = None if trace is None else f"{trace}{flags} a=b"
    return task_context.TaskContext(protocol.Invoke("t1", 1, b"1", 1, 60.0, trace=text), "tested", sent.append)


def test_steps_are_within_one_another_and_say_how_they_failed() -> None:
    sent = Sent()
    context = context_of(sent)
    with context.span("outer", kind="client"):
        with contextlib.suppress(KeyError), context.span("inner", attributes={"n": 1}) as step:
            step.set("ok", True)
            raise KeyError("what was said")
        with context.span("aside", is_current=False), context.span("beside"):
            assert context.trace_headers["tracestate"] == "a=b"
    context.close()
    told = {span.name: span for span in sent.spans}
    outer = told["outer"]
    assert (outer.parent_id, outer.kind) == (ATTEMPT, spans.KINDS.index("client"))
    assert {told[name].parent_id for name in ("inner", "aside", "beside")} == {outer.span_id}
    assert (told["inner"].error, told["inner"].attributes["ok"]) == ("KeyError", True)
    assert "what was said" not in repr(told["inner"])


@pytest.mark.parametrize(("flags", "trace"), [(0, TRACE), (1, None)])
def test_a_task_that_is_not_sampled_makes_no_span(flags: int, trace: str | None) -> None:
    sent = Sent()
    context = context_of(sent, flags=flags, trace=trace)
    with context.span("step") as step:
        step.set("n", 1)
        step.event("e")
        step.fail("no")
    context.close()
    assert sent == []
    assert bool(context.trace_headers) == (trace is not None)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9) | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=300), _values, max_size=6), st.text(max_size=400))
def test_whatever_an_agent_writes_fits_a_frame_and_its_bounds(attributes: dict[str, Any], name: str) -> None:
    sent = Sent()
    context = context_of(sent)
    with context.span(name, attributes=attributes) as step:
        step.event(name, attributes)
    context.close()
    for message in sent:
        read = protocol.decode_for_node(protocol.frame(message)[4:])
        assert isinstance(read, protocol.Spans)
    (span,) = sent.spans
    assert len(span.attributes) <= protocol.MAX_SPAN_ATTRIBUTES


def test_a_span_and_an_attempt_are_bounded() -> None:
    sent = Sent()
    context = context_of(sent)
    with context.span("large") as step:
        for number in range(100):
            step.set(f"a{number}", "x" * 100_000)
            step.event("e", {"text": "x" * 100_000})
    for _ in range(2 * spans.MAX_SPANS):
        with context.span("flood"):
            pass
    context.close()
    assert len(sent.spans) == spans.MAX_SPANS - 1  # but the agent's own, of which there is none here
    size = len(protocol.frame(protocol.Spans("t1", 1, sent.spans[:1])))
    assert size < 2 * spans.MAX_SPAN_CHARACTERS
    assert max(len(message.spans) for message in sent) <= protocol.MAX_SPANS


def test_threads_and_tasks_that_end_late_break_nothing() -> None:
    sent = Sent()
    context = context_of(sent)

    def work() -> None:
        for _ in range(100):
            with context.span("step"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = context.span("late")
    late.__enter__()
    context.close()
    late.__exit__(None, None, None)
    assert len(sent.spans) == 400
    assert len({span.span_id for span in sent.spans}) == 400


async def test_a_generator_that_is_left_in_another_context_says_its_step_all_the_same() -> None:
    sent = Sent()
    context = context_of(sent)

    async def words() -> Any:
        with context.span("stream"):
            yield 1
            yield 2

    stream = words()
    await asyncio.create_task(anext(stream))
    await asyncio.create_task(stream.aclose())
    context.close()
    assert [span.name for span in sent.spans] == ["stream"]
