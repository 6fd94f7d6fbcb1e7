"""Translates clips with the product's own engine, in this process.

One engine per method, one session per look, frames admitted one after another. The span ends before
decode: latents leave it, and are decoded here without rounding to 8 bits, which would hide small flicker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rearview.contract.chain import Span, chain
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.decode import decode_levels
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Player, planes_of
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import latent_shape, load_model
from rearview.engine.weights.formats import Additions
from rearview.errors import ConfigError
from torch import Tensor

__all__ = ["PER_FRAME", "Method", "Translator", "as_picture"]

MAX_BATCH = 8


@dataclass(frozen=True)
class Method:
    """How a frame relates to those before it."""

    name: str
    bank: BankSettings | None = None
    cache: CacheSettings | None = None
    window: CacheWindow = field(default_factory=CacheWindow)
    """Of the cache, if there is one."""
    storage: torch.dtype | None = None
    """How the cache keeps its frames; None: in the type of the networks."""

    @property
    def has_memory(self) -> bool:
        return self.bank is not None or self.cache is not None


PER_FRAME = Method("per frame")


def as_picture(frame_HWC: Tensor) -> Tensor:
    """A uint8 frame as what the metrics take: (3, H, W) float32 in [0, 1]."""
    return frame_HWC.permute(2, 0, 1).float() / 255


class Translator:
    """A checkpoint and pictures of one size."""

    def __init__(
        self,
        checkpoint: str,
        size: int,
        max_steps: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        additions: Additions | None = None,
    ) -> None:
        """Raises ConfigError if the checkpoint cannot be loaded or has no networks."""
        self._span = Span("evaluation", chain(max_steps)[:-1])
        model = load_model(checkpoint, self._span, device, dtype, additions)
        if not isinstance(model, DiffusionModel):
            raise ConfigError(f"model.checkpoint {checkpoint!r} has no networks to evaluate")
        self.checkpoint = checkpoint
        self._model, self._size, self._max_steps = model, size, max_steps
        self._device, self._dtype = device, dtype
        self._latent_scale = size // latent_shape(checkpoint, size, size, additions)[1]

    @property
    def size(self) -> int:
        """Side of the pictures, pixels."""
        return self._size

    def supports(self, method: Method) -> bool:
        """Whether the checkpoint has what the method needs."""
        layouts = self._model.layouts
        lacks_bank = method.bank is not None and layouts.bank is None
        lacks_motion = method.cache is not None and layouts.cache is None
        return not lacks_bank and not lacks_motion

    def memory_bytes(self, method: Method) -> int:
        """Bytes that a session's memory takes."""
        return self._memory(method, 1).bytes_per_session(self._spec("", method, Settings()))

    def translate(
        self, method: Method, looks: Sequence[Settings], frames: Iterable[Tensor]
    ) -> Iterator[list[Tensor]]:
        """Per frame (H, W, 3) uint8 the pictures (3, H, W) in [0, 1], one for each of `looks`, in order.

        A method with a temporal cache gives its first pictures together, once its window is full. Raises
        RuntimeError if the engine dropped a frame (its log says why), or if that window never got full.
        """
        memory = self._memory(method, len(looks))
        player = Player(Engine(self._span, self._model, memory, Scheduler(CostTable(), MAX_BATCH)))
        names = [str(index) for index in range(len(looks))]
        for name, settings in zip(names, looks, strict=True):
            player.open(self._spec(name, method, settings))
        latents: dict[str, dict[int, Tensor]] = {name: {} for name in names}
        num_sent = num_decoded = 0
        for frame in frames:
            for name in names:
                player.admit(name, num_sent, {PICTURE: frame})
            num_sent += 1
            for left in player.left():
                latents[left.session_id][left.ordinal] = planes_of(left)[LATENT]
            while all(num_decoded in latents[name] for name in names):
                yield self._decode([latents[name].pop(num_decoded) for name in names])
                num_decoded += 1
        if num_decoded != num_sent:
            raise RuntimeError(f"{num_sent - num_decoded} frames never left: a clip is too short to warm up")

    @torch.inference_mode()
    def rebuild(self, frame: Tensor) -> Tensor:
        """decode(encode(frame)): what the autoencoder alone makes of it."""
        latent = encode(self._model.vae, frame[None].to(self._device), self._dtype)
        return self._decode([latent[0]])[0]

    @torch.inference_mode()
    def _decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        levels = decode_levels(self._model.vae, torch.stack(list(latents)).to(self._device), self._dtype)
        # What is not a number is grey, as in the product: NaN would be left out of every mean.
        return list((levels / 255).nan_to_num(0.5).clamp(0, 1).cpu().clone().unbind(0))

    def _spec(self, name: str, method: Method, settings: Settings) -> SessionSpec:
        size = self._size
        return SessionSpec(name, size, size, self._max_steps, settings, bank=method.bank, cache=method.cache)

    def _memory(self, method: Method, num_sessions: int) -> Memories:
        if not self.supports(method):
            raise ConfigError(f"this checkpoint lacks what {method.name} needs")
        options = MemoryOptions(
            num_slots=num_sessions,
            height=self._size,
            width=self._size,
            dtype=self._dtype,
            device=self._device,
            latent_scale=self._latent_scale,
            bank=method.bank,
            cache=None if method.cache is None else CacheOptions(method.window, method.storage),
        )
        return build_memories(self._span, self._model.layouts, options)
