"""Live2Diff's path through the engine: a tiny UNet with motion modules, in float64, without rounding.

The oracle is `reference/clip.py` over `PlainCache`, one session and one step at a time, which shares
no code with the pool. Gaps are below 1e-9: a batch of four rounds otherwise than a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.memories import BankSettings, CacheSettings, Rewarm
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.calibration import measure_costs
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.attention.processors import install_processors
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel, row_group
from rearview.engine.player import Clip
from rearview.engine.rows import window_group
from rearview.engine.scheduler import CostTable, Scheduler
from support.frames import content, entering, planes_of
from support.memories import exported
from support.moves import play_moving
from support.tiny import SIZE
from support.tiny_bank import gap, tiny_denoiser, video
from support.tiny_motion import plain_clip, with_motion
from support.toy import drain, player
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
WINDOW = CacheWindow(4, 3)
W = WINDOW.sink_frames
MAX_STEPS = 4
EXACT = 1e-9
FRAMES = 13
BASE = Settings("a", 0.8, 2, seed=3, noise_rule=NoiseRule.FRESH)


@lru_cache
def denoiser() -> Denoiser:
    plain = tiny_denoiser()
    unet = deepcopy(plain.unet)
    layout = install_processors(unet)
    return Denoiser(with_motion(unet), plain.schedule, plain.conditioning, torch.float64, layout)


def model() -> DiffusionModel:
    return DiffusionModel(None, denoiser(), device=CPU, dtype=torch.float64)


def memory(steps: Sequence[int] = range(MAX_STEPS), slots: int = 4) -> Memories:
    """A bank and a cache; most sessions here have no bank."""
    options = MemoryOptions(
        num_slots=slots,
        height=SIZE,
        width=SIZE,
        dtype=torch.float64,
        bank=BankSettings(),
        cache=CacheOptions(WINDOW),
    )
    found = build_memories(span(steps), model().layouts, options)
    assert found.names == {"bank", "cache"}
    return found


def span(steps: Sequence[int] = range(MAX_STEPS)) -> Span:
    return Span("denoise", tuple(Operator(OperatorKind.DENOISE, step) for step in steps))


def engine(
    steps: Sequence[int] = range(MAX_STEPS), *, order: Order = Order.BACK_TO_BACK, max_batch: int = 16
) -> Engine:
    scheduler = Scheduler(CostTable(), max_batch)
    return Engine(span(steps), model(), memory(steps), scheduler, order=order, clock=lambda: 0.0)


def cached(name: str = "s", settings: Settings = BASE, cache: CacheSettings | None = None) -> SessionSpec:
    return SessionSpec(name, SIZE, SIZE, MAX_STEPS, settings, cache=cache or CacheSettings())


def per_frame(count: int, changes: Mapping[int, Settings], first: Settings = BASE) -> list[Settings]:
    settings = []
    for n in range(count):
        first = changes.get(n, first)
        settings.append(first)
    return settings


def plain(spec: SessionSpec, latents: Sequence[Tensor], settings: Sequence[Settings]) -> list[Tensor | None]:
    """The clip on the plain path."""
    return plain_clip(denoiser(), WINDOW, spec, latents, settings)


def translate(
    engines: Sequence[Engine],
    clips: Mapping[SessionSpec, Sequence[Tensor]],
    settings: Sequence[Settings],
    burst: int = 1,
) -> dict[str, list[Tensor | None]]:
    """Clips through engines joined one after the other, `burst` frames a session between steps."""
    changes = dict(enumerate(settings))
    played = [Clip(spec, [planes_of(each) for each in latents], changes) for spec, latents in clips.items()]
    found = player(*engines).play(*played, burst=burst)
    return {name: [content(frame) for frame in frames] for name, frames in found.items()}


def only(
    latents: Sequence[Tensor],
    settings: Sequence[Settings],
    *,
    cut: Sequence[Sequence[int]] = (range(MAX_STEPS),),
    order: Order = Order.BACK_TO_BACK,
    burst: int = 1,
    cache: CacheSettings | None = None,
    max_batch: int = 16,
) -> list[Tensor | None]:
    spec = cached(settings=settings[0], cache=cache)
    engines = [engine(steps, order=order, max_batch=max_batch) for steps in cut]
    return translate(engines, {spec: latents}, settings, burst)["s"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_l17_rows_in_one_batch_equal_spans_equal_the_plain_loop(steps: int) -> None:
    settings, latents = per_frame(FRAMES, {}, replace(BASE, steps=steps)), video(FRAMES)
    expected = plain(cached(settings=settings[0]), latents, settings)
    batched = only(latents, settings, order=Order.STREAM_BATCH, burst=FRAMES)
    apart = only(latents, settings, cut=[[step] for step in range(MAX_STEPS)])
    assert gap(batched, expected) <= EXACT
    assert gap(apart, expected) <= EXACT


@pytest.mark.parametrize("at", range(1, MAX_STEPS))
def test_l17_a_cut_between_any_two_steps_changes_no_bit(at: int) -> None:
    settings, latents = (
        per_frame(FRAMES, {6: replace(BASE, prompt="b")}, replace(BASE, steps=4)),
        video(FRAMES),
    )
    settings = [replace(each, steps=4) for each in settings]
    whole = only(latents, settings, max_batch=1)
    pieces = only(latents, settings, cut=[range(at), range(at, MAX_STEPS)], max_batch=1)
    assert gap(pieces, whole) == 0.0


CHANGES = {
    "prompt": {6: replace(BASE, prompt="b")},
    "scene": {6: replace(BASE, scene=1)},
    "prompt in the warm-up": {2: replace(BASE, prompt="b")},
    "newer prompt in a shadow": {5: replace(BASE, prompt="b"), 7: replace(BASE, prompt="c")},
    "steps": {6: replace(BASE, steps=3)},
    "strength in the warm-up": {2: replace(BASE, strength=0.5)},
}
POLICIES = {
    "shadow": CacheSettings(),
    "reset": CacheSettings(Rewarm.RESET, Rewarm.RESET),
    "keep": CacheSettings(Rewarm.KEEP, Rewarm.KEEP),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_give_the_plain_paths_pictures(change: str, policy: str) -> None:
    settings, latents = per_frame(FRAMES, CHANGES[change]), video(FRAMES)
    expected = plain(cached(cache=POLICIES[policy]), latents, settings)
    found = only(latents, settings, cut=[[0], [1, 2, 3]], cache=POLICIES[policy], burst=3)
    assert gap(found, expected) <= EXACT


GUIDED = {
    kind.value: replace(BASE, steps=3, guidance=kind, guidance_scale=2.5, delta=0.8, negative_prompt="zebra")
    for kind in (Guidance.SELF, Guidance.INITIALIZE, Guidance.FULL)
}


@pytest.mark.parametrize("policy", ["shadow", "reset"])
@pytest.mark.parametrize("kind", GUIDED)
def test_guidance_gives_the_plain_paths_pictures_in_windows_and_out_of_them(kind: int, policy: str) -> None:
    """The negative prediction reads its twin's past, and in a window the other frames beside itself."""
    base = GUIDED[kind]
    settings, latents = per_frame(FRAMES, {6: replace(base, prompt="b")}, base), video(FRAMES)
    expected = plain(cached(settings=base, cache=POLICIES[policy]), latents, settings)
    found = only(latents, settings, cut=[[0], [1, 2, 3]], cache=POLICIES[policy], burst=3)
    assert gap(found, expected) <= EXACT
    unguided = [replace(each, guidance=Guidance.NONE) for each in settings]
    other = plain(cached(settings=base, cache=POLICIES[policy]), latents, unguided)
    assert gap(other[:W], expected[:W]) > 1e-3, "guidance acts in the window"
    assert gap(other[W:], expected[W:]) > 1e-3


