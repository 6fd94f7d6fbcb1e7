"""docs/api.md, made of the docstrings: `python tests/pages/api_page.py`; a test compares."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, ForwardRef

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# What the Python client has

Made of the docstrings by `python tests/pages/api_page.py`, not edited by hand. Examples:
[python.md](python.md).
"""
MODULES = (
    "rearview.client",
    "rearview.client.sync",
    "rearview.client.media",
    "rearview.client.media_writer",
    "rearview.client.targets",
    "rearview.client.scores",
    "rearview.contract.score",
    "rearview.errors",
)
ELSEWHERE = {"rearview.client.media": {"Picture", "Source"}}
"""Names that a module gives on and that are told there; others are told where they are defined."""
MADE_BY_TARGETS = frozenset({"FolderWriter", "ImageWriter", "VideoWriter"})
"""`Writer` says all that there is to know of them."""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_module(importlib.import_module(name)) for name in MODULES)


def _module(module: ModuleType) -> str:
    parts = [f"\n## `{module.__name__}`\n\n{_prose(module.__doc__)}\n"]
    for name in (name for name in module.__all__ if name not in MADE_BY_TARGETS):
        value = getattr(module, name)
        home = getattr(value, "__module__", module.__name__)
        is_told = home == module.__name__ or module.__name__ == "rearview.client"
        if is_told or name in ELSEWHERE.get(module.__name__, ()):
            parts.append(_entry(name, value))
    return "".join(parts)


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        return _class(name, value)
    if inspect.isfunction(value):
        return f"\n**`{name}{_signature(value)}`** {_prose(value.__doc__)}\n"
    return ""


def _class(name: str, value: type) -> str:
    shown = [each.__name__ for each in value.__bases__ if each is not object]
    bases = ", ".join(each for each in shown if not each.startswith("_"))
    of = f" ({bases})" if bases and bases not in ("Protocol", "Enum", "dict") else ""
    lines = [f"\n### {name}{of}\n\n{_prose(_own_doc(value))}\n"]
    members = list(_members(value))
    bare = [name for name, text in members if not text]
    lines += [f"- {name}: {text}\n" for name, text in members if text]
    if bare:
        lines.append(f"- {', '.join(bare)}\n")
    return "".join(lines)


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """Names and what is said of them."""
    told = _attribute_docs(kind)
    if issubclass(kind, Enum):
        yield from (_line(f"`{member.name}`", told.get(member.name, "")) for member in kind)
        return
    if is_dataclass(kind):
        for one in fields(kind):
            if not one.name.startswith("_"):
                yield _line(f"`{one.name}: {_plain(one.type)}`", told.get(one.name, ""))
    else:
        for name, annotation in inspect.get_annotations(kind).items():
            if not name.startswith("_"):
                yield _line(f"`{name}: {_plain(annotation)}`", told.get(name, ""))
    for name, member in vars(kind).items():
        if name.startswith("_") and not (name == "__init__" and not is_dataclass(kind) and member.__doc__):
            continue
        if isinstance(member, property):
            yield _line(f"`{name}`", member.__doc__)
        elif isinstance(member, classmethod | staticmethod):
            yield _line(f"`{name}{_signature(member.__func__)}`", member.__doc__)
        elif inspect.isfunction(member):
            shown = kind.__name__ if name == "__init__" else name
            yield _line(f"`{shown}{_signature(member)}`", member.__doc__)


def _line(name: str, text: str | None) -> tuple[str, str]:
    return name, _joined(_prose(text))


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    text = str(signature.replace(parameters=kept)).replace("'", "")
    return _plain(text).removesuffix(" -> None")


def _plain(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)
    return text.replace("Unpack[OpenOptions]", "OpenOptions").replace(
        "Unpack[SettingOptions]", "SettingOptions"
    )


def _own_doc(kind: type) -> str | None:
    """What a dataclass has without a docstring is its signature: not to be shown."""
    return None if (kind.__doc__ or "").startswith(f"{kind.__name__}(") else kind.__doc__


def _prose(text: str | None) -> str:
    """A docstring in Markdown: a paragraph is a line, and what is indented is code."""
    parts = re.split(r"\n{2,}", inspect.cleandoc(text or ""))
    return "\n\n".join(_code(part) if part.startswith("    ") else _joined(part) for part in parts)


def _code(part: str) -> str:
    return f"```text\n{textwrap.dedent(part)}\n```"


def _joined(part: str) -> str:
    return re.sub(r"\s*\n\s*", " ", part)


def _attribute_docs(kind: type) -> dict[str, str]:
    """The strings below the fields."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found, last = {}, None
    for one in tree.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            last = one.target.id
        elif isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            last = one.targets[0].id
        elif isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and last is not None:
            found[last] = str(one.value.value)
        else:
            last = None
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "services"))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
