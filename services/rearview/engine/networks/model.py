"""What the engine needs of a model: its operators as batched functions without state.

`DiffusionModel` runs the networks; `NullModel` moves opaque bytes, to measure everything but the
networks. A model holds weights only. What a session remembers is an argument and a return value.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.controls import check_controls
from rearview.contract.frame import DEPTH, LATENT, PICTURE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings, check_adapters
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.cache.layers import read_cache_layout
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.depth.view import DEPTH_RANGE, DepthUpdate, DepthView
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.control_pictures import ControlPictures
from rearview.engine.networks.decode import decode_levels, pictures_of
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.depth import DepthEstimator
from rearview.engine.networks.encode import encode, encode_with_depth
from rearview.engine.networks.finite import broken_planes, broken_samples
from rearview.engine.planes import Planes, moved, stacked
from rearview.engine.rows import Row

__all__ = ["DiffusionModel", "Forward", "Model", "NullModel", "row_group"]


@dataclass(frozen=True, slots=True)
class Forward:
    """What one batched forward returns."""

    outputs: Sequence[Planes]
    """What each sample carries on, by plane: in order of rows, then of a row's frames. On the device, and
    parts of the whole batch.
    """
    updates: Updates = field(default_factory=Updates)
    """What the rows would write to memory when they commit: an update for each view."""
    broken: frozenset[int] = frozenset()
    """Samples of which some value is not finite."""
    is_accelerated: bool = False
    """Whether its network was replayed from a graph, or ran compiled."""
    is_fallback: bool = False
    """Whether it was to be, and ran as it is."""

    def broken_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the forward's `rows` that have such a sample: neither pictures nor updates are good."""
        if not self.broken:
            return []
        ends = accumulate(len(row.frames) for row in rows)
        return [row for row, end in zip(rows, ends, strict=True) if self._breaks(row, end)]

    def _breaks(self, row: Row, end: int) -> bool:
        return not self.broken.isdisjoint(range(end - len(row.frames), end))


class Model(Protocol):
    """Weights and the functions over them."""

    @property
    def layouts(self) -> Layouts:
        """What of its networks can be remembered."""

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        """Rows with equal groups may share a forward, as far as the networks are concerned."""

    def prepare(self, settings: Settings) -> None:
        """Do ahead what new settings need (encode the prompt), so that no frame waits for it."""

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        """Run rows of one group. Reads `views`, changes nothing."""


def row_group(
    model: Model, memory: Memories, spec: SessionSpec, settings: Settings, operator: Operator
) -> Hashable:
    """Rows may share a forward iff their groups are equal: what the networks and what the memories say."""
    group, past = model.group(spec, settings, operator), memory.group(spec, operator)
    return group if past is None else (group, past)


