"""Finds an agent's factory, and says what it is: the agent itself, a class, or a function that builds agents.

Called by `engine.replica`: in the zygote to import the code, in the replica to build instances; and by `engine.trying`
for functions that check the agent. Whatever is wrong with an agent's code is an error here that names the agent, what
happened and the fix.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenroom import errors, redaction
from greenroom.adapters import callables, contract, registry
from greenroom.engine import advice, failures

SCRIPT_MODULE = "__greenroom_main__"


class LoadFailed(errors.AgentInvalid):
    """The agent's code cannot be imported, or what it names is no agent."""

    def __init__(self, error_type: str, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message, self.traceback = redaction.text(message), redaction.text(traceback)


def load(agent: str, reference: str, where: advice.Surroundings) -> object:
    """Import *reference*'s module from the snapshot, return the attribute; raises `LoadFailed`."""
    return _load(f"agent {agent}", reference, where, role="factory")


def load_check(agent: str, reference: str, where: advice.Surroundings) -> object:
    """Return what *reference* names, as `load` does it for a factory: a function that checks the agent."""
    return _load(f"the check {reference} of agent {agent}", reference, where, role="check function")


def module_of(reference: str, where: advice.Surroundings) -> types.ModuleType | None:
    """Return the module that *reference* names, if it is imported."""
    name = reference.partition(":")[0]
    return _imported_script(str(Path(where.snapshot, name))) if name.endswith(".py") else sys.modules.get(name)


def _load(what: str, reference: str, where: advice.Surroundings, *, role: str) -> object:
    snapshot = where.snapshot
    module_name, _, attribute = reference.partition(":")
    if not attribute:
        raise LoadFailed("ValueError", f"cannot load {what}: the {role} {reference!r} is not 'module:attribute'")
    if sys.path[:1] != [snapshot]:
        sys.path.insert(0, snapshot)
        importlib.invalidate_caches()
    # AutoGen's runtime writes a span for each message otherwise.
    os.environ.setdefault("AUTOGEN_DISABLE_RUNTIME_TRACING", "true")
    try:
        module = _import_script(snapshot, module_name) if module_name.endswith(".py") else _import(module_name)
    except BaseException as error:  # agent code: SystemExit and KeyboardInterrupt, too
        raise _import_failed(what, module_name, error, where, role=role) from error
    return _attribute(what, module, module_name, attribute)


def _import(name: str) -> types.ModuleType:
    return importlib.import_module(name)


def _import_script(snapshot: str, name: str) -> types.ModuleType:
    """Import a script under another name than ``__main__``, so that its guarded part does not run."""
    path = Path(snapshot, name)
    known = _imported_script(str(path))
    if known is not None:
        return known
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {name} in the agent's folder")
    own_name = SCRIPT_MODULE if SCRIPT_MODULE not in sys.modules else f"{SCRIPT_MODULE}:{name}"
    spec = importlib.util.spec_from_file_location(own_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    stem = name[: -len(".py")]
    sys.modules[own_name] = module
    also = stem not in sys.modules and stem not in sys.stdlib_module_names
    if also:
        sys.modules[stem] = module  # who imports the script by its own name must not run it twice
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own_name]
        if also:
            del sys.modules[stem]
        raise
    return module


def _imported_script(path: str) -> types.ModuleType | None:
    scripts = (module for name, module in list(sys.modules.items()) if name.partition(":")[0] == SCRIPT_MODULE)
    return next((module for module in scripts if module.__file__ == path), None)


def _import_failed(
    what: str, module_name: str, error: BaseException, where: advice.Surroundings, *, role: str
) -> LoadFailed:
    name = type(error).__name__
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (module_name == missing or module_name.startswith(missing + ".")):
        fix = f"check the {role}'s module name and that its file is in the agent's folder"
    elif missing is not None:
        fix = (
            f"install {missing!r} in the agent's environment, or name an interpreter that has it"
            " (PYTHONPATH is not a replica's)"
        )
    elif isinstance(error, SystemExit | KeyboardInterrupt):
        fix = "an import must not exit: guard the module's main part with `if __name__ == '__main__':`"
    else:
        fix = advice.remedy(error, where) or "fix the module; importing it in its folder shows the same"
    told = f"cannot load {what}: importing {module_name} raised {name}: {failures.message_of(error)}"
    return LoadFailed(name, failures.followed_by(told, fix), failures.short_traceback(error))


def _attribute(what: str, module: types.ModuleType, module_name: str, attribute: str) -> object:
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except Exception as error:  # a module's __getattr__ is agent code
            names = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:20]) or "nothing"
            raise LoadFailed(
                type(error).__name__,
                f"cannot load {what}: {module_name} has no {attribute!r}; it has {names}",
            ) from error
    return found


