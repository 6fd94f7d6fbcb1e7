"""Live2Diff on a GPU: the pool, its views and the networks there, against the CPU and against themselves.

Where there is a GPU: `python -m pytest -m gpu tests/engine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.acceleration.graphs import CudaRecorder, GraphCall
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.indexed import IndexedView
from rearview.engine.memory.cache.pool import TemporalKVCache
from rearview.engine.memory.cache.view import CACHE, LayerPool
from rearview.engine.networks.attention.temporal_ops import attend_indexed, store_frames
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_denoiser
from support.frames import content, entering
from support.kernel_cases import CASES, Case
from support.memories import gather
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


LAYERS = {**CASES, "the first of SD1.5": Case(8, 4096, 8, 16, 40, slots=9)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("dtype", "storage", "error"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, CLOSE),
        (torch.float32, torch.float8_e4m3fn, CLOSE),
        (torch.float16, torch.float16, 4e-3),
        (torch.float16, torch.float8_e4m3fn, 4e-3),
        (torch.bfloat16, torch.bfloat16, 4e-2),
    ],
    ids=str,
)
def test_kernels_equal_torch(name: str, dtype: torch.dtype, storage: torch.dtype, error: float) -> None:
    """Attention but for rounding, what is written to the bit."""
    case = replace(LAYERS[name], dtype=dtype, storage=storage, device=GPU)
    found, expected = case.attended(case.pool(), exact=torch.float64)
    assert gap(found.double(), expected) <= error
    if case.samples <= case.slots:
        at = torch.arange(case.samples, device=GPU) % case.frames
        pools = case.stored(at, scale=300.0)
        ours, theirs = (torch.stack([each.float() for each in pool.tensors]) for pool in pools)
        assert torch.equal(ours, theirs)


def test_a_pool_of_more_than_two_to_the_31_elements_is_read_and_written_at_its_end() -> None:
    case = Case(2, 2048, 8, 16, 64, slots=130, dtype=torch.float16, storage=torch.float8_e4m3fn, device=GPU)
    shape = (case.slots, case.pixels, case.heads, case.frames, case.size)
    whole = LayerPool(*(torch.zeros(shape, dtype=case.storage, device=GPU) for _ in range(2)))
    assert whole.keys.numel() > 2**31
    ends = torch.tensor([129, 0], device=GPU)
    key, value = case.projections()[1:]
    store_frames(key, value, *whole.tensors, ends, torch.tensor([3, 5], device=GPU))
    small = LayerPool(*(tensor[[129, 0]].clone() for tensor in _bytes(whole)))
    assert torch.equal(
        small.keys.view(case.storage)[0, :, :, 3].flatten(1).half(), key[0].to(case.storage).half()
    )
    beyond = attend_indexed(*case.projections(), *whole.tensors, case.tables(), ends, *case.seen())
    near = LayerPool(*(tensor.view(case.storage) for tensor in small.tensors))
    first = torch.tensor([0, 1], device=GPU)
    found = attend_indexed(*case.projections(), *near.tensors, case.tables(), first, *case.seen())
    assert torch.equal(beyond, found)


def test_one_captured_forward_serves_any_sessions(unet: StreamingUNet) -> None:
    memory, slices = (tiny_cache(dtype=torch.float32, unet=unet, by_index=each) for each in (None, False))
    specs = [cached(name) for name in "abc"]
    for each in (memory, slices):
        for i, spec in enumerate(specs):
            each.allocate(spec)
            play(each, spec, clip(5 + i, i, dtype=torch.float32), unet=unet)
    graphs = GraphCall(EagerCall(unet), CudaRecorder())
    prompts = torch.ones(2, 3, 8, device=GPU)
    for pair in ((0, 1), (1, 2), (2, 0), (1, 0)):
        rows = [stream_row(specs[i], clip(1, 9, dtype=torch.float32)[0], 5 + i) for i in pair]
        latents = clip(1, 9, dtype=torch.float32).repeat(2, 1, 1, 1).to(GPU)
        inputs = UNetInputs(latents, torch.tensor([499, 499], device=GPU), prompts)
        views = gather(memory, rows)
        assert isinstance(views.of(CACHE), IndexedView)
        with torch.inference_mode():
            found, _ = graphs(inputs, views)
            expected, _ = EagerCall(unet)(inputs, gather(slices, rows))
        assert gap(found, expected) <= CLOSE
    assert graphs.counts.accelerated == 3, "the first of them ran eager, and the others share its graph"


def _bytes(pool: LayerPool) -> list[Tensor]:
    return [tensor.view(torch.uint8) for tensor in pool.tensors]


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
