"""Kernels of the temporal cache: attention that reads a past where it lies, and the writing of single frames.

Only `temporal_ops` imports this, when a kernel first runs: Triton is no requirement. Pasts lie in pools
(slots, N, H, L, D), contiguous; all else is addressed by strides but for its last axis. Offsets of slots are
64 bits wide: pools have more than 2^31 elements. Each kernel computes in float32, or float64 if it is given
that.
Shape legend: S samples, R rows, N pixels, C channels, H heads, L stored frames, D channels of a head.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-redef"

from __future__ import annotations

import math

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton import jit
except ModuleNotFoundError:

    def jit(kernel):
        """So that this module can be imported; nothing here runs without Triton."""
        return kernel


__all__ = ["attend", "store"]

ELEMENTS_PER_WARP = 2048
"""Of a head's past: 64 for each thread, keys and values apart. Of 512, 1024 and 2048 the best on an H200."""
MOST_WARPS = 8
PIXELS_PER_PROGRAM = 1
"""More would share what a program reads of the tables, which are in a near cache, and keep fewer reads of the
pool in flight."""
STORED_PER_PROGRAM = 4096
"""Elements of a frame, padding included."""


@jit
def _exactly(x, EXACT: tl.constexpr):
    if x.dtype.primitive_bitwidth < 32:  # Float8 becomes no float64 at once.
        x = x.to(tl.float32)
    return x.to(EXACT)


@jit
def _attend(
    query, key, value, keys, values, query_table, key_table, value_table,
    index, position, positions, visible, output,
    pixels, slot_stride,
    query_sample, query_pixel, key_sample, key_pixel, value_sample, value_pixel,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, SIZE: tl.constexpr, SCALE: tl.constexpr,
    FRAMES_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr, PIXELS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One head of `PIXELS` pixels of one sample. Frames that the sample does not see are not read."""
    sample = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) % HEADS
    first = (tl.program_id(0) // HEADS) * PIXELS
    frame = tl.arange(0, FRAMES_BLOCK)
    part = tl.arange(0, SIZE_BLOCK)
    is_part = part < SIZE
    channel = head * SIZE + part

    seen = tl.load(visible + sample * FRAMES + frame, mask=frame < FRAMES, other=0) != 0
    place = tl.load(positions + sample * FRAMES + frame, mask=frame < FRAMES, other=0).to(tl.int32)
    own_place = tl.load(position + sample).to(tl.int32) * (HEADS * SIZE)
    past = tl.load(index + sample).to(tl.int64) * slot_stride + head * (FRAMES * SIZE)
    is_read = seen[:, None] & is_part[None, :]
    inside = frame[:, None] * SIZE + part[None, :]
    at_place = place[:, None] * (HEADS * SIZE) + channel[None, :]
    of_key = _exactly(tl.load(key_table + at_place, mask=is_read, other=0.0), EXACT)
    of_value = _exactly(tl.load(value_table + at_place, mask=is_read, other=0.0), EXACT)
    of_own_query = _exactly(tl.load(query_table + own_place + channel, mask=is_part, other=0.0), EXACT)
    of_own_key = _exactly(tl.load(key_table + own_place + channel, mask=is_part, other=0.0), EXACT)
    of_own_value = _exactly(tl.load(value_table + own_place + channel, mask=is_part, other=0.0), EXACT)

    for each in tl.static_range(PIXELS):
        pixel = (first + each).to(tl.int64)
        there = pixel < pixels
        is_own, is_stored = is_part & there, is_read & there
        stored = past + pixel * (HEADS * FRAMES * SIZE)
        k = _exactly(tl.load(keys + stored + inside, mask=is_stored, other=0.0), EXACT) + of_key
        v = _exactly(tl.load(values + stored + inside, mask=is_stored, other=0.0), EXACT) + of_value
        own = sample * query_sample + pixel * query_pixel
        q = _exactly(tl.load(query + own + channel, mask=is_own, other=0.0), EXACT) + of_own_query
        q = q * tl.full((), SCALE, EXACT)
        own = sample * key_sample + pixel * key_pixel
        own_k = _exactly(tl.load(key + own + channel, mask=is_own, other=0.0), EXACT) + of_own_key
        own = sample * value_sample + pixel * value_pixel
        own_v = _exactly(tl.load(value + own + channel, mask=is_own, other=0.0), EXACT) + of_own_value

        logits = tl.where(seen, tl.sum(k * q[None, :], axis=1), float("-inf"))
        own_logit = tl.sum(q * own_k, axis=0)
        largest = tl.maximum(tl.max(logits, axis=0), own_logit)
        shares = tl.exp(logits - largest)
        own_share = tl.exp(own_logit - largest)
        total = tl.sum(shares, axis=0) + own_share
        result = (tl.sum(v * shares[:, None], axis=0) + own_v * own_share) / total
        left = (sample * pixels + pixel) * (HEADS * SIZE)
        tl.store(output + left + channel, result.to(output.dtype.element_ty), mask=is_own)


@jit
def _as_stored(x, EXACT: tl.constexpr, LIMIT: tl.constexpr, dtype: tl.constexpr):
    """What exceeds the type's range is cut off, as in `memory.cache.write`; NaN stays NaN."""
    x = _exactly(x, EXACT)
    if LIMIT > 0:
        limit = tl.full((), LIMIT, EXACT)
        x = tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))
    if dtype.primitive_bitwidth < 32:
        x = x.to(tl.float32)
    return x.to(dtype)


