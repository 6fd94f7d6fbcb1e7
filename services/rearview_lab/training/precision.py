"""Where bfloat16 is worth its rounding.

A CPU without instructions for it takes convolutions twelve times as long as in float32, and the products of
`muon.py` longer still.
"""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it; every GPU is taken to have them."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the hardware multiplies it; elsewhere everything stays float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=multiplies_bfloat16(device))
