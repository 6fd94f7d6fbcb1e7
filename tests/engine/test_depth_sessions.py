"""Depth in the engine: frames of many sessions encoded together, each by its own session's range."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.chain import OperatorKind, Span, chain
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.calibration import example_payloads, measure_costs
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.depth.pool import DepthRange
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.encode import encode, encode_with_depth
from rearview.engine.networks.model import DiffusionModel, Forward, row_group
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_depth, load_model, load_vae
from rearview.engine.weights.formats import Additions
from support.frames import content, entering, planes_of, stacked
from support.memories import composed
from support.tiny import LATENT_CHANNELS, SIZE, random_frames, session, whole_chain
from support.tiny_depth import write_tiny_depth
from support.tiny_motion import plain_clip
from support.tiny_motion_files import depth_branch, original_motion, write_motion_file
from support.toy import drain, player

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
DTYPE = torch.float64
WINDOW = CacheWindow(2, 3)
SPAN = Span.parse("encode", ["encode"])
TO_LATENTS = Span("latents", chain(2)[:-1])
"""All but decode: latents show differences that pixels round away."""
Pictures = Mapping[str, list[torch.Tensor]]


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(write_tiny_depth(tmp_path_factory.mktemp("depth")))


@pytest.fixture(scope="module")
def model(checkpoint: Path, depth: str) -> DiffusionModel:
    loaded = load_model(str(checkpoint), SPAN, CPU, DTYPE, Additions(depth=depth))
    assert isinstance(loaded, DiffusionModel)
    assert loaded.depth is not None
    return loaded


def spec_of(session_id: str, *, cached: bool = True) -> SessionSpec:
    return replace(session(session_id), cache=CacheSettings() if cached else None)


def video(seed: int, count: int = 6) -> list[torch.Tensor]:
    """Random frames of random contrast, so that their depth has different ranges."""
    contrasts = random.Random(seed)
    return [(frame * contrasts.uniform(0.1, 1.0)).to(torch.uint8) for frame in random_frames(count, seed)]


def engine_of(model: Any, memory: DepthRange | None = None) -> Engine:
    memory = memory or DepthRange(8, dtype=DTYPE)
    return Engine(SPAN, model, composed(memory), Scheduler(CostTable(), 16), clock=lambda: 0.0)


def play(
    engine: Engine, videos: Pictures, *, settings: Mapping[int, Settings] | None = None
) -> dict[str, list[torch.Tensor]]:
    """All frames are there at once; what leaves, by session and ordinal."""
    left: dict[str, dict[int, torch.Tensor]] = {name: {} for name in videos}
    for version, changed in (settings or {}).items():
        for name in videos:
            engine.update(name, version, changed)
    for name, frames in videos.items():
        for n, frame in enumerate(frames):
            version = max((v for v in settings or {} if v <= n), default=0)
            engine.admit(entering(name, n, frame, version=version), 0.0)
    for frame in drain(engine):
        assert content(frame) is not None
        left[frame.session_id][frame.ordinal] = content(frame)
    return {name: [found[n] for n in sorted(found)] for name, found in left.items()}


@torch.inference_mode()
def by_hand(checkpoint: Path, depth: str, frames: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One session, one frame after another."""
    vae, estimator = load_vae(checkpoint, CPU, DTYPE), load_depth(depth, CPU, DTYPE)
    ranges, latents = torch.tensor([[float("inf"), float("-inf")]], dtype=DTYPE), []
    for frame in frames:
        latent, depth_latent, ranges = encode_with_depth(vae, estimator, frame[None], ranges, DTYPE)
        latents.append(torch.cat([latent, depth_latent]))
    return latents


