"""What is stored encrypted, and what is not and why: every column of bytes is in one of these tables.

`store.vault` seals and opens by them, `store.resealing` finds by them what is not sealed with today's key, and a test
looks for columns that are in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Table(NamedTuple):
    """*key* names the columns that make up a row's place, the tenant apart; *source* is where they are read from."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    source: str


SEALED: Mapping[str, Table] = {
    "task": Table(("input", "output", "error", "metadata", "routing"), ("id",), "task"),
    "task_event": Table(("data",), ("task", "seq"), "task_event join task on task.id = task_event.task"),
    "log_line": Table(("text",), ("seq",), "log_line"),
    "session": Table(("state", "good_state"), ("agent", "id"), "session"),
}

HASHED: Mapping[str, str] = {
    "task.fingerprint": "of a request's body, to know a repeated one by",
    "task.cache_key": "of a task's input, to find its result by",
    "result_cache.key": "of a task's input, to find its result by",
}
"""Hashes of payloads, keyed with the tenant's index key: a plain one would betray whoever can guess a payload."""

LEFT: Mapping[str, str] = {
    "agent.spec": "configuration: it stands in the manifest, and names secrets without holding them",
    "revision.spec": "the same, of a revision",
    "rollout.spec": "the same",
    "rollout.from_spec": "the same",
    "rollout.record": "stages, counts and times",
    "recovery.record": "counts and times",
    "scaling_decision.inputs": "counts",
    "history.record": "counts and times",
    "principal.secret_hash": "a keyed hash already",
    "principal.scopes": "names of actions and agents",
    "webhook.secret": "encrypted already, under the node's own key for it",
    "webhook.old_secret": "the same",
    "data_key.wrapped": "encrypted already, under the key-encryption key",
    "vault.wrapped": "encrypted already, by the key management service",
    "vault.record": "authenticated under the key-encryption key",
}
"""Columns of bytes that are stored as they are."""
