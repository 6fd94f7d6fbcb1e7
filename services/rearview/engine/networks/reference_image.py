"""Reference images in rows (IP-Adapter): each sample's cross-attentions also attend to tokens of its picture.

What they find is added to what they find in the prompt, times a gain of each token of the layer: the scale
of the session, where its mask lets it. A sample without a reference has tokens of zero at a gain of 0 beside
others, which adds zeros, and a forward without any runs as if there were no adapter. Pictures are encoded
once and kept by their content. What surprises: a call leaves what it was given with the network until the
next, as with adapter sets. IP-Adapter: methods 1.13.
Shape legend: B samples, T tokens of a picture, D channels of a prompt, N tokens of a layer, P of all levels
together, h x w latent size, S side of what the image encoder sees.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rearview.contract.reference import NO_IMAGE, ImageFile, check_reference
from rearview.contract.settings import Settings
from rearview.engine.devices import upload
from rearview.engine.networks.conditioning import needs_negative

__all__ = [
    "REFERENCE",
    "REFERENCE_GAIN",
    "Given",
    "NoReferences",
    "ReferenceAttention",
    "ReferenceEncoder",
    "References",
    "take_references",
]

REFERENCE = "reference"
"""Tokens (B, T, D) of a network that has the adapter, in its type."""
REFERENCE_GAIN = "reference_gain"
"""How much of what is found in them is added at each token of each level, (B, P)."""
KEPT = 64
"""Pictures, and masks, whose tokens are kept. Those of a picture take 6 to 24 KiB in float16."""
LONGEST = 8
"""Times its width that a picture is scaled at, before the square in its middle is cut out."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained with."""

V = TypeVar("V")


@dataclass(slots=True, eq=False)
class Given:
    """What samples of the running forward are given; nothing by default."""

    levels: int
    """How many times a UNet halves a latent, and one."""
    token_BTD: Tensor | None = None
    gain_BP: Tensor | None = None
    lengths: Sequence[int] = ()
    """Tokens of a layer, by level."""


class ReferenceAttention(nn.Module):
    """What a reference adds to one cross-attention."""

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear, heads: int, given: Given) -> None:
        """`given`: that of the layer's network."""
        super().__init__()
        self.to_k, self.to_v = to_k, to_v
        self._heads, self._given = heads, given

    @property
    def is_given(self) -> bool:
        """Whether any sample of the running forward has a reference."""
        return self._given.token_BTD is not None

    def forward(self, query_BNC: Tensor, attended_BNC: Tensor) -> Tensor:
        """`attended_BNC`, what the layer found in the prompt, with what it finds in the reference."""
        token_BTD, gain_BP = self._given.token_BTD, self._given.gain_BP
        assert token_BTD is not None, "there is no reference"
        assert gain_BP is not None, "a reference comes with its gain"
        assert len(token_BTD) == len(query_BNC), f"{len(query_BNC)} samples, {len(token_BTD)} references"
        key_BTC, value_BTC = self.to_k(token_BTD), self.to_v(token_BTD)
        found_BHND = F.scaled_dot_product_attention(
            self._split(query_BNC), self._split(key_BTC), self._split(value_BTC)
        )
        found_BNC = found_BHND.transpose(1, 2).flatten(2)
        lengths = self._given.lengths
        level = lengths.index(query_BNC.shape[1])
        begin = sum(lengths[:level])
        gain_BN1 = gain_BP[:, begin : begin + lengths[level]].unsqueeze(-1)
        return attended_BNC + gain_BN1 * found_BNC

    def _split(self, tokens_BNC: Tensor) -> Tensor:
        rows, tokens, channels = tokens_BNC.shape
        return tokens_BNC.view(rows, tokens, self._heads, channels // self._heads).transpose(1, 2)


def take_references(network: nn.Module, given: Given) -> None:
    """Let a network whose layers have `ReferenceAttention` be called with `REFERENCE` and `REFERENCE_GAIN`,
    or without. Once.
    """
    assert not hasattr(network, "reference_given"), "the network takes references already"
    network.reference_given = given  # type: ignore[assignment]
    network.register_forward_pre_hook(_give, with_kwargs=True)


def _give(network: Any, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    given = network.reference_given
    given.token_BTD = arguments.pop(REFERENCE, None)
    given.gain_BP = arguments.pop(REFERENCE_GAIN, None)
    height, width = args[0].shape[-2:]
    given.lengths = [rows * columns for rows, columns in _sizes(height, width, given.levels)]
    return args, arguments


def _sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Of a latent at each level: a convolution of stride 2 rounds odd sizes up."""
    sizes = [(height, width)]
    while len(sizes) < levels:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


class ReferenceEncoder:
    """An image encoder (CLIP's, with projection) and what makes tokens of what it sees. Stateless."""

    def __init__(self, encoder: Any, projection: nn.Module, dtype: torch.dtype, *, reads_layer: bool) -> None:
        """`reads_layer`: whether the projection reads the last but one layer, as that of `plus` does, and not
        the encoder's own projection.
        """
        self.encoder, self.projection = encoder, projection
        self._dtype, self._reads_layer = dtype, reads_layer

    @torch.inference_mode()
    def tokens(self, picture: ImageFile) -> Tensor:
        """Of a picture, (T, D). Raises ValueError and OSError for what is none."""
        pixels = pixels_of(picture, self.encoder.config.image_size)
        return self._project(self._see(pixels.to(self.encoder.device, self._dtype)))

    @torch.inference_mode()
    def nothing(self) -> Tensor:
        """What predictions under negative prompts are given in place of a picture, (T, D): for `plus` a grey
        one, else an embedding of zeros.
        """
        config, how = self.encoder.config, {"device": self.encoder.device, "dtype": self._dtype}
        if not self._reads_layer:
            return self._project(torch.zeros(1, config.projection_dim, **how))
        return self._project(self._see(torch.zeros(1, 3, config.image_size, config.image_size, **how)))

    def _see(self, pixels_13SS: Tensor) -> Tensor:
        if self._reads_layer:
            layers: Sequence[Tensor] = self.encoder(pixels_13SS, output_hidden_states=True).hidden_states
            return layers[-2]
        embedding: Tensor = self.encoder(pixels_13SS).image_embeds
        return embedding

    def _project(self, seen: Tensor) -> Tensor:
        tokens_1TD: Tensor = self.projection(seen)
        return tokens_1TD[0].to(self._dtype)


def pixels_of(picture: ImageFile, side: int) -> Tensor:
    """The square in a picture's middle as CLIP's processor gives it, (1, 3, S, S) float32."""
    with Image.open(io.BytesIO(picture.data), formats=("JPEG", "PNG")) as file:
        image = file.convert("RGB")
    image = _middle(image)
    width, height = image.size
    short = min(width, height)
    width, height = side * width // short, side * height // short
    left, top = (width - side) // 2, (height - side) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, side, side, 3)
    scaled = levels.permute(0, 3, 1, 2).float() / 255.0
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _middle(image: Image.Image) -> Image.Image:
    """Of a picture much longer than wide, the part that is looked at with room to spare: all of it, scaled to
    the encoder's side, could take gigabytes.
    """
    width, height = image.size
    most = LONGEST * min(width, height)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top))


def mask_levels(mask: ImageFile, height: int, width: int, levels: int) -> Tensor:
    """A mask as shares of 1 for the tokens of all levels, (P,): the mean over each token's part of it."""
    sizes = _sizes(height, width, levels)
    if not mask:
        return torch.ones(sum(rows * columns for rows, columns in sizes))
    with Image.open(io.BytesIO(mask.data), formats=("JPEG", "PNG")) as file:
        image = file.convert("L")
    levels_HW = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1])
    shares_11HW = levels_HW[None, None].float() / 255.0
    return torch.cat([F.interpolate(shares_11HW, size, mode="area").flatten() for size in sizes])


