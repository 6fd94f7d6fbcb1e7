"""Feature fusion: a token takes over the most similar remembered output, if it is similar enough.

For token j with output h_j: m = argmax_k cos(h_j, o_k); y_j = o_m if that cosine is at least the
threshold, else h_j; and h'_j = (1 - strength) h_j + strength y_j. Applied to the attention output
before the residual is added; what is stored is the unfused output.
Shape legend: B rows, N present tokens, M remembered tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fuse"]


def fuse(
    output_BNC: Tensor, past_BMC: Tensor, mask_BM: Tensor, strength_B: Tensor, threshold_B: Tensor
) -> Tensor:
    """Fuse each row with its own past. `mask_BM`: True where a remembered token may be seen."""
    # In half precision cosines near 1 are too coarse for thresholds like 0.98.
    exact = torch.promote_types(output_BNC.dtype, torch.float32)
    cosine_BNM = _unit(output_BNC, exact) @ _unit(past_BMC, exact).transpose(1, 2)
    # -inf and not a fill with the row's own outputs: among parallel tokens the nearest one need not be
    # the token itself, and an empty bank must change nothing.
    cosine_BNM.masked_fill_(~mask_BM[:, None, :], -torch.inf)
    similarity_BN, nearest_BN = cosine_BNM.max(dim=-1)
    candidate_BNC = past_BMC.gather(1, nearest_BN.unsqueeze(-1).expand(-1, -1, past_BMC.shape[-1]))
    matches = similarity_BN >= threshold_B.to(exact)[:, None]
    target_BNC = torch.where(matches.unsqueeze(-1), candidate_BNC, output_BNC)
    return torch.lerp(output_BNC, target_BNC, strength_B.to(output_BNC.dtype)[:, None, None])


def _unit(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(tokens.to(dtype), dim=-1)