class Factory:
    """What builds the instances of one agent. ``adapter`` is empty until an instance was built."""

    def __init__(
        self,
        agent: str,
        took: str,
        build: Callable[[], Any],
        *,
        adapter: contract.Adapter | None,
        target: object,
        reference: str,
    ) -> None:
        self.took = took
        self.target, self.reference = target, reference  # what was loaded, and what names it
        self._agent, self._build = agent, build
        self._adapter = adapter
        self._is_fixed = adapter is not None
        self._built: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def adapter(self) -> str:
        return "" if self._adapter is None else self._adapter.name

    async def build(self) -> contract.Instance:
        """Build an instance; raises what the agent's code raises, or `LoadFailed`."""
        return self.open(await self.make())

    async def make(self) -> Any:
        """Make the agent itself, of the code's own class; raises as `build` does."""
        agent = self._build()
        if self._is_fixed:
            return agent
        if inspect.isawaitable(agent):
            agent = await agent
        if self._adapter is None or not self._adapter.recognises(agent):
            self._adapter = _adapter_of(self._agent, agent)
        self._refuse_shared(agent, self._adapter)
        return agent

    def open(self, agent: Any) -> contract.Instance:
        """Open what `make` has just made."""
        assert self._adapter is not None
        return self._adapter.open(agent)

    async def check(self, where: advice.Surroundings) -> None:
        """Build an instance on trial, and close it; raises `LoadFailed` with what is wrong.

        Twice where something of the first is there still: a factory that shares it is found by its second answer.
        """
        if self._is_fixed:
            return
        try:
            await (await self.build()).close()
            if self._built:
                await (await self.build()).close()
        except LoadFailed:
            raise
        except BaseException as error:  # agent code
            name = type(error).__name__
            message = f"cannot build agent {self._agent}: its factory raised {name}: {failures.message_of(error)}"
            remedy = advice.remedy(error, where)
            told = message if remedy is None else failures.followed_by(message, remedy)
            raise LoadFailed(name, told, failures.short_traceback(error)) from error
        if self._adapter is not None:
            self.took = f"{self.took}; it builds {self._adapter.took}"

    def _refuse_shared(self, agent: object, adapter: contract.Adapter) -> None:
        parts = list(adapter.parts(agent))
        for part in parts:
            if part in self._built:
                raise LoadFailed(
                    "SharedAgent",
                    f"cannot build agent {self._agent}: its factory gave the same {type(part).__name__} again, and"
                    f" {adapter.took} keeps one caller's text where the next one sees it;"
                    " build all of it inside the factory",
                )
        self._built.update(parts)


def examine(target: object, *, agent: str, reference: str, arguments: dict[str, Any]) -> Factory:
    """Say what *target* is, as the product's rules have it; raises `LoadFailed` for what can be no agent."""
    if isinstance(target, type):
        _check_arguments(agent, reference, _signature(target), arguments)
        took = f"{reference} is a class: an instance for each task"
        return Factory(agent, took, lambda: target(**arguments), adapter=None, target=target, reference=reference)
    adapter = _adapter_of(agent, target)
    if callable(target) and adapter.name == callables.NAME and not hasattr(target, "execute_task"):
        return _function(target, agent=agent, reference=reference, arguments=arguments)
    return _ready_made(target, adapter, agent=agent, reference=reference, arguments=arguments)


