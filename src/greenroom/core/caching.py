"""The keys of the result cache: which submissions ask an agent for the same. Pure; `store.results` keeps the results.

Two inputs are the same when no agent can tell them apart by their values: the order of an object's members and the way
in which a string or a number is written do not count, but 1 and 1.0 do, for Python tells them apart. Text is not
normalised: two ways to write an accent are two texts.
"""

from __future__ import annotations

import hashlib

import msgspec


def key(revision: int, input: bytes) -> str:
    """Return what equal submissions to *revision* have in common; *input* is JSON.

    >>> key(3, b'{"a":1,"b":[1e0]}') == key(3, b'{ "b": [1.0], "a": 1 }')
    True
    >>> key(3, b'1') == key(3, b'1.0')
    False
    """
    canonical = msgspec.json.encode(msgspec.json.decode(input), order="sorted")
    # The whole digest: who finds two inputs with one would be given the answer to another question.
    return f"{revision}.{hashlib.sha256(canonical).hexdigest()}"


def made_by(key: str, revision: int | None) -> str:
    """Return the key of a result that *revision* has made, of a task that was submitted with *key*.

    A rollout may have moved on between the two: a result belongs to the revision that made it.
    """
    return key if revision is None else f"{revision}.{key.partition('.')[2]}"


def may_answer(cache_control: str | None) -> bool:
    """Whether a request with this ``Cache-Control`` header may be answered from the cache, and its result kept.

    >>> may_answer("max-age=0, No-Cache")
    False
    """
    if cache_control is None:
        return True
    directives = {directive.partition("=")[0].strip().lower() for directive in cache_control.split(",")}
    return directives.isdisjoint({"no-cache", "no-store"})


def trims_after(max_entries: int) -> int:
    """Return after how many new entries a full cache is cut back to *max_entries*: by so many it may be over it.

    To find the oldest of many takes reading past all the others; a tenth of them at a time costs each entry little.
    """
    return max(1, max_entries // 10)
