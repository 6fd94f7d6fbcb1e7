"""Extended self-attention: present and remembered tokens compete in one softmax.

    out = softmax(Q [K; K^]^T / sqrt(d)) [V; V^]

Two functions with one signature. `attend_concatenated` is the plain one: it joins the segments and calls
SDPA. `attend_segments` runs two attentions and merges them by their log-sum-exp, without the copy.
Same scale, no position bias; the order of remembered tokens is irrelevant.
Shape legend: B rows, H heads, N present tokens, M remembered tokens, D channels of a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Attend", "attend_concatenated", "attend_segments"]


class Attend(Protocol):
    """Extended self-attention of query_BHND over key/value_BHND and past_key/past_value_BHMD.

    `mask_BM`: True where a remembered token may be seen; None: everywhere. A row without any is plain
    self-attention. Returns (B, H, N, D).
    """

    def __call__(
        self,
        query_BHND: Tensor,
        key_BHND: Tensor,
        value_BHND: Tensor,
        past_key_BHMD: Tensor,
        past_value_BHMD: Tensor,
        mask_BM: Tensor | None,
    ) -> Tensor: ...


def attend_concatenated(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    past_key_BHMD: Tensor,
    past_value_BHMD: Tensor,
    mask_BM: Tensor | None,
) -> Tensor:
    """One attention over the joined segments."""
    mask = None
    if mask_BM is not None:
        present_BN = mask_BM.new_ones(mask_BM.shape[0], key_BHND.shape[2])
        mask = torch.cat([present_BN, mask_BM], dim=1)[:, None, None, :]
    return F.scaled_dot_product_attention(
        query_BHND,
        torch.cat([key_BHND, past_key_BHMD], dim=2),
        torch.cat([value_BHND, past_value_BHMD], dim=2),
        attn_mask=mask,
    )


def attend_segments(
    query_BHND: Tensor,
    key_BHND: Tensor,
    value_BHND: Tensor,
    past_key_BHMD: Tensor,
    past_value_BHMD: Tensor,
    mask_BM: Tensor | None,
) -> Tensor:
    """Two attentions, weighted by w = sigmoid(L - L^): L and L^ are their log-sum-exps."""
    if past_key_BHMD.shape[2] == 0:
        return F.scaled_dot_product_attention(query_BHND, key_BHND, value_BHND)
    present_BHND, lse_BHN = _attend(query_BHND, key_BHND, value_BHND, None)
    past_BHND, past_lse_BHN = _attend(query_BHND, past_key_BHMD, past_value_BHMD, mask_BM)
    if mask_BM is not None:
        # Kernels disagree on what an attention over nothing is (0, or not a number): its weight is 0.
        empty = ~mask_BM.any(dim=1)[:, None, None]
        past_lse_BHN = past_lse_BHN.masked_fill(empty, -torch.inf)
        past_BHND = past_BHND.masked_fill(empty.unsqueeze(-1), 0.0)
    weight = torch.sigmoid(lse_BHN - past_lse_BHN).unsqueeze(-1)
    return (past_BHND + weight * (present_BHND - past_BHND)).to(query_BHND.dtype)


def _attend(
    query_BHND: Tensor, key_BHMD: Tensor, value_BHMD: Tensor, mask_BM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp (B, H, N)."""
    if query_BHND.device.type == "cpu":
        bias = None if mask_BM is None else _bias(mask_BM, query_BHND)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHND, key_BHMD, value_BHMD, attn_mask=bias
        )
        return out, lse
    is_half = query_BHND.dtype in (torch.float16, torch.bfloat16)
    if query_BHND.device.type == "cuda" and mask_BM is None and is_half:
        flash = torch.ops.aten._scaled_dot_product_flash_attention(query_BHND, key_BHMD, value_BHMD)
        return flash[0], flash[1]
    return _attend_explicitly(query_BHND, key_BHMD, value_BHMD, mask_BM)


def _attend_explicitly(
    query_BHND: Tensor, key_BHMD: Tensor, value_BHMD: Tensor, mask_BM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Holds the score matrix: for devices whose kernels take no mask or return no log-sum-exp."""
    scores = (query_BHND * query_BHND.shape[-1] ** -0.5) @ key_BHMD.transpose(-1, -2)
    if mask_BM is not None:
        scores = scores + _bias(mask_BM, query_BHND)
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return exact.softmax(-1).to(value_BHMD.dtype) @ value_BHMD, exact.logsumexp(-1)


def _bias(mask_BM: Tensor, query_BHND: Tensor) -> Tensor:
    """0 where a token may be seen, else -inf: (B, 1, N, M), one row of it in memory."""
    bias_BM = torch.zeros(mask_BM.shape, dtype=query_BHND.dtype, device=mask_BM.device)
    bias_BM.masked_fill_(~mask_BM, -torch.inf)
    return bias_BM[:, None, None, :].expand(-1, -1, query_BHND.shape[2], -1)
