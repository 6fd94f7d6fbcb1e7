"""Reference images must not break what always holds: alone = batched, whole = pieces, moved = never moved.

In float64, with a feature bank and with a temporal cache, beside adapter sets and ControlNets, against the
plain path. A reference is seen in the first frame under it and in none before, and a row without one is what
it is in the company of its like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.contract.chain import Span
from rearview.contract.frame import LATENT
from rearview.contract.reference import NO_IMAGE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings, WeightedAdapters
from rearview.engine.acceleration.compiled import CompiledCall
from rearview.engine.acceleration.flat import FlatCall, FlatUNet, free_dims
from rearview.engine.acceleration.graphs import capture
from rearview.engine.acceleration.packages import in_process
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.reference_image import (
    Given,
    ReferenceAttention,
    ReferenceEncoder,
    mask_levels,
)
from rearview.engine.player import Clip, Player
from rearview.engine.reference.cache import PlainCache
from rearview.engine.reference.clip import Carried, denoise_clip, step_function
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions, LoraFile
from rearview.errors import InvalidRequest, Reason
from support.frames import content
from support.loras import OUT, random_lora, write_kohya
from support.moves import play_moving
from support.stand_in_graphs import StandInRecorder
from support.tiny import SIZE, random_frames, write_tiny_checkpoint
from support.tiny_bank import Stream, gap, play
from support.tiny_control import control_files, controlled
from support.tiny_motion_files import original_motion, write_motion_file
from support.tiny_reference import half_mask, pixels, png, reference_file
from support.tiny_rows import (
    CPU,
    CUTS,
    DTYPE,
    EXACT,
    FULL,
    SPAN,
    WINDOW,
    assert_equal,
    cut_spans,
    engine_with,
    entering_row,
    on_plain_path,
    settings_by_frame,
    sharpened,
    spec_of,
)
from support.toy import player
from torch import Tensor, nn

pytestmark = pytest.mark.unit

FACE, STYLE = png(pixels(1)), png(pixels(2, 48, 80))
HALF = png(half_mask(SIZE, SIZE))
INK = (WeightedAdapters("ink", 0.7),)
EDGES = controlled(("edges", 0.8))


def write_ink(path: Path, checkpoint: Path) -> Path:
    """A LoRA of layers that references go through."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    layers = [OUT, OUT.replace("to_out.0", "to_q"), OUT.replace("to_out.0", "to_k")]
    return write_kohya(path, random_lora(unet.state_dict(), layers), None)