def _ready_made(
    target: object, adapter: contract.Adapter, *, agent: str, reference: str, arguments: dict[str, Any]
) -> Factory:
    kind = type(target).__name__
    if any(True for _ in adapter.parts(target)):
        raise LoadFailed(
            "SharedAgent",
            f"cannot build agent {agent}: {reference} is one {kind} object, and {adapter.took} keeps one"
            f" caller's text where the next one sees it; make it a function that builds it:"
            f" `def build(): return {kind}(...)`",
        )
    if arguments:
        raise LoadFailed(
            "TypeError",
            f"cannot build agent {agent}: {reference} is a built {kind}, which takes no arguments",
        )
    took = f"{reference} is the agent itself: {adapter.took}"
    return Factory(agent, took, lambda: target, adapter=adapter, target=target, reference=reference)


def _function(target: Callable[..., Any], *, agent: str, reference: str, arguments: dict[str, Any]) -> Factory:
    signature = _signature(target)
    missing = _check_names(agent, reference, signature, arguments)
    if not any(name in callables.INPUT_NAMES for name in missing):
        _refuse_missing(agent, reference, missing)
        return Factory(
            agent,
            f"{reference} is called to build an agent for each task",
            lambda: target(**arguments),
            adapter=None,
            target=target,
            reference=reference,
        )
    inputs = [name for name in missing if name in callables.INPUT_NAMES]
    _refuse_missing(agent, reference, [n for n in missing if n not in {inputs[0], "context", "ctx"}])
    bound = functools.partial(target, **arguments) if arguments else target
    convention = callables.convention_of(bound)
    how = "a coroutine function, called" if convention.is_async else "a function, called in a thread"
    took = f"{reference} is the agent itself: {how} with each task's {inputs[0]}"
    adapter = _adapter_of(agent, bound)
    return Factory(agent, took, lambda: bound, adapter=adapter, target=target, reference=reference)


def _adapter_of(agent: str, built: object) -> contract.Adapter:
    adapter = registry.find(built)
    if adapter is None:
        raise _unknown(agent, built)
    return adapter


def _unknown(agent: str, found: object) -> LoadFailed:
    kind = type(found)
    return LoadFailed(
        "UnknownAgent",
        f"cannot build agent {agent}: no adapter knows a {kind.__module__}.{kind.__qualname__};"
        " the factory must be or return a function (input) or (input, context), an object with"
        " execute_task(payload), an AutoGen agent or team, or what an"
        f" adapter from the entry points {registry.ENTRY_POINT_GROUP} knows",
    )


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # some builtins have none: the call itself will tell
        return None


def _check_arguments(
    agent: str, reference: str, signature: inspect.Signature | None, arguments: dict[str, Any]
) -> None:
    missing = _check_names(agent, reference, signature, arguments)
    _refuse_missing(agent, reference, missing)


def _check_names(
    agent: str, reference: str, signature: inspect.Signature | None, arguments: dict[str, Any]
) -> list[str]:
    """Refuse arguments that *signature* does not take; return the required parameters that are left."""
    if signature is None:
        return []
    parameters = signature.parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in arguments if name not in takes]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise LoadFailed(
            "TypeError",
            f"cannot build agent {agent}: {reference} does not take the argument {unknown[0]!r}; it takes"
            f" {', '.join(takes) or 'none'}",
        )
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic and p.name not in arguments]


def _refuse_missing(agent: str, reference: str, missing: list[str]) -> None:
    if missing:
        raise LoadFailed(
            "TypeError",
            f"cannot build agent {agent}: {reference} needs {missing[0]!r}, which its arguments do not name;"
            " add it to `arguments`, or, if the function is the agent itself, name that parameter `input`",
        )
