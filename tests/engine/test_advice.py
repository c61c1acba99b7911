"""What a replica lacks and its author's shell had: told where the exception is told."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import replicas
from greenroom.engine import advice, failures


@dataclasses.dataclass
class Where:
    snapshot: str
    env: tuple[str, ...] = ("NAMED_API_KEY",)
    secrets: tuple[str, ...] = ("HIDDEN_API_KEY",)
    is_closed: bool = True


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    for name in ("NAMED_API_KEY", "FORGOTTEN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRESENT_API_KEY", "x")
    monkeypatch.chdir(tmp_path)
    return Where(str(tmp_path))


def raised(by: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of any kind
        by()
    return caught.value


def test_a_file_that_the_snapshot_lacks_belongs_into_include(where: Where, tmp_path: Path) -> None:
    file = tmp_path / "prompts" / "first.txt"
    for error in (
        raised(Path("prompts/first.txt").read_text),
        raised(file.read_text),
        raised((tmp_path / "prompts/../prompts/first.txt").stat),
        FileNotFoundError(2, "no such file", os.fsencode(file)),
        FileNotFoundError(2, "no such file", file),
    ):
        assert 'add "prompts/first.txt" to `include` in the manifest' in str(advice.remedy(error, where))


@pytest.mark.parametrize("name", [".env", "prompts/.hidden", "run.log"])
def test_a_file_that_no_snapshot_ever_holds_needs_another_name(where: Where, name: str) -> None:
    assert "give the file another name" in str(advice.remedy(raised(Path(name).read_text), where))


def test_a_file_elsewhere_is_the_agents_own_affair(where: Where, tmp_path: Path) -> None:
    for name in (tmp_path.parent / "x.txt", "../x.txt", f"{tmp_path}-2/x.txt"):
        assert advice.remedy(raised(Path(name).read_text), where) is None
    assert advice.remedy(FileNotFoundError("no model"), where) is None
    assert advice.remedy(FileNotFoundError(2, "no descriptor", 7), where) is None


FORGOTTEN = 'add "FORGOTTEN_API_KEY" to `env` in the manifest'
NOTHING: dict[str, str] = {}
UNSET = "NAMED_API_KEY is in the agent's `env`, and the node does not have it"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: os.environ["FORGOTTEN_API_KEY"], FORGOTTEN),
        (lambda: os.environ["FORGOTTEN"], 'add "FORGOTTEN" to `env`'),
        (lambda: os.environ.pop("NAMED_API_KEY"), UNSET),
        (lambda: os.environ["HIDDEN_API_KEY"], "one of the agent's `secrets`"),
        (lambda: NOTHING["FORGOTTEN_API_KEY"], None),
        (lambda: NOTHING["NAMED_API_KEY"], UNSET),
        ("pass api_key to the client or set the FORGOTTEN_API_KEY environment variable", FORGOTTEN),
        ("PRESENT_API_KEY or FORGOTTEN_API_KEY is missing", FORGOTTEN),
        ("please export FORGOTTEN_API_KEY", FORGOTTEN),
        ("no NAMED_API_KEY", UNSET),
        ("set FORGOTTEN_API_KEY or NAMED_API_KEY", UNSET),
        ("the environment variable PRESENT_API_KEY is wrong", None),
        ("the environment has no GREENROOM_API_KEY", None),
        ("MAX_LENGTH is set to 5", None),
        ("429: RATE_LIMIT", None),
        ("FORGOTTEN_API_KEY looks odd", None),
    ],
)
def test_a_variable_that_the_replica_lacks_is_named_with_the_reason(
    where: Where, error: Callable[[], object] | str, words: str | None
) -> None:
    given = RuntimeError(error) if isinstance(error, str) else raised(error)
    told = advice.remedy(given, where)
    assert told is None if words is None else words in str(told)


def test_a_cause_counts_and_what_was_merely_handled_does_not(where: Where) -> None:
    missing = raised(lambda: os.environ["FORGOTTEN_API_KEY"])
    caused = RuntimeError("no model")
    caused.__cause__ = missing
    handled = RuntimeError("no model")
    handled.__context__ = missing
    assert FORGOTTEN in str(advice.remedy(ExceptionGroup("one", [caused]), where))
    assert advice.remedy(handled, where) is None
    caused.__cause__ = caused
    assert advice.remedy(caused, where) is None


def test_an_exception_whose_attributes_raise_is_its_own_affair(where: Where) -> None:
    class Trap(FileNotFoundError):
        @property
        def filename(self) -> str:
            raise RuntimeError

    assert advice.remedy(Trap(), where) is None


@pytest.mark.parametrize("name", ["x" * 4000, "a\udcffb"])
def test_a_name_that_is_odd_is_told_within_bounds(where: Where, name: str) -> None:
    remedy = advice.remedy(FileNotFoundError(2, "no such file", name), where)
    assert remedy is not None
    told = failures.followed_by("y" * 10_000, remedy)
    assert len(told.encode()) <= failures.MAX_MESSAGE_BYTES
    assert "y…; the agent's snapshot holds" in told


AGENT = """
import os, pathlib

HERE = pathlib.Path(__file__).parent

def build():
    os.environ["FORGOTTEN_API_KEY"]

async def run(input):
    try:
        (HERE / input).read_text()
    except OSError as error:
        raise RuntimeError("x" * 10_000) from error
"""


def test_import_factory_and_task_tell_it(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "reading.py").write_text("import agent\n(agent.HERE / 'prompt.txt').read_text()")
    with replicas.Replica("reading:run", snapshot=tmp_path) as replica:
        message = replica.refused().message
        assert message.endswith('add "prompt.txt" to `include` in the manifest')
        assert "fix the module" not in message
    with replicas.Replica("agent:build", snapshot=tmp_path, check=True) as replica:
        assert replica.refused().message.endswith(
            f"'FORGOTTEN_API_KEY'; the agent sees only the variables that its `env` names: {FORGOTTEN}"
        )
    with replicas.started("agent:run", snapshot=tmp_path) as replica:
        ended = replica.run("prompt.txt")
    assert ended.error_type == "RuntimeError"
    assert ended.error_message.endswith(
        "x…; the agent's snapshot holds *.py and what `include` names: if the agent"
        ' reads this file, add "prompt.txt" to `include` in the manifest'
    )
    assert len(ended.error_message.encode()) <= 4096
