"""Attention over time at every pixel, over frames whose keys and values carry no positions of their own.

`attend_frames` is the plain form: positions are added, then softmax((q + Wq pe)(k + Wk pe)^T / sqrt(d)).
`attend_stored` is the folded one for a single frame beside a stored past, which it reads as it is:

    logits = q' K^T + q' (Wk pe)^T          out = P V + P (Wv pe)          with q' = q + Wq pe

Live2Diff: methods 3.3 and 3.5.
Shape legend: B rows, Q query frames, F frames, N pixels, C channels, H heads, D channels of a head,
L stored frames, P positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rearview.engine.networks.motion_module import PositionTables

__all__ = ["ClipAttention", "attend_frames", "attend_stored", "clip_mask"]


def clip_mask(frames: int, sink_frames: int, device: torch.device | None = None) -> Tensor:
    """Which frames of a clip see which, (F, F): the first `sink_frames` each other, any later one itself
    and all before it (methods 3.5).
    """
    places = torch.arange(frames, device=device)
    return places[None, :] <= places[:, None].clamp(min=sink_frames - 1)


class ClipAttention:
    """The `cache` of a forward over whole clips, for training: samples are (clip * frame).

    Frame i of a clip is at position i, so a clip has at most as many frames as there are positions, and as
    a cache's window if it is to mean what the cache computes. Gradients flow.
    """

    def __init__(self, frames: int, sink_frames: int) -> None:
        self._frames, self._sink_frames = frames, sink_frames

    def attend(
        self, layer: int, query_SNC: Tensor, key_SNC: Tensor, value_SNC: Tensor, tables: PositionTables
    ) -> Tensor:
        """Attention of each frame over its clip."""
        clips = (-1, self._frames, *query_SNC.shape[1:])
        query, key, value = (each.reshape(clips) for each in (query_SNC, key_SNC, value_SNC))
        places = torch.arange(self._frames, device=query.device)
        mask = clip_mask(self._frames, self._sink_frames, query.device)
        return attend_frames(query, key, value, tables, places, places, mask).flatten(0, 1)


def attend_frames(
    query_BQNC: Tensor,
    key_BFNC: Tensor,
    value_BFNC: Tensor,
    tables: PositionTables,
    query_positions: Tensor,
    key_positions: Tensor,
    mask_QF: Tensor | None = None,
) -> Tensor:
    """Every query frame over all F frames, or those where `mask_QF` is True. Returns (B, Q, N, C).

    Positions: (Q,) and (F,) for all rows, or (B, Q) and (B, F).
    """

    def split(x_BFNC: Tensor, table_PC: Tensor, positions: Tensor) -> Tensor:
        x = x_BFNC + table_PC[positions].unsqueeze(-2)
        return _apart(x, tables.heads).permute(0, 2, 3, 1, 4).flatten(0, 1)

    query = split(query_BQNC, tables.query, query_positions)
    key = split(key_BFNC, tables.key, key_positions)
    value = split(value_BFNC, tables.value, key_positions)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_QF)
    pixels = query_BQNC.shape[2]
    return output.view(-1, pixels, *output.shape[1:]).permute(0, 3, 1, 2, 4).flatten(3)


def attend_stored(
    query_BNC: Tensor,
    key_BNC: Tensor,
    value_BNC: Tensor,
    stored_key_BNHLD: Tensor,
    stored_value_BNHLD: Tensor,
    tables: PositionTables,
    position_B: Tensor,
    stored_position_BL: Tensor,
    visible_BL: Tensor,
) -> Tensor:
    """One frame per row over itself, at `position_B`, and those stored frames that are visible.

    The stored ones are in any type, and read in place where it is the query's. Returns (B, N, C).
    """
    heads = tables.heads
    rows, pixels, channels = query_BNC.shape
    query = _apart(query_BNC + tables.query[position_B].unsqueeze(1), heads)
    query = query / math.sqrt(channels // heads)
    own_key = _apart(key_BNC + tables.key[position_B].unsqueeze(1), heads)
    own_value = _apart(value_BNC + tables.value[position_B].unsqueeze(1), heads)
    key_table_BHLD = _apart(tables.key[stored_position_BL], heads).transpose(1, 2)
    value_table_BHLD = _apart(tables.value[stored_position_BL], heads).transpose(1, 2)
    stored_key, stored_value = (each.to(query.dtype) for each in (stored_key_BNHLD, stored_value_BNHLD))

    past = torch.bmm(stored_key.flatten(0, 2), query.flatten(0, 2).unsqueeze(-1))
    positional = query.transpose(1, 2) @ key_table_BHLD.mT  # (B, H, N, L)
    logits = past.view(rows, pixels, heads, -1) + positional.transpose(1, 2)
    logits = logits.masked_fill(~visible_BL[:, None, None], -math.inf)
    own = (query * own_key).sum(-1, keepdim=True)
    exact = torch.promote_types(query.dtype, torch.float32)
    shares = torch.cat([logits, own], dim=-1).to(exact).softmax(-1).to(query.dtype)
    past_shares, own_shares = shares[..., :-1], shares[..., -1:]

    output = torch.bmm(past_shares.flatten(0, 2).unsqueeze(1), stored_value.flatten(0, 2)).view_as(query)
    output = output + (past_shares.transpose(1, 2) @ value_table_BHLD).transpose(1, 2)
    return (output + own_shares * own_value).flatten(2)


def _apart(x: Tensor, heads: int) -> Tensor:
    """(..., C) as (..., H, D)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
