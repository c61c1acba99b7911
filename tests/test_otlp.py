"""The exporter of spans: whoever puts one never waits, and what is lost is counted and said once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import collector
from greenroom.core import traces
from greenroom.telemetry import otlp
from greenroom.telemetry.spans import Span

CONTEXT = traces.Context("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", traces.SAMPLED)


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.lost, self.taken = threading.Event(), threading.Event()

    def on_lost(self, why: str) -> None:
        self.said.append(f"lost: {why}")
        self.lost.set()

    def on_taken(self) -> None:
        self.said.append("taken")
        self.taken.set()


@pytest.fixture
def receiver() -> Iterator[collector.Collector]:
    with collector.collecting() as found:
        yield found


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def exporter(receiver: collector.Collector, told: Told) -> Iterator[otlp.Exporter]:
    made = otlp.Exporter(
        endpoint=f"{receiver.url}/v1/traces",
        headers={},
        version="1",
        node="n",
        lost=told.on_lost,
        taken=told.on_taken,
        timeout_s=0.2,
    )
    yield made
    made.close()


def span() -> Span:
    return Span(CONTEXT, None, "step", "internal", 1, 2)


def broken() -> Span:
    raise ValueError("a bug")


def test_the_queue_is_bounded_and_whoever_puts_never_waits(exporter: otlp.Exporter, told: Told) -> None:
    for _ in range(otlp.MAX_WAITING + 10):
        exporter.put(span, 1)
    assert exporter.dropped == 10
    assert told.said == ["lost: more spans were made than the collector takes"], "also while the thread hangs"
    exporter.start()
    exporter.close()
    assert exporter.exported == otlp.MAX_WAITING
    assert told.said[1:] == ["taken"]


def test_large_spans_fill_it_sooner(exporter: otlp.Exporter) -> None:
    for _ in range(3):
        exporter.put(span, otlp.MAX_WAITING_SIZE // 2)
    assert exporter.dropped == 1


def test_what_is_lost_is_said_once_and_once_when_it_is_over(
    exporter: otlp.Exporter, told: Told, receiver: collector.Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "BATCH", 1)
    monkeypatch.setattr(otlp, "EVERY_S", 0.01)
    receiver.mode = "500"
    exporter.start()
    for _ in range(3):
        exporter.put(span, 1)
    assert told.lost.wait(collector.DEADLINE_S)
    receiver.mode = "well"
    while not told.taken.wait(0.01):
        exporter.put(span, 1)
    exporter.close()
    assert [words.partition(":")[0] for words in told.said] == ["lost", "taken"]
    assert "500" in told.said[0]
    assert exporter.dropped >= 1
    assert exporter.exported == len(receiver.spans)


def test_a_span_that_cannot_be_made_costs_no_other(
    exporter: otlp.Exporter, told: Told, receiver: collector.Collector
) -> None:
    for make in (span, broken, span):
        exporter.put(make, 1)
    exporter.start()
    exporter.close()
    assert (len(receiver.spans), exporter.exported, exporter.dropped) == (2, 2, 1)
    assert told.said[0] == "lost: a span could not be made: ValueError"
