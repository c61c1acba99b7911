"""What an agent may say of its rollouts: strategies and their keys, checks, and recorded examples."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import settings
from greenroom.settings import Example, Rollout, SettingsInvalid


def _rollout(**given: Any) -> Rollout:
    return settings.parse_agent("a", {"factory": "a:b", "rollout": given}).rollout


def _problems(**given: Any) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        _rollout(**given)
    return {problem.path.removeprefix("agents.a.rollout."): problem.message for problem in caught.value.problems}


def _example(**given: Any) -> Example:
    return _rollout(examples=[{"input": "Say hello"} | given]).examples[0]


def test_without_a_word_it_rolls_by_a_quarter_and_nothing_is_missing() -> None:
    assert settings.parse_agent("a", {"factory": "a:b"}).rollout == Rollout(
        strategy="rolling",
        checks=(),
        examples=(),
        weights=(10, 25, 50, 100),
        max_surge="25%",
        max_unavailable=0,
        promotion="automatic",
        hold_s=0.0,
        scale_down_delay_s=5.0,
        progress_deadline_s=120.0,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "blue-green"},
        {"strategy": "blue-green", "weights": [10, 25, 50, 100], "max_surge": "25%", "max_unavailable": 0},
        {"strategy": "canary"},
        {"strategy": "canary", "weights": [100]},
        {"strategy": "canary", "weights": list(range(81, 101))},
        {"max_surge": 0, "max_unavailable": 1},
        {"max_surge": "0%", "max_unavailable": "100%"},
        {"max_surge": 10_000},
        {"checks": ["agents:smoke", "checks.deep:Suite.run"]},
        {"promotion": "manual"},
        {"hold_s": 86_400, "scale_down_delay_s": 0, "progress_deadline_s": 0.5},
    ],
)
def test_a_part_of_it_may_be_said(given: dict[str, Any]) -> None:
    rollout = _rollout(**given)
    said = msgspec.to_builtins(rollout)
    assert {key: list(said[key]) if isinstance(said[key], tuple) else said[key] for key in given} == given
    assert _rollout(**said) == rollout


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("strategy", "blue_green", 'expected one of "blue-green", "canary", "rolling", got "blue_green"; did you mean'),
        ("strategy", "recreate", 'got "recreate"'),
        ("checks", "agents:smoke", "expected a list of at most 20"),
        ("checks", ["agents:smoke"] * 21, "got a list of 21"),
        ("checks", ["agents:class"], '"class" cannot be a name in Python'),
        ("weights", [5, 25, 50], "the weights have to rise and end at 100 (all traffic), got [5, 25, 50]"),
        ("weights", [50, 25, 100], "the weights have to rise and end at 100 (all traffic), got [50, 25, 100]"),
        ("weights", [5, 5, 100], "have to rise"),
        ("weights", [50, 100, 100], "have to rise"),
        ("weights", [], "expected a list of 1 to 20, got a list of 0"),
        ("weights", list(range(80, 101)), "expected a list of 1 to 20, got a list of 21"),
        ("weights", 50, "expected a list of 1 to 20, got 50"),
        ("max_surge", -1, 'a number of replicas from 0 to 10000 or a percentage from "0%" to "100%", got -1'),
        ("max_surge", 10_001, "got 10001"),
        ("max_surge", 1.5, "got 1.5"),
        ("max_surge", True, "got true"),
        ("max_surge", "101%", 'got "101%"'),
        ("max_surge", "25", 'got "25"'),
        ("max_surge", "025%", 'got "025%"'),
        ("max_surge", "2.5%", 'got "2.5%"'),
        ("max_surge", "25%\n", "got"),
        ("max_unavailable", "-5%", 'got "-5%"'),
        ("max_surge", 0, "is 0 and max_unavailable too: nothing could move; expected one above 0"),
        ("max_surge", "0%", 'is "0%" and max_unavailable too'),
        ("promotion", "auto", 'did you mean "automatic"?'),
        ("hold_s", -1, "expected a number of seconds from 0"),
        ("scale_down_delay_s", 86_401, "got 86401"),
        ("progress_deadline_s", 0, "expected a number of seconds > 0"),
        ("examples", {"input": "x"}, "expected a list of at most 50, got a table"),
        ("examples", [{"input": "x"}] * 51, "got a list of 51"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, message: str) -> None:
    given: dict[str, Any] = {"strategy": "canary"} if key == "weights" else {}
    problems = _problems(**given | {key: value})
    assert list(problems) == [key]
    assert message in problems[key]


@pytest.mark.parametrize(("weight", "shown"), [(0, "0"), (101, "101"), (2.5, "2.5"), ("5%", '"5%"'), (True, "true")])
def test_a_weight_is_a_whole_percentage(weight: object, shown: str) -> None:
    problems = _problems(strategy="canary", weights=[weight, 100])
    assert problems == {"weights[0]": f"expected a whole number from 1 to 100, got {shown}"}


@pytest.mark.parametrize(
    ("strategy", "key", "value", "message"),
    [
        (
            "rolling",
            "weights",
            [10, 100],
            'is of strategy = "canary" only, and the strategy is "rolling"; remove the key, or leave it [10, 25,',
        ),
        ("blue-green", "weights", [10, 100], 'the strategy is "blue-green"'),
        ("blue-green", "max_surge", 1, 'is of strategy = "rolling" only, and the strategy is "blue-green"'),
        ("blue-green", "max_surge", 0, 'leave it "25%"'),
        ("canary", "max_unavailable", "10%", "leave it 0"),
    ],
)
def test_a_key_of_another_strategy_would_do_nothing_and_is_refused(
    strategy: str, key: str, value: object, message: str
) -> None:
    problems = _problems(strategy=strategy, **{key: value})
    assert list(problems) == [key]
    assert message in problems[key]


def test_a_strategy_that_is_no_strategy_hides_no_other_mistake() -> None:
    assert _problems(strategy="red", weights=[10, 20], promotion=1).keys() == {"strategy", "weights", "promotion"}


@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "canary"])
def test_another_strategy_for_once_leaves_out_the_keys_of_the_declared_one(strategy: str) -> None:
    for declared in (
        {"strategy": "canary", "weights": [10, 100], "hold_s": 9},
        {"max_surge": 2, "max_unavailable": 1, "hold_s": 9},
    ):
        rollout = _rollout(**settings.with_strategy(declared, strategy))
        assert (rollout.strategy, rollout.hold_s) == (strategy, 9)
    assert settings.with_strategy({"max_surge": 2}, "rolling") == {"max_surge": 2, "strategy": "rolling"}
    assert settings.with_strategy(None, strategy) == {"strategy": strategy}


def test_an_example_needs_an_input_only() -> None:
    example = _example()
    assert example == Example(input="Say hello")
    assert example.equals is msgspec.UNSET
    assert (example.contains, example.not_contains, example.matches, example.within_s) == ((), (), None, None)
    assert _problems(examples=[{}]) == {"examples[0].input": "is missing; expected a JSON value"}


@pytest.mark.parametrize("value", [None, True, 0, 2.5, "", "text", [], [None], {}, {"a": [1, {"b": None}]}])
def test_input_and_equals_are_any_json_value_and_null_is_one(value: object) -> None:
    example = _example(input=value, equals=value)
    assert (example.input, example.equals) == (value, value)
    again = msgspec.json.decode(msgspec.json.encode(example), type=Example)
    assert again == example
    assert again.equals is not msgspec.UNSET


def test_what_is_absent_stays_absent_in_the_store() -> None:
    again = msgspec.json.decode(msgspec.json.encode(_example()), type=Example)
    assert again.equals is msgspec.UNSET


def test_one_phrase_is_a_list_of_one() -> None:
    assert _example(contains="Ada").contains == ("Ada",)
    assert _example(contains="Ada") == _example(contains=["Ada"])
    assert _example(not_contains="sorry").not_contains == ("sorry",)


def test_examples_are_arrays_of_tables_in_the_manifest_and_inline_in_a_variable(tmp_path: Path) -> None:
    manifest = tmp_path / "greenroom.toml"
    manifest.write_text(
        '[agents.a]\nfactory = "a:b"\n[agents.a.rollout]\nstrategy = "canary"\n'
        "[[agents.a.rollout.examples]]\ninput = { task = 'x' }\nmatches = '^\\d+$'\n"
        "[[agents.a.rollout.examples]]\ninput = 'y'\nequals = 1\n"
    )
    examples = settings.load(manifest, {}).agents["a"].rollout.examples
    assert examples == (Example(input={"task": "x"}, matches=r"^\d+$"), Example(input="y", equals=1))
    environ = {"GREENROOM_AGENTS__A__ROLLOUT__EXAMPLES": '[{ input = "z", contains = "Z" }]'}
    loaded = settings.load(manifest, environ)
    assert loaded.agents["a"].rollout.examples == (Example(input="z", contains=("Z",)),)
    assert loaded.agents["a"].rollout.strategy == "canary"
    assert loaded.origins["agents.a.rollout.examples"] == "GREENROOM_AGENTS__A__ROLLOUT__EXAMPLES"


@pytest.mark.parametrize(
    ("key", "value", "path", "message"),
    [
        ("input", {"x": float("nan")}, "input.x", "expected a finite number"),
        ("input", datetime.date(2026, 1, 1), "input", "expected a JSON value, got a date"),
        ("input", "x" * 70_000, "input", "expected at most 65536 bytes as JSON, got 70002"),
        ("equals", [2**63], "equals[0]", "at most 64 bits"),
        ("equals", "\ud800", "equals", "text in Unicode"),
        ("contains", "", "contains", "expected text of 1 to 2000 characters"),
        ("contains", 5, "contains", "expected text or a list of at most 20, got 5"),
        ("contains", ["a"] * 21, "contains", "got a list of 21"),
        ("contains", ["a", 5], "contains[1]", "expected text of 1 to 2000 characters, got 5"),
        ("not_contains", ["x" * 2001], "not_contains[0]", "expected text"),
        ("matches", "", "matches", "expected a regular expression of at most 500 characters"),
        ("matches", "a" * 501, "matches", "expected a regular expression of at most 500 characters"),
        ("matches", 5, "matches", "got 5"),
        ("matches", "(", "matches", "cannot be read as a regular expression: missing ), unterminated"),
        ("matches", "a{1,99999999999}", "matches", "cannot be read as a regular expression"),
        ("matches", "[[a]", "matches", "cannot be read as a regular expression: Possible nested set"),
        ("matches", "(?\n", "matches", "unknown extension ? "),
        ("matches", "(" * 250 + ")" * 250, "matches", "has more than 100 opening parentheses"),
        ("within_s", 0, "within_s", "expected a number of seconds > 0 and at most 86400, got 0"),
        ("within_s", 86_401, "within_s", "got 86401"),
        ("within_s", True, "within_s", "got true"),
        ("contain", "x", "contain", 'unknown key; did you mean "contains"?'),
    ],
)
def test_a_wrong_property_is_named(key: str, value: object, path: str, message: str) -> None:
    problems = _problems(examples=[{"input": "fine", "matches": "^a+$"}, {"input": "x"} | {key: value}])
    assert list(problems) == [f"examples[1].{path}"]
    assert message in problems[f"examples[1].{path}"]


def test_an_expression_that_python_only_warns_of_is_refused_where_warnings_are_silent() -> None:
    with warnings.catch_warnings(action="ignore"):
        problems = _problems(examples=[{"input": "x", "matches": "[[b]"}])
    assert list(problems) == ["examples[0].matches"]


def test_mistakes_of_all_examples_are_told_at_once() -> None:
    problems = _problems(examples=[5, None, {"input": 1, "within_s": 0}, {"input": 1, "matches": ")"}])
    assert problems.keys() == {
        "examples[0]",
        "examples[1].input",
        "examples[2].within_s",
        "examples[3].matches",
    }
    assert problems["examples[0]"] == "expected a table, got 5"


def test_a_bottomless_input_is_refused() -> None:
    bottomless: list[Any] = []
    bottomless.append(bottomless)
    [message] = _problems(examples=[{"input": bottomless}]).values()
    assert message == "expected at most 32 levels of nesting"


def test_no_text_with_a_pattern_may_also_be_a_list() -> None:
    # Of such a union msgspec 0.22 reads and frees memory that is not its own: it ends the process, if one is lucky.
    encoded = msgspec.json.encode(_example(contains="Ada", not_contains=["b", "c"], matches="^A"))
    for _ in range(200):
        assert msgspec.json.decode(encoded, type=Example) == _example(**msgspec.json.decode(encoded))
