"""Translated clips are the product's own pictures, and the parts of an evaluation put together right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")
from rearview.contract.chain import Span, chain
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions
from rearview.errors import ConfigError
from rearview_lab.evaluation.clips import Clip, generated_clip, looping_clip
from rearview_lab.evaluation.flow import Motion
from rearview_lab.evaluation.judges import Judges
from rearview_lab.evaluation.parts import Look, clip_floor, clip_runs, drift
from rearview_lab.evaluation.runner import PER_FRAME, Method, Translator, as_picture
from support.frames import content, entering
from support.tiny import SIZE, random_frames, session, write_tiny_checkpoint
from support.tiny_motion_files import write_motion_adapter
from support.toy import drain

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
BANK = Method("streamv2v", BankSettings(interval=1, fusion_threshold=0.5))
CACHE = Method("live2diff", cache=CacheSettings(), window=CacheWindow(2, 2))
BOTH = Method("both", BANK.bank, CACHE.cache, CACHE.window)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint"))


@pytest.fixture(scope="module")
def translator(checkpoint: str) -> Translator:
    return Translator(checkpoint, SIZE, 2, device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def with_motion(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    motion = Additions(motion=str(write_motion_adapter(tmp_path_factory.mktemp("motion"))))
    return Translator(checkpoint, SIZE, 2, device=CPU, dtype=torch.float32, additions=motion)


def product_frames(checkpoint: str, frames: list[torch.Tensor], settings: Settings) -> list[torch.Tensor]:
    """By an engine that owns the whole chain, as a replica does."""
    span = Span("fused", chain(2))
    model = load_model(checkpoint, span, CPU, torch.float32)
    engine = Engine(span, model, Memoryless(1), Scheduler(CostTable(), 1))
    engine.open(session("s", settings))
    found = []
    for ordinal, frame in enumerate(frames):
        engine.admit(entering("s", ordinal, frame), 0.0)
        found += [content(frame) for frame in drain(engine)]
    return found


@pytest.mark.parametrize("noise", NoiseRule)
def test_rounded_pictures_are_those_of_the_product(
    checkpoint: str, translator: Translator, noise: NoiseRule
) -> None:
    frames, settings = random_frames(3), Settings("a", noise_rule=noise)
    own = [pictures[0] for pictures in translator.translate(PER_FRAME, [settings], frames)]
    for picture, frame in zip(own, product_frames(checkpoint, frames, settings), strict=True):
        assert (picture * 255 - as_picture(frame) * 255).abs().max() <= 0.5 + 1e-3
    assert any((picture * 255 - (picture * 255).round()).abs().max() > 0.1 for picture in own)


def test_looks_side_by_side_are_those_of_sessions_alone(translator: Translator) -> None:
    frames = random_frames(3)
    looks = [Settings("a"), Settings("b", seed=3)]
    together = list(translator.translate(BANK, looks, frames))
    for position, look in enumerate(looks):
        alone = [pictures[0] for pictures in translator.translate(BANK, [look], frames)]
        assert max(float((a[position] - b).abs().max()) for a, b in zip(together, alone, strict=True)) < 1e-4


def test_the_bank_reaches_the_pictures(translator: Translator) -> None:
    frames = random_frames(3)
    plain = list(translator.translate(PER_FRAME, [Settings("a")], frames))
    banked = list(translator.translate(BANK, [Settings("a")], frames))
    assert torch.allclose(plain[0][0], banked[0][0], atol=1e-5)
    assert not torch.allclose(plain[2][0], banked[2][0], atol=1e-5)


@pytest.mark.parametrize("method", [CACHE, BOTH], ids=["live2diff", "both"])
def test_the_cache_reaches_every_picture_of_its_own_session(with_motion: Translator, method: Method) -> None:
    frames, looks = random_frames(5), [Settings("a"), Settings("b", seed=3)]
    plain = [pictures[0] for pictures in with_motion.translate(PER_FRAME, looks[:1], frames)]
    cached = [pictures[0] for pictures in with_motion.translate(method, looks[:1], frames)]
    together = [pictures[0] for pictures in with_motion.translate(method, looks, frames)]
    assert len(cached) == len(frames)
    for one, other, beside in zip(plain, cached, together, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)
        assert torch.allclose(other, beside, atol=1e-4)


def test_both_memories_are_not_one_of_them(with_motion: Translator) -> None:
    frames = random_frames(5)
    last = [list(with_motion.translate(one, [Settings("a")], frames))[-1][0] for one in (CACHE, BOTH)]
    assert not torch.allclose(*last, atol=1e-5)


def test_a_clip_shorter_than_the_window_is_refused(with_motion: Translator) -> None:
    with pytest.raises(RuntimeError, match="too short"):
        list(with_motion.translate(CACHE, [Settings("a")], random_frames(1)))


def test_what_a_checkpoint_supports(translator: Translator, with_motion: Translator) -> None:
    assert [translator.supports(one) for one in (PER_FRAME, BANK, CACHE, BOTH)] == [True, True, False, False]
    assert all(with_motion.supports(one) for one in (PER_FRAME, BANK, CACHE, BOTH))
    with pytest.raises(ConfigError, match="live2diff"):
        next(translator.translate(CACHE, [Settings("a")], random_frames(2)))


def test_a_still_clip_flickers_under_fresh_noise_only(translator: Translator) -> None:
    frame = random_frames(1)[0]
    still = Motion(torch.zeros(2, SIZE, SIZE), torch.ones(SIZE, SIZE, dtype=torch.bool))
    clip = Clip("still", [frame] * 3, [still] * 2)
    looks = [Look("a", Settings("a"))]
    (fixed,) = clip_runs(translator, clip, PER_FRAME, NoiseRule.FIXED, looks, Judges())
    (fresh,) = clip_runs(translator, clip, PER_FRAME, NoiseRule.FRESH, looks, Judges())
    assert fixed.scores.warp_error < 1e-6 < 1e-3 < fresh.scores.warp_error
    floor = clip_floor(translator, clip)
    assert floor.source.warp_error == 0
    assert floor.autoencoder.warp_error < 1e-6


def test_the_floor_of_a_moving_clip_is_above_that_of_its_source(translator: Translator) -> None:
    floor = clip_floor(translator, generated_clip("pan", 3, SIZE))
    assert floor.source.input_difference == 0 < floor.autoencoder.input_difference
    assert floor.source.warp_error > 0


WINDOWS = ((20, 40), (60, 80))


def test_what_forgets_does_not_drift(translator: Translator) -> None:
    found = drift(translator, looping_clip(SIZE), PER_FRAME, [Look("a", Settings("a", steps=1))], WINDOWS)
    assert found["a"].holds
    assert abs(found["a"].worst) < 1e-3


class Fading(Translator):
    """Every picture is a little darker than the one before, as with a memory that loses light."""

    def __init__(self) -> None:
        pass

    def translate(
        self, method: Method, looks: Sequence[Settings], frames: Iterable[torch.Tensor]
    ) -> Iterator[list[torch.Tensor]]:
        for index, frame in enumerate(frames):
            yield [as_picture(frame) * 0.998**index for _ in looks]


def test_planted_fading_is_found() -> None:
    found = drift(Fading(), looping_clip(SIZE), BANK, [Look("a", Settings("a"))], WINDOWS)
    assert not found["a"].holds
    assert found["a"].changes["colour_mean_r"] == pytest.approx(0.998**40 - 1, abs=1e-3)


def test_a_checkpoint_without_networks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no networks"):
        Translator("null", SIZE, 1, device=CPU, dtype=torch.float32)
