"""Faults, injected on purpose: a nemesis, clients that remember what they were told, a ledger of what really ran, and a
judge.

`campaign` puts them together; ``greenroom chaos`` runs it on a user's node, ``make chaos`` on nodes of its own. The
judge and the schedule are pure; whatever is done to a process is undone, see `held`.
"""
