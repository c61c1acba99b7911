"""Chooses the agent for a request that names none, and says why; refuses when nothing fits or two fit alike.

`api.tasks` calls it. An `Index` is built once for a set of agents; `choose` is then a pure function of
index and text that costs some tens of microseconds. It knows nothing of tasks, replicas or models.

How a score comes about: every word of the request is looked up by its stem in what each agent declares
(skills, examples, name, description) and, through `core.words`, in what each agent does. A word that few
agents have in common counts more. The matches add up to an agent's evidence *e*, and its score is ``e / (e
+ 1 + f)``, where *f* is what the request says of jobs that no agent here does.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from greenroom.core import words

# Tuned on the `dev` half of tests/core/routing_requests.toml; `bench/routing.py` measures both halves.
THRESHOLD: Final = 0.30
MARGIN: Final = 0.05

# What one word in common is worth, by where the agent says it.
SKILL: Final = 1.0
NAME: Final = 0.9
DESCRIPTION: Final = 0.7
EXAMPLE: Final = 0.5
WHOLE_EXAMPLE: Final = 2.0  # the request is the example, word by word
CONCEPT: Final = 0.8  # of the above, where the word differs but means the same job
REPEATED: Final = 0.7  # each further word of a concept, of the one before
OPENING: Final = 2.0  # the first word that is not filler: mostly the verb that says what to do
FAR: Final = 40  # words from either end where a word counts half: the middle is mostly material

EVERYDAY: Final = 0.7  # find, order, plan: a word that people use for anything
MISSPELT: Final = 0.8
FOREIGN: Final = 0.5  # a word for a job that no agent here does
JOB_WORD: Final = 0.6  # how sure one word of an agent's makes its job
SIMILAR: Final = 0.7  # what an embedding model is sure of

REASONS: Final = 3  # that a score names
LISTED: Final = 10  # candidates that a message names


class Candidate(msgspec.Struct, frozen=True):
    """An agent as its manifest describes it. Names are unique in an index."""

    name: str
    description: str = ""
    skills: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


class Score(msgspec.Struct, frozen=True):
    """How well an agent fits, in [0, 1], and the strongest reasons in words; no reasons, no match."""

    agent: str
    score: float
    reasons: tuple[str, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """The agent that fits; *scores* are of all candidates, best first."""

    agent: str
    scores: tuple[Score, ...]


class NoRoute(msgspec.Struct, frozen=True):
    """No agent was chosen; *scores* are of all candidates, best first."""

    reason: str
    scores: tuple[Score, ...]

    @property
    def message(self) -> str:
        """The answer to the caller: why, what to do, and which agents there are."""
        listed = ", ".join(f"{score.agent} ({score.score:.2f})" for score in self.scores[:LISTED])
        more = f" and {len(self.scores) - LISTED} more" if len(self.scores) > LISTED else ""
        if not listed:
            return f"cannot choose an agent: {self.reason}; deploy one first"
        return f"cannot choose an agent: {self.reason}; name one in `agent`: {listed}{more}"


# What an embedding model says: how like each of some passages a text is, 0 unrelated to 1 the same.
Similarity: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]


class Match(msgspec.Struct, frozen=True):
    """A term leads to an agent: what that is worth, and why in words."""

    agent: int
    worth: float
    reason: str


class Example(msgspec.Struct, frozen=True):
    """A request that an agent declares as its own."""

    agent: int
    text: str
    terms: frozenset[str]


class Index(msgspec.Struct, frozen=True):
    """A set of agents, prepared for `choose`; immutable, so it may be shared between threads."""

    candidates: tuple[Candidate, ...]
    terms: Mapping[str, tuple[Match, ...]]
    jobs: Mapping[str, tuple[Match, ...]]
    examples: tuple[Example, ...]
    passages: tuple[tuple[int, str], ...]
    spellings: words.Spellings

    @classmethod
    def build(cls, candidates: Sequence[Candidate]) -> "Index":
        """Prepare *candidates*, in any order: the order never changes an answer."""
        agents = tuple(sorted(candidates, key=lambda candidate: candidate.name))
        terms: dict[str, dict[int, Match]] = defaultdict(dict)
        jobs: dict[str, dict[int, list[Match]]] = defaultdict(lambda: defaultdict(list))
        for term, match in _matches(agents):
            if match.agent not in terms[term] or terms[term][match.agent].worth < match.worth:
                terms[term][match.agent] = match
            for job, strength in words.jobs(term).items():
                jobs[job][match.agent].append(replace(match, worth=match.worth * strength))
        return cls(
            candidates=agents,
            terms={term: _rated(found.values(), len(agents)) for term, found in terms.items()},
            jobs={
                job: _rated((_together(found) for found in by_agent.values()), len(agents))
                for job, by_agent in jobs.items()
            },
            examples=tuple(_examples(agents)),
            passages=tuple((agent, said) for agent, of in enumerate(agents) for said in _passages(of)),
            spellings=words.Spellings.of(terms),
        )


def choose(
    index: Index,
    text: str,
    *,
    threshold: float = THRESHOLD,
    margin: float = MARGIN,
    similarity: Similarity | None = None,
) -> Choice | NoRoute:
    """Choose the agent of *index* for the request *text*.

    Only the beginning and the end of a long text are read (`words.read`). The best score below *threshold*,
    or less than *margin* above the second, is a `NoRoute`. *similarity* adds what an embedding model
    thinks; it is called once, with all passages of the index, and the call takes as long as it does.
    """
    scores = _scores(index, text, similarity)
    if not scores:
        return NoRoute("there are no agents", scores)
    if not text.strip():
        return NoRoute("the request is empty", scores)
    best, *others = scores
    if best.score < threshold:
        return NoRoute("no agent fits well enough", scores)
    if others and best.score - others[0].score < margin:
        return NoRoute(f"{best.agent} and {others[0].agent} fit about equally", scores)
    return Choice(best.agent, scores)


def _scores(index: Index, text: str, similarity: Similarity | None) -> tuple[Score, ...]:
    evidence = [_Evidence() for _ in index.candidates]
    request = _resolved(index, text)
    foreign = _add_words(index, request, evidence)
    _add_examples(index, request, evidence)
    if similarity is not None and text.strip():
        _add_similarity(index, text, similarity, evidence)
    scores = [
        Score(candidate.name, found.total / (found.total + 1 + FOREIGN * foreign), found.strongest())
        for candidate, found in zip(index.candidates, evidence, strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: (-score.score, score.agent)))


class _Evidence:
    """What speaks for one agent while a request is read."""

    __slots__ = ("reasons", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.reasons: dict[str, float] = {}

    def add(self, worth: float, reason: str) -> None:
        self.total += worth
        self.reasons[reason] = self.reasons.get(reason, 0.0) + worth

    def strongest(self) -> tuple[str, ...]:
        return tuple(sorted(self.reasons, key=lambda reason: (-self.reasons[reason], reason))[:REASONS])


def _resolved(index: Index, text: str) -> dict[str, tuple[str, float]]:
    """The request's terms in order, each once, with the word it was written as and its weight."""
    resolved: dict[str, tuple[str, float]] = {}
    found = words.read(text)
    for position, word in enumerate(found):
        term = word.stem
        weight = 1 / (1 + min(position, len(found) - 1 - position) / FAR)
        if words.everyday(term):
            weight *= EVERYDAY
        elif position == 0:
            weight *= OPENING
        if term not in index.terms and not words.known(term):
            term = index.spellings.nearest(term) or words.thesaurus_spellings().nearest(term) or term
            weight *= MISSPELT
        resolved.setdefault(term, (word.text, weight))
    return resolved


