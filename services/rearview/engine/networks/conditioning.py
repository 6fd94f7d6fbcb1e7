"""Prompts to embeddings, and mixes of them on the sphere: the plain way. Forwards read `prompts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.contract.blending import mix_at
from rearview.contract.settings import AdapterMix, Guidance, Settings
from rearview.engine.devices import upload
from rearview.engine.networks.low_rank import AdapterStacks

__all__ = ["Conditioning", "needs_negative", "slerp", "slerp_shares", "token_ids"]

MIN_SINE = 1e-3
"""Embeddings at a smaller angle (or a larger one than the half turn less this) are mixed in a straight
line: the two agree there, or there is no one way round."""


def needs_negative(settings: Settings) -> bool:
    """Whether frames under these settings are also predicted under the negative prompt."""
    return settings.acting_guidance in (Guidance.INITIALIZE, Guidance.FULL)


def token_ids(tokenizer: Any, prompt: str, device: torch.device) -> Tensor:
    """Of one prompt, (1, L), int64: as many as the tokenizer has room for."""
    ids: Tensor = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.to(device)


class Conditioning:
    """A tokenizer and a text encoder. The number of tokens is the tokenizer's, not 77."""

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        dtype: torch.dtype,
        stacks: AdapterStacks | None = None,
        clip_skip: int = 0,
    ) -> None:
        """`stacks`: the adapter sets that prompts may be encoded under; None: there are none. `clip_skip`: so
        many of the encoder's last layers are left out.
        """
        self.stacks = stacks or AdapterStacks()
        self._tokenizer = tokenizer
        self.text_encoder = text_encoder
        self._dtype, self._clip_skip = dtype, clip_skip

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """All that there are."""
        return (self.text_encoder,)

    @torch.inference_mode()
    def embed(self, prompt: str, adapters: AdapterMix = ()) -> Tensor:
        """Embedding of one prompt under adapter sets, (1, L, D), on the encoder's device."""
        ids = token_ids(self._tokenizer, prompt, self.text_encoder.device)
        under = self.stacks.inputs([self.stacks.in_text(adapters)])
        if self._clip_skip == 0:
            embedding: Tensor = self.text_encoder(ids, return_dict=False, **under)[0]
            return embedding.to(self._dtype)
        layers = self.text_encoder(ids, output_hidden_states=True, **under).hidden_states
        # Some versions of transformers have a wrapper `text_model`, others do not.
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        embedding = encoder.final_layer_norm(layers[-1 - self._clip_skip])
        return embedding.to(self._dtype)

    @torch.inference_mode()
    def embed_frame(self, settings: Settings, ordinal: int) -> Tensor:
        """Embedding of what a frame is translated under, (1, L, D): of its mix at its ordinal. One prompt
        after another, each by its share of the weight so far: of two this is their slerp.
        """
        (first, *others), adapters = mix_at(settings, ordinal), settings.acting_adapters
        mixed, weight = self.embed(first.prompt, adapters), first.weight
        for one in others:
            weight += one.weight
            mixed = slerp(mixed, self.embed(one.prompt, adapters), one.weight / weight)
        return mixed


def slerp(start_BLD: Tensor, end_BLD: Tensor, share: float) -> Tensor:
    """From `start` (share 0) to `end` (1) along the great circle, token by token; lengths follow."""
    return _slerp(start_BLD, end_BLD, 1.0 - share, share)


def slerp_shares(start_BLD: Tensor, end_BLD: Tensor, shares: Sequence[float]) -> Tensor:
    """`slerp`, each sample by a share of its own."""
    exact = torch.promote_types(start_BLD.dtype, torch.float32)
    both = torch.tensor([[1.0 - share for share in shares], [*shares]], dtype=exact)
    rest_B11, share_B11 = upload(both, start_BLD.device).view(2, -1, 1, 1).unbind(0)
    return _slerp(start_BLD, end_BLD, rest_B11, share_B11)


def _slerp(start_BLD: Tensor, end_BLD: Tensor, rest: float | Tensor, share: float | Tensor) -> Tensor:
    """`rest`: 1 less `share`."""
    exact = torch.promote_types(start_BLD.dtype, torch.float32)
    start, end = start_BLD.to(exact), end_BLD.to(exact)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).clamp(-1.0, 1.0)[..., None]
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine < MIN_SINE
    sine = sine.masked_fill(straight, 1.0)
    of_start, of_end = (rest * angle).sin() / sine, (share * angle).sin() / sine
    mixed = torch.where(straight, rest, of_start) * start + torch.where(straight, share, of_end) * end
    return mixed.to(start_BLD.dtype)
