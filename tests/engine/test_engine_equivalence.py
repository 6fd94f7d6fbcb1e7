"""What must always hold of pictures: alone = batched, whole = pieces, in any order, causal.

Without a bank. Latents in float32 agree within 1e-5 of their size (a batch of four rounds otherwise than a
batch of one); where every forward has one row, pictures are bit-equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from rearview.contract.frame import Frame
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.player import Player, planes_of
from rearview.transport.wire import decode_frame, decode_spec, encode_frame, encode_spec
from support.frames import entering, stacked
from support.tiny import random_frames, session, whole_chain
from support.tiny_bank import Stream, play
from support.tiny_chain import (
    CUTS,
    LATENT_SPAN,
    MAX_STEPS,
    chain_engine,
    mixed_clips,
    reference_latents,
    reference_pictures,
    spans_of,
)

pytestmark = pytest.mark.unit

CLOSE = 1e-5


def assert_close(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for picture, wanted in zip(found, expected, strict=True):
        assert picture is not None
        torch.testing.assert_close(picture, wanted, rtol=CLOSE, atol=CLOSE)


def assert_equal(found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for n, (picture, wanted) in enumerate(zip(found, expected, strict=True)):
        assert picture is not None
        assert torch.equal(picture, wanted), f"frame {n} differs"


def only(clip: Stream, engine: Engine, seed: int = 0) -> list[torch.Tensor | None]:
    return play(engine, [clip], seed)[clip.spec.session_id]


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_the_engine_gives_the_pictures_of_the_reference(steps: int) -> None:
    clip = Stream(session("s", Settings("a", 0.6, steps, seed=steps), max_steps=MAX_STEPS), random_frames(3))
    found = only(clip, chain_engine(whole_chain(MAX_STEPS), max_batch=1))
    assert_equal(found, reference_pictures(clip))


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", [0, 1])
def test_g1_16_sessions_at_mixed_steps_and_prompts_are_as_if_alone(order: Order, seed: int) -> None:
    clips = mixed_clips(16, frames=3)
    together = play(chain_engine(LATENT_SPAN, order=order), clips, seed)
    for clip in clips:
        assert_close(together[clip.spec.session_id], reference_latents(clip))


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_g1_sessions_that_join_and_leave_few_slots_are_as_if_alone(max_batch: int) -> None:
    clips = mixed_clips(8, frames=3)
    engine = chain_engine(LATENT_SPAN, slots=3, max_batch=max_batch)
    together = play(engine, clips, seed=max_batch, each_step=engine.check_integrity)
    for clip in clips:
        assert_close(together[clip.spec.session_id], reference_latents(clip))
    assert engine.free_slots == 3


def test_g11_mixed_steps_and_strengths_do_share_forwards() -> None:
    engine = chain_engine(LATENT_SPAN)
    for clip in mixed_clips(8, frames=1):
        engine.open(clip.spec)
        engine.admit(entering(clip.spec.session_id, 0, clip.latents[0]), 0.0)
    sizes = []
    while engine.has_work:
        batch = engine.step(0.0).batch
        assert batch is not None
        sizes.append((batch.kind.value, batch.rows))
    assert sizes == [("encode", 8), ("denoise", 8), ("denoise", 6), ("denoise", 4), ("denoise", 2)]


@pytest.mark.parametrize("seed", range(3))
def test_b1_stream_batch_order_gives_the_pictures_of_back_to_back(seed: int) -> None:
    clip = mixed_clips(4, frames=7)[3]
    assert clip.spec.settings.steps == MAX_STEPS
    expected = reference_latents(clip)
    for order in Order:
        assert_close(only(clip, chain_engine(LATENT_SPAN, order=order), seed), expected)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "clip", mixed_clips(4, frames=4), ids=lambda clip: f"{clip.spec.settings.steps}-steps"
)
def test_whole_equals_pieces_joined_by_links(cut: str, clip: Stream) -> None:
    """Every forward has one row, so the pictures are bit-equal."""
    whole = only(clip, chain_engine(whole_chain(MAX_STEPS), max_batch=1))
    engines = [chain_engine(span, max_batch=1) for span in spans_of(CUTS[cut])]
    assert_equal(through(engines, clip), [picture for picture in whole if picture is not None])


def through(engines: Sequence[Engine], clip: Stream) -> list[torch.Tensor]:
    """A clip through engines joined as replicas are: by messages that carry bytes."""
    player = Player(*engines, clock=lambda: 0.0, link=over_wire)
    player.open(decode_spec(encode_spec(clip.spec)))
    for n, image in enumerate(clip.latents):
        if n in clip.changes:
            player.update(clip.spec.session_id, clip.version(n), clip.changes[n])
        frame = over_wire(entering(clip.spec.session_id, n, image, clip.version(n)))
        player.admit(clip.spec.session_id, n, frame.planes, clip.version(n))
    pictures = {frame.ordinal: stacked(planes_of(frame)) for frame in player.left()}
    return [pictures[n] for n in range(len(clip.latents))]


def over_wire(frame: Frame[torch.Tensor]) -> Frame[torch.Tensor]:
    planes = {name: plane.numpy() for name, plane in (frame.planes or {}).items()}
    sent = replace(frame, planes=None if frame.is_lost else planes)
    arrived = decode_frame(b"".join(bytes(part) for part in encode_frame(sent, 0.0)), 0.0)
    tensors = {name: torch.from_numpy(plane.copy()) for name, plane in (arrived.planes or {}).items()}
    return replace(arrived, planes=None if arrived.is_lost else tensors)


@pytest.mark.parametrize("rule", NoiseRule)
@pytest.mark.parametrize("order", Order)
def test_b4_changing_a_frame_alters_only_its_own_picture(rule: NoiseRule, order: Order) -> None:
    settings = Settings("a", 0.6, 3, noise_rule=rule)
    clip = Stream(session("s", settings, max_steps=MAX_STEPS), random_frames(5))
    changed = replace(clip, latents=[*clip.latents[:2], random_frames(1, seed=9)[0], *clip.latents[3:]])
    before, after = (
        only(each, chain_engine(whole_chain(MAX_STEPS), max_batch=1, order=order)) for each in (clip, changed)
    )
    differs = [
        not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None
    ]
    assert differs == [False, False, True, False, False]


def test_b5_a_still_scene_gives_one_picture_under_fixed_noise_and_many_under_fresh() -> None:
    (image,) = random_frames(1)
    for rule, distinct in ((NoiseRule.FIXED, 1), (NoiseRule.FRESH, 4)):
        settings = Settings("a", 0.6, 2, noise_rule=rule)
        clip = Stream(session("s", settings, max_steps=MAX_STEPS), [image] * 4)
        pictures = only(clip, chain_engine(whole_chain(MAX_STEPS), max_batch=1))
        assert (
            len({tuple(picture.flatten().tolist()) for picture in pictures if picture is not None})
            == distinct
        )


def test_b7_g2_a_session_in_a_used_slot_is_as_a_fresh_one() -> None:
    engine = chain_engine(whole_chain(MAX_STEPS), slots=1, max_batch=1)
    first, second = mixed_clips(2)
    only(first, engine)
    assert_equal(only(second, engine), reference_pictures(second))
    again = replace(second, spec=replace(second.spec, session_id="again"))
    assert_equal(only(again, engine), reference_pictures(second))
