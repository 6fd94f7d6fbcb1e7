"""The contract's classes as JSON. What is spoken of follows from their fields: a new setting needs no line.

Enums travel as the name of the member in lower case: `Method.PER_FRAME` is "per_frame".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import reduce
from operator import or_
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, PlainValidator, create_model
from pydantic_core import CoreSchema, core_schema

from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.schema.tables import SETTINGS

__all__ = ["STRICT", "AskedChange", "AskedSession", "plain", "spoken"]

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


UNSPOKEN = SETTINGS.inside | {"model", "answer_format", "answer_credit"}
"""Fields that a page neither sets nor sees: the gateway knows which model it is, and what an answer is."""


def plain(value: Any) -> Any:
    """A value of the contract as JSON takes it."""
    if isinstance(value, Enum):
        return value.name.lower()
    if is_dataclass(value):
        return {
            one.name: plain(getattr(value, one.name)) for one in fields(value) if one.name not in UNSPOKEN
        }
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value


def spoken(value: Any) -> Any:
    """A value as a page says it: what it leaves out says the same as null, where that is allowed at all."""
    return _without_none(plain(value))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _read_as(kind: type) -> Any:
    """By which pydantic reads a `kind`, a dataclass. What is null or not said has its default."""
    hints = get_type_hints(kind)
    said = {
        one.name: (_annotation(hints[one.name]), ...)
        if _is_needed(one)
        else (_annotation(hints[one.name]) | None, None)
        for one in fields(kind)
        if one.name not in UNSPOKEN
    }
    model: type[BaseModel] = create_model(kind.__name__, __config__=STRICT, **said)  # type: ignore[call-overload]

    def build(read: BaseModel) -> object:
        said = {name: getattr(read, name) for name in read.model_fields_set}
        return kind(**{name: value for name, value in said.items() if value is not None})

    return Annotated[model, AfterValidator(build)]


def _is_needed(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _annotation(hint: Any) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return reduce(or_, (_annotation(each) for each in inside))
    if origin is tuple:
        return GenericAlias(tuple, (_annotation(inside[0]), ...))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Annotated[hint, PlainValidator(_member_of(hint))]
    return _read_as(hint) if isinstance(hint, type) and is_dataclass(hint) else hint


def _member_of(kind: type[Enum]) -> Any:
    names = {member.name.lower(): member for member in kind}

    def read(value: object) -> Enum:
        if isinstance(value, str) and value in names:
            return names[value]
        raise ValueError(f"is not one of {', '.join(names)}")

    return read


class _ReadAs:
    """Metadata of an annotation: pydantic reads this instead of the annotated class."""

    def __init__(self, kind: type) -> None:
        self._kind, self._annotation = kind, _read_as(kind)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        in_json = handler.generate_schema(self._annotation)
        return core_schema.json_or_python_schema(in_json, core_schema.is_instance_schema(self._kind))


AskedChange = Annotated[SettingsChange, _ReadAs(SettingsChange)]
AskedSession = Annotated[OpenRequest, _ReadAs(OpenRequest)]
