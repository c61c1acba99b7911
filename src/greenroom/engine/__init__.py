"""Runs replicas. `contract` is what an engine must do; empty, so that a replica stays small."""
