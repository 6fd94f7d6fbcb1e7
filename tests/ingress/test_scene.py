"""Scene cuts: found between scenes, not in motion, light or noise."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from rearview.ingress.scene import SceneDetector
from rearview.ingress.similarity import thumbnail
from rearview.samples import sample_clip_path
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

SIDE = 128
Picture = NDArray[np.uint8]


def texture(seed: int, width: int = SIDE) -> Picture:
    """A smooth random picture, (SIDE, width, 3)."""
    cells = np.random.default_rng(seed).uniform(0, 255, (SIDE // 16, width // 16, 3))
    return np.kron(cells, np.ones((16, 16, 1))).astype(np.uint8)


def scenes(pictures: list[Picture]) -> list[int]:
    detector = SceneDetector()
    return [detector.see(thumbnail(picture)) for picture in pictures]


def frames_of(path: Path, count: int = 60) -> list[Picture]:
    with av.open(str(path)) as video:
        decoded = (frame for frame in video.decode(video=0))
        return [
            frame.reformat(256, 256, "rgb24").to_ndarray()
            for frame, _ in zip(decoded, range(count), strict=False)
        ]


def test_a_cut_begins_a_scene_with_its_frame() -> None:
    assert scenes([texture(1)] * 5 + [texture(2)] * 3 + [texture(1)] * 2) == [0] * 5 + [1] * 3 + [2] * 2


def test_a_frame_that_is_forgotten_was_never_seen() -> None:
    detector, other = SceneDetector(), SceneDetector()
    for number, seed in enumerate((1, 1, 2, 2, 3)):
        if number in (1, 2):
            detector.see(thumbnail(texture(7 + number)))
            detector.forget()
        detector.see(thumbnail(texture(seed)))
        other.see(thumbnail(texture(seed)))
    assert detector.state == other.state
    assert detector.scene == 2


def test_a_pan_is_one_scene() -> None:
    wide = texture(3, SIDE * 16)
    for step in (2, 4, 6):
        pan = [wide[:, n * step : n * step + SIDE] for n in range(60)]
        assert scenes(pan)[-1] == 0


def test_a_flash_and_a_fade_are_no_cut() -> None:
    picture = texture(4).astype(np.float64)
    flash = [np.minimum(255, picture * gain).astype(np.uint8) for gain in (1, 1, 1.8, 1, 1)]
    fade = [(picture * gain).astype(np.uint8) for gain in (1, 0.6, 0.3, 0, 0, 0.3, 0.6, 1)]
    assert scenes(flash)[-1] == 0
    assert scenes(fade)[-1] == 0


def test_where_every_frame_is_another_picture_cuts_mean_nothing() -> None:
    assert scenes([texture(seed) for seed in range(40)])[-1] <= 2


def test_noise_of_a_camera_is_no_cut() -> None:
    chance = np.random.default_rng(0)
    noisy = [np.clip(texture(5) + chance.normal(0, 25, (SIDE, SIDE, 3)), 0, 255) for _ in range(20)]
    assert scenes([each.astype(np.uint8) for each in noisy])[-1] == 0


def test_the_bundled_clip_is_one_scene_and_a_cut_in_it_is_found() -> None:
    clip = frames_of(sample_clip_path())
    assert scenes(clip)[-1] == 0
    assert scenes(clip[:20] + [255 - frame[::-1] for frame in clip[20:40]]) == [0] * 20 + [1] * 20


def test_real_clips_are_one_scene_each_and_a_cut_between_them_is_found() -> None:
    folder = os.environ.get("REARVIEW_CLIPS")
    if not folder:
        skip_or_fail("REARVIEW_CLIPS is not set")
    clips = [frames_of(path) for path in sorted(Path(folder).glob("*.mp4"))]
    for clip in clips:
        assert scenes(clip)[-1] == 0
        for other in clips:
            if other is not clip:
                assert scenes(clip[:20] + other[:20]) == [0] * 20 + [1] * 20


def test_frames_of_another_size_are_compared_with_none_before_them() -> None:
    """They go on in the scene that was, and find cuts as a session does that begins with them."""
    detector, fresh = SceneDetector(), SceneDetector()
    for seed in (1, 2, 3, 4):
        detector.see(thumbnail(texture(seed)))
    before = detector.scene
    for seed in (5, 5, 6, 6):
        small = thumbnail(texture(seed, SIDE // 2))
        assert detector.see(small) - before == fresh.see(small)
    assert fresh.scene == 1
