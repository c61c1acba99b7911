"""Proof by simulation: what must hold, whatever fails when. Every run is its seed, so a failure can be seen again.

`core` is the pure decisions over a table in memory (`table`), on an event heap: thousands of runs a second. `loops` is
the real loops over a real SQLite file, in virtual time. Both are judged by `checks`. Contributors: docs/testing.md.
"""