@jit
def _store(
    key, value, keys, values, index, at,
    items, slot_stride,
    key_row, key_pixel, value_row, value_pixel,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, SIZE: tl.constexpr, LIMIT: tl.constexpr,
    ITEMS: tl.constexpr, SIZE_BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`ITEMS` heads of one row's pixels, counted through."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ITEMS
    step = tl.arange(0, ITEMS)
    part = tl.arange(0, SIZE_BLOCK)
    item = first + step
    is_there = (item < items)[:, None] & (part < SIZE)[None, :]
    pixel = (item // HEADS).to(tl.int64)[:, None]
    channel = (item % HEADS)[:, None] * SIZE + part[None, :]
    slot = tl.load(index + row).to(tl.int64) * slot_stride
    place = slot + first.to(tl.int64) * (FRAMES * SIZE) + tl.load(at + row).to(tl.int32) * SIZE
    inside = step[:, None] * (FRAMES * SIZE) + part[None, :]

    k = tl.load(key + row * key_row + pixel * key_pixel + channel, mask=is_there, other=0.0)
    v = tl.load(value + row * value_row + pixel * value_pixel + channel, mask=is_there, other=0.0)
    k = _as_stored(k, EXACT, LIMIT, keys.dtype.element_ty)
    v = _as_stored(v, EXACT, LIMIT, values.dtype.element_ty)
    tl.store(keys + place + inside, k, mask=is_there)
    tl.store(values + place + inside, v, mask=is_there)


def attend(
    query_SNC: Tensor,
    key_SNC: Tensor,
    value_SNC: Tensor,
    keys: Tensor,
    values: Tensor,
    tables_PC: tuple[Tensor, Tensor, Tensor],
    index_S: Tensor,
    seen: tuple[Tensor, Tensor, Tensor],
    output_SNC: Tensor,
) -> None:
    """See `temporal_ops.attend_indexed`. `tables_PC`: query, key, value. `seen`: position_S, positions_SL,
    visible_SL. Writes all of `output_SNC`, which is contiguous.
    """
    samples, pixels, _ = query_SNC.shape
    _, _, heads, frames, size = keys.shape
    frames_block, size_block = triton.next_power_of_2(frames), triton.next_power_of_2(size)
    warps = min(max(frames_block * size_block // ELEMENTS_PER_WARP, 1), MOST_WARPS)
    position_S, positions_SL, visible_SL = (each.contiguous() for each in seen)
    query_SNC, key_SNC, value_SNC = (_dense(each) for each in (query_SNC, key_SNC, value_SNC))
    with torch.cuda.device_of(query_SNC):
        _attend[(triton.cdiv(pixels, PIXELS_PER_PROGRAM) * heads, samples)](
            query_SNC, key_SNC, value_SNC, keys, values, *(table.contiguous() for table in tables_PC),
            index_S.contiguous(), position_S, positions_SL, visible_SL.view(torch.uint8), output_SNC,
            pixels, keys.stride(0),
            *query_SNC.stride()[:2], *key_SNC.stride()[:2], *value_SNC.stride()[:2],
            HEADS=heads, FRAMES=frames, SIZE=size, SCALE=1 / math.sqrt(size),
            FRAMES_BLOCK=frames_block, SIZE_BLOCK=size_block, PIXELS=PIXELS_PER_PROGRAM,
            EXACT=_exact(query_SNC), num_warps=warps,
        )  # fmt: skip


def store(
    key_RNC: Tensor, value_RNC: Tensor, keys: Tensor, values: Tensor, index_R: Tensor, at_R: Tensor
) -> None:
    """See `temporal_ops.store_frames`."""
    rows, pixels, _ = key_RNC.shape
    _, _, heads, frames, size = keys.shape
    size_block = triton.next_power_of_2(size)
    items = max(STORED_PER_PROGRAM // size_block, 1)
    stored, given = torch.finfo(keys.dtype).max, torch.finfo(key_RNC.dtype).max
    key_RNC, value_RNC = _dense(key_RNC), _dense(value_RNC)
    with torch.cuda.device_of(key_RNC):
        _store[(triton.cdiv(pixels * heads, items), rows)](
            key_RNC, value_RNC, keys, values, index_R.contiguous(), at_R.contiguous(),
            pixels * heads, keys.stride(0),
            *key_RNC.stride()[:2], *value_RNC.stride()[:2],
            HEADS=heads, FRAMES=frames, SIZE=size, LIMIT=stored if stored < given else 0.0,
            ITEMS=items, SIZE_BLOCK=size_block, EXACT=_exact(key_RNC), num_warps=4,
        )  # fmt: skip


def _dense(x_SNC: Tensor) -> Tensor:
    """With channels side by side."""
    return x_SNC if x_SNC.stride(2) == 1 else x_SNC.contiguous()


def _exact(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype is torch.float64 else tl.float32
