"""A causal video transformer and a causal autoencoder of video, as rows: diffusers' own classes, tiny.

`AnyFlowFARTransformer3DModel` reads what it remembers from an argument, `kv_cache`; what a chunk leaves is
caught where its keys and values are made. The coders of `AutoencoderKLWan` take `feat_cache`, the last
frames that each of their convolutions saw. Here both are memories of the engine, and the classes keep
nothing.

Shape legend: B rows, C channels, T frames of a chunk, L layers, N tokens of a chunk, W chunks remembered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AnyFlowFARTransformer3DModel, AutoencoderKLWan
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.model import Forward
from rearview.engine.networks.sampling import noise
from rearview.engine.planes import Planes
from rearview.engine.rows import Row
from torch import Tensor

from support.chunks import FRAMES, ChunkMemories
from support.pooled_state import PooledState, State

HEIGHT, WIDTH, LATENT_HEIGHT, LATENT_WIDTH, CHANNELS = 128, 64, 32, 16, 4
TOKENS = LATENT_HEIGHT * LATENT_WIDTH // 4  # 128: a block of the attention, so that nothing is padded
LAYERS, HEADS, HEAD_WIDTH, TEXT_WIDTH, TEXT_TOKENS = 2, 2, 16, 8, 3
REMEMBERED = 2  # chunks
SIGMAS = (0.7, 0.35, 0.0)
TOKENS_KIND, FEATURES_KIND = "tokens", "features"
_CODERS = (OperatorKind.ENCODE, OperatorKind.DECODE)


def _strong(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights under which what is remembered counts."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            elif name.endswith("bias"):
                parameter.zero_()
    return module.eval().requires_grad_(False)


@dataclass
class Networks:
    """Weights alone."""

    vae: Any = field(
        default_factory=lambda: _strong(
            AutoencoderKLWan(
                base_dim=4,
                z_dim=CHANNELS,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[True, True],
                latents_mean=[0.0] * CHANNELS,
                latents_std=[1.0] * CHANNELS,
            )
        )
    )
    transformer: Any = field(
        default_factory=lambda: _strong(
            AnyFlowFARTransformer3DModel(
                full_chunk_limit=REMEMBERED + 1,
                num_attention_heads=HEADS,
                attention_head_dim=HEAD_WIDTH,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                text_dim=TEXT_WIDTH,
                freq_dim=16,
                ffn_dim=32,
                num_layers=LAYERS,
            )
        )
    )

    def velocity(
        self, x_BTChw: Tensor, step: int, text_BKD: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What one step predicts, and the chunk's own keys and values, (2, B, L, heads, N, D).

        `past`: the same of up to W earlier chunks, the oldest first.
        """
        rows, chunks = x_BTChw.shape[0], len(past)
        kept = torch.cat(list(past), dim=4) if past else torch.zeros(2, rows, LAYERS, HEADS, 0, HEAD_WIDTH)
        nothing = kept[:, :, 0, :, :0]
        cache = [{"full_cache": kept[:, :, at], "compressed_cache": nothing} for at in range(LAYERS)]
        times = (torch.full((rows, 1), sigma * 1000.0) for sigma in SIGMAS[step : step + 2])
        with self._caught() as made:
            sample = self.transformer(
                x_BTChw,
                *times,
                text_BKD,
                [1] * (chunks + 1),
                kv_cache=cache,
                kv_cache_flag={"is_cache_step": False, "num_cached_chunks": chunks},
                return_dict=False,
            )[0]
        return sample, torch.stack([torch.stack(made["key"], 1), torch.stack(made["value"], 1)])

    @contextmanager
    def _caught(self) -> Iterator[Mapping[str, list[Tensor]]]:
        """Keys and values of each layer's self-attention, (B, heads, N, D), before positions turn them."""
        made: dict[str, list[Tensor]] = defaultdict(list)

        def catch(name: str) -> Any:
            return lambda module, given, out: made[name].append(out.unflatten(2, (HEADS, -1)).transpose(1, 2))

        hooks = []
        for block in self.transformer.blocks:
            hooks.append(block.attn1.norm_k.register_forward_hook(catch("key")))
            hooks.append(block.attn1.to_v.register_forward_hook(catch("value")))
        try:
            yield made
        finally:
            for hook in hooks:
                hook.remove()


