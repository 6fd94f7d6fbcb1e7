"""An autoencoder whose networks run compiled, or are replayed from a graph, where that was made for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.packages import Compiled

__all__ = ["AcceleratedAutoencoder", "Decoding", "Encoding", "FindNetwork"]

FindNetwork = Callable[[str, nn.Module, Tensor], Compiled | None]
"""Of a part (`encode`, `decode`), as a module that takes and returns one tensor, and what it is given.
None: it runs as it is."""


class Encoding(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w), as the autoencoder means them."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor]:
        encoded = self.vae.encode(pixels_BCHW)
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents,)


class Decoding(nn.Module):
    """Latents (B, C, h, w) to pixels (B, 3, H, W)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents_BCHW: Tensor) -> tuple[Tensor]:
        pixels: Tensor = self.vae.decode(latents_BCHW).sample
        return (pixels,)


@dataclass(frozen=True, slots=True)
class _Encoded:
    latents: Tensor


@dataclass(frozen=True, slots=True)
class _Decoded:
    sample: Tensor


class AcceleratedAutoencoder:
    """Stands in for an autoencoder of diffusers, with as much of it as `encode` and `decode` use."""

    def __init__(self, vae: Any, find: FindNetwork) -> None:
        self.counts = Counts()
        self.vae = vae
        """The autoencoder that it stands in for."""
        self.config, self.dtype = vae.config, getattr(vae, "dtype", None)
        self._find = find
        self._encoding, self._decoding = Encoding(vae), Decoding(vae)

    def encode(self, pixels_BCHW: Tensor) -> _Encoded:
        return _Encoded(self._run("encode", self._encoding, pixels_BCHW))

    def decode(self, latents_BCHW: Tensor) -> _Decoded:
        return _Decoded(self._run("decode", self._decoding, latents_BCHW))

    def _run(self, part: str, network: nn.Module, given_BCHW: Tensor) -> Tensor:
        compiled = self._find(part, network, given_BCHW)
        self.counts.count(accelerated=compiled is not None)
        result: Tensor = (network if compiled is None else compiled)(given_BCHW)[0]
        return result
