"""ControlNets must not break what always holds: alone = batched, whole = pieces, moved = never moved.

In float64, with a feature bank and with a temporal cache, against the plain path. A control is seen in the
first frame under it and in none before, and a row without one is what it is in the company of its like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.chain import Span
from rearview.contract.frame import HINT, LATENT, PICTURE, Frame, control_plane
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.acceleration.compiled import CompiledCall
from rearview.engine.acceleration.graphs import capture
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.control import ControlBranch
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Clip, Player
from rearview.engine.reference.cache import PlainCache
from rearview.engine.reference.clip import Carried, denoise_clip, step_function
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions
from rearview.errors import InvalidRequest
from support.frames import content
from support.moves import play_moving
from support.stand_in_graphs import StandInRecorder
from support.tiny import random_frames, write_tiny_checkpoint
from support.tiny_bank import Stream, gap, play
from support.tiny_control import control_files, controlled, shown_to
from support.tiny_motion_files import original_motion, write_motion_file
from support.tiny_rows import (
    CPU,
    CUTS,
    DTYPE,
    EXACT,
    FULL,
    SPAN,
    STEPS,
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
from torch import Tensor

pytestmark = pytest.mark.unit

EDGES, TILE, BOTH = (
    controlled(("edges", 0.8)),
    controlled(("tile", 1.2)),
    controlled(("tile", 0.5), ("edges", 1.0)),
)
SENT = controlled(("pose", 1.0), ("edges", 0.5))


@lru_cache
def tiny_model(motion: bool) -> DiffusionModel:
    """With three ControlNets; self-attention made sharp, since flat attention would hide a bank."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_tiny_checkpoint(folder / "checkpoint")
        controls = control_files(folder, checkpoint)
        file = str(write_motion_file(folder / "motion.ckpt", original_motion())) if motion else ""
        model = load_model(str(checkpoint), SPAN, CPU, DTYPE, Additions(motion=file, controls=controls))
    return sharpened(model)


def engine_of(span: Span = SPAN, max_batch: int = 16, *, motion: bool = False, **how: Any) -> Engine:
    return engine_with(tiny_model(motion), span, max_batch, motion=motion, **how)


def mixed() -> list[Stream]:
    """Sessions with one control, with two, with none, guided, with a bank, and those that change."""
    specs = [
        spec_of("none", bank=True),
        spec_of("edges", bank=True, controls=EDGES),
        spec_of("tile", controls=TILE, seed=1),
        spec_of("both", bank=True, controls=BOTH, steps=1),
        spec_of("full", controls=BOTH, **FULL),
        spec_of("turned on", bank=True, prompt="b"),
    ]
    changes = {"turned on": {2: replace(specs[-1].settings, controls=EDGES)}}
    streams = [
        Stream(spec, random_frames(4, seed), changes.get(spec.session_id, {}))
        for seed, spec in enumerate(specs)
    ]
    return [*streams, Stream(spec_of("sent", bank=True, controls=SENT), sending(4))]


def sending(count: int) -> list[Mapping[str, Tensor]]:
    """Frames of which the second comes without a pose, and the third with edges of its own."""
    frames, poses = random_frames(count, 11), random_frames(count, 12)
    found = [{PICTURE: frame, control_plane("pose"): pose} for frame, pose in zip(frames, poses, strict=True)]
    del found[1][control_plane("pose")]
    found[2][control_plane("edges")] = poses[0]
    return list(found)


@pytest.mark.parametrize("order", Order)
def test_alone_and_batched_are_the_plain_path(order: Order) -> None:
    streams = mixed()
    together = play(engine_of(order=order), streams, seed=1)
    for stream in streams:
        name = stream.spec.session_id
        expected = on_plain_path(tiny_model(False), stream)
        assert gap(together[name], expected) <= EXACT, name
        assert gap(play(engine_of(), [stream])[name], expected) <= EXACT, name


def test_a_row_without_a_control_is_bit_by_bit_as_without_in_the_same_batch() -> None:
    first, second = random_frames(2)
    plain = entering_row(tiny_model(False), "a", first)
    beside = [
        entering_row(tiny_model(False), "b", second, controls=controls) for controls in ((), EDGES, BOTH)
    ]
    found = [tiny_model(False).forward([plain, other], Views()).outputs for other in beside]
    assert [torch.equal(found[0][0][LATENT], each[0][LATENT]) for each in found] == [True] * 3
    assert not torch.equal(found[0][1][LATENT], found[1][1][LATENT])


def test_each_control_runs_once_over_its_rows_and_embeds_once_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, int]] = []

    def watch(name: str, branch: ControlBranch) -> None:
        call, embed = branch.call, branch.embed

        def called(given: Sequence[Tensor]) -> Sequence[Tensor]:
            ran.append((name, len(given[0])))
            return call(given)

        def embedded(pictures: Tensor, dtype: torch.dtype) -> Tensor:
            ran.append((f"{name} is shown", len(pictures)))
            return embed(pictures, dtype)

        monkeypatch.setattr(branch, "call", called)
        monkeypatch.setattr(branch, "embed", embedded)

    for name, branch in tiny_model(False).denoisers[""].controls.branches.items():
        watch(name, branch)
    engine = engine_of()
    asked = {"none": (), "edges": EDGES, "both": BOTH}
    for name, controls in asked.items():
        engine.open(spec_of(name, controls=controls, **(FULL if name == "both" else {})))
    clips = player(engine)
    for name, image in zip(asked, random_frames(3), strict=True):
        clips.admit(name, 0, {"picture": image}, 0)
    assert len(list(clips.left())) == 3
    embeddings = [each for each in ran if "shown" in each[0]]
    assert embeddings == [("edges is shown", 2), ("tile is shown", 1)]
    assert [each for each in ran if each not in embeddings] == [("edges", 3), ("tile", 2)] * STEPS