def _add_words(index: Index, request: Mapping[str, tuple[str, float]], evidence: Sequence[_Evidence]) -> float:
    """Add what each word says; answer how much the words speak for jobs that no agent here does."""
    foreign = 0.0
    seen: dict[str, int] = defaultdict(int)
    for term, (written, weight) in request.items():
        found: dict[int, Match] = {match.agent: match for match in index.terms.get(term, ())}
        for job, full_strength in words.jobs(term).items():
            strength = full_strength * CONCEPT * REPEATED ** seen[job]
            seen[job] += 1
            for match in index.jobs.get(job, ()):
                worth = match.worth * strength
                if match.agent not in found or found[match.agent].worth < worth:
                    found[match.agent] = Match(match.agent, worth, f"'{written}' is about {job}, like {match.reason}")
            if job not in index.jobs:
                foreign += strength * weight
        for match in found.values():
            evidence[match.agent].add(match.worth * weight, match.reason)
    return foreign


def _add_examples(index: Index, request: Mapping[str, object], evidence: Sequence[_Evidence]) -> None:
    for example in index.examples:
        if shared := len(example.terms & request.keys()):
            dice = 2 * shared / (len(example.terms) + len(request))
            evidence[example.agent].add(WHOLE_EXAMPLE * dice * dice, f"the example '{example.text}'")


def _add_similarity(index: Index, text: str, similarity: Similarity, evidence: Sequence[_Evidence]) -> None:
    best = [0.0] * len(index.candidates)
    likenesses = similarity(text, [said for _, said in index.passages])
    for (agent, _), likeness in zip(index.passages, likenesses, strict=True):
        best[agent] = max(best[agent], likeness)
    for found, likeness in zip(evidence, best, strict=True):
        if likeness > 0:
            found.add(SIMILAR * likeness, f"means much the same ({likeness:.2f})")


def _declared(candidate: Candidate) -> Iterator[tuple[float, str, str]]:
    """All that an agent says of itself: worth, text, and the reason that it gives."""
    for skill in candidate.skills:
        yield SKILL, skill, f"the skill '{skill}'"
    yield NAME, candidate.name, f"the name '{candidate.name}'"
    yield DESCRIPTION, candidate.description, ""
    for example in candidate.examples:
        yield EXAMPLE, example, f"the example '{example}'"


def _matches(agents: Sequence[Candidate]) -> Iterator[tuple[str, Match]]:
    for agent, candidate in enumerate(agents):
        for worth, said, reason in _declared(candidate):
            for word in words.read(said):
                yield word.stem, Match(agent, worth, reason or f"'{word.text}' in the description")


def _examples(agents: Sequence[Candidate]) -> Iterator[Example]:
    for agent, candidate in enumerate(agents):
        for text in candidate.examples:
            yield Example(agent, text, frozenset(word.stem for word in words.read(text)))


def _passages(candidate: Candidate) -> Iterator[str]:
    """What an embedding model should compare a request with."""
    skills = ", ".join(candidate.skills)
    yield f"{candidate.name.replace('-', ' ')}: {candidate.description}. {skills}".strip()
    yield from candidate.examples


def _together(matches: Sequence[Match]) -> Match:
    """One match for all that an agent says of one job: each word takes some of the doubt away."""
    doubt = math.prod(1 - JOB_WORD * match.worth for match in matches)
    return replace(max(matches, key=lambda match: match.worth), worth=1 - doubt)


def _rated(matches: Iterable[Match], agents: int) -> tuple[Match, ...]:
    """The matches of a term, worth less the more agents share it."""
    found = tuple(matches)
    rarity = math.log1p(agents / len(found)) / math.log1p(agents)
    return tuple(replace(match, worth=match.worth * rarity) for match in found)