def test_policies_do_differ() -> None:
    settings, latents = per_frame(FRAMES, CHANGES["prompt"]), video(FRAMES)
    shadow, reset, keep = (only(latents, settings, cache=policy) for policy in POLICIES.values())
    assert gap(shadow[: 6 + W], keep[: 6 + W]) <= EXACT, "until the swap the old cache is read"
    assert gap(shadow[6 + W :], keep[6 + W :]) > 1e-3
    assert gap(reset[:6], keep[:6]) <= EXACT
    assert gap(reset[6:], keep[6:]) > 1e-3


def test_l18_a_steps_cache_depends_on_no_other_steps() -> None:
    """The second step alone, given what entered it, leaves what it left beside the first."""
    settings, latents = per_frame(FRAMES, {}), video(FRAMES)
    whole, second = engine(max_batch=1), engine([1, 2, 3], max_batch=1)
    first = translate([engine([0], max_batch=1)], {cached(): latents}, settings)["s"]
    for each, inputs in ((whole, latents), (second, first)):
        each.open(cached())
        for n, payload in enumerate(inputs):
            each.admit(entering("s", n, payload), 0.0)
        drain(each)
    found, expected = (exported(each._memory, "s", "cache").layers for each in (second, whole))
    keys = [key for key in expected if key[0] == 1]
    assert keys
    for key in keys:
        assert all(torch.equal(a, b) for a, b in zip(found[key], expected[key], strict=True))


def test_l19_sessions_at_different_n_batched_together_equal_each_alone() -> None:
    settings = per_frame(FRAMES, CHANGES["prompt"])
    clips = {
        cached(f"s{i}", cache=policy): video(FRAMES, seed=i) for i, policy in enumerate(POLICIES.values())
    }
    each = engine()
    late, *early = clips
    each.open(late)
    found: dict[str, dict[int, Tensor | None]] = {spec.session_id: {} for spec in clips}
    for n in range(FRAMES + 5):
        if n == 5:
            for spec in early:
                each.open(spec)
        for spec, latents in clips.items():
            ordinal = n if spec is late else n - 5
            if 0 <= ordinal < FRAMES:
                each.update(spec.session_id, ordinal, settings[ordinal])
                each.admit(entering(spec.session_id, ordinal, latents[ordinal], ordinal), 0.0)
        for left in drain(each):
            found[left.session_id][left.ordinal] = content(left)
    for spec, latents in clips.items():
        by_ordinal = found[spec.session_id]
        assert gap([by_ordinal[n] for n in sorted(by_ordinal)], plain(spec, latents, settings)) <= EXACT


