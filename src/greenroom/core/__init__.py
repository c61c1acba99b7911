"""Decisions as pure functions and values: no I/O, no clock, no randomness, nothing of a framework."""
