"""The condition that a row's agent matches patterns: what a list may show is chosen in its statement, or its pages
would have holes.
"""

from __future__ import annotations

from collections.abc import Sequence

Agents = Sequence[Sequence[str]] | None
"""Patterns of agents' names, with ``*`` for any text: a name has to match all of one of these. None: every name, and
also a row of no agent.
"""

MATCHES_NOTHING = "1 = 0"
GROUP = 50
_LETTERS = str.maketrans("0123456789", "abcdefghij")  # a parameter's name has no digits


def condition(agents: Agents, params: dict[str, object]) -> str | None:
    """Return the condition on the column ``agent``, and add its parameters to *params*; None where there is none."""
    if agents is None:
        return None
    if not agents:
        return MATCHES_NOTHING
    either = [" and ".join(_matches(pattern, params) for pattern in each) for each in agents]
    while len(either) > 1:  # in groups, because SQLite takes no expression that is a thousand deep
        groups = [either[start : start + GROUP] for start in range(0, len(either), GROUP)]
        either = [" or ".join(f"({each})" for each in group) for group in groups]
    return f"({either[0]})"


def _matches(pattern: str, params: dict[str, object]) -> str:
    name = "agent_" + str(len(params)).translate(_LETTERS)
    if "*" not in pattern:
        params[name] = pattern
        return f"agent = :{name}"
    # Names are lower case, so it does not matter that SQLite's like knows no difference.
    params[name] = pattern.replace("!", "!!").replace("_", "!_").replace("%", "!%").replace("*", "%")
    return f"agent like :{name} escape '!'"
