"""The threads of synchronous agent code: agents that are plain functions, and tools of asynchronous ones.

The replica's loop has it as default executor, so ``asyncio.to_thread`` and AutoGen's synchronous tools end up
here. A call sees the context variables of who made it (so ``sdk.context.current()`` and captured output work
in tools), and is counted as part of its attempt: an attempt has not ended while one of its threads is still
at work.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import thread as pools
from typing import Any, TypeVar

from greenroom.engine import task_context
from greenroom.sdk import context as sdk_context

# Not the replica's concurrency: a parent that waits in `call_blocking` keeps its thread and has given up its
# slot.
MAX_THREADS = 256

_T = TypeVar("_T")


class AgentThreads(pools.ThreadPoolExecutor):
    """A thread pool that starts threads only when none is idle."""

    def __init__(self) -> None:
        super().__init__(MAX_THREADS, thread_name_prefix="agent")

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        call = functools.partial(_call, contextvars.copy_context(), fn, args, kwargs)
        future = super().submit(call)
        context = sdk_context._current.get(None)  # noqa: SLF001 - the runtime's end of `current()`
        if isinstance(context, task_context.TaskContext):
            context.threads.add(future)
            future.add_done_callback(context.threads.discard)
        return future


def _call(
    context: contextvars.Context,
    function: Callable[..., _T],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> _T:
    try:
        return context.run(function, *arguments, **keywords)
    except StopIteration as error:  # which a future cannot carry: its waiter would wait for ever
        raise RuntimeError("the agent's code raised StopIteration") from error