class DiffusionModel:
    """An image diffusion checkpoint: VAE and UNet, or those of them that the span needs."""

    def __init__(
        self,
        vae: torch.nn.Module | None,
        denoiser: Denoiser | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        adapted: Mapping[str, Denoiser] | None = None,
        depth: DepthEstimator | None = None,
        pictures: ControlPictures | None = None,
    ) -> None:
        """`adapted`: the denoiser under each merged adapter set; `denoiser` is that of all others. `depth`:
        what frames of sessions with a temporal cache are also conditioned on; None: nothing. `pictures`:
        draws what controls are shown, where frames are encoded; None: there are no controls, or no frames.
        """
        self.vae: Any = vae
        """None if the span has neither encode nor decode. Whatever has `encode`, `decode` and `config` may
        stand in for it.
        """
        self._denoiser = denoiser
        self._adapted = {} if denoiser is None else {"": denoiser, **(adapted or {})}
        self._sets = {*self._adapted, *(() if denoiser is None else denoiser.conditioning.stacks.names)}
        self._depth, self._pictures = depth, pictures
        self._device, self._dtype = device, dtype

    @property
    def depth(self) -> DepthEstimator | None:
        """None if the span makes no depth."""
        return self._depth

    @property
    def denoisers(self) -> Mapping[str, Denoiser]:
        """By merged adapter set, "" for all others; none if the span has no denoising step."""
        return self._adapted

    @property
    def layouts(self) -> Layouts:
        """Of a UNet that takes a feature bank, of its motion modules, and whether there is depth."""
        unet = None if self._denoiser is None else self._denoiser.unet
        return Layouts(
            bank=None if self._denoiser is None else self._denoiser.bank_layout,
            # Not by its class: with adapter sets it is wrapped.
            cache=read_cache_layout(unet) if hasattr(unet, "temporal_layers") else None,
            depth=self._depth is not None,
        )

    @property
    def weight_bytes(self) -> int:
        """Of all networks, each tensor once, and of what adapter sets keep beside them."""
        depths = filter(None, [self._depth, *self._drawing.depths.values()])
        networks = [self.vae, *(depth.network for depth in depths)]
        for denoiser in self._adapted.values():
            networks += [denoiser.unet, *denoiser.conditioning.text_encoders]
            networks += [*denoiser.controls.branches.values(), *denoiser.references.networks]
        own: dict[int, int] = {}
        for network in filter(None, networks):
            own |= {each.data_ptr(): each.nbytes for each in (*network.parameters(), *network.buffers())}
        # A set changes both networks of its denoiser.
        return sum(own.values()) + sum(getattr(d.unet, "extra_bytes", 0) for d in self._adapted.values())

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        """By operator and size, and in denoising by merged adapter set: a forward has one set of weights.
        Timesteps, prompts, guidance, seeds and sets that are not merged may differ in it.
        """
        size = spec.size_under(settings)
        key = operator.kind, size.height, size.width
        return (*key, *self._apart(settings)) if operator.kind is OperatorKind.DENOISE else key

    def prepare(self, settings: Settings) -> None:
        """Encode the prompts of `settings`, if the span denoises. Raises InvalidRequest for an adapter set or
        a control that is not there.
        """
        if self._pictures is not None:
            check_controls(settings.controls, self._pictures.names)
        if self._adapted:
            self._denoiser_under(settings).prepare(settings)

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        """See `Model.forward`, and `_forward`."""
        is_denoising = rows[0].operator.kind is OperatorKind.DENOISE
        network = self._denoiser_under(rows[0].settings).call if is_denoising else self.vae
        counts = getattr(network, "counts", None)  # What runs as it is has none.
        if counts is None:
            return self._forward(rows, views)
        accelerated, eager = counts.accelerated, counts.eager
        forward = self._forward(rows, views)
        is_accelerated, is_fallback = counts.accelerated > accelerated, counts.eager > eager
        return replace(forward, is_accelerated=is_accelerated, is_fallback=is_fallback)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Row], views: Views) -> Forward:
        """One operator for rows of one group: PICTURE planes become LATENT (encode), LATENT those of the next
        step (denoise), LATENT become PICTURE (decode); anywhere before, on the device after. A window row
        is as many samples as it has frames. Values that are not finite are told in `Forward.broken`, not
        raised; asking for them waits for the device.
        """
        kind, planes = rows[0].operator.kind, _planes(rows)
        if kind is OperatorKind.DENOISE:
            here = moved(planes, self._device)
            return _forward(*self._denoiser_under(rows[0].settings)(here, rows, views))
        assert self.vae is not None, "this span owns no VAE"
        if kind is OperatorKind.ENCODE:
            images_BHWC = stacked(planes, PICTURE, self._device)
            here = moved(planes, self._device)
            drawn = self._drawing.draw(images_BHWC, [row.settings for row in rows], here)
            return _with_control(self._encode(images_BHWC, views.of(DEPTH_RANGE)), drawn)
        levels_BCHW = decode_levels(self.vae, stacked(planes, LATENT, self._device), self._dtype)
        broken = broken_samples(levels_BCHW)  # Pictures are bytes: there it would no longer be seen.
        return Forward(_split(**{PICTURE: pictures_of(levels_BCHW)}), broken=broken)

    @property
    def _drawing(self) -> ControlPictures:
        return self._pictures or ControlPictures({}, {}, self._dtype)

    def _encode(self, images_BHWC: Tensor, ranges: DepthView | None) -> Forward:
        """With ranges of depth frames also get the latents of their depth."""
        if self._depth is None or ranges is None:
            return _forward(_split(**{LATENT: encode(self.vae, images_BHWC, self._dtype)}))
        latent_BCHW, depth_BCHW, after_B2 = encode_with_depth(
            self.vae, self._depth, images_BHWC, ranges.range_B2, self._dtype
        )
        updates = Updates({DEPTH_RANGE.name: DepthUpdate(after_B2)})
        return _forward(_split(**{LATENT: latent_BCHW, DEPTH: depth_BCHW}), updates)

    def _denoiser_under(self, settings: Settings) -> Denoiser:
        """Raises InvalidRequest if there is no such adapter set."""
        assert self._denoiser is not None, "this span owns no UNet"
        check_adapters(settings, self._sets, self._adapted)
        return self._adapted[next(iter(self._apart(settings)), "")]

    def _apart(self, settings: Settings) -> Sequence[str]:
        """The adapter sets of `settings` that rows of one forward have in common: all but stacked ones."""
        stacked = () if self._denoiser is None else self._denoiser.conditioning.stacks.names
        return [name for name in settings.adapter_names if name not in stacked]


def _forward(samples: Sequence[Planes], updates: Updates | None = None) -> Forward:
    """Of planes of numbers."""
    return Forward(samples, updates or Updates(), broken_planes(samples))


def _with_control(forward: Forward, drawn: Sequence[Planes]) -> Forward:
    """`drawn`: what the controls of each sample are shown, as planes."""
    pairs = zip(forward.outputs, drawn, strict=True)
    return replace(forward, outputs=[{**planes, **shown} if shown else planes for planes, shown in pairs])


def _planes(rows: Sequence[Row]) -> list[Planes]:
    return [sample.planes for row in rows for sample in row.samples()]


def _split(**planes: Tensor) -> list[Planes]:
    """Planes of a whole batch as those of each of its samples."""
    each = zip(*(plane.unbind(0) for plane in planes.values()), strict=True)
    return [dict(zip(planes, sample, strict=True)) for sample in each]


class NullModel:
    """Moves its planes unchanged through every operator."""

    @property
    def layouts(self) -> Layouts:
        """There is nothing to remember."""
        return Layouts()

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator.kind

    def prepare(self, settings: Settings) -> None:
        pass  # There is no prompt to encode.

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        return Forward(_planes(rows))
