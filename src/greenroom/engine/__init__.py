"""Runs replicas. `contract` says what an engine is, `local` is processes on this machine; empty, so that a replica stays small."""