def clip_of(spec: SessionSpec, frames: int, turned: Mapping[int, Settings]) -> Clip:
    """All frames but the fifth come with a pose."""
    images = random_frames(frames)
    sent = [{PICTURE: image, control_plane("pose"): image.flip(1)} for image in images]
    return Clip(spec, [*sent[:4], {PICTURE: images[4]}, *sent[5:]], turned)


def clips() -> list[tuple[Clip, bool]]:
    """With a bank, and with a cache: the control comes, changes and goes, and is sent with some frames."""
    found = []
    for motion in (False, True):
        spec = spec_of("ab" * 16, bank=not motion, cached=motion, controls=EDGES)
        turned = {
            at: replace(spec.settings, controls=controls, prompt="b" if at == 6 else "a")
            for at, controls in ((3, SENT), (6, TILE), (8, ()))
        }
        found.append((clip_of(spec, 11, turned), motion))
    return found


def noting(crossing: list[set[str]]) -> Callable[[Frame[Tensor]], Frame[Tensor]]:
    """A link that notes which planes go over it."""

    def crosses(frame: Frame[Tensor]) -> Frame[Tensor]:
        crossing.append(set(frame.planes or ()))
        return frame

    return crosses


@pytest.mark.parametrize(("clip", "motion"), clips(), ids=["bank", "cache"])
def test_whole_equals_pieces_and_hints_never_leave_a_span(clip: Clip, motion: bool) -> None:
    found = []
    for cut in CUTS:
        crossing: list[set[str]] = []
        engines = [engine_of(span, 1, motion=motion) for span in cut_spans(cut)]
        line = Player(*engines, clock=lambda: 0.0, link=noting(crossing))
        found.append(line.play(clip)[clip.spec.session_id])
        assert not any(name.startswith(HINT) for names in crossing for name in names)
        assert any(control_plane("edges") in names for names in crossing) == (len(cut) > 1)
    for pieces in found[1:]:
        assert_equal(pieces, found[0])


@pytest.mark.parametrize(("clip", "motion"), clips(), ids=["bank", "cache"])
def test_moved_equals_never_moved(clip: Clip, motion: bool) -> None:
    stays = player(engine_of(max_batch=1, motion=motion)).play(clip)[clip.spec.session_id]
    legs = [[engine_of(max_batch=1, motion=motion)] for _ in range(4)]
    assert_equal(play_moving(clip, legs, at=[2, 5, 8]), stays)


def test_a_cache_with_controls_is_the_plain_path() -> None:
    (clip, _) = clips()[1]
    model, under = tiny_model(True), settings_by_frame(clip)
    entering = []
    with torch.inference_mode():
        for planes, settings in zip(clip.frames, under, strict=True):
            assert planes is not None
            z = encode(model.vae, planes[PICTURE][None], DTYPE)
            entering.append(Carried(z, z, shown=shown_to(settings, planes)))
        run = step_function(model.denoisers[""], DTYPE, PlainCache(WINDOW.sink_frames, WINDOW.ring_frames))
        assert clip.spec.cache is not None
        left = denoise_clip(run, entering, under, clip.spec.cache, WINDOW.sink_frames)
    found = player(engine_of(motion=True)).play(clip)[clip.spec.session_id]
    expected = [None if each is None else each.clean[0] for each in left]
    assert gap([content(frame) for frame in found], expected) <= EXACT


def test_a_change_is_seen_in_the_first_frame_under_it_and_in_none_before() -> None:
    spec = spec_of("a")
    under = replace(spec.settings, controls=EDGES)
    turned = {3: under, 5: replace(spec.settings, controls=controlled(("edges", 0.0)))}
    found = [
        player(engine_of(max_batch=1)).play(clip_of(each, 7, changes))["a"]
        for each, changes in ((spec, {}), (spec, turned), (replace(spec, settings=under), {}))
    ]
    never, live, always = ([content(frame) for frame in frames] for frames in found)
    assert [gap([a], [b]) == 0.0 for a, b in zip(never, live, strict=True)] == [
        n not in (3, 4) for n in range(7)
    ]
    assert gap(live[3:5], always[3:5]) == 0.0


def test_a_sent_control_without_its_picture_is_as_with_weight_0() -> None:
    """And with it, it acts; what is sent for a control that does not act, does not."""
    frames = [{**planes, control_plane("tile"): planes[PICTURE].flip(0)} for planes in sending(4)]
    asked = {"sent": (("pose", 1.0),), "never": (("pose", 0.0),), "none": ()}
    found = {}
    for name, controls in asked.items():
        clip = Clip(spec_of(name, controls=controlled(*controls)), frames)
        found[name] = [content(each) for each in player(engine_of(max_batch=1)).play(clip)[name]]
    assert gap(found["never"], found["none"]) == 0.0
    assert [gap([a], [b]) == 0.0 for a, b in zip(found["sent"], found["none"], strict=True)] == [
        False,
        True,
        False,
        False,
    ]


def test_a_control_that_is_not_there_is_refused_when_settings_come() -> None:
    with pytest.raises(InvalidRequest, match="there are: edges, pose, tile"):
        tiny_model(False).prepare(Settings("a", controls=controlled(("lines", 1.0))))


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
    counts = capture(model, StandInRecorder())
    captured = [pictures(), pictures()][1]
    assert len(counts) == 5
    assert all(each.accelerated for each in counts)
    assert max(gap(captured[name], eager[name]) for name in eager) == 0.0
