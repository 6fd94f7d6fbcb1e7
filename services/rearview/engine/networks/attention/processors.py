"""Attention processors over a stock diffusers UNet, which read and record a session's past.

A processor knows its layer's number and nothing else: the past is the argument `memory`, a view over
the rows of this forward. Without it a processor is diffusers' own, call for call.
Shape legend: B rows, N present tokens, M remembered tokens, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from rearview.engine.memory.bank.layers import BankLayout, read_layout
from rearview.engine.networks.attention.extended import Attend, attend_concatenated

__all__ = ["AttentionMemory", "install_processors"]


class AttentionMemory(Protocol):
    """What a forward's rows remember. Reading first, then recording: a frame never sees its own write."""

    def extend(self, layer: int, key_BNC: Tensor, value_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remembered keys and values (B, M, C), and which of them may be seen (B, M) or None for all."""

    def fuse(self, layer: int, output_BNC: Tensor) -> Tensor:
        """The layer's output with past features fused in; unchanged where the layer does not fuse."""

    def record(self, layer: int, key_BNC: Tensor, value_BNC: Tensor, output_BNC: Tensor) -> None:
        """Take what the rows whose write is due would store: the unextended keys and values, and the
        unfused output."""


def install_processors(unet: Any, attend: Attend = attend_concatenated) -> BankLayout:
    """Give every attention of `unet` a processor that accepts `memory`; returns the remembered layers.

    Safe to call again. Raises ValueError for attention that is not stock (other processors, normalised
    queries, fused projections), whose meaning would change.
    """
    layout = read_layout(unet)
    number = {layer.name: index for index, layer in enumerate(layout.layers)}
    modules = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    for name, module in modules.items():
        _check(name, module, banked=name in number)
    for name, module in modules.items():
        if name in number:
            module.set_processor(BankProcessor(number[name], attend))
        else:
            module.set_processor(ReferenceProcessor() if hasattr(module, "reference") else PlainProcessor())
    return layout


class PlainProcessor(AttnProcessor2_0):
    """diffusers' own attention, which is handed the memory and does not look at it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        memory: AttentionMemory | None = None,
    ) -> Any:
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class ReferenceProcessor(PlainProcessor):
    """Cross-attention that attends to a reference image as well, by the layer's own `reference` (a
    `ReferenceAttention`). In a forward without any it is diffusers' own.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        memory: AttentionMemory | None = None,
    ) -> Any:
        reference: Any = attn.reference
        if not reference.is_given:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        assert encoder_hidden_states is not None, "a cross-attention without a prompt"
        assert attention_mask is None, "prompts have no mask"
        query = attn.to_q(hidden_states)
        attended = F.scaled_dot_product_attention(
            _split(query, attn.heads),
            _split(attn.to_k(encoder_hidden_states), attn.heads),
            _split(attn.to_v(encoder_hidden_states), attn.heads),
        )
        added = reference(query, _join(attended))
        return attn.to_out[1](attn.to_out[0](added))


class BankProcessor(AttnProcessor2_0):
    """Self-attention that also sees the past, and fuses its output with past outputs."""

    def __init__(self, layer: int, attend: Attend) -> None:
        super().__init__()
        self._layer = layer
        self._attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        memory: AttentionMemory | None = None,
    ) -> Any:
        if memory is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            raise ValueError("a memory and an attention_mask exclude each other")
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        past_key, past_value, mask = memory.extend(self._layer, key, value)
        attended = _join(
            self._attend(
                _split(query, attn.heads),
                _split(key, attn.heads),
                _split(value, attn.heads),
                _split(past_key, attn.heads),
                _split(past_value, attn.heads),
                mask,
            )
        )
        output: Tensor = attn.to_out[1](attn.to_out[0](attended))
        memory.record(self._layer, key, value, output)
        return memory.fuse(self._layer, output)


def _split(tokens_BNC: Tensor, heads: int) -> Tensor:
    rows, tokens, channels = tokens_BNC.shape
    return tokens_BNC.view(rows, tokens, heads, channels // heads).transpose(1, 2)


def _join(tokens_BHND: Tensor) -> Tensor:
    return tokens_BHND.transpose(1, 2).flatten(2)


def _check(name: str, attn: Attention, banked: bool) -> None:
    stock = (AttnProcessor, AttnProcessor2_0, BankProcessor, PlainProcessor, ReferenceProcessor)
    if type(attn.processor) not in stock:
        kind = type(attn.processor).__name__
        raise ValueError(f"{name} has a {kind}: install the bank's processors before other ones")
    norms = (attn.norm_q, attn.norm_k, attn.group_norm, attn.spatial_norm)
    plain = not (attn.residual_connection or attn.fused_projections) and attn.rescale_output_factor == 1.0
    is_plain = plain and all(norm is None for norm in norms)
    if banked and not is_plain:
        raise ValueError(f"{name} is not plain self-attention: it cannot have a feature bank")
    if hasattr(attn, "reference") and not (is_plain and attn.norm_cross is None):
        raise ValueError(f"{name} is not plain cross-attention: it cannot have a reference image")
