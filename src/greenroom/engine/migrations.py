"""An agent's own `migrate(state, from_revision, to_revision)`: what takes a session's state to this revision.

Called by `engine.running` for state that another revision wrote. Looked for on the agent that was built, on what the
factory's reference names, and in its module; only what takes three positional parameters counts.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from greenroom.adapters import contract
from greenroom.engine import advice, factories, failures, values

MAX_STATE_BYTES = 4 * 1024 * 1024


class Migrate(msgspec.Struct, frozen=True):
    """A function of the agent's code, plain (it runs in a thread) or a coroutine function."""

    name: str  # for people: where it was found
    function: Callable[[Any, int, int], Any]

    async def __call__(self, state: Any, from_revision: int, to_revision: int, /) -> Any:
        """Return the state as *to_revision* has it, None for none; raises `contract.Failure`, whatever the code
        does.
        """
        try:
            if inspect.iscoroutinefunction(self.function):
                migrated = await self.function(state, from_revision, to_revision)
            else:
                migrated = await asyncio.to_thread(self.function, state, from_revision, to_revision)
                if inspect.isawaitable(migrated):
                    migrated = await migrated
            return values.read(values.encode(migrated, "state", limit_bytes=MAX_STATE_BYTES))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # agent code: SystemExit, too
            what = f"returned what cannot be kept: {error}" if isinstance(error, values.Unfit) else _told(error)
            told = f"cannot take the session's state from revision {from_revision} to {to_revision}: {self.name} {what}"
            remedy = "deploy a revision whose migrate can, or remove the session"
            raise contract.Failure("state_not_migratable", failures.followed_by(told, remedy)) from error


def find(agent: object, factory: factories.Factory, where: advice.Surroundings) -> Migrate | None:
    """Return the `migrate` of *agent*, which *factory* has made; None where it has none."""
    for name, owner in _owners(agent, factory, where):
        function = getattr(owner, "migrate", None)
        if function is not None and _takes_three(function):
            return Migrate(name, function)
    return None


def _owners(agent: object, factory: factories.Factory, where: advice.Surroundings) -> Iterator[tuple[str, object]]:
    yield f"{type(agent).__name__}.migrate", agent
    yield f"{factory.reference}.migrate", factory.target
    yield f"{factory.reference.partition(':')[0]}:migrate", factories.module_of(factory.reference, where)


def _takes_three(found: object) -> bool:
    if not callable(found):
        return False
    try:
        inspect.signature(found).bind(None, None, None)
    except (TypeError, ValueError):  # others; a builtin without a signature
        return False
    return True


def _told(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {failures.message_of(error)}"
