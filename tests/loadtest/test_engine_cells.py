"""What the engine's benchmark runs on: its counts of work, its sessions, and models whose pictures differ."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from rearview.engine.engine import Order
from rearview.engine.reference.frame import translate_frame
from torch.utils.flop_counter import FlopCounterMode

from loadtest.engine_cells import METHODS, Bench, Cell, specs
from loadtest.engine_loop import Frames
from loadtest.engine_models import ADAPTERS, MAX_STEPS, SIZES, Work, build, cache_flops, count_work, heighten

pytestmark = [pytest.mark.unit, pytest.mark.timeout(100)]

CPU = torch.device("cpu")
SMOKE = SIZES["smoke"]


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(SMOKE, CPU, torch.float32, 1e9)


def test_work_of_stable_diffusion_is_what_is_known_of_it() -> None:
    """Counted on tensors without data: 0.803 TFLOP per row, 0.926 with a bank, TAESD 0.122 + 0.141."""
    meta = torch.device("meta")
    model = build(SIZES["sd15"], meta, torch.float16)
    work = count_work(model, SIZES["sd15"], meta, torch.float16)
    counted = [work.unet, work.unet + work.bank, work.encode, work.decode]
    assert [round(value / 1e12, 3) for value in counted] == pytest.approx(
        [0.803, 0.926, 0.122, 0.141], rel=0.02
    )
    assert work.cache == 0.0


def test_work_of_a_frame_counts_every_step_once() -> None:
    work = Work(unet=10.0, bank=2.0, encode=1.0, decode=3.0, cache=5.0)
    assert work.of_frame(4, banked=False) == 44.0
    assert work.of_frame(4, banked=True) == 52.0
    assert work.of_frame(4, banked=False, cached=True) == 64.0


def test_motion_modules_take_what_the_formula_says() -> None:
    """But for attention itself, which no one frame has: 4 N F C of each layer."""
    model = build(SMOKE, torch.device("meta"), torch.float32, motion=True)
    layout, unet = model.layouts.cache, model.denoisers[""].unet
    assert layout is not None
    embeds = torch.zeros(1, 77, unet.config.cross_attention_dim, device="meta")
    latent, step = torch.zeros(1, 4, 16, 16, device="meta"), torch.tensor([1], device="meta")

    def counted(**more: Any) -> float:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            unet(latent, step, encoder_hidden_states=embeds, **more)
        return float(counter.get_total_flops())

    modules = counted(attend=lambda layer, query, key, value, tables: value) - counted()
    attention = sum(4.0 * 16 * layer.pixels(16, 16) * layer.channels for layer in layout.layers)
    tables = 3 * sum(2.0 * layout.max_frames * layer.channels**2 for layer in layout.layers)
    assert modules - tables == cache_flops(layout, 16) - attention


def test_stable_diffusions_cache_takes_what_the_note_says() -> None:
    """On tensors without data: 40 layers and 1.42 GiB per step at 512 x 512 in float16."""
    layout = build(SIZES["sd15"], torch.device("meta"), torch.float16, motion=True).layouts.cache
    assert layout is not None
    assert len(layout.layers) == 40
    assert layout.bytes_per_step(64, 64, 16, torch.float16) == 1_520_435_200


def test_only_a_cell_with_a_cache_has_motion_modules(bench: Bench) -> None:
    for method in METHODS:
        cell = Cell(method, 2, 1)
        layouts = bench.networks(motion=cell.cached).model.layouts
        assert (layouts.cache is not None) == (method in ("live2diff", "both"))
        assert bench.memory(cell, 3).free_slots == 3


def test_a_smaller_cache_takes_a_quarter(bench: Bench) -> None:
    whole = bench.session_bytes(Cell("live2diff", 2, 1))
    assert bench.session_bytes(Cell("live2diff", 2, 1, storage="float8_e4m3fn")) * 4 == whole
    assert bench.session_bytes(Cell("live2diff", 1, 1)) * 2 == whole
    assert bench.session_bytes(Cell("plain", 2, 1)) == 0


def test_names_tell_cells_apart() -> None:
    cells = [
        Cell("plain", 4, 8),
        Cell("plain", 4, 8, Order.STREAM_BATCH),
        Cell("plain", 4, 8, accelerator="graphs"),
        Cell("plain", 4, 8, paced_fps=30.0),
        Cell("plain", 4, 8, max_batch=1),
        Cell("live2diff", 4, 8, storage="float8_e4m3fn"),
        Cell("plain", 0, 8),
    ]
    assert len({cell.name for cell in cells}) == len(cells)
    assert cells[0].name == "plain, 4 steps, 8 sessions, eager"
    assert all(cell.alone == Cell(cell.method, cell.steps, 1, max_batch=1) for cell in cells)


def test_mixed_sessions_differ_in_everything_that_a_forward_may_mix() -> None:
    mixed = specs(Cell("streamv2v", 0, 16), SMOKE)
    assert {spec.settings.steps for spec in mixed} == set(range(1, MAX_STEPS + 1))
    assert len({spec.settings.prompt for spec in mixed}) == len({spec.settings.seed for spec in mixed}) == 16
    assert len({spec.settings.strength for spec in mixed}) > 1


def test_frames_show_in_the_pictures_once_a_model_is_heightened() -> None:
    frames, settings = Frames(SMOKE.pixels), specs(Cell("plain", 2, 1), SMOKE)[0].settings

    def change(model: Any) -> float:
        both = [
            translate_frame(
                model.vae, model.denoisers[""], frames.picture("s0", n), settings, n, torch.float32
            )
            for n in range(2)
        ]
        return float((both[0].float() - both[1].float()).square().mean().sqrt())

    model = build(SMOKE, CPU, torch.float32)
    assert change(model) < 1.0
    heighten(model, SMOKE)
    assert change(model) > 10.0


def test_no_two_sessions_see_the_same_frame_at_once() -> None:
    frames = Frames(8)
    assert len({bytes(frames.bytes_of(f"s{i}", 0)) for i in range(16)}) == 16
    assert len({bytes(frames.bytes_of("s0", n)) for n in range(16)}) == 16


def test_the_sets_of_a_cell_with_adapters_show_in_its_pictures() -> None:
    model, frames = build(SMOKE, CPU, torch.float32, adapters=True), Frames(SMOKE.pixels)
    heighten(model, SMOKE)
    first = specs(Cell("adapters", 2, 5), SMOKE)
    assert [spec.settings.adapters for spec in first] == [*ADAPTERS, ADAPTERS[0]]
    settings = [replace(first[0].settings, adapters=name) for name in ("", *ADAPTERS)]
    image = frames.picture("s0", 0)
    pictures = [
        translate_frame(model.vae, model.denoisers[""], image, each, 0, torch.float32).float()
        for each in settings
    ]
    apart = [float((a - b).square().mean().sqrt()) for a, b in pairwise(pictures)]
    assert min(apart) > 2.0, "levels of 255"
