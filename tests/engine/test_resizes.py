"""A session whose frames change their size: from that frame on it is one that was opened with the new size.

In float64, through encoding, depth, ControlNets and two steps, with a feature bank and with a temporal cache.
The oracle is `Engine.open_at`: an empty past at the ordinal of the change, whose noise is keyed by ordinals.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from rearview.contract.chain import Span, chain
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings, PromptChange
from rearview.contract.session import SessionSpec
from rearview.contract.settings import NoiseRule, Settings
from rearview.contract.size import Size
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Clip, Player
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions
from rearview.errors import InvalidRequest, Reason
from support.frames import content
from support.moves import play_moving
from support.tiny import SIZE, session, write_tiny_checkpoint
from support.tiny_bank import gap
from support.tiny_control import control_files, controlled
from support.tiny_depth import write_tiny_depth
from support.tiny_motion_files import depth_branch, original_motion, write_motion_file
from support.toy import player
from torch import Tensor

pytestmark = pytest.mark.unit

CPU, DTYPE, EXACT = torch.device("cpu"), torch.float64, 1e-9
STEPS, FRAMES = 2, 12
SPAN = Span("latent", chain(STEPS)[:-1])
CUTS = ([[0], [1, 2]], [[0, 1], [2]], [[0], [1], [2]])
WINDOW = CacheWindow(2, 3)
LARGE, WIDE, TALL = Size(SIZE, SIZE), Size(SIZE, 32), Size(32, SIZE)
BACK_AND_FORTH = {3: WIDE, 7: LARGE, 9: TALL}
MERGED = BankSettings(interval=2, fusion_threshold=0.5, prompt_change=PromptChange.FADE)
QUEUE = BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1, fusion_threshold=0.5)
KINDS = {"bank": MERGED, "queue": QUEUE, "cache": CacheSettings()}


@lru_cache
def tiny_model(motion: bool) -> DiffusionModel:
    """With a ControlNet, and with depth where there is motion; attention made sharp, since flat attention
    would hide a bank.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_tiny_checkpoint(folder / "checkpoint")
        controls = control_files(folder, checkpoint)
        file = write_motion_file(folder / "motion.ckpt", {**original_motion(), **depth_branch()})
        depth = write_tiny_depth(folder / "depth")
        more = Additions(motion=str(file), depth=str(depth)) if motion else Additions()
        model = load_model(str(checkpoint), SPAN, CPU, DTYPE, replace(more, controls=controls))
    assert isinstance(model, DiffusionModel)
    for name, parameter in model.denoisers[""].unet.named_parameters():
        if ".attn1.to_q." in name or ".attn1.to_k." in name or ".attn1.to_out." in name:
            parameter.mul_(6.0)
    return model


def engine_of(
    kind: str, span: Span = SPAN, max_batch: int = 1, *, order: Order = Order.BACK_TO_BACK
) -> Engine:
    """`max_batch` 1: every forward has one row, so that equal is bit-equal."""
    motion = kind == "cache"
    options = MemoryOptions(
        num_slots=4,
        height=SIZE,
        width=SIZE,
        dtype=DTYPE,
        bank=None if motion else QUEUE,
        cache=CacheOptions(WINDOW) if motion else None,
    )
    memory = build_memories(span, tiny_model(motion).layouts, options)
    scheduler = Scheduler(CostTable(), max_batch)
    return Engine(span, tiny_model(motion), memory, scheduler, order=order, clock=lambda: 0.0)


def spec_of(kind: str, name: str = "ab" * 16, **settings: object) -> SessionSpec:
    under = Settings("a", 0.6, STEPS, **settings)  # type: ignore[arg-type]
    has = KINDS[kind]
    is_bank = isinstance(has, BankSettings)
    return replace(session(name, under), bank=has if is_bank else None, cache=None if is_bank else has)  # type: ignore[arg-type]


def sized(settings: Settings, size: Size) -> Settings:
    return replace(settings, width=size.width, height=size.height)


def size_at(changes: Mapping[int, Size], ordinal: int) -> Size:
    return next((changes[at] for at in sorted(changes, reverse=True) if at <= ordinal), LARGE)


def clip_of(spec: SessionSpec, changes: Mapping[int, Size] = BACK_AND_FORTH, frames: int = FRAMES) -> Clip:
    draw = torch.Generator().manual_seed(len(spec.session_id))
    sizes = [size_at(changes, n) for n in range(frames)]
    images = [torch.randint(0, 256, (h, w, 3), generator=draw, dtype=torch.uint8) for w, h in sizes]
    turned = {at: sized(spec.settings, size) for at, size in changes.items()}
    return Clip(spec, [{PICTURE: image} for image in images], turned)


def played(clip: Clip, *engines: Engine) -> list[Tensor]:
    return contents(player(*engines).play(clip)[clip.spec.session_id])


