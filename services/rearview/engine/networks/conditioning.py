"""Prompts to embeddings, with a cache; and mixes of them, on the sphere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rearview.contract.blending import mix_at
from rearview.contract.settings import Guidance, Settings, WeightedPrompt

__all__ = ["Conditioning", "needs_negative", "slerp"]

CACHE_PROMPTS = 256
"""Embeddings kept; one of Stable Diffusion 1.5 takes 116 KiB in float16."""
CACHE_MIXES = 64
"""A frame in mid-blend has a mix of its own, which its steps share."""
MIN_SINE = 1e-3
"""Embeddings at a smaller angle (or a larger one than the half turn less this) are mixed in a straight
line: the two agree there, or there is no one way round."""

K = TypeVar("K", bound=Hashable)


def needs_negative(settings: Settings) -> bool:
    """Whether frames under these settings are also predicted under the negative prompt."""
    return settings.acting_guidance in (Guidance.INITIALIZE, Guidance.FULL)


class Conditioning:
    """A text encoder and its cache. The number of tokens is the tokenizer's, not 77."""

    def __init__(self, tokenizer: Any, text_encoder: Any, dtype: torch.dtype) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._dtype = dtype
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._mixes: OrderedDict[tuple[WeightedPrompt, ...], Tensor] = OrderedDict()

    def embed(self, prompt: str) -> Tensor:
        """Embedding of one prompt, (1, L, D), on the encoder's device."""
        return _cached(self._cache, prompt, self._encode, CACHE_PROMPTS)

    def embed_frame(self, settings: Settings, ordinal: int) -> Tensor:
        """Embedding of what a frame is translated under, (1, L, D): of its mix at its ordinal."""
        mix = mix_at(settings, ordinal)
        if len(mix) == 1:
            return self.embed(mix[0].prompt)
        return _cached(self._mixes, mix, self._mix, CACHE_MIXES)

    def prepare(self, settings: Settings) -> None:
        """Encode every prompt that frames under `settings` need."""
        for one in settings.mix:
            self.embed(one.prompt)
        if needs_negative(settings):
            self.embed(settings.negative_prompt)

    @torch.inference_mode()
    def _encode(self, prompt: str) -> Tensor:
        ids = self._tokenizer(
            prompt,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self._text_encoder.device)
        embedding: Tensor = self._text_encoder(ids, return_dict=False)[0]
        return embedding.to(self._dtype)

    @torch.inference_mode()
    def _mix(self, mix: tuple[WeightedPrompt, ...]) -> Tensor:
        """One prompt after another, each by its share of the weight so far: of two this is their slerp."""
        mixed, weight = self.embed(mix[0].prompt), mix[0].weight
        for one in mix[1:]:
            weight += one.weight
            mixed = slerp(mixed, self.embed(one.prompt), one.weight / weight)
        return mixed


def slerp(start_BLD: Tensor, end_BLD: Tensor, share: float) -> Tensor:
    """From `start` (share 0) to `end` (1) along the great circle, token by token; lengths follow."""
    exact = torch.promote_types(start_BLD.dtype, torch.float32)
    start, end = start_BLD.to(exact), end_BLD.to(exact)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).clamp(-1.0, 1.0)[..., None]
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine < MIN_SINE
    sine = sine.masked_fill(straight, 1.0)
    of_start = ((1.0 - share) * angle).sin() / sine
    of_end = (share * angle).sin() / sine
    mixed = torch.where(straight, 1.0 - share, of_start) * start + torch.where(straight, share, of_end) * end
    return mixed.to(start_BLD.dtype)


def _cached(known: OrderedDict[K, Tensor], key: K, make: Callable[[K], Tensor], most: int) -> Tensor:
    found = known.get(key)
    if found is not None:
        known.move_to_end(key)
        return found
    made = known[key] = make(key)
    if len(known) > most:
        known.popitem(last=False)
    return made
