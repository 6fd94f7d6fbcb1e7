"""Names of a UNet's layers in the original layout, by which LoRA files of Stable Diffusion XL know them.

There a block's layers are counted through: every resnet opens a new number, with its attention behind it, and
so does every downsampler; an upsampler is the last part of the number before it.
"""

from __future__ import annotations

import re

__all__ = ["original_name"]

BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")
IN_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ALONE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}


def original_name(path: str, resnets: int, *, attends: bool) -> str | None:
    """Of the layer that diffusers' UNet has at `path`; None if it is in no block. `resnets`: of each down
    block; `attends`: whether the layer's block has attention.
    """
    if path in ALONE:
        return ALONE[path]
    if (found := MIDDLE.fullmatch(path)) is not None:
        kind, number, inner = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{IN_RESNET.get(inner, inner)}"
    if (found := BLOCK.fullmatch(path)) is None:
        return None
    way, block, kind, number, inner = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (resnets + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * (resnets + 1) + resnets}.{1 + attends}.{inner}"
    begin = 1 if way == "down" else 0
    at = begin + int(block) * (resnets + 1) + int(number)
    blocks = "input_blocks" if way == "down" else "output_blocks"
    return f"{blocks}.{at}.{int(kind == 'attentions')}.{IN_RESNET.get(inner, inner)}"