def contents(frames: Sequence[Frame[Tensor]]) -> list[Tensor]:
    found = [content(frame) for frame in frames]
    assert None not in [None if each is None else 0 for each in found], "a frame was lost"
    return [each for each in found if each is not None]


def begun_anew(kind: str, clip: Clip, begin: int, end: int, size: Size) -> list[Tensor]:
    """The frames of a session that is opened with that size, at that ordinal."""
    engine = engine_of(kind)
    spec = replace(clip.spec, width=size.width, height=size.height)
    engine.open_at(spec, begin, {0: spec.settings})
    line = player(engine)
    for ordinal in range(begin, end):
        line.admit(spec.session_id, ordinal, clip.frames[ordinal])
    return contents(sorted(line.left(), key=lambda frame: frame.ordinal))


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert [each.shape for each in found] == [each.shape for each in expected]
    apart = [n for n, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)]
    assert not apart, f"frames {apart} differ"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [NoiseRule.FIXED, NoiseRule.FRESH])
def test_from_the_change_on_it_is_a_session_opened_with_that_size(kind: str, rule: NoiseRule) -> None:
    clip = clip_of(spec_of(kind, noise_rule=rule, controls=controlled(("edges", 0.8))))
    found, begins = played(clip, engine_of(kind)), [0, *BACK_AND_FORTH]
    for begin, end in zip(begins, [*begins[1:], FRAMES], strict=True):
        size = size_at(BACK_AND_FORTH, begin)
        assert_equal(found[begin:end], begun_anew(kind, clip, begin, end, size))


@pytest.mark.parametrize("kind", KINDS)
def test_the_past_does_act_on_what_is_compared(kind: str) -> None:
    """Else the test above would pass for memories that nobody reads."""
    clip = clip_of(spec_of(kind), {})
    assert not torch.equal(played(clip, engine_of(kind))[8], begun_anew(kind, clip, 7, FRAMES, LARGE)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", Order)
def test_alone_equals_batched_with_sessions_of_the_old_and_of_the_new_size(kind: str, order: Order) -> None:
    clip = clip_of(spec_of(kind))
    stays = clip_of(spec_of(kind, "stays", seed=1), {})
    small = clip_of(spec_of(kind, "small", seed=2), {0: WIDE})
    together = player(engine_of(kind, max_batch=16, order=order)).play(stays, clip, small, burst=2)
    for each in (clip, stays, small):
        alone = played(each, engine_of(kind))
        assert gap(contents(together[each.spec.session_id]), alone) <= EXACT, each.spec.session_id


@pytest.mark.parametrize("kind", KINDS)
def test_whole_equals_pieces_with_frames_of_both_sizes_on_their_way(kind: str) -> None:
    clip = clip_of(spec_of(kind))
    whole = played(clip, engine_of(kind))
    for cut in CUTS:
        spans = [Span(f"s{piece[0]}", tuple(SPAN.operators[at] for at in piece)) for piece in cut]
        engines = [engine_of(kind, span) for span in spans]
        left = Player(*engines, clock=lambda: 0.0).play(clip, burst=4)[clip.spec.session_id]
        assert_equal(contents(left), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_moved_equals_never_moved_around_the_change(kind: str) -> None:
    clip = clip_of(spec_of(kind), {4: WIDE, 8: LARGE})
    stays = played(clip, engine_of(kind))
    for at in range(2, 9):
        assert_equal(contents(play_moving(clip, [[engine_of(kind)], [engine_of(kind)]], at=[at])), stays)


@pytest.mark.parametrize("kind", ["bank", "cache"])
def test_a_size_without_room_loses_its_frames_and_nothing_else(kind: str) -> None:
    spec = spec_of(kind)
    with_gap = clip_of(spec, {3: Size(4 * SIZE, SIZE), 5: LARGE}, 9)
    left = player(engine_of(kind)).play(with_gap)[spec.session_id]
    assert [frame.ordinal for frame in left if frame.is_lost] == [3, 4]
    assert [frame.ordinal for frame in left] == list(range(9))
    with pytest.raises(InvalidRequest) as refused:
        engine_of(kind).open_at(spec, 3, {0: sized(spec.settings, Size(4 * SIZE, SIZE))})
    cached = kind == "cache"
    assert refused.value.reason is (Reason.RESOLUTION_UNSUPPORTED if cached else Reason.SETTING_OUT_OF_RANGE)


def test_an_export_of_larger_frames_is_refused_where_they_have_no_room() -> None:
    clip = clip_of(spec_of("bank"), {2: WIDE}, 4)
    here = engine_of("bank")
    play_moving(clip, [[here]], at=[])
    here.freeze(clip.spec.session_id)
    state = here.export(clip.spec.session_id)
    larger = [
        replace(chunk, values={**chunk.values, "width": 16 * SIZE}) if "writes" in chunk.values else chunk
        for chunk in state.memory
    ]
    there = engine_of("bank")
    with pytest.raises(ValueError, match="no room"):
        there.import_(replace(state, memory=larger))
    assert there.free_slots == 4
    there.check_integrity()
