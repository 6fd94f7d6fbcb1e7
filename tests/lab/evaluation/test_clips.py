"""Clips: that pictures move as their motion says, at every size, and files read as videos."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")
from rearview_lab.data.sample_clip import write_clip
from rearview_lab.evaluation.clips import (
    GENERATED,
    LOOP_FRAMES,
    SAMPLES,
    Clip,
    file_clips,
    generated_clip,
    looping_clip,
    sample_clip,
)
from rearview_lab.evaluation.flow import Motion
from rearview_lab.evaluation.metrics import warp_error
from rearview_lab.evaluation.runner import as_picture
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


def errors(clip: Clip, motion: Motion | None = None) -> list[float]:
    pictures = [as_picture(frame) for frame in clip.frames]
    return [
        warp_error(pictures[i], pictures[i + 1], motion or clip.motions[i]) for i in range(len(pictures) - 1)
    ]


def still(size: int) -> Motion:
    return Motion(torch.zeros(2, size, size), torch.ones(size, size, dtype=torch.bool))


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("size", [128, 256])
def test_generated_pictures_move_as_told(name: str, size: int) -> None:
    clip = generated_clip(name, 3, size)
    assert clip.frames[0].shape == (size, size, 3)
    assert max(errors(clip)) < 0.02
    if name == "static":
        assert max(errors(clip)) == 0
    elif name != "occlusion":  # There most of the picture, the ground, hardly moves.
        assert min(errors(clip, still(size))) > 1.5 * max(errors(clip))


def test_the_occluding_object_is_masked_and_followed() -> None:
    clip = generated_clip("occlusion", 6, 128)
    share = [float(motion.visible.float().mean()) for motion in clip.motions]
    assert 0.9 < min(share) < max(share) < 0.995
    unmasked = [Motion(motion.backward, torch.ones_like(motion.visible)) for motion in clip.motions]
    without = errors(Clip("", clip.frames, unmasked))
    assert sum(errors(clip)) < 0.8 * sum(without)


@pytest.mark.parametrize("size", [256, 128])
def test_the_sample_clip_keeps_its_flow_at_another_size(size: int) -> None:
    for name in SAMPLES:
        clip = sample_clip(name, 3, size)
        assert max(errors(clip)) < 0.015
        assert max(errors(clip)) < 0.6 * min(errors(clip, still(size)))


def test_the_loop_closes_and_divides_a_hundred() -> None:
    clip = looping_clip(64)
    assert 100 % LOOP_FRAMES == 0
    assert clip.is_loop
    assert len(clip.frames) == LOOP_FRAMES
    first, last = as_picture(clip.frames[0]), as_picture(clip.frames[-1])
    inside = errors(clip)
    assert warp_error(last, first, clip.motions[-1]) < 1.5 * max(inside)
    assert warp_error(last, first, still(64)) > 1.5 * max(inside)


def test_a_repeated_loop_shares_its_frames() -> None:
    clip = looping_clip(64)
    long = clip.repeated(1000)
    assert len(long.frames) == 1000
    assert long.frames[940] is clip.frames[940 % LOOP_FRAMES]
    assert long.motion_to(0) is None
    assert long.motion_to(LOOP_FRAMES) is clip.motions[-1]


def test_files_are_read_and_their_motion_estimated(tmp_path: Path) -> None:
    source = sample_clip("sample-coffee", 5, 256)
    write_clip(tmp_path / "a.mp4", [frame.numpy() for frame in source.frames])
    (clip,) = file_clips(tmp_path, 4, 256)
    assert clip.name == "a"
    assert len(clip.frames) == 4
    assert sum(errors(clip)) < 0.6 * sum(errors(clip, still(256)))
    gaps = [
        (found.backward - known.backward).abs().mean()
        for found, known in zip(clip.motions, source.motions, strict=False)
    ]
    assert float(np.mean(gaps)) < 0.5


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no video"):
        file_clips(tmp_path, 4, 64)


def test_real_clips_flow_better_than_they_stand() -> None:
    folder = os.environ.get("REARVIEW_CLIPS")
    if not folder:
        skip_or_fail("REARVIEW_CLIPS names no folder")
    for clip in file_clips(Path(folder), 4, 128):
        assert sum(errors(clip)) < sum(errors(clip, still(128))), clip.name
