"""Stable Diffusion XL's prompts: tokens of two text encoders side by side, a pooled text, the picture's size.

A prompt's embedding stays one tensor, so that tables, mixes and blends know nothing of it: the pooled text
rides behind the tokens as one token more, filled up with zeros, which change no angle and no length.
Shape legend: B samples, L tokens, D channels of a token, P channels of the pooled text, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.contract.settings import AdapterMix
from rearview.engine.networks.call import SIZES, TEXT, arguments_of
from rearview.engine.networks.conditioning import Conditioning, token_ids
from rearview.engine.networks.low_rank import AdapterStacks

__all__ = ["NUM_SIZES", "PlainText", "PooledConditioning", "PooledText"]

NUM_SIZES = 6
"""Height and width of the original, top and left of its crop, height and width of the picture."""


class PooledConditioning(Conditioning):
    """Two tokenizers and their text encoders; the second one also pools the text."""

    def __init__(
        self,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        dtype: torch.dtype,
        stacks: AdapterStacks | None = None,
        clip_skip: int = 0,
    ) -> None:
        """`clip_skip`: so many layers are left out before the last one, which is never used."""
        super().__init__(tokenizers[0], text_encoders[0], dtype, stacks, clip_skip)
        self._tokenizers, self._text_encoders = tokenizers, text_encoders

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """See `Conditioning.text_encoders`."""
        return tuple(self._text_encoders)

    @torch.inference_mode()
    def embed(self, prompt: str, adapters: AdapterMix = ()) -> Tensor:
        """Tokens of a prompt under adapter sets and behind them its pooled text, (1, L + 1, D)."""
        tokens, under = [], self.stacks.inputs([self.stacks.in_text(adapters)])
        for tokenizer, text_encoder in zip(self._tokenizers, self._text_encoders, strict=True):
            ids = token_ids(tokenizer, prompt, text_encoder.device)
            found = text_encoder(ids, output_hidden_states=True, **under)
            tokens.append(found.hidden_states[-2 - self._clip_skip])
        tokens_1LD, pooled_1P = torch.cat(tokens, dim=-1), found.text_embeds
        filled = torch.nn.functional.pad(pooled_1P, (0, tokens_1LD.shape[-1] - pooled_1P.shape[-1]))
        return torch.cat([tokens_1LD, filled[:, None]], dim=1).to(self._dtype)


class PlainText:
    """What a UNet is given of embeddings: they are its prompts, and there is nothing else."""

    def __call__(self, embedding_BLD: Tensor, latent_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Prompts for the UNet, and its further inputs by name. `latent_BCHW`: of the same samples."""
        return embedding_BLD, {}

    def arguments(self, embedding_BLD: Tensor, latent_BCHW: Tensor) -> dict[str, Any]:
        """The same as the UNet is called with it."""
        prompt_BTC, more = self(embedding_BLD, latent_BCHW)
        return {"encoder_hidden_states": prompt_BTC, **arguments_of(more)}


class PooledText(PlainText):
    """Takes tokens and pooled text apart, and says the size of the pictures: whole, and never cropped."""

    def __init__(self, unet_config: Mapping[str, Any], cell: int) -> None:
        """`cell`: pixels per latent cell, a side."""
        sizes = NUM_SIZES * int(unet_config["addition_time_embed_dim"])
        self._channels = int(unet_config["projection_class_embeddings_input_dim"]) - sizes
        self._cell = cell
        self._sizes: dict[tuple[int, int, torch.device], Tensor] = {}

    def __call__(self, embedding_BLD: Tensor, latent_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `PlainText`. Sizes are float32: half precision would round them."""
        samples, _, height, width = latent_BCHW.shape
        size = height * self._cell, width * self._cell
        key = *size, latent_BCHW.device
        if key not in self._sizes:
            row = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
            self._sizes[key] = row.to(latent_BCHW.device)
        return embedding_BLD[:, :-1].contiguous(), {
            TEXT: embedding_BLD[:, -1, : self._channels].contiguous(),
            SIZES: self._sizes[key].expand(samples, -1).contiguous(),
        }
