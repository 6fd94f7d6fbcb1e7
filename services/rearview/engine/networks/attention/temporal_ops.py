"""The two operators of a temporal cache that is read and written by index, on devices with Triton.

Both are custom operators of torch, so that they can be compiled and captured with the forward around them;
what they run is in `temporal_triton`, which is imported when one first runs. `attend_indexed` computes what
`temporal.attend_stored` does over `pool[index]`, without the copy.
Shape legend: S samples, R rows, N pixels, C channels, H heads, D channels of a head, L stored frames,
P positions.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from rearview.engine.networks.attention.temporal import attend_stored
from rearview.engine.networks.motion_module import PositionTables

__all__ = ["attend_indexed", "kernels_work", "store_frames"]

logger = logging.getLogger(__name__)

MOST_ERROR = 1e-4
"""Of a trial in float32, beside values of about 1."""


@torch.library.custom_op(
    "rearview::attend_indexed",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor keys, Tensor values, Tensor query_table, "
    "Tensor key_table, Tensor value_table, Tensor index, Tensor position, Tensor positions, Tensor visible) "
    "-> Tensor",
)
def _attend_indexed(
    query_SNC: Tensor,
    key_SNC: Tensor,
    value_SNC: Tensor,
    keys: Tensor,
    values: Tensor,
    query_table_PC: Tensor,
    key_table_PC: Tensor,
    value_table_PC: Tensor,
    index_S: Tensor,
    position_S: Tensor,
    positions_SL: Tensor,
    visible_SL: Tensor,
) -> Tensor:
    from rearview.engine.networks.attention import temporal_triton

    output_SNC = torch.empty_like(query_SNC, memory_format=torch.contiguous_format)
    temporal_triton.attend(
        query_SNC,
        key_SNC,
        value_SNC,
        keys,
        values,
        (query_table_PC, key_table_PC, value_table_PC),
        index_S,
        (position_S, positions_SL, visible_SL),
        output_SNC,
    )
    return output_SNC


@_attend_indexed.register_fake
def _(query_SNC: Tensor, *others: Tensor) -> Tensor:
    return torch.empty_like(query_SNC, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "rearview::store_frames",
    mutates_args=("keys", "values"),
    schema="(Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor index, Tensor at) -> ()",
)
def store_frames(
    key_RNC: Tensor, value_RNC: Tensor, keys: Tensor, values: Tensor, index_R: Tensor, at_R: Tensor
) -> None:
    """Write one frame of each row into a pool (slots, N or more, H, L, D), at its place among the L frames of
    its slot; what exceeds the range of the pool's type is cut off. `index_R`, `at_R`: int64; no two rows have
    the same slot.
    """
    from rearview.engine.networks.attention import temporal_triton

    temporal_triton.store(key_RNC, value_RNC, keys, values, index_R, at_R)


@store_frames.register_fake
def _(*given: Tensor) -> None:
    return None


def attend_indexed(
    query_SNC: Tensor,
    key_SNC: Tensor,
    value_SNC: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: PositionTables,
    index_S: Tensor,
    position_S: Tensor,
    positions_SL: Tensor,
    visible_SL: Tensor,
) -> Tensor:
    """`attend_stored` of samples whose pasts lie at `index_S` of a pool (slots, N or more, H, L, D) each, in
    any type. Returns (S, N, C). What a sample does not see is not read.
    """
    output: Tensor = _attend_indexed(
        query_SNC,
        key_SNC,
        value_SNC,
        keys,
        values,
        tables.query,
        tables.key,
        tables.value,
        index_S,
        position_S,
        positions_SL,
        visible_SL,
    )
    return output


@lru_cache
def kernels_work(device: torch.device, storage: torch.dtype) -> bool:
    """Whether this device runs both operators for a pool of that type, and right: they are tried, once.

    A machine may lack Triton, the compiler of C that Triton asks for, or the type.
    """
    if device.type != "cuda" or not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    try:
        error = trial(device, storage)
    except Exception:  # Whatever is missing, the other way needs none of it.
        logger.warning("a temporal cache of %s does without Triton on %s", storage, device, exc_info=True)
        return False
    if not error <= MOST_ERROR:
        logger.error("Triton's kernels are off by %g for %s on %s: not used", error, storage, device)
    return error <= MOST_ERROR


@torch.inference_mode()
def trial(device: torch.device, storage: torch.dtype) -> float:
    """The largest difference of both operators from plain torch, on random content.

    Heads of 40 channels and 12 frames, both no powers of two, and a frame that is smaller than the pool's.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    samples, pixels, heads, frames, size = 3, 5, 2, 12, 40
    query, key, value = (draw(samples, pixels, heads * size) for _ in range(3))
    keys, values = (draw(5, pixels + 1, heads, frames, size).to(storage) for _ in range(2))
    tables = PositionTables(heads, *(draw(frames, heads * size) for _ in range(3)))
    index, position = torch.tensor([3, 0, 4], device=device), torch.tensor([2, 11, 7], device=device)
    positions = torch.stack([torch.randperm(frames, generator=generator) for _ in range(samples)]).to(device)
    visible = positions % 3 > 0

    wide = torch.float64  # What the device may multiply in fewer bits in float32, it does not here.
    stored_key, stored_value = (pool.to(wide)[index, :pixels] for pool in (keys, values))
    wide_tables = PositionTables(heads, tables.query.to(wide), tables.key.to(wide), tables.value.to(wide))
    expected = attend_stored(
        query.to(wide),
        key.to(wide),
        value.to(wide),
        stored_key,
        stored_value,
        wide_tables,
        position,
        positions,
        visible,
    )
    found = attend_indexed(query, key, value, keys, values, tables, index, position, positions, visible)
    pairs = [(expected, found)]
    written = [pool.to(wide) for pool in (keys, values)]
    store_frames(key, value, keys, values, index, position)
    for whole, new, pool in zip(written, (key, value), (keys, values), strict=True):
        whole[index, :pixels, :, position] = new.to(storage).to(wide).unflatten(-1, (heads, size))
        pairs.append((whole, pool))
    return float(torch.stack([(one - other.to(wide)).abs().max() for one, other in pairs]).max())