class NoReferences:
    """A deployment without an adapter for them."""

    networks: Sequence[nn.Module] = ()
    """Beside the UNet's."""

    def inputs(
        self, settings: Sequence[Settings], is_negative: Sequence[bool], latent_BCHW: Tensor
    ) -> Mapping[str, Tensor]:
        """What the UNet is called with beside its inputs, for samples under these settings; nothing if none
        of them refers to a picture. `is_negative`: whether it is a prediction under a negative prompt.
        """
        return {}

    def prepare(self, settings: Settings) -> None:
        """Encode the picture of new settings ahead. Raises InvalidRequest where none can be followed."""
        check_reference(settings.reference, settings.reference_mask, has_adapter=False)


class References(NoReferences):
    """The adapter of a deployment, with what it has encoded. Not thread-safe: only the engine calls it."""

    def __init__(
        self, encoder: ReferenceEncoder, levels: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`levels`: of the UNet."""
        self.networks = (encoder.encoder, encoder.projection)
        self._encoder, self._levels, self._device, self._dtype = encoder, levels, device, dtype
        self._tokens: OrderedDict[ImageFile, Tensor] = OrderedDict()
        """(T, D), the one first that was not used longest. That of no picture is for negative prompts."""
        self._masks: OrderedDict[tuple[ImageFile, int, int], Tensor] = OrderedDict()
        """(P,), by mask and latent size."""

    def inputs(
        self, settings: Sequence[Settings], is_negative: Sequence[bool], latent_BCHW: Tensor
    ) -> Mapping[str, Tensor]:
        """See `NoReferences.inputs`."""
        if not any(each.refers for each in settings):
            return {}
        height, width = latent_BCHW.shape[-2:]
        found = [
            self._of(NO_IMAGE if away else each.reference) if each.refers else None
            for each, away in zip(settings, is_negative, strict=True)
        ]
        empty = torch.zeros_like(next(each for each in found if each is not None))
        tokens = [empty if each is None else each for each in found]
        masks = [
            self._mask(each.reference_mask if each.refers else NO_IMAGE, height, width) for each in settings
        ]
        scales = [each.reference_scale if each.refers else 0.0 for each in settings]
        scale_B1 = upload(torch.tensor(scales, dtype=self._dtype), self._device).view(-1, 1)
        return {REFERENCE: torch.stack(tokens), REFERENCE_GAIN: scale_B1 * torch.stack(masks)}

    def prepare(self, settings: Settings) -> None:
        """See `NoReferences.prepare`."""
        check_reference(settings.reference, settings.reference_mask, has_adapter=True)
        if settings.refers:
            self._of(settings.reference)
            if needs_negative(settings):
                self._of(NO_IMAGE)

    def _of(self, picture: ImageFile) -> Tensor:
        def encode() -> Tensor:
            return self._encoder.tokens(picture) if picture else self._encoder.nothing()

        return _kept(self._tokens, picture, encode)

    def _mask(self, mask: ImageFile, height: int, width: int) -> Tensor:
        def draw() -> Tensor:
            return mask_levels(mask, height, width, self._levels).to(self._device, self._dtype)

        return _kept(self._masks, (mask, height, width), draw)


K = TypeVar("K")


def _kept(known: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    if key in known:
        known.move_to_end(key)
        return known[key]
    made = known[key] = make()
    if len(known) > KEPT:
        known.popitem(last=False)
    return made
