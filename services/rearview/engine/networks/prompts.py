"""The prompts of a forward: embeddings in one table on the device, which samples read by index.

A prompt is encoded once for each choice of adapter sets that change the text encoder, and stays until others
come: the one that was not used longest goes first. A frame in mid-blend has a mix of its own, which its steps
share; the mixes that a forward lacks are made together. How many tokens an embedding has, and how wide it is,
is the encoder's affair.
Shape legend: B samples, K embeddings that are made, L tokens, D channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rearview.contract.blending import Mix
from rearview.contract.settings import AdapterMix, Settings
from rearview.engine.devices import upload
from rearview.engine.networks.conditioning import needs_negative, slerp_shares

__all__ = ["Encoder", "PromptTable", "Worded"]

KEPT_PROMPTS = 256
"""Between forwards. One of Stable Diffusion 1.5 takes 116 KiB in float16, one of XL 312 KiB."""
KEPT_MIXES = 64
"""Mixes, between forwards."""


class Encoder(Protocol):
    """Prompts to embeddings: `Conditioning`, or who stands in for it."""

    def embed(self, prompt: str, adapters: AdapterMix = ()) -> Tensor:
        """(1, L, D), of one shape and type for all prompts, on the device of the UNet."""


@dataclass(frozen=True, slots=True)
class Worded:
    """What an embedding follows from."""

    mix: Mix
    adapters: AdapterMix = ()
    """The sets that change the text encoder."""

    def of(self, turn: int) -> tuple[str, AdapterMix]:
        """That prompt of the mix, under the sets."""
        return self.mix[turn].prompt, self.adapters


class PromptTable:
    """The embeddings that forwards read. Not thread-safe: the engine is the only caller."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._rows = encoder, _Rows()
        self._prompts: OrderedDict[tuple[str, AdapterMix], int] = OrderedDict()
        """To their places in the table; as in the next, the one first that was not used longest."""
        self._mixes: OrderedDict[Worded, int] = OrderedDict()

    def places(self, asked: Sequence[Worded]) -> list[int]:
        """Where the embedding of each lies, until the next call; what is lacking is made."""
        # Not at the end: a forward may need more than is kept between forwards.
        self._trim()
        for text in dict.fromkeys(one.of(turn) for one in asked for turn in range(len(one.mix))):
            self._place(text)
        blends = dict.fromkeys(one for one in asked if len(one.mix) > 1)
        for known in [one for one in blends if one in self._mixes]:
            self._mixes.move_to_end(known)
        if lacking := [one for one in blends if one not in self._mixes]:
            self._mixes.update(zip(lacking, self._rows.put(self._mixed(lacking)), strict=True))
        return [self._prompts[one.of(0)] if len(one.mix) == 1 else self._mixes[one] for one in asked]

    def read(self, places_B: Tensor) -> Tensor:
        """The embeddings (B, L, D) at these places, int64."""
        return self._rows.read(places_B)

    def prepare(self, settings: Settings, adapters: AdapterMix = ()) -> None:
        """Encode every prompt that frames under `settings` need. `adapters`: those of `Worded`."""
        self._trim()
        for text in dict.fromkeys(_texts(settings)):
            self._place((text, adapters))

    @property
    def prompts(self) -> frozenset[str]:
        """Those that are in the table."""
        return frozenset(text for text, _ in self._prompts)

    def _place(self, text: tuple[str, AdapterMix]) -> None:
        if text in self._prompts:
            self._prompts.move_to_end(text)
        else:
            (self._prompts[text],) = self._rows.put(self._encoder.embed(*text))

    def _trim(self) -> None:
        for known, most in ((self._mixes, KEPT_MIXES), (self._prompts, KEPT_PROMPTS)):
            while len(known) > most:
                self._rows.free(known.popitem(last=False)[1])

    def _mixed(self, asked: Sequence[Worded]) -> Tensor:
        """Mixes of two prompts or more, (K, L, D): what `Conditioning.embed_frame` makes of each, all
        together, one prompt after the other.
        """
        mixed_KLD = self._of_prompts([one.of(0) for one in asked])
        weights = [one.mix[0].weight for one in asked]
        for turn in range(1, max(len(one.mix) for one in asked)):
            members = [index for index, one in enumerate(asked) if len(one.mix) > turn]
            shares = []
            for index in members:
                weight = asked[index].mix[turn].weight
                weights[index] += weight
                shares.append(weight / weights[index])
            others_MLD = self._of_prompts([asked[index].of(turn) for index in members])
            chosen = upload(torch.tensor(members), mixed_KLD.device)
            turned_MLD = slerp_shares(mixed_KLD.index_select(0, chosen), others_MLD, shares)
            mixed_KLD = mixed_KLD.index_copy(0, chosen, turned_MLD)
        return mixed_KLD

    def _of_prompts(self, texts: Sequence[tuple[str, AdapterMix]]) -> Tensor:
        return self._rows.read(self._rows.index([self._prompts[text] for text in texts]))


class _Rows:
    """Embeddings of one shape, one behind the other; it doubles when it is full, and never shrinks."""

    def __init__(self) -> None:
        self._storage_RLD = torch.empty(0)
        self._free: list[int] = []

    @torch.inference_mode()
    def put(self, embeddings_KLD: Tensor) -> list[int]:
        """Their places."""
        count = len(embeddings_KLD)
        if len(self._free) < count:
            self._grow(embeddings_KLD)
        places = self._free[-count:]
        self._storage_RLD.index_copy_(0, self.index(places), embeddings_KLD)
        del self._free[-count:]
        return places

    def free(self, place: int) -> None:
        """Nobody reads it any more. What is there stays until another is put there."""
        self._free.append(place)

    def index(self, places: Sequence[int]) -> Tensor:
        """To `read` these."""
        return upload(torch.tensor(places), self._storage_RLD.device)

    def read(self, places_B: Tensor) -> Tensor:
        """(B, L, D)"""
        return self._storage_RLD.index_select(0, places_B)

    def _grow(self, like_KLD: Tensor) -> None:
        known = len(self._storage_RLD)
        more = max(known, 16, len(like_KLD))
        fresh_RLD = like_KLD.new_zeros((more, *like_KLD.shape[1:]))
        self._storage_RLD = torch.cat([self._storage_RLD, fresh_RLD]) if known else fresh_RLD
        self._free.extend(reversed(range(known, known + more)))


def _texts(settings: Settings) -> Iterator[str]:
    """Every prompt that frames under `settings` need: on the way of a blend, too."""
    yield from (one.prompt for one in settings.mix)
    if settings.blend is not None:
        yield from (one.prompt for one in settings.blend.start)
    if needs_negative(settings):
        yield settings.negative_prompt
