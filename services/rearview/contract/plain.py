"""Our dataclasses as plain values, such as JSON has, and back: for files and pages, where nothing is trusted.

    Settings(strength=0.5, guidance=Guidance.SELF)  ◀──▶  {"strength": 0.5, "guidance": "self"}

Fields keep their names, enums are their members' names in lower case, and what is None is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rearview.errors import InvalidRequest, Reason

__all__ = ["from_plain", "invalid", "plain"]

KindT = TypeVar("KindT")


def plain(value: Any) -> Any:
    """`value` as mappings, lists, strings and numbers."""
    if is_dataclass(value):
        said = ((one.name, getattr(value, one.name)) for one in fields(value))
        return {name: plain(part) for name, part in said if part is not None}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value


def from_plain(kind: type[KindT], value: object, path: str = "") -> KindT:
    """Undo `plain`: a dataclass from a mapping. What is not named keeps its default.

    Raises InvalidRequest(MESSAGE_INVALID) that names what is wrong, below `path`, and what `kind` raises.
    """
    read: KindT = _read(kind, value, path)
    return read


def invalid(path: str, text: str) -> InvalidRequest:
    """The error for a value that cannot be read."""
    return InvalidRequest(Reason.MESSAGE_INVALID, f"{path or 'it'} {text}", metadata={"field": path})


def _read(kind: Any, value: object, path: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return None if value is None else _read(kind, value, path)
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise invalid(path, "is not a list")
        return tuple(_read(get_args(kind)[0], part, f"{path}[{number}]") for number, part in enumerate(value))
    if is_dataclass(kind):
        return _read_dataclass(kind, value, path)
    if issubclass(kind, Enum):
        return _read_enum(kind, value, path)
    return _read_scalar(kind, value, path)


def _read_dataclass(kind: Any, value: object, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise invalid(path, "is not an object with fields")
    hints, within = _hints(kind), f"{path}." if path else ""
    for name in value:
        if name not in hints:
            raise invalid(f"{within}{name}", f"is not known; there are: {', '.join(hints)}")
    for one in fields(kind):
        if one.default is MISSING and one.default_factory is MISSING and one.name not in value:
            raise invalid(f"{within}{one.name}", "is missing")
    return kind(**{name: _read(hints[name], part, f"{within}{name}") for name, part in value.items()})


def _read_enum(kind: type[Enum], value: object, path: str) -> Enum:
    members = {member.name.lower(): member for member in kind}
    member = members.get(value.lower().replace("-", "_")) if isinstance(value, str) else None
    if member is None:
        raise invalid(path, f"is not one of {', '.join(members)}")
    return member


def _read_scalar(kind: type, value: object, path: str) -> object:
    # Compared and not converted: an integer of JSON may be larger than any float.
    is_number = (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
    if kind is float and is_number:
        return float(value)  # type: ignore[arg-type]
    if kind is int and is_number and value == int(value):  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload]
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise invalid(path, f"is not {_KINDS[kind]}")


_KINDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}