def test_l1_causality_a_later_frame_changes_no_bit_of_an_earlier_picture() -> None:
    settings, latents = per_frame(FRAMES, {}), video(FRAMES)
    before = only(latents, settings, max_batch=1)
    for n in (W, W + 3, FRAMES - 1):
        changed = [*latents[:n], latents[n] + 1.0, *latents[n + 1 :]]
        after = only(changed, settings, max_batch=1)
        assert gap(after[:n], before[:n]) == 0.0
        assert gap(after[n : n + 1], before[n : n + 1]) > 1e-3
    changed = [*latents[: W - 1], latents[W - 1] + 1.0, *latents[W:]]
    assert gap(only(changed, settings, max_batch=1)[:1], before[:1]) > 1e-6, "the warm-up is bidirectional"


TOPOLOGIES = {
    "fused to fused": ([range(4)], [range(4)]),
    "fused to pieces to fused": ([range(4)], [[0], [1, 2, 3]], [range(4)]),
    "pieces to other pieces": ([[0], [1, 2, 3]], [[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("topologies", TOPOLOGIES)
@pytest.mark.parametrize("moved_at", [2, W, 6, 8, 11])
def test_l20_a_session_that_moves_in_mid_stream_goes_on_bit_by_bit(moved_at: int, topologies: str) -> None:
    """Before it is warm, streaming, and in the middle of a shadow."""
    settings, latents = per_frame(FRAMES, CHANGES["prompt"]), video(FRAMES)
    expected = only(latents, settings, max_batch=1)
    clip = Clip(cached(), [planes_of(each) for each in latents], dict(enumerate(settings)))
    legs = [[engine(steps, max_batch=1) for steps in cut] for cut in TOPOLOGIES[topologies]]
    found = play_moving(clip, legs, [moved_at, moved_at + 2])
    assert gap([content(frame) for frame in found], expected) == 0.0


def test_l22_skipped_frames_leave_the_cache_as_if_they_had_never_come() -> None:
    settings, latents = per_frame(FRAMES, {}, replace(BASE, noise_rule=NoiseRule.FIXED)), video(FRAMES)
    spec, each = cached(settings=settings[0]), engine(max_batch=1)
    each.open(spec)
    left: dict[int, Tensor | None] = {}
    for n, latent in enumerate(latents):
        each.admit(entering("s", n, None if n in (6, 7) else latent), 0.0)
        left |= {one.ordinal: content(one) for one in drain(each)}
    kept = [n for n in range(FRAMES) if n not in (6, 7)]
    expected = only([latents[n] for n in kept], [settings[n] for n in kept], max_batch=1)
    assert gap([left[n] for n in kept], expected) == 0.0


def test_l27_the_same_seed_gives_the_same_bits() -> None:
    settings, latents = per_frame(8, {}), video(8)
    assert gap(only(latents, settings), only(latents, settings)) == 0.0
    other = [replace(each, seed=4) for each in settings]
    assert gap(only(latents, other), only(latents, settings)) > 1e-3


def test_windows_and_streamed_rows_are_measured_apart_and_nothing_is_left() -> None:
    past, where = memory(slots=1), span()
    payloads = [planes_of(video(1)[0])] * MAX_STEPS
    spec = cached(settings=replace(BASE, steps=MAX_STEPS))
    costs = measure_costs(model(), past, where, spec, payloads)
    group = row_group(model(), past, spec, spec.settings, where.operators[0])
    assert set(costs.forward_s) == {group, window_group(group)}
    assert set(costs.forward_s[window_group(group)]) == {W}
    assert past.free_slots == 1
    past.check_integrity()


def test_a_session_with_a_bank_too_is_the_same_for_every_cut_order_and_company() -> None:
    settings, latents = per_frame(FRAMES, CHANGES["prompt"]), video(FRAMES)
    spec = replace(cached(), bank=BankSettings(interval=3, fusion_threshold=0.5))
    (whole,) = translate([engine(max_batch=1)], {spec: latents}, settings).values()
    cut = [engine([0], max_batch=1), engine([1, 2, 3], max_batch=1)]
    (pieces,) = translate(cut, {spec: latents}, settings).values()
    assert gap(pieces, whole) == 0.0
    company = {replace(spec, session_id="t"): video(FRAMES, seed=1), cached("u"): video(FRAMES, seed=2)}
    other = engine(order=Order.STREAM_BATCH)
    together = translate([other], {spec: latents, **company}, settings, burst=FRAMES)
    assert gap(together["s"], whole) <= EXACT
    without = translate([engine()], {cached(): latents}, settings)["s"]
    assert gap(whole, without) > 1e-3
    other.check_integrity()
