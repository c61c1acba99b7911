"""Nothing that a stranger writes makes a second record, another field, or a command for a terminal (I56)."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greenroom import telemetry
from greenroom.cli import render

HOSTILE = (
    "two\nlines",
    "\r\n2026-01-01T00:00:00Z [error] node changed state=failed",
    '"}\n{"event": "node changed", "level": "error"',
    "\x1b[2J\x1b[1;1Hcleared",
    "\x9b31mred by C1",
    "\x1b]0;title\x07",
    "line\u2028separator\u2029paragraph\x85next",
    "\u202eright to left",
    "\x00nul\x08\x7f",
    "%s %n %(x)s {} {0.__class__} {event}",
    "\\n \\x1b[0m",
    'state=failed reason="forged"',
    "lone \ud800 surrogate",
    "\ufeff",
    "",
    " ",
)
TEXTS = st.sampled_from(HOSTILE) | st.text(
    st.characters() | st.sampled_from("\n\r\x1b\x9b\u2028\u202e\"'=\\{}%\x00\ud800"), max_size=60
)
FACTS: dict[str, Callable[[str], telemetry.Fact]] = {
    "agent": lambda text: telemetry.AgentFailing(text, text),
    "replica": lambda text: telemetry.ReplicaExited(text, text, text, text),
    "output": lambda text: telemetry.ReplicaSaid("research", "research-1", "stderr", text),
    "store": lambda text: telemetry.StoreTrouble(text, text),
    "issuer": lambda text: telemetry.IssuerChanged(text, "unreachable", text),
    "node": lambda text: telemetry.NodeChanged("node-1", "failed", text),
}


class Written:
    """A log that is kept."""

    def __init__(self, *, as_json: bool) -> None:
        self.stream, usual = io.StringIO(), sys.stderr
        sys.stderr = self.stream
        try:
            self.log = telemetry.Log(level="DEBUG", as_json=as_json)
        finally:
            sys.stderr = usual

    def records(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]


def _is_inert(text: str) -> bool:
    return all(letter.isprintable() for letter in text)


@pytest.mark.parametrize("kind", FACTS)
@given(text=TEXTS)
@example(text=HOSTILE[0])
def test_a_record_for_programs_is_one_object_that_says_what_was_said(kind: str, text: str) -> None:
    written, fact = Written(as_json=True), FACTS[kind](text)
    written.log(fact)
    (line,) = written.records()
    assert _is_inert(line)
    assert line.isascii()
    record = json.loads(line)
    assert set(record) == {"event", "level", "timestamp", *fact.__struct_fields__}
    if "\ud800" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text):
        told = [getattr(fact, name) for name in fact.__struct_fields__]
        assert [record[name] for name in fact.__struct_fields__] == told


def test_a_trace_is_named_where_there_is_one() -> None:
    written = Written(as_json=True)
    for trace_id in ("0af7651916cd43dd8448eb211c80319c", None):
        written.log(telemetry.RequestCrashed("request-1", "POST", "/v1/tasks", "KeyError", "", trace_id))
    traced, other = (json.loads(line) for line in written.records())
    assert traced["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert traced.keys() - other.keys() == {"trace_id"}


_FIELD = re.compile(r"""(\w+)=("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"']*)""")


@pytest.mark.parametrize("kind", FACTS)
@given(text=TEXTS)
@example(text=HOSTILE[0])
def test_a_record_for_people_is_one_line_of_the_facts_own_fields(kind: str, text: str) -> None:
    written, fact = Written(as_json=False), FACTS[kind](text)
    written.log(fact)
    (line,) = written.records()
    assert _is_inert(line)
    head, _, _ = line.partition("]")
    assert re.fullmatch(r"\S+ \[\w+ *", head)
    fields = _FIELD.findall(line)
    assert sorted(name for name, _ in fields) == sorted(fact.__struct_fields__)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    found = logging.getLogger()
    handlers, level = list(found.handlers), found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_libraries_log_is_a_record_too_with_its_traceback_on_the_line(root: logging.Logger, as_json: bool) -> None:
    root.handlers.clear()  # pytest's own would raise for what cannot be formatted
    written = Written(as_json=as_json)
    written.log.hear_libraries()
    loud = logging.getLogger("some.library")
    try:
        raise ValueError("bad password=hunter2-hunter2\n\x1b[31mred")
    except ValueError:
        loud.exception("it failed: %s", "a\nb Bearer c4nary/value")
    loud.warning("arguments that do not fit %d", "x")
    loud.warning(HOSTILE[2])
    loud.info("too quiet")
    records = written.records()
    assert len(records) == 2
    assert all(map(_is_inert, records))
    text = "\n".join(records)
    assert "hunter2" not in text
    assert "c4nary" not in text
    assert "Traceback" in text
    if as_json:
        assert [json.loads(record)["library"] for record in records] == ["some.library"] * 2


# The terminal


@given(TEXTS)
def test_no_text_commands_the_terminal(text: str) -> None:
    assert _is_inert(render.printable(text))
    assert all(letter.isprintable() or letter in "\n\t" for letter in render.printable(text, lines=True))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_is_rendered_commands_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.line(text)
    render.say(text)
    render.failure(text, [text])
    render.facts([("name", text)])
    render.paragraph(text, indent=2)
    render.table((render.Column("A"), render.Column("B", wraps=True)), [(text, text)], empty=text)
    render.table((render.Column("A"),), [], empty=text)
    out, err = capsys.readouterr()
    for letter in out + err:
        assert letter.isprintable() or letter in "\n\t"


@given(st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3)))
@example(value="\x7f")
@example(value="ü\x7f")
def test_json_for_programs_is_the_value_and_commands_no_terminal_either(value: Any) -> None:
    if "\\ud" in json.dumps(value):  # no JSON of ours holds a lone surrogate
        return
    stream, usual = io.StringIO(), sys.stdout
    sys.stdout = stream
    try:
        render.json(value)
    finally:
        sys.stdout = usual
    text = stream.getvalue()
    assert json.loads(text) == value
    assert _is_inert(text[:-1])
