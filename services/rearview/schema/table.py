"""What a row of the table is, and the two functions that follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from google.protobuf.message import Message

from rearview.contract.reference import ImageFile
from rearview.errors import InvalidRequest
from rearview.schema.durations import duration, seconds

__all__ = [
    "FLOAT32",
    "IMAGE_FILE",
    "PLAIN",
    "SECONDS",
    "Converter",
    "Held",
    "Listed",
    "Nested",
    "Row",
    "Table",
    "from_message",
    "to_message",
]

MessageT = TypeVar("MessageT", bound=Message)
OursT = TypeVar("OursT")


class Converter(Protocol):
    """Between a value of ours and one of a message's field."""

    def write(self, value: Any) -> Any:
        """Ours as the message's constructor takes it."""

    def read(self, value: Any, field: str, *, refuses: bool) -> Any:
        """Undo `write`; None for what says nothing. `field`: the path by which a refusal names it."""


@dataclass(frozen=True)
class Row:
    """One field."""

    ours: str
    theirs: str
    convert: Converter
    reads_zero: bool = False
    """Whether the zero of a field without presence is a value; else it says nothing, as `Open.width`'s."""


@dataclass(frozen=True)
class Table(Generic[MessageT]):
    """One message."""

    message: type[MessageT]
    ours: tuple[type, ...]
    """The classes whose fields it carries: what is asked, where None is absent, and what is in force."""
    rows: tuple[Row, ...]
    inside: frozenset[str] = frozenset()
    """Fields of ours that never travel here."""


def to_message(table: Table[MessageT], value: object) -> MessageT:
    """`value`, of one of the table's classes, as a message. None is absent; all else is present, zero too."""
    said = ((row, getattr(value, row.ours)) for row in table.rows)
    return table.message(**{row.theirs: row.convert.write(ours) for row, ours in said if ours is not None})


def from_message(
    table: Table[Any], kind: type[OursT], message: Message, *, refuses: bool, path: str = ""
) -> OursT:
    """What a message says, as a `kind`, one of the table's classes; the rest has the defaults of `kind`.

    `refuses` is the server's way: InvalidRequest(SETTING_OUT_OF_RANGE) that names the field, below `path`,
    for an unknown enum value and for what `kind` itself refuses. Else nothing is raised: an unknown value has
    its default, and a number is taken as it was said, also one beyond the range that `kind` knows.
    """
    said = {field.name: value for field, value in message.ListFields()}
    values = {}
    for row in table.rows:
        if row.theirs not in said and not row.reads_zero:
            continue
        value = row.convert.read(getattr(message, row.theirs), path + row.theirs, refuses=refuses)
        if value is not None:
            values[row.ours] = value
    try:
        return kind(**values)
    except InvalidRequest:
        if refuses:
            raise
    unchecked = kind()
    for name, value in values.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


class _Plain:
    def write(self, value: Any) -> Any:
        return value

    def read(self, value: Any, field: str, *, refuses: bool) -> Any:
        return value


class _Float32(_Plain):
    """The decimal that was written: 0.4 travels as 0.4000000059…, and floors would show it."""

    def read(self, value: float, field: str, *, refuses: bool) -> float:
        return float(str(np.float32(value)))


class _Seconds:
    def write(self, value: float) -> Any:
        return duration(value)

    def read(self, value: Any, field: str, *, refuses: bool) -> float:
        return seconds(value)


class _ImageFile:
    def write(self, value: ImageFile) -> bytes:
        return value.data

    def read(self, value: bytes, field: str, *, refuses: bool) -> ImageFile:
        return ImageFile.of(value)


PLAIN, FLOAT32, SECONDS, IMAGE_FILE = _Plain(), _Float32(), _Seconds(), _ImageFile()


@dataclass(frozen=True)
class Nested:
    """A message within a message."""

    table: Table[Any]
    kind: type
    """The class that it is read as."""
    is_named: bool = True
    """Whether refusals name the fields in it below its own name."""

    def write(self, value: object) -> Message:
        message: Message = to_message(self.table, value)
        return message

    def read(self, value: Message, field: str, *, refuses: bool) -> object:
        path = f"{field}." if self.is_named else ""
        return from_message(self.table, self.kind, value, refuses=refuses, path=path)


@dataclass(frozen=True)
class Listed:
    """Several of them, as a tuple. One that says nothing, as what a newer peer knows, is left out."""

    each: Converter

    def write(self, value: Any) -> list[Any]:
        return [self.each.write(one) for one in value]

    def read(self, value: Any, field: str, *, refuses: bool) -> tuple[Any, ...]:
        read = (self.each.read(one, field, refuses=refuses) for one in value)
        return tuple(one for one in read if one is not None)


@dataclass(frozen=True)
class Held:
    """Several of them in a message of their own, as a tuple: so that there are none can be said."""

    message: type[Message]
    field: str
    """Its only one."""
    listed: Listed

    def write(self, value: Any) -> Message:
        return self.message(**{self.field: self.listed.write(value)})

    def read(self, value: Message, field: str, *, refuses: bool) -> tuple[Any, ...]:
        return self.listed.read(getattr(value, self.field), f"{field}.{self.field}", refuses=refuses)