def text_of(settings: Settings) -> Tensor:
    """(K, D): stands for a text encoder."""
    generator = torch.Generator().manual_seed(sum(settings.prompt.encode()))
    return torch.randn(TEXT_TOKENS, TEXT_WIDTH, generator=generator)


def noised(latent_Chw: Tensor, settings: Settings, ordinal: int) -> Tensor:
    """As it enters the first step; `ordinal`: that of the chunk's last frame."""
    sigma = SIGMAS[0]
    return (1 - sigma) * latent_Chw + sigma * noise(settings, ordinal, 0, tuple(latent_Chw.shape))


def stepped(x: Tensor, velocity: Tensor, step: int) -> Tensor:
    """On to the next step, or to the clean latent."""
    return x + (SIGMAS[step + 1] - SIGMAS[step]) * velocity


def as_numbers(pictures_THWC: Tensor) -> Tensor:
    """(C, T, H, W) in -1..1."""
    return pictures_THWC.permute(3, 0, 1, 2).float() / 127.5 - 1


def as_pictures(levels_CTHW: Tensor) -> Tensor:
    """(T, H, W, C) uint8."""
    return ((levels_CTHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


class Features:
    """One coder as a function of its input and of the frames that its convolutions saw before.

    The class tells the first chunk and the second from all others: for them it is given what it would have
    put into the list itself.
    """

    def __init__(self, vae: Any, kind: OperatorKind) -> None:
        self._vae, self._encodes = vae, kind is OperatorKind.ENCODE
        self._coder = vae.encoder if self._encodes else vae.decoder
        self._repeats: set[int] = set()
        first, later = self._inputs()
        _, after = self._run(first, [None] * 64, is_first=True)
        self._repeats = {at for at, each in enumerate(after) if isinstance(each, str)}
        _, after = self._run(later, after, is_first=False)
        self.shapes = [tuple(each.shape[1:]) for each in after]

    def __call__(self, given: Tensor, count: int, parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The result, and the features after it. `count`: chunks before it, the same for all rows."""
        if count == 0:
            cache: list[Any] = [None] * len(parts)
        else:
            cache = ["Rep" if count == 1 and at in self._repeats else each for at, each in enumerate(parts)]
        result, after = self._run(given, cache, is_first=count == 0)
        return result, [self._whole(each, given.shape[0], at) for at, each in enumerate(after)]

    def _run(self, given: Tensor, cache: list[Any], *, is_first: bool) -> tuple[Tensor, list[Any]]:
        cache, used = list(cache), [0]
        if self._encodes:
            result = self._vae.quant_conv(self._coder(given, feat_cache=cache, feat_idx=used))
        else:
            options = {"feat_cache": cache, "feat_idx": used, "first_chunk": is_first}
            result = self._coder(self._vae.post_quant_conv(given), **options)
        return result, cache[: used[0]]

    def _whole(self, feature: Any, rows: int, at: int) -> Tensor:
        """Of full length: frames before the first are zeros, as the convolutions pad them."""
        whole = torch.zeros(rows, *self.shapes[at])
        if not isinstance(feature, str):
            whole[:, :, whole.shape[2] - feature.shape[2] :] = feature
        return whole

    def _inputs(self) -> tuple[Tensor, Tensor]:
        if self._encodes:
            return torch.zeros(1, 3, 1, HEIGHT, WIDTH), torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH)
        latent = torch.zeros(1, CHANNELS, 1, LATENT_HEIGHT, LATENT_WIDTH)
        return latent, latent


class VideoModel:
    """Chunks through `Networks`, without state. A chunk's latent goes with each of its frames, so that one
    that is lost takes nothing of the others with it.
    """

    layouts = Layouts()

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self.coders = {kind: Features(networks.vae, kind) for kind in _CODERS}

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator

    def prepare(self, settings: Settings) -> None:
        pass

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        """Rows of as many chunks before them share the networks' batch: the classes know no other."""
        kind = rows[0].operator.kind
        name = FEATURES_KIND if kind in _CODERS else TOKENS_KIND
        before = views[name]
        assert isinstance(before, State)
        alike: dict[int, list[int]] = defaultdict(list)
        for index, count in enumerate(before.count_B.tolist()):
            alike[min(count, REMEMBERED)].append(index)
        outputs: dict[int, list[Planes]] = {}
        parts = [torch.empty_like(each) for each in before.parts]
        for count, members in alike.items():
            found, after = self._run([rows[at] for at in members], count, before.among(members).parts)
            for part, new in zip(parts, after, strict=True):
                part[members] = new
            outputs.update(zip(members, found, strict=True))
        samples = [planes for at in range(len(rows)) for planes in outputs[at]]
        return Forward(samples, Updates({name: State(before.count_B + 1, tuple(parts))}))

    def _run(
        self, rows: Sequence[Row], count: int, parts: Sequence[Tensor]
    ) -> tuple[list[list[Planes]], Sequence[Tensor]]:
        """For each row the planes of its frames; and what is remembered after them."""
        kind = rows[0].operator.kind
        if kind is OperatorKind.DENOISE:
            return self._denoise(rows, count, parts[0])
        if kind is OperatorKind.ENCODE:
            clips = [torch.stack([frame.planes[PICTURE] for frame in row.frames]) for row in rows]  # type: ignore[index]
            moments, after = self.coders[kind](torch.stack(list(map(as_numbers, clips))), count, parts)
            latents = moments[:, :CHANNELS, 0]
            return [
                [{LATENT: each}] * len(row.frames) for row, each in zip(rows, latents, strict=True)
            ], after
        latents = torch.stack([row.planes[LATENT] for row in rows])[:, :, None]
        levels, after = self.coders[kind](latents, count, parts)
        return [[{PICTURE: picture} for picture in as_pictures(each)] for each in levels], after

    def _denoise(
        self, rows: Sequence[Row], count: int, ring: Tensor
    ) -> tuple[list[list[Planes]], Sequence[Tensor]]:
        """`ring`: (B, W, 2, L, heads, N, D), the newest chunk last."""
        step = rows[0].operator.step
        x = torch.stack([row.planes[LATENT] for row in rows])
        if step == 0:
            x = torch.stack(
                [noised(each, row.settings, row.ordinal) for each, row in zip(x, rows, strict=True)]
            )
        past = [ring[:, at].transpose(0, 1) for at in range(REMEMBERED - count, REMEMBERED)]
        text = torch.stack([text_of(row.settings) for row in rows])
        velocity, own = self._networks.velocity(x[:, None], step, text, past)
        left = stepped(x, velocity[:, 0], step)
        after = torch.cat([ring[:, 1:], own.transpose(0, 1)[:, None]], dim=1)
        return [[{LATENT: each}] * len(row.frames) for row, each in zip(rows, left, strict=True)], [after]


def video_memories(span: Span, model: VideoModel, num_slots: int) -> ChunkMemories:
    """Tokens of each denoising step, and features of each coder, of the span."""
    tokens = (REMEMBERED, 2, LAYERS, HEADS, TOKENS, HEAD_WIDTH)
    steps = {each: [tokens] for each in span.operators if each.kind is OperatorKind.DENOISE}
    coders = {each: model.coders[each.kind].shapes for each in span.operators if each.kind in _CODERS}
    kinds = []
    if steps:
        kinds.append(PooledState(TOKENS_KIND, [OperatorKind.DENOISE], num_slots, steps))
    if coders:
        kinds.append(PooledState(FEATURES_KIND, _CODERS, num_slots, coders))
    return ChunkMemories(kinds, num_slots)


@torch.inference_mode()
def plainly(networks: Networks, pictures_THWC: Tensor, settings: Settings) -> Tensor:
    """The same without rows: the whole clip encoded at once, one chunk after the other through all steps,
    all latents decoded at once. (T, H, W, C) uint8.
    """
    moments = networks.vae.encode(as_numbers(pictures_THWC)[None]).latent_dist.mode()
    pasts: list[list[Tensor]] = [[] for _ in SIGMAS[1:]]
    clean = []
    for chunk in range(moments.shape[2]):
        x = noised(moments[0, :, chunk], settings, chunk * FRAMES)[None]
        for step, past in enumerate(pasts):
            velocity, own = networks.velocity(x[:, None], step, text_of(settings)[None], past[-REMEMBERED:])
            past.append(own)
            x = stepped(x, velocity[:, 0], step)
        clean.append(x)
    levels = networks.vae.decode(torch.stack(clean, dim=2)).sample
    return as_pictures(levels[0])
