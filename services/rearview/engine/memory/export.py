"""Sessions' pasts as chunks that can leave the process, one after another, and as bytes.

A chunk is what one kind of memory holds of one session at one (step, layer): tensors on the CPU beside plain
values. It never names a slot or a span, so what one topology exported another can import. As bytes it is
four bytes of length, a JSON header with the tensors' types and shapes, and their raw contents: no pickle,
any type that torch stores, and nothing is believed that the bytes do not bear out.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "NO_STEP",
    "Chunk",
    "Incoming",
    "Json",
    "check_fields",
    "check_number",
    "check_tensors",
    "decode_chunk",
    "encode_chunk",
]

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

WIRE_FORMAT = 1
NO_STEP = -1
"""Step of a chunk that belongs to a session as a whole, such as the header of its kind."""
LENGTH = struct.Struct("<I")
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBER = 1 << 63
MAX_TENSORS = 64
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48
"""Of a shape whose empty dimensions are counted as one: torch multiplies them for its strides."""
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
}
"""Every pattern of bits is a value of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of one session's past."""

    kind: str
    """Name of the kind of memory."""
    step: int = NO_STEP
    """Denoising step index, or `NO_STEP`."""
    layer: str = ""
    """Path of the layer's module in the network. Empty: of the whole step, or of the whole session."""
    values: Mapping[str, Json] = field(default_factory=dict)
    """What JSON can say: no tuples, and no number that is not finite."""
    tensors: tuple[Tensor, ...] = ()
    """On the CPU, in storage of their own."""


def encode_chunk(chunk: Chunk) -> list[bytes | memoryview]:
    """The chunk as bytes, in parts that follow each other. The parts of tensors are views of them."""
    contents = [tensor.detach().cpu().contiguous() for tensor in chunk.tensors]
    header = {
        "format": WIRE_FORMAT,
        "kind": chunk.kind,
        "step": chunk.step,
        "layer": chunk.layer,
        "values": chunk.values,
        "tensors": [[str(each.dtype).removeprefix("torch."), list(each.shape)] for each in contents],
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    raw = [each.flatten().view(torch.uint8).numpy().data for each in contents]
    return [LENGTH.pack(len(text)), text, *raw]


def decode_chunk(data: bytes | bytearray | memoryview) -> Chunk:
    """Undo `encode_chunk`. Raises ValueError for anything else. Takes no more memory than a small multiple
    of `data` does; what comes back holds copies.
    """
    view = memoryview(data).cast("B")
    if len(view) < LENGTH.size:
        raise ValueError("a chunk without a header")
    (length,) = LENGTH.unpack(view[: LENGTH.size])
    start = LENGTH.size + length
    if length > MAX_HEADER_BYTES or start > len(view):
        raise ValueError(f"a header of {length} bytes in a chunk of {len(view)}")
    header = _header(bytes(view[LENGTH.size : start]))
    tensors, rest = [], view[start:]
    for dtype, shape in _layouts(header["tensors"]):
        size = math.prod(shape) * dtype.itemsize
        if size > len(rest):
            raise ValueError("a chunk is shorter than its tensors")
        tensors.append(_tensor(rest[:size], dtype, shape))
        rest = rest[size:]
    if len(rest):
        raise ValueError("a chunk is longer than its tensors")
    return Chunk(header["kind"], header["step"], header["layer"], header["values"], tuple(tensors))


@dataclass(slots=True)
class Incoming:
    """The chunks of one kind, put in order: what an import is checked against."""

    headers: list[Mapping[str, Json]] = field(default_factory=list)
    """One for each export that the chunks come from."""
    steps: dict[int, Mapping[str, Json]] = field(default_factory=dict)
    """Values of whole steps."""
    layers: dict[tuple[int, str], tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def sort(cls, chunks: Iterable[Chunk]) -> Incoming:
        """Raises ValueError for a (step, layer) that comes twice, and where there is no header at all."""
        found = cls()
        for chunk in chunks:
            if chunk.step == NO_STEP:
                found.headers.append(chunk.values)
            elif chunk.layer:
                _put(found.layers, (chunk.step, chunk.layer), chunk.tensors)
            else:
                _put(found.steps, chunk.step, chunk.values)
        if not found.headers:
            raise ValueError("the export has no header")
        return found

    def of_steps(self, steps: Sequence[int]) -> dict[int, Mapping[str, Json]]:
        """Values of those of `steps` that there are. Raises ValueError if there are none of them."""
        found = {step: self.steps[step] for step in steps if step in self.steps}
        if not found:
            raise ValueError(f"the export has steps {sorted(self.steps)}, not {tuple(steps)}")
        return found

    def check_headers(self, expected: Mapping[str, Json]) -> None:
        """Raises ValueError that names the first field that differs."""
        for header in self.headers:
            check_fields(header, expected)


def check_fields(values: Mapping[str, Json], expected: Mapping[str, Json]) -> None:
    """Raises ValueError that names the first field that differs from what is expected."""
    for name, value in expected.items():
        found = values.get(name)
        if found != value or type(found) is not type(value):
            raise ValueError(f"the export's {name} is {found}, here it is {value}")


def check_number(values: Mapping[str, Json], name: str, least: int) -> int:
    """A whole number of 64 bits, `least` or more. Raises ValueError that names it."""
    number = values.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number < MAX_NUMBER:
        raise ValueError(f"the export's {name} is no number from {least} on")
    return number


def check_tensors(
    tensors: tuple[Tensor, ...],
    step: int,
    layer: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """`tensors`, of one (step, layer). Raises ValueError unless they have these shapes and this type."""
    found = [tuple(tensor.shape) for tensor in tensors]
    if found != list(shapes) or any(tensor.dtype is not dtype for tensor in tensors):
        raise ValueError(
            f"step {step} of {layer} has shapes {found}, here they are {list(shapes)} of {dtype}"
        )
    return tensors


def _put(found: dict[Any, Any], key: object, value: object) -> None:
    if key in found:
        raise ValueError(f"the export has {key} twice")
    found[key] = value


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("a chunk's header is nested too deeply") from None
    expected = {"format": int, "kind": str, "step": int, "layer": str, "values": dict, "tensors": list}
    if not isinstance(header, dict) or {name: type(value) for name, value in header.items()} != expected:
        raise ValueError("a chunk's header lacks fields, or has others")
    if header["format"] != WIRE_FORMAT:
        raise ValueError(f"a chunk of format {header['format']}, here it is {WIRE_FORMAT}")
    if header["step"] < NO_STEP:
        raise ValueError(f"a chunk of step {header['step']}")
    return header


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} in a chunk's header")


def _layouts(entries: list[Any]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor."""
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"a chunk of {len(entries)} tensors")
    found = []
    for entry in entries:
        name, shape = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(name, str) or name not in DTYPES or not isinstance(shape, list):
            raise ValueError("a chunk's tensor is of no known type")
        if len(shape) > MAX_DIMENSIONS or any(type(each) is not int or each < 0 for each in shape):
            raise ValueError("a chunk's tensor has no shape")
        if math.prod(max(each, 1) for each in shape) > MAX_ELEMENTS:
            raise ValueError("a chunk's tensor is too large")
        found.append((DTYPES[name], tuple(shape)))
    return found


def _tensor(content: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(content):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
