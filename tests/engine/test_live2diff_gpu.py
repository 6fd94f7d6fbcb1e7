"""Live2Diff on a GPU: the pool, its views and the networks there, against the CPU and against themselves.

Where there is a GPU: `python -m pytest -m gpu tests/engine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.pool import TemporalKVCache
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_denoiser
from support.frames import content, entering
from support.tiny_bank import video
from support.tiny_motion import (
    SIZE,
    WINDOW,
    advance,
    cached,
    clip,
    gap,
    play,
    stream_row,
    tiny_cache,
    tiny_unet,
    whole_clip,
    with_motion,
)
from support.toy import drain
from torch import Tensor

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
FRAMES = 14
SINKS = WINDOW.sink_frames
CLOSE = 1e-5
"""Of float32, beside values of about 1."""


@pytest.fixture(scope="module", autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, which has 10 bits."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def unet() -> StreamingUNet:
    return deepcopy(tiny_unet(torch.float32)).to(GPU)


def opened(unet: StreamingUNet, storage: torch.dtype = torch.float32) -> tuple[TemporalKVCache, SessionSpec]:
    memory, spec = tiny_cache(dtype=storage, unet=unet), cached("a")
    memory.allocate(spec)
    return memory, spec


def played(unet: StreamingUNet, latents: Tensor, storage: torch.dtype = torch.float32) -> Tensor:
    memory, spec = opened(unet, storage)
    return play(memory, spec, latents, unet=unet).cpu()


def test_l2_cached_steps_equal_full_attention_under_the_mask(unet: StreamingUNet) -> None:
    latents = clip(WINDOW.frames, dtype=torch.float32)
    assert gap(played(unet, latents), whole_clip(latents, SINKS, unet).cpu()) <= CLOSE


def test_the_gpu_predicts_what_the_cpu_predicts(unet: StreamingUNet) -> None:
    latents = clip(FRAMES, dtype=torch.float32)
    assert gap(played(unet, latents), played(tiny_unet(torch.float32), latents)) <= 10 * CLOSE


def test_l1_a_later_frame_changes_no_bit_of_an_earlier_one(unet: StreamingUNet) -> None:
    latents = clip(FRAMES, dtype=torch.float32)
    changed = latents.clone()
    changed[10] += 1.0
    before, after = played(unet, latents), played(unet, changed)
    assert torch.equal(before[:10], after[:10])
    assert gap(before[10:11], after[10:11]) > 1e-3


def test_l19_sessions_together_equal_each_alone(unet: StreamingUNet) -> None:
    memory = tiny_cache(dtype=torch.float32, unet=unet)
    specs = [cached(name) for name in "abc"]
    for i, spec in enumerate(specs):
        memory.allocate(spec)
        play(memory, spec, clip(5 + 2 * i, i, dtype=torch.float32), unet=unet)
    last = clip(1, 9, dtype=torch.float32)
    together = advance(memory, [stream_row(spec, last[0], 5 + 2 * i) for i, spec in enumerate(specs)], unet)
    for i in range(len(specs)):
        alone = played(unet, torch.cat([clip(5 + 2 * i, i, dtype=torch.float32), last]))
        assert gap(alone[-1], together[i].cpu()) <= CLOSE
    memory.check_integrity()


def test_l20_moved_by_way_of_the_cpu_it_goes_on_bit_by_bit(unet: StreamingUNet) -> None:
    latents = clip(FRAMES, dtype=torch.float32)
    here, spec = opened(unet)
    there, _ = opened(unet)
    play(here, spec, latents[:9], unet=unet)
    there.import_("a", here.export("a"))
    for n in range(9, FRAMES):
        row = [stream_row(spec, latents[n], n)]
        assert torch.equal(advance(there, row, unet), advance(here, row, unet))


def test_storage_of_fewer_bits_errs_by_their_number(unet: StreamingUNet) -> None:
    latents = clip(FRAMES, dtype=torch.float32)
    exact = played(unet, latents)
    types = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    errors = [float((played(unet, latents, each) - exact).square().mean().sqrt()) for each in types]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_stay_finite_with_a_cache_of_float8(dtype: torch.dtype) -> None:
    half = deepcopy(tiny_unet(torch.float32)).to(GPU, dtype)
    latents = clip(FRAMES, dtype=torch.float32)
    assert played(half, latents, dtype).isfinite().all()
    assert played(half, latents, torch.float8_e4m3fn).isfinite().all()


def test_a_cut_between_two_steps_changes_no_bit_through_a_new_prompt(checkpoint: Path) -> None:
    """The whole engine: a warm-up, a shadow window, and steps of one row."""
    plain = load_denoiser(checkpoint, GPU, torch.float32)
    denoiser = Denoiser(with_motion(plain.unet), plain.schedule, plain.conditioning, torch.float32)
    model = DiffusionModel(None, denoiser, device=GPU, dtype=torch.float32)
    latents = [latent.float() for latent in video(FRAMES)]
    whole = _translated(model, [[0, 1]], latents)
    pieces = _translated(model, [[0], [1]], latents)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def _translated(model: DiffusionModel, cut: list[list[int]], latents: list[Tensor]) -> list[Tensor]:
    settings = [Settings("a", 0.8, 2, seed=3), Settings("b", 0.8, 2, seed=3)]
    spec = SessionSpec("s", SIZE, SIZE, 2, settings[0], cache=CacheSettings())
    frames = [entering("s", n, latent, int(n >= 6)) for n, latent in enumerate(latents)]
    for steps in cut:
        options = MemoryOptions(
            num_slots=1, height=SIZE, width=SIZE, dtype=torch.float32, device=GPU, cache=CacheOptions(WINDOW)
        )
        span = Span("denoise", tuple(Operator(OperatorKind.DENOISE, step) for step in steps))
        memory = build_memories(span, model.layouts, options)
        assert "cache" in memory.names
        engine = Engine(span, model, memory, Scheduler(CostTable(), 1), clock=lambda: 0.0)
        engine.open(spec)
        engine.update("s", 1, settings[1])
        for frame in frames:
            engine.admit(frame, 0.0)
        left = {one.ordinal: one for one in drain(engine)}
        frames = [left[n] for n in sorted(left)]
    payloads = [content(frame) for frame in frames if content(frame) is not None]
    assert len(payloads) == len(latents)
    return payloads