def gap(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def test_sessions_in_common_forwards_have_the_depth_that_they_have_alone(
    model: DiffusionModel, checkpoint: Path, depth: str
) -> None:
    videos = {f"s{i}": video(i) for i in range(4)}
    engine = engine_of(model)
    for name in videos:
        engine.open(spec_of(name))
    together = play(engine, videos)
    for name, frames in videos.items():
        assert together[name][0].shape == (2, LATENT_CHANNELS, SIZE // 8, SIZE // 8)
        assert gap(together[name], by_hand(checkpoint, depth, frames)) <= 1e-9, name


def test_sessions_without_a_cache_skip_depth_and_change_no_other(
    model: DiffusionModel, checkpoint: Path, depth: str
) -> None:
    videos = {"plain": video(0), "deep": video(1)}
    engine = engine_of(model)
    engine.open(spec_of("plain", cached=False))
    engine.open(spec_of("deep"))
    left = play(engine, videos)
    with torch.inference_mode():
        plain = encode(load_vae(checkpoint, CPU, DTYPE), torch.stack(videos["plain"]), DTYPE)
    assert gap(left["plain"], list(plain)) <= 1e-9
    assert gap(left["deep"], by_hand(checkpoint, depth, videos["deep"])) <= 1e-9


class Failing:
    """The model, some of whose forwards fail after they have run."""

    def __init__(self, model: DiffusionModel, *failing: int) -> None:
        self.group, self.prepare = model.group, model.prepare
        self._model, self._failing, self._runs = model, failing, 0
        self.batches: list[list[int]] = []

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        self.batches.append([row.ordinal for row in rows])
        self._runs += 1
        forward = self._model.forward(rows, views)
        if self._runs - 1 in self._failing:
            raise RuntimeError("planted")
        return forward


def test_a_failed_forward_leaves_the_range_untouched_and_its_retry_gives_the_same(
    model: DiffusionModel, checkpoint: Path, depth: str
) -> None:
    frames = video(2)
    failing = Failing(model, 0, 2, 5)
    engine = engine_of(failing)
    engine.open(spec_of("a"))
    left = play(engine, {"a": frames})
    assert failing.batches == [[0], [0], [1], [1], [2], [3], [3], [4], [5]]
    assert gap(left["a"], by_hand(checkpoint, depth, frames)) == 0.0


def test_frames_of_a_session_are_encoded_one_after_the_other(model: DiffusionModel) -> None:
    watched = Failing(model)
    engine = engine_of(watched)
    engine.open(spec_of("a"))
    engine.open(spec_of("b"))
    play(engine, {"a": video(0, 3), "b": video(1, 3)})
    assert watched.batches == [[0, 0], [1, 1], [2, 2]]


def test_a_moved_session_goes_on_with_its_range(model: DiffusionModel, checkpoint: Path, depth: str) -> None:
    frames, here, there = video(3), DepthRange(2, dtype=DTYPE), DepthRange(3, dtype=DTYPE)
    first, second = engine_of(model, here), engine_of(model, there)
    first.open(spec_of("a"))
    before = play(first, {"a": frames[:3]})["a"]
    second.open(spec_of("other"))
    second.open(spec_of("a"))
    there.import_("a", here.export("a"))
    # Its frames are numbered anew here: ordinals are not part of a range.
    after = play(second, {"a": frames[3:]})["a"]
    assert gap([*before, *after], by_hand(checkpoint, depth, frames)) == 0.0


def test_a_scene_cut_begins_a_range(model: DiffusionModel, checkpoint: Path, depth: str) -> None:
    frames, spec = video(4), spec_of("a")
    engine = engine_of(model)
    engine.open(spec)
    left = play(engine, {"a": frames}, settings={3: replace(spec.settings, scene=1)})["a"]
    halves = [*by_hand(checkpoint, depth, frames[:3]), *by_hand(checkpoint, depth, frames[3:])]
    assert gap(left, halves) == 0.0
    assert gap(left[3:], by_hand(checkpoint, depth, frames)[3:]) > 0.0


def test_encoding_with_depth_has_a_cost_entry_of_its_own(
    model: DiffusionModel, checkpoint: Path, depth: str
) -> None:
    operator = SPAN.operators[0]
    deep, plain = spec_of("a"), spec_of("a", cached=False)
    memory = composed(DepthRange(1, dtype=DTYPE))
    groups = {row_group(model, memory, spec, spec.settings, operator) for spec in (deep, plain)}
    assert len(groups) == 2
    additions = Additions(depth=depth)
    payloads = example_payloads(str(checkpoint), SPAN, deep, additions)
    costs = measure_costs(model, memory, SPAN, deep, payloads, (1, 2))
    assert costs.seconds(row_group(model, memory, deep, deep.settings, operator), 1) > 0
    memory.check_integrity()
    assert memory.free_slots == 1
    latent = (LATENT_CHANNELS, SIZE // 8, SIZE // 8)
    for spec, expected in ((deep, (2, *latent)), (plain, latent)):
        shapes = [stacked(p).shape for p in example_payloads(str(checkpoint), whole_chain(), spec, additions)]
        assert shapes == [(SIZE, SIZE, 3), expected, expected, latent]


def whole_model(checkpoint: Path, depth: str, folder: Path) -> DiffusionModel:
    """The tiny checkpoint with modules and a depth branch in the released layout."""
    file = write_motion_file(folder / "live2diff.ckpt", {**original_motion(), **depth_branch()})
    loaded = load_model(str(checkpoint), TO_LATENTS, CPU, DTYPE, Additions(motion=str(file), depth=depth))
    assert isinstance(loaded, DiffusionModel)
    return loaded


def whole_engine(model: DiffusionModel, span: Span = TO_LATENTS, max_batch: int = 16) -> Engine:
    """An engine over a span, with the memory that it needs."""
    options = MemoryOptions(num_slots=3, height=SIZE, width=SIZE, dtype=DTYPE, cache=CacheOptions(WINDOW))
    memory = build_memories(span, model.layouts, options)
    assert ("cache" in memory.names) == (OperatorKind.DENOISE in span.kinds)
    assert ("depth" in memory.names) == (OperatorKind.ENCODE in span.kinds)
    return Engine(span, model, memory, Scheduler(CostTable(), max_batch), clock=lambda: 0.0)


def through(
    engines: Sequence[Engine], spec: SessionSpec, frames: Sequence[torch.Tensor], settings: Sequence[Settings]
) -> list[torch.Tensor]:
    """One session's frames through engines joined one after the other, each under its own settings."""
    through = player(*engines)
    through.open(spec)
    for version, under in enumerate(settings):
        through.update(spec.session_id, version, under)
    left = {}
    for n, frame in enumerate(frames):
        through.admit(spec.session_id, n, planes_of(frame), n)
        left |= {one.ordinal: content(one) for one in through.left()}
    return [left[n] for n in range(len(frames))]


CUTS = ([[0, 1, 2]], [[0], [1, 2]], [[0, 1], [2]], [[0], [1], [2]])
"""Of encode and two steps, by place."""


@pytest.mark.parametrize("kind", [Guidance.NONE, Guidance.INITIALIZE, Guidance.FULL])
def test_depth_from_frames_to_latents_equals_the_plain_path_for_every_cut(
    checkpoint: Path, depth: str, tmp_path: Path, kind: Guidance
) -> None:
    """Range, warm-up, ring, a new prompt (shadow) and a new scene (another range)."""
    model, frames, spec = whole_model(checkpoint, depth, tmp_path), video(3, 11), spec_of("a")
    first = replace(spec.settings, guidance=kind, guidance_scale=2.0, negative_prompt="zebra")
    settings = [replace(first, prompt="b" if n > 3 else "a", scene=int(n > 7)) for n in range(11)]
    encoded = [*by_hand(checkpoint, depth, frames[:8]), *by_hand(checkpoint, depth, frames[8:])]
    spec = replace(spec, settings=first)
    expected = plain_clip(model._denoiser, WINDOW, spec, encoded, settings)  # type: ignore[arg-type]
    found = []
    for cut in CUTS:
        spans = [Span(f"s{piece[0]}", tuple(TO_LATENTS.operators[at] for at in piece)) for piece in cut]
        engines = [whole_engine(model, span, max_batch=1) for span in spans]
        found.append(through(engines, spec, frames, settings))
    assert gap(found[0], expected) <= 1e-9  # type: ignore[arg-type]
    assert [gap(pieces, found[0]) for pieces in found] == [0.0] * len(CUTS)
    flat = plain_clip(
        model._denoiser,  # type: ignore[arg-type]
        WINDOW,
        spec,
        [torch.stack([each[0], torch.zeros_like(each[1])]) for each in encoded],
        settings,
    )
    assert gap(flat, expected) > 1e-3, "depth matters"  # type: ignore[arg-type]


def test_depth_travels_through_all_steps_and_sessions_share_forwards(
    checkpoint: Path, depth: str, tmp_path: Path
) -> None:
    """Two sessions with a cache, warmed up and round the ring, and one without, together and alone."""
    model = whole_model(checkpoint, depth, tmp_path)
    specs = {"a": spec_of("a"), "b": spec_of("b"), "plain": spec_of("plain", cached=False)}
    videos = {name: video(i, 7) for i, name in enumerate(specs)}
    engine = whole_engine(model)
    for spec in specs.values():
        engine.open(spec)
    together = play(engine, videos)
    for name, spec in specs.items():
        alone = whole_engine(model)
        alone.open(spec)
        (pictures,) = play(alone, {name: videos[name]}).values()
        assert len(pictures) == 7
        assert gap(together[name], pictures) <= 1e-9, name


def test_pictures_depend_on_depth(checkpoint: Path, depth: str, tmp_path: Path) -> None:
    model = whole_model(checkpoint, depth, tmp_path)
    pictures = []
    for flat in (False, True):
        engine = whole_engine(model)
        engine.open(spec_of("a"))
        if flat:
            network: Any = model.depth
            network.network.head.head[4].weight.zero_()
        pictures.append(play(engine, {"a": video(0, 4)})["a"])
    assert all(gap([a], [b]) > 1e-3 for a, b in zip(*pictures, strict=True))
