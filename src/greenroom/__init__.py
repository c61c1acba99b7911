"""Greenroom takes AI agents to production: one durable queue, replicas as processes, recovery.

The public names are loaded when they are first used: a replica imports this package too, and must stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenroom import errors as errors
    from greenroom.sdk import webhooks as webhooks
    from greenroom.sdk.client import AsyncClient as AsyncClient
    from greenroom.sdk.client import Client as Client
    from greenroom.sdk.context import Context as Context
    from greenroom.sdk.context import SubTaskFailed as SubTaskFailed
    from greenroom.sdk.context import current as current_context
    from greenroom.sdk.models import Submission as Submission
    from greenroom.system import ProductionMultiAgentSystem as ProductionMultiAgentSystem

__version__ = "0.1.0"

_HOME_OF = {
    "AsyncClient": ("greenroom.sdk.client", "AsyncClient"),
    "Client": ("greenroom.sdk.client", "Client"),
    "Context": ("greenroom.sdk.context", "Context"),
    "ProductionMultiAgentSystem": ("greenroom.system", "ProductionMultiAgentSystem"),
    "Submission": ("greenroom.sdk.models", "Submission"),
    "SubTaskFailed": ("greenroom.sdk.context", "SubTaskFailed"),
    "current_context": ("greenroom.sdk.context", "current"),
    "errors": ("greenroom.errors", None),
    "webhooks": ("greenroom.sdk.webhooks", None),
}

__all__ = [
    "AsyncClient",
    "Client",
    "Context",
    "ProductionMultiAgentSystem",
    "SubTaskFailed",
    "Submission",
    "current_context",
    "errors",
    "webhooks",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    home = importlib.import_module(module)
    value = home if attribute is None else getattr(home, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
