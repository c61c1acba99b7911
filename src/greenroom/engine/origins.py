"""Says of ``module:attribute`` whether it is an agent's own code: written in its snapshot, not only imported there.

Asked of what comes by API to a node that accepts no code: whoever may choose among the operator's functions is not to
choose ``os:system``, or a loader that makes code of its arguments. Nothing is run; what is not certain is refused. A
name that is certainly nowhere is left to the replica, which says so with more words.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from greenroom.engine import definitions

_MAX_HOPS = 10  # from a name to where it is written


def foreign(snapshot: Path, reference: str) -> str | None:
    """Say why *reference* is not certainly code of *snapshot*; None where it is."""
    module, _, attribute = reference.partition(":")
    first, *rest = attribute.split(".")
    if any(part.startswith("__") for part in (first, *rest)):
        return "it reaches into Python's own"
    file = _file(snapshot, module)
    if file is None:
        return f"{module} is no file of the agent's folder"
    return _not_written(snapshot, file, first, hops=_MAX_HOPS)


def _file(snapshot: Path, module: str) -> str | None:
    if module.endswith(".py"):
        return module if definitions.is_inside(module) and (snapshot / module).is_file() else None
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in sys.stdlib_module_names | definitions.OWN:
        return None
    return definitions.file_of(snapshot, parts)


def _not_written(snapshot: Path, file: str, name: str, *, hops: int) -> str | None:
    """Say why *name* is not certainly written in *file*, or in a file of the snapshot that it is imported from."""
    try:
        tree = definitions.parsed((snapshot / file).read_bytes())
    except SyntaxError as error:
        return f"{file}:{error.lineno} cannot be compiled: {error.msg}"
    except (ValueError, RecursionError, MemoryError):
        return f"{file} cannot be read"
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        for alias in node.names:
            if (alias.asname or alias.name.partition(".")[0]) != name:
                continue
            source = _source(file, node)
            if source is None or hops == 0:
                return f"{file} has {name} from elsewhere"
            origin = _file(snapshot, source)
            if origin is None:
                return f"{file} has {name} from {source}, which is no file of the agent's folder"
            return _not_written(snapshot, origin, alias.name, hops=hops - 1)
    names = set(definitions.bound(tree))
    may_be_elsewhere = "*" in names or "__getattr__" in names or definitions.is_dynamic(tree)
    return f"{file} may have {name} from elsewhere" if name not in names and may_be_elsewhere else None


def _source(file: str, node: ast.Import | ast.ImportFrom) -> str | None:
    """Return the module that *node* of *file* takes names from; None for a module itself."""
    if isinstance(node, ast.Import):
        return None
    if not node.level:
        return node.module
    package = Path(file).parent.parts
    if node.level - 1 > len(package):
        return None
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])]) or None
