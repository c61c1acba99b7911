"""Says of ``module:attribute`` that it certainly is not in a snapshot, without running any of its code.

Called before anything of a revision starts, so that a misspelt check is refused at once. What only running the code
could tell (a star import, `__getattr__`, `globals`) is left to the replica.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MAX_SOURCE_BYTES = 2 * 1024 * 1024  # to parse takes a hundred times as much memory
_MAX_NAMED = 20
_DUNDER = re.compile(r"__\w+__")
OWN = frozenset({"greenroom", "msgspec"})  # in a replica before its snapshot is
_DYNAMIC = frozenset({"globals", "locals", "vars", "exec", "eval", "setattr", "modules", "__dict__", "__path__"})


def missing(snapshot: Path, reference: str) -> str | None:
    """Say why *reference* certainly names nothing in *snapshot*; None where it does, or where that cannot be known.

    Only the first of dotted attributes is looked at. A syntax error is one of the interpreter that runs this.
    """
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        return f"{reference!r} is not 'module:attribute'"
    if module.endswith(".py"):
        if not is_inside(module) or not (snapshot / module).is_file():
            return f"there is no file {module} in the agent's folder{_nearest(module, _scripts(snapshot))}"
        return _missing_in(snapshot, module, attribute)
    parts = module.split(".")
    if not all(parts) or "/" in module or "\\" in module or "\0" in module:
        return f"{module!r} is no name of a module"
    if parts[0] in sys.stdlib_module_names or parts[0] in OWN:
        return None
    file = file_of(snapshot, parts)
    return None if file is None else _missing_in(snapshot, file, attribute)


def is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _scripts(snapshot: Path) -> list[str]:
    return [path.name for path in snapshot.glob("*.py")]


def file_of(snapshot: Path, parts: list[str]) -> str | None:
    """Return the file that the import system takes; None where that is not for certain one of the snapshot."""
    stem = PurePosixPath(*parts)
    for file in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
        if (snapshot / file).is_file():
            folder = (snapshot / file).parent
            is_shadowed = any(path.name.startswith(f"{file.stem}.") for path in folder.glob("*.so"))
            return None if is_shadowed else file.as_posix()
    return None


def _missing_in(snapshot: Path, file: str, attribute: str) -> str | None:
    path, wanted = snapshot / file, attribute.partition(".")[0]
    if _DUNDER.fullmatch(wanted) or path.stat().st_size > _MAX_SOURCE_BYTES:
        return None
    if path.name == "__init__.py" and ((path.parent / wanted).is_dir() or (path.parent / f"{wanted}.py").is_file()):
        return None  # a submodule is an attribute once it is imported
    try:
        tree = parsed(path.read_bytes())
    except SyntaxError as error:
        place = file if error.lineno is None else f"{file}:{error.lineno}"
        return f"{place} cannot be compiled: {error.msg}"
    except ValueError as error:  # a NUL
        return f"{file} cannot be compiled: {error}"
    except (RecursionError, MemoryError):
        return None
    names = set(bound(tree))
    if wanted in names or "*" in names or "__getattr__" in names or is_dynamic(tree):
        return None
    return f"{file} has no {wanted!r}{_nearest(wanted, names)}"


def parsed(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings: whoever runs the code is told
        return ast.parse(source)


def _nearest(wanted: str, names: set[str] | list[str]) -> str:
    near = difflib.get_close_matches(wanted, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    public = sorted(name for name in names if not name.startswith("_"))
    return f"; it has {', '.join(public[:_MAX_NAMED])}" if public else "; it has nothing"


def bound(tree: ast.Module) -> Iterator[str]:
    """Yield the names that running the module may bind, ``*`` for a star import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        yield from _names_of(node)
        nodes += _within(node)


def _names_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Name(id=name, ctx=ast.Store()) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case ast.Import(names=aliases):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
        case ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name for alias in aliases)
        case _:
            pass


def _within(node: ast.AST) -> list[ast.AST]:
    """Return the parts of *node* that run in the module's own scope."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        case ast.ClassDef():
            return [*node.decorator_list, *node.bases, *node.keywords]
        case ast.AnnAssign(value=None):
            return []  # declares, and binds nothing
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
        case ast.Lambda():
            return [*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]
        case _:
            return list(ast.iter_child_nodes(node))


def is_dynamic(tree: ast.Module) -> bool:
    """Whether the module may bind names by other means than statements."""
    return any(
        (isinstance(node, ast.Name) and node.id in _DYNAMIC)
        or (isinstance(node, ast.Attribute) and node.attr in _DYNAMIC)
        for node in ast.walk(tree)
    )
