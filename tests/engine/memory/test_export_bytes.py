"""Chunks as bytes: what comes back is what went in, and bytes that are none are refused with ValueError."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.settings import Settings
from rearview.engine.memory.export import DTYPES, NO_STEP, Chunk, decode_chunk, encode_chunk
from support.tiny_bank import advance, banked, gap, tiny_bank, video
from support.tiny_motion import advance as advance_cache
from support.tiny_motion import cached, clip, play, stream_row, tiny_cache

pytestmark = pytest.mark.unit


def encoded(chunk: Chunk) -> bytes:
    return b"".join(encode_chunk(chunk))


def same(left: Chunk, right: Chunk) -> bool:
    """Bit by bit."""
    named = [(each.kind, each.step, each.layer, dict(each.values)) for each in (left, right)]
    kinds = [[(tensor.dtype, tensor.shape) for tensor in each.tensors] for each in (left, right)]
    pairs = zip(left.tensors, right.tensors, strict=True)
    return (
        named[0] == named[1]
        and kinds[0] == kinds[1]
        and all(torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)) for a, b in pairs)
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 5), (4, 3, 2)])
def test_a_tensor_of_any_type_comes_back_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    content = torch.empty(shape, dtype=dtype)
    content.flatten().view(torch.uint8).copy_(raw) if shape else content.view(-1).view(torch.uint8).copy_(raw)
    chunk = Chunk("bank", 2, "mid_block.attn1", {"a": [1, None, True, 0.25], "b": {"c": "ü"}}, (content,))
    assert same(decode_chunk(encoded(chunk)), chunk)


def test_a_view_is_sent_as_what_it_shows_and_what_comes_back_is_a_copy() -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    chunk = Chunk("cache", 0, "x", {}, (whole.transpose(0, 2)[1:],))
    data = bytearray(encoded(chunk))
    back = decode_chunk(data)
    data[-4:] = bytes(4)
    assert torch.equal(back.tensors[0], whole.transpose(0, 2)[1:])
    back.tensors[0].zero_()


@pytest.mark.parametrize("values", [{"a": float("nan")}, {"a": float("inf")}])
def test_numbers_that_are_not_finite_are_not_sent(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_chunk(Chunk("bank", values=values))


def raw(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + content


def fields(**changed: Any) -> dict[str, Any]:
    whole = {"format": 1, "kind": "bank", "step": 0, "layer": "", "values": {}, "tensors": []}
    return {**whole, **changed}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack("<I", 0),
        struct.pack("<I", 2**32 - 1) + b"{}",
        raw(b"[" * 100_000),
        raw(b'{"a":' * 100_000),
        raw(b"\xff\xfe"),
        raw(b"nonsense"),
        raw([]),
        raw({}),
        raw(fields(format=2)),
        raw(fields(format=True)),
        raw(fields(step=-2)),
        raw(fields(step=0.0)),
        raw(fields(kind=None)),
        raw(fields(values=[])),
        raw({**fields(), "more": 1}),
        raw(json.dumps(fields(values={"a": 1.0})).replace("1.0", "NaN").encode()),
        raw(fields(), b"\0"),
        raw(fields(tensors=[["float32", [1]]]), b"\0\0\0"),
        raw(fields(tensors=[["float32", [1]]]), b"\0\0\0\0\0"),
        raw(fields(tensors=[["float32", [2**40]]])),
        raw(fields(tensors=[["float32", [2**62, 2**62, 4]]])),
        raw(fields(tensors=[["float32", [0, 2**62, 2**62]]])),
        raw(fields(tensors=[["float32", [-1]]])),
        raw(fields(tensors=[["float32", [True]]]), bytes(4)),
        raw(fields(tensors=[["float32", [1.0]]]), bytes(4)),
        raw(fields(tensors=[["float32", [1] * 9]]), bytes(4)),
        raw(fields(tensors=[["complex64", [1]]]), bytes(8)),
        raw(fields(tensors=[["bool", [1]]]), b"\2"),
        raw(fields(tensors=[["float32"]])),
        raw(fields(tensors=["float32"])),
        raw(fields(tensors=[[["float32"], [1]]]), bytes(4)),
        raw(fields(tensors=[["float32", [0]]] * 65)),
    ],
)
def test_bytes_that_are_no_chunk_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_chunk(data)


GOOD = encoded(
    Chunk("bank", 1, "mid", {"writes": 3, "prompt": "x"}, (torch.arange(6.0).view(2, 3), torch.zeros(0, 4)))
)


@given(st.binary(max_size=200))
@example(GOOD)
def test_any_bytes_are_a_chunk_or_a_value_error(data: bytes) -> None:
    decoded_or_refused(data)


@given(st.data())
def test_a_chunk_that_was_cut_or_changed_is_a_chunk_or_a_value_error(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    cut = data.draw(st.sampled_from(["none", "out", "off"]))
    if cut == "out":
        del content[start:end]
    elif cut == "off":
        del content[end:]
    decoded_or_refused(bytes(content))


def decoded_or_refused(data: bytes) -> None:
    try:
        chunk = decode_chunk(data)
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in chunk.tensors) <= len(data)


@given(st.integers(0, 2**63), st.integers(1, 8))
def test_no_more_memory_is_taken_than_the_bytes_bear_out(side: int, dimensions: int) -> None:
    data = raw(fields(tensors=[["float64", [side] * dimensions]]), bytes(64))
    tracemalloc.start()
    try:
        decoded_or_refused(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_bank_goes_on_bit_for_bit_by_way_of_bytes() -> None:
    spec = banked("s", BankSettings(interval=2, fusion_threshold=0.9))
    stayed, left, arrived = tiny_bank(1), tiny_bank(1), tiny_bank(1)
    for memory in (stayed, left, arrived):
        memory.allocate(spec)
    expected = advance(stayed, spec, video(6))
    advance(left, spec, video(6)[:3])
    data = [encoded(chunk) for chunk in left.export("s")]
    arrived.import_("s", map(decode_chunk, data))
    assert gap(advance(arrived, spec, video(6)[3:], first=3), expected[3:]) == 0.0
    arrived.check_integrity()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_cache_goes_on_bit_for_bit_by_way_of_bytes(dtype: torch.dtype) -> None:
    spec = cached("a")
    here, there = (tiny_cache(dtype=dtype) for _ in range(2))
    for memory in (here, there):
        memory.allocate(spec)
    play(here, spec, clip(9))
    there.import_("a", [decode_chunk(encoded(chunk)) for chunk in here.export("a")])
    row = [stream_row(spec, clip(10)[9], 9)]
    assert torch.equal(advance_cache(there, row), advance_cache(here, row))
    there.check_integrity()


def test_every_chunk_names_its_place_and_only_the_header_none() -> None:
    spec = cached("a")
    memory = tiny_cache()
    memory.allocate(spec)
    play(memory, spec, clip(5))
    header, *chunks = memory.export("a")
    assert (header.step, header.layer, header.tensors) == (NO_STEP, "", ())
    assert all(chunk.step in (0, 1) for chunk in chunks)
    assert all(bool(chunk.layer) == bool(chunk.tensors) for chunk in chunks)
    assert (CacheSettings(), Settings("a", strength=0.6, steps=2)) == (spec.cache, spec.settings)
