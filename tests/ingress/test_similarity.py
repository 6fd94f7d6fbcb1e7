"""The similarity filter: laws H of docs/methods.md, 4, and who it lets through."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from rearview.contract.similarity import SimilaritySettings
from rearview.errors import InvalidRequest
from rearview.ingress.similarity import (
    SimilarityFilter,
    cosine,
    draw,
    skip_probability,
    thumbnail,
)

pytestmark = pytest.mark.unit

SHAPE = (64, 96, 3)


def image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def scene(seed: int) -> NDArray[np.float32]:
    return thumbnail(image(seed))


def turned(base: NDArray[np.float32], similarity: float, way: int = 9) -> NDArray[np.float32]:
    """A thumbnail with just this cosine to `base`."""
    other = np.random.default_rng(way).normal(size=base.shape).astype(np.float32)
    other -= base * (other.ravel() @ base.ravel()) / (base.ravel() @ base.ravel())
    other *= np.linalg.norm(base) / np.linalg.norm(other)
    return (similarity * base + np.sqrt(1.0 - similarity**2) * other).astype(np.float32)


def answers(filter: SimilarityFilter, frames: list[NDArray[np.float32]], seed: int = 0) -> list[bool]:
    return [filter.is_unchanged(frame, index, seed) for index, frame in enumerate(frames)]


@pytest.mark.parametrize(
    ("similarity", "threshold", "expected"),
    [
        (1.0, 0.98, 1.0),
        (0.999, 0.98, 0.95),
        (0.99, 0.98, 0.5),
        (0.98, 0.98, 0.0),
        (0.5, 0.98, 0.0),
        (-1.0, 0.98, 0.0),
        (1.0, 1.0, 0.0),
        (0.999, 0.99, 0.9),
        (0.5, 0.0, 0.5),
        (1.0 + 1e-12, 0.98, 1.0),
    ],
)
def test_h1_the_chance_of_being_left_out(similarity: float, threshold: float, expected: float) -> None:
    assert skip_probability(similarity, threshold) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("similarity", [0.985, 0.99, 0.999])
def test_h1_so_many_frames_are_left_out_as_the_chance_says(similarity: float) -> None:
    base = scene(0)
    near = turned(base, similarity)
    filter = SimilarityFilter(SimilaritySettings(0.98, max_skip_frames=1))
    skipped = tried = 0
    for index in range(6000):
        filter._reference, filter._skipped = base, 0
        tried += 1
        skipped += filter.is_unchanged(near, index, seed=5)
    assert skipped / tried == pytest.approx(skip_probability(similarity, 0.98), abs=0.025)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_h2_a_still_picture_is_left_out_to_the_limit_and_then_let_through(most: int) -> None:
    filter = SimilarityFilter(SimilaritySettings(max_skip_frames=most))
    found = answers(filter, [scene(0)] * (3 * (most + 1)))
    assert found == ([False] + [True] * most) * 3


def test_h3_what_is_compared_with_moves_on_translated_frames_only() -> None:
    """A slow drift, each frame like the one before it: measured from the last translated frame it counts."""
    base, filter = scene(0), SimilarityFilter(SimilaritySettings(0.9, max_skip_frames=100))
    angles = [0.0, *([0.15] * 5), 0.5]
    found = answers(filter, [turned(base, float(np.cos(a))) for a in angles])
    assert found[0] is False
    assert any(found[1:6])
    assert found[6] is False, "cos 0.5 = 0.88 to the first frame is below the threshold"
    drift = SimilarityFilter(SimilaritySettings(0.9, max_skip_frames=100))
    small_steps = [turned(base, float(np.cos(0.05 * n))) for n in range(40)]
    assert answers(drift, small_steps).count(False) >= 4


def test_h4_the_count_begins_anew_with_every_translated_frame() -> None:
    """Two still frames between changes, over and over: never forced through by an old count."""
    filter = SimilarityFilter(SimilaritySettings(max_skip_frames=3))
    frames = [scene(n) for n in range(8) for _ in range(3)]
    assert answers(filter, frames) == [False, True, True] * 8


@pytest.mark.parametrize("value", [0, 128, 200, 255])
def test_h5_an_even_frame_is_normalised_once_however_bright(value: int) -> None:
    found = thumbnail(np.full(SHAPE, value, np.uint8))
    assert found.shape == (8, 12, 3)
    assert found.dtype == np.float32
    assert found.ravel() == pytest.approx(np.full(found.size, value / 127.5 - 1.0), abs=1e-5)


def test_h5_a_bright_scene_and_a_brighter_one_are_told_apart_as_dark_ones_are() -> None:
    detail = np.random.default_rng(0).integers(0, 60, SHAPE)
    dark, bright = thumbnail(detail.astype(np.uint8)), thumbnail((255 - detail).astype(np.uint8))
    assert cosine(dark, bright) == pytest.approx(-1.0, abs=1e-6)


def test_a_thumbnail_is_the_mean_of_its_pixels() -> None:
    pixels = image(3)
    cell = pixels[8:16, 16:24].reshape(-1, 3).mean(axis=0) / 127.5 - 1.0
    assert thumbnail(pixels)[1, 2] == pytest.approx(cell, abs=1e-5)


def test_chance_is_a_function_of_seed_and_frame_index() -> None:
    drawn = {(seed, index): draw(seed, index) for seed in (0, 1, 2**64 - 1) for index in (0, 1, 2**64 - 1)}
    assert len(set(drawn.values())) == 9
    assert all(0.0 <= value < 1.0 for value in drawn.values())
    assert draw(0, 0) == drawn[0, 0]
    many = np.array([draw(3, index) for index in range(4000)])
    assert many.mean() == pytest.approx(0.5, abs=0.02)
    assert many.std() == pytest.approx(12**-0.5, abs=0.01)


def test_two_sessions_with_one_seed_answer_alike_and_with_another_not() -> None:
    frames = [turned(scene(0), 0.995, way=n) for n in range(60)]
    first, again, other = (
        answers(SimilarityFilter(SimilaritySettings()), frames, seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_a_frame_under_other_settings_is_always_let_through() -> None:
    filter = SimilarityFilter(SimilaritySettings())
    versions = [0, 0, 1, 1, 2, 3, 3]
    found = [filter.is_unchanged(scene(0), index, 0, version) for index, version in enumerate(versions)]
    assert found == [False, True, False, True, False, False, True]


def test_after_a_frame_that_got_no_picture_the_next_is_let_through() -> None:
    filter = SimilarityFilter(SimilaritySettings())
    assert answers(filter, [scene(0)] * 2) == [False, True]
    filter.forget()
    assert answers(filter, [scene(0)] * 2) == [False, True]


def test_a_frame_of_another_size_is_let_through() -> None:
    filter = SimilarityFilter(SimilaritySettings())
    assert not filter.is_unchanged(scene(0), 0, 0)
    assert not filter.is_unchanged(thumbnail(np.zeros((128, 64, 3), np.uint8)), 1, 0)


def test_mid_grey_has_no_direction_and_is_let_through() -> None:
    grey = np.zeros((8, 8, 3), np.float32)
    assert cosine(grey, grey) == 0.0
    assert answers(SimilarityFilter(SimilaritySettings()), [grey] * 3) == [False] * 3


def test_a_filter_at_threshold_one_leaves_nothing_out() -> None:
    assert answers(SimilarityFilter(SimilaritySettings(threshold=1.0)), [scene(0)] * 5) == [False] * 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.1),
        ("threshold", float("nan")),
        ("max_skip_frames", 0),
        ("max_skip_frames", 1001),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as raised:
        SimilaritySettings(**{field: value})  # type: ignore[arg-type]
    assert raised.value.metadata == {"field": f"similarity_filter.{field}"}
