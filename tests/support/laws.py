"""What the house's laws look at: modules loaded in a fresh process, and source text.

Every function takes a folder, so that a test can plant a breach in a copy and run the same check.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Room",
    "effects",
    "environment_reads",
    "load",
    "loaded",
    "modules_of",
    "oversized",
    "room_breaches",
    "undocumented",
]

LOAD_ALL = """
import importlib, json, pkgutil, sys
sys.path.insert(0, {services!r})
package = importlib.import_module({package!r})
for found in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(found.name)
print(json.dumps(sorted(sys.modules)))
"""


@dataclass(frozen=True)
class Room:
    """A package of `rearview`, which of its neighbours it may know, and what it must never load."""

    name: str
    neighbours: frozenset[str]
    never: frozenset[str]
    """Modules of others, with all that is below them."""


def load(services: Path, name: str) -> subprocess.Popen[str]:
    """A fresh process that imports every module of `rearview.NAME` from a folder; `loaded` reads it."""
    code = LOAD_ALL.format(services=str(services), package=f"rearview.{name}")
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=services
    )


def loaded(process: subprocess.Popen[str]) -> frozenset[str]:
    """Names of all modules that were loaded when the package was."""
    out, errors = process.communicate(timeout=110)
    assert process.returncode == 0, errors
    return frozenset(json.loads(out))


def modules_of(services: Path, name: str) -> set[str]:
    """Of every file of a package, its module."""
    paths = [
        path.relative_to(services).with_suffix("") for path in (services / "rearview" / name).rglob("*.py")
    ]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def room_breaches(room: Room, modules: frozenset[str]) -> set[str]:
    """Of the modules that were loaded with a room, those that may not be."""
    ours = {name.split(".")[1] for name in modules if name.startswith("rearview.")}
    strange = {
        name for name in room.never if any(one == name or one.startswith(f"{name}.") for one in modules)
    }
    return strange | {f"rearview.{name}" for name in ours - room.neighbours - {room.name}}


def sources(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module of ours below a folder, by its path in it; what is generated is left out."""
    for path in sorted(folder.rglob("*.py")):
        if "v1" not in path.parts:
            yield path.relative_to(folder).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def effects(folder: Path, modules: frozenset[str], calls: frozenset[str] = frozenset()) -> set[str]:
    """Coroutines, forbidden modules and forbidden calls, by their name, in the source of a folder."""
    found = set()
    for name, tree in sources(folder):
        found |= {f"{name}: {module}" for module in imported(tree) & modules}
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                found.add(f"{name}: async")
            elif isinstance(node, ast.Call) and (called := _called(node)) in calls:
                found.add(f"{name}: {called}")
    return found


def _called(node: ast.Call) -> str:
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def environment_reads(folder: Path) -> set[str]:
    """Where the environment is read, or a variable of ours named, outside `environment.py`.

    `os.environ.setdefault` tells a library something before it is imported: it is no configuration of ours.
    """
    found = set()
    for name, tree in sources(folder):
        if name == "rearview/environment.py":
            continue
        told = {
            id(node.func.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "setdefault"
        }
        for node in ast.walk(tree):
            is_named = isinstance(node, ast.Constant) and str(node.value).startswith("REARVIEW_")
            is_read = isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and id(node) not in told
            if is_named or is_read or (isinstance(node, ast.alias) and node.name in ENVIRONMENT):
                found.add(f"{name}:{getattr(node, 'lineno', 0)}")
    return found


ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


def oversized(
    folder: Path, *, max_file: int, max_class: int, max_function: int, counts_options: bool = False
) -> Mapping[str, int]:
    """What is longer than it may be, in lines: files, `file::Class` and `file::Class.function`.

    Of a command of the command line the options are not counted, unless `counts_options`: they are its
    `--help`.
    """
    found: dict[str, int] = {}
    for name, tree in sources(folder):
        # A file is as long as its last line; the tree ends there unless comments follow.
        lines = (folder / name).read_text(encoding="utf-8").count("\n")
        if lines > max_file:
            found[name] = lines
        for label, node in _named(tree):
            limit = max_class if isinstance(node, ast.ClassDef) else max_function
            assert node.end_lineno is not None
            is_spared = _has_options(node) and not counts_options
            first = node.body[0].lineno if is_spared else node.lineno
            if node.end_lineno - first + 1 > limit:
                found[f"{name}::{label}"] = node.end_lineno - first + 1
    return found


Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _named(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, Named]]:
    """Classes and functions below a node with their dotted names."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Named):
            yield prefix + node.name, node
            yield from _named(node, f"{prefix}{node.name}.")
        else:
            yield from _named(node, prefix)


def _has_options(node: Named) -> bool:
    """Whether it is a typer command: its parameters say `Annotated[…, Option]`."""
    if isinstance(node, ast.ClassDef):
        return False
    types = [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)]
    return any(
        isinstance(one, ast.Subscript) and getattr(one.value, "id", "") == "Annotated" for one in types
    )


def undocumented(folder: Path) -> set[str]:
    """Modules, public classes and public functions of modules without a docstring."""
    found = set()
    for name, tree in sources(folder):
        if tree.body and ast.get_docstring(tree) is None:
            found.add(name)
        for node in tree.body:
            is_public = isinstance(node, Named) and not node.name.startswith("_")
            if is_public and ast.get_docstring(node) is None:
                found.add(f"{name}::{node.name}")
    return found