@lru_cache
def tiny_model(motion: bool, kind: str = "plain") -> DiffusionModel:
    """With a reference adapter, two ControlNets and an adapter set; self-attention made sharp, since flat
    attention would hide a bank.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_tiny_checkpoint(folder / "checkpoint")
        additions = Additions(
            motion=str(write_motion_file(folder / "motion.ckpt", original_motion())) if motion else "",
            controls=control_files(folder, checkpoint),
            adapters={"ink": [LoraFile(str(write_ink(folder / "ink.safetensors", checkpoint)))]},
            reference=reference_file(folder / "reference", checkpoint, kind),
        )
        model = load_model(str(checkpoint), SPAN, CPU, DTYPE, additions)
    return sharpened(model)


def engine_of(span: Span = SPAN, max_batch: int = 16, *, motion: bool = False, **how: Any) -> Engine:
    return engine_with(tiny_model(motion), span, max_batch, motion=motion, **how)


def mixed() -> list[Stream]:
    """Sessions without a reference, with one, masked, guided, with a bank, and those that change."""
    specs = [
        spec_of("none", bank=True),
        spec_of("face", bank=True, reference=FACE, adapter_mix=INK),
        spec_of("style", reference=STYLE, reference_scale=0.6, seed=1, controls=EDGES),
        spec_of("masked", bank=True, reference=FACE, reference_mask=HALF, steps=1),
        spec_of("full", reference=STYLE, **FULL),
        spec_of("turned on", bank=True, prompt="b", reference=FACE, reference_scale=0.0),
    ]
    changes = {"turned on": {2: replace(specs[-1].settings, reference_scale=1.2)}}
    return [
        Stream(spec, random_frames(4, seed), changes.get(spec.session_id, {}))
        for seed, spec in enumerate(specs)
    ]


@pytest.mark.parametrize("order", Order)
def test_alone_and_batched_are_the_plain_path(order: Order) -> None:
    streams = mixed()
    together = play(engine_of(order=order), streams, seed=1)
    for stream in streams:
        name = stream.spec.session_id
        expected = on_plain_path(tiny_model(False), stream)
        assert gap(together[name], expected) <= EXACT, name
        assert gap(play(engine_of(), [stream])[name], expected) <= EXACT, name


def test_a_row_without_a_reference_is_bit_by_bit_as_without_in_the_same_batch() -> None:
    first, second = random_frames(2)
    idle = {"reference": FACE, "reference_scale": 0.0}
    ways = ({}, idle, {"reference": FACE}, {"reference": STYLE, "reference_mask": HALF})
    for own in ({}, idle):
        plain = entering_row(tiny_model(False), "a", first, **own)
        beside = [entering_row(tiny_model(False), "b", second, **other) for other in ways]
        found = [tiny_model(False).forward([plain, other], Views()).outputs for other in beside]
        assert [torch.equal(found[0][0][LATENT], each[0][LATENT]) for each in found] == [True] * 4
        assert torch.equal(found[0][1][LATENT], found[1][1][LATENT])
        assert not torch.equal(found[0][1][LATENT], found[2][1][LATENT])


def test_a_picture_is_encoded_once_whatever_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []
    tokens = ReferenceEncoder.tokens
    monkeypatch.setattr(ReferenceEncoder, "tokens", lambda *given: encoded.append(given[1]) or tokens(*given))
    engine, fresh = engine_of(), png(pixels(9))
    spec = spec_of("a", reference=fresh)
    engine.open(spec)
    assert encoded == [fresh]  # Before any frame of it has come.
    turned = {n: replace(spec.settings, reference_scale=0.1 * n) for n in range(1, 5)}
    player(engine_of()).play(Clip(spec, [{"picture": image} for image in random_frames(5)], turned))
    assert encoded == [fresh]


def clip_of(spec: SessionSpec, frames: int, turned: Mapping[int, Settings]) -> Clip:
    return Clip(spec, [{"picture": image} for image in random_frames(frames)], turned)


def clips() -> list[tuple[Clip, bool]]:
    """With a bank, and with a cache: the reference comes, changes, is masked and goes."""
    found = []
    for motion in (False, True):
        spec = spec_of("ab" * 16, bank=not motion, cached=motion, reference=FACE)
        turned = {
            3: replace(spec.settings, reference=STYLE),
            6: replace(spec.settings, reference=STYLE, reference_mask=HALF, reference_scale=0.5),
            8: replace(spec.settings, reference=NO_IMAGE),
        }
        found.append((clip_of(spec, 11, turned), motion))
    return found


@pytest.mark.parametrize(("clip", "motion"), clips(), ids=["bank", "cache"])
def test_whole_equals_pieces(clip: Clip, motion: bool) -> None:
    found = []
    for cut in CUTS:
        engines = [engine_of(span, 1, motion=motion) for span in cut_spans(cut)]
        line = Player(*engines, clock=lambda: 0.0)
        found.append(line.play(clip)[clip.spec.session_id])
    for pieces in found[1:]:
        assert_equal(pieces, found[0])


@pytest.mark.parametrize(("clip", "motion"), clips(), ids=["bank", "cache"])
def test_moved_equals_never_moved(clip: Clip, motion: bool) -> None:
    stays = player(engine_of(max_batch=1, motion=motion)).play(clip)[clip.spec.session_id]
    legs = [[engine_of(max_batch=1, motion=motion)] for _ in range(4)]
    assert_equal(play_moving(clip, legs, at=[2, 5, 8]), stays)


def test_another_process_encodes_the_same() -> None:
    """What moves is the picture itself: whoever takes the session over has never seen it."""
    (clip, _) = clips()[0]
    stays = player(engine_of(max_batch=1)).play(clip)[clip.spec.session_id]
    legs: list[list[Engine]] = []
    for _ in range(2):
        tiny_model.cache_clear()
        legs.append([engine_of(max_batch=1)])
    assert_equal(play_moving(clip, legs, at=[4]), stays)


def test_a_cache_with_references_is_the_plain_path() -> None:
    (clip, _) = clips()[1]
    model, images, under = tiny_model(True), random_frames(11), settings_by_frame(clip)
    with torch.inference_mode():
        entering = [Carried(z, z) for z in (encode(model.vae, image[None], DTYPE) for image in images)]
        run = step_function(model.denoisers[""], DTYPE, PlainCache(WINDOW.sink_frames, WINDOW.ring_frames))
        assert clip.spec.cache is not None
        left = denoise_clip(run, entering, under, clip.spec.cache, WINDOW.sink_frames)
    found = player(engine_of(motion=True)).play(clip)[clip.spec.session_id]
    expected = [None if each is None else each.clean[0] for each in left]
    assert gap([content(frame) for frame in found], expected) <= EXACT


def test_a_bank_and_a_cache_at_once_go_with_references() -> None:
    """Sessions of both kinds, and one that has both, in one engine: each as it is alone."""
    specs = [
        spec_of("cd" * 16, cached=True, reference=FACE),
        spec_of("ef" * 16, bank=True, cached=True, reference=STYLE, reference_mask=HALF),
        spec_of("ab" * 16, bank=True, reference=STYLE),
        spec_of("12" * 16, bank=True),
    ]
    given = [clip_of(spec, 7, {}) for spec in specs]
    together = player(engine_of(motion=True, both=True)).play(*given)
    for clip in given:
        alone = player(engine_of(motion=True, both=True)).play(clip)[clip.spec.session_id]
        pairs = [[content(frame) for frame in each] for each in (together[clip.spec.session_id], alone)]
        assert gap(*pairs) <= EXACT


def test_a_change_is_seen_in_the_first_frame_under_it_and_in_none_before() -> None:
    spec = spec_of("a")
    under = replace(spec.settings, reference=FACE)
    turned = {3: under, 5: replace(under, reference_scale=0.0)}
    found = [
        player(engine_of(max_batch=1)).play(clip_of(each, 7, changes))["a"]
        for each, changes in ((spec, {}), (spec, turned), (replace(spec, settings=under), {}))
    ]
    never, live, always = ([content(frame) for frame in frames] for frames in found)
    assert [gap([a], [b]) == 0.0 for a, b in zip(never, live, strict=True)] == [
        n not in (3, 4) for n in range(7)
    ]
    assert gap(live[3:5], always[3:5]) == 0.0


def test_a_white_mask_is_none_and_a_black_one_leaves_nothing() -> None:
    (image,), picture = random_frames(1), {"reference": FACE}
    white, black = (png(np.full((8, 8), level, np.uint8)) for level in (255, 0))
    ways = ({}, picture, *({**picture, "reference_mask": mask} for mask in (white, black, HALF)))
    found = [play(engine_of(), [Stream(spec_of("a", **way), [image])])["a"][0] for way in ways]
    without, everywhere, in_white, in_black, in_half = (each for each in found if each is not None)
    assert torch.equal(everywhere, in_white)
    assert torch.equal(without, in_black)
    assert not torch.equal(in_half, everywhere)
    assert not torch.equal(in_half, without)


def test_a_layer_adds_nothing_where_the_mask_is_black() -> None:
    generator, given = torch.Generator().manual_seed(0), Given(2)
    query, attended, tokens = (torch.randn(1, length, 6, generator=generator) for length in (16, 16, 3))
    to_k, to_v = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    given.token_BTD, given.lengths = tokens, [64, 16]
    given.gain_BP = 0.7 * mask_levels(HALF, 8, 8, 2)[None]
    with torch.no_grad():
        added = ReferenceAttention(to_k, to_v, 2, given)(query, attended) - attended
    moved = added[0].abs().amax(dim=-1).view(4, 4)
    assert bool((moved[:, :2] > 0.0).all())
    assert bool((moved[:, 2:] == 0.0).all())


def test_a_mask_is_the_mean_over_each_tokens_part_of_it() -> None:
    shares = mask_levels(png(half_mask(8, 10)), 4, 5, 3)
    assert shares.shape == (4 * 5 + 2 * 3 + 1 * 2,)
    assert shares[:20].view(4, 5)[0].tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert shares[-2:].tolist() == [1.0, 0.0]
    assert mask_levels(NO_IMAGE, 4, 5, 3).eq(1.0).all()


def test_without_an_adapter_settings_with_a_reference_are_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        model = load_model(str(write_tiny_checkpoint(Path(name) / "it")), SPAN, CPU, DTYPE)
    with pytest.raises(InvalidRequest, match="no adapter for reference images") as refused:
        model.prepare(Settings("a", reference=FACE))
    assert refused.value.reason is Reason.REFERENCE_UNSUPPORTED


def test_captured_and_flat_calls_give_the_same_pictures() -> None:
    model = tiny_model.__wrapped__(False)
    denoiser = model.denoisers[""]

    def pictures() -> dict[str, list[Tensor | None]]:
        return play(engine_with(model), mixed(), seed=3)

    eager = pictures()
    denoiser.call = call = CompiledCall(denoiser.unet, lambda shape, flat, tensors: flat)
    flat = pictures()
    assert call.counts.accelerated
    assert max(gap(flat[name], eager[name]) for name in eager) == 0.0
    counts, *_ = capture(model, StandInRecorder())
    captured = [pictures(), pictures()][1]
    assert counts.accelerated > counts.eager
    assert max(gap(captured[name], eager[name]) for name in eager) == 0.0


def test_a_reference_is_part_of_a_compiled_call() -> None:
    """The whole call is one piece to the compiler, whatever its samples refer to."""
    denoiser = tiny_model(False).denoisers[""]
    looks = [
        Settings("a", reference=FACE),
        Settings("a"),
        Settings("a", reference=STYLE, reference_scale=0.4, reference_mask=HALF),
    ]

    def inputs(settings: Sequence[Settings]) -> UNetInputs:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(len(settings), 6, 8, 8, generator=generator, dtype=DTYPE)
        prompts = torch.cat([denoiser.conditioning.embed("a") for _ in settings])
        more = denoiser.references.inputs(settings, [False] * len(settings), latents)
        return UNetInputs(latents, torch.full((len(settings),), 499), prompts, more)

    first = inputs(looks)
    flat, tensors = FlatUNet(denoiser.unet, first, Views()), FlatCall.tensors(first, Views())
    compiled = in_process(flat, free_dims(flat.grows, len(looks), tensors), "eager")
    exported = torch.export.export(flat, tuple(tensors), strict=False).module()
    with torch.inference_mode():
        for settings in (looks, looks[::-1]):
            given = FlatCall.tensors(inputs(settings), Views())
            wanted = EagerCall(denoiser.unet)(inputs(settings), Views())[0]
            assert torch.equal(compiled(*given)[0], wanted)
            assert torch.equal(exported(*given)[0], wanted)
