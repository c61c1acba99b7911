"""How often the right agent is chosen: by plain keywords, by Greenroom, and by embeddings if installed.

The requests are those of tests/core/routing_requests.toml. *first* counts requests whose agent scores
highest, *chosen* those that are routed to it, *wrong* those routed elsewhere, *refused* those that fit no
agent and get none. The time is the median of one call.
"""

import math
import resource
import statistics
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from greenroom import embeddings
from greenroom.core import routing, words

REQUESTS = Path(__file__).parent.parent / "tests/core/routing_requests.toml"
SETS = {  # of requests, and the agents that they are for
    "dev": "agents",
    "held_out": "agents",
    "second": "second_agents",
    "unseen": "unseen_agents",
}

# The agents, best first, and the one that is chosen, if any.
Ranked: TypeAlias = Callable[[str], tuple[list[str], str | None]]


def main() -> None:
    asked = tomllib.loads(REQUESTS.read_text())
    methods: dict[str, Callable[[routing.Index], Ranked]] = {
        "keywords": keywords,
        "routing": lambda index: partial(routed, index),
    }
    try:
        similarity = embeddings.Embeddings()
    except embeddings.EmbeddingsMissing as missing:
        print(f"without embeddings: {missing}")
    else:
        methods["embeddings"] = lambda index: partial(likest, index, similarity)
        methods["both"] = lambda index: partial(routed, index, similarity=similarity)

    print(f"{'method':12}{'set':10}{'first':>9}{'chosen':>9}{'wrong':>7}{'refused':>9}{'median µs':>12}")
    for method, prepare in methods.items():
        for name, agents in SETS.items():
            index = routing.Index.build([candidate(agent) for agent in asked[agents]])
            print(f"{method:12}{name:10}{measure(prepare(index), asked[name])}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def candidate(agent: dict[str, Any]) -> routing.Candidate:
    skills, examples = tuple(agent.get("skills", ())), tuple(agent.get("examples", ()))
    return routing.Candidate(agent["name"], agent["description"], skills, examples)


def measure(answer: Ranked, requests: Sequence[dict[str, str]]) -> str:
    fitting = [request for request in requests if "agent" in request]
    first = chosen = wrong = refused = 0
    took_us = []
    for request in requests:
        answer(request["text"])  # once to warm up
        started = time.perf_counter()
        ranked, agent = answer(request["text"])
        took_us.append((time.perf_counter() - started) * 1e6)
        right = request.get("agent")
        first += right is not None and ranked[0] == right
        chosen += right is not None and agent == right
        wrong += right is not None and agent not in (right, None)
        refused += right is None and agent is None
    none = f"{refused}/{len(requests) - len(fitting)}"
    of = len(fitting)
    return f"{f'{first}/{of}':>9}{f'{chosen}/{of}':>9}{wrong:>7}{none:>9}{statistics.median(took_us):>12.0f}"


def routed(
    index: routing.Index, text: str, similarity: routing.Similarity | None = None
) -> tuple[list[str], str | None]:
    answer = routing.choose(index, text, similarity=similarity)
    agent = answer.agent if isinstance(answer, routing.Choice) else None
    return [score.agent for score in answer.scores], agent


def likest(index: routing.Index, similarity: routing.Similarity, text: str) -> tuple[list[str], str | None]:
    """Embeddings alone, without a threshold: the agent of the likest passage."""
    best = dict.fromkeys(range(len(index.candidates)), 0.0)
    likenesses = similarity(text, [said for _, said in index.passages])
    for (agent, _), likeness in zip(index.passages, likenesses, strict=True):
        best[agent] = max(best[agent], likeness)
    return ranking(index, best)


def keywords(index: routing.Index) -> Ranked:
    """The plain way: the words in common with all that an agent declares, rare ones first."""
    declared = [set(tokens(" ".join(passages))) for passages in said_by(index)]
    known_by = Counter(word for declaration in declared for word in declaration)

    def overlap(text: str) -> tuple[list[str], str | None]:
        asked = set(tokens(text))
        rarity = {word: math.log1p(len(declared) / known_by[word]) for word in asked if word in known_by}
        return ranking(
            index,
            {agent: sum(rarity[word] for word in asked & declaration) for agent, declaration in enumerate(declared)},
        )

    return overlap


def said_by(index: routing.Index) -> list[list[str]]:
    return [[said for agent, said in index.passages if agent == of] for of in range(len(index.candidates))]


def tokens(text: str) -> Iterator[str]:
    return (word.strip(".,:?!'\"") for word in text.lower().split() if word not in words.FILLER)


def ranking(index: routing.Index, scores: dict[int, float]) -> tuple[list[str], str | None]:
    order = sorted(scores, key=lambda agent: -scores[agent])
    names = [index.candidates[agent].name for agent in order]
    return names, names[0] if scores[order[0]] > 0 else None


if __name__ == "__main__":
    main()
