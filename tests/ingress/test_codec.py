"""Image bytes ⇄ arrays, and what gate and decoder do together with damaged files."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rearview.config import LimitsConfig
from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason
from rearview.ingress.codec import BadImage, decode_image, encode_image
from rearview.ingress.image_gate import check_image

pytestmark = pytest.mark.unit

IMAGES = Path(__file__).parent / "images"
MUTANTS = 2_000
SIDE = 64


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert a few bytes anywhere, headers more often."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        top = len(mutant) if rng.random() < 0.5 else min(len(mutant), 640)
        at = rng.randrange(2, max(3, top))
        kind = rng.randrange(5)
        if kind == 0:
            mutant[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            mutant[at : at + 2] = bytes((0xFF, rng.choice((0xC0, 0xC2, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD))))
        elif kind == 2:
            del mutant[at : at + rng.randint(1, 40)]
        elif kind == 3:
            mutant[at:at] = mutant[at : at + rng.randint(1, 200)]
        else:
            mutant[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(mutant)


def test_raw_rgb_comes_back_bit_equal_in_both_directions() -> None:
    pixels = picture(24, 40)
    decoded = decode_image(encode_image(pixels, ImageFormat.RGB), ImageFormat.RGB, 40, 24)
    assert np.array_equal(decoded, pixels)
    assert decoded.flags.writeable


def test_jpeg_comes_back_near_its_pixels() -> None:
    pixels = picture(48, 64)
    decoded = decode_image(encode_image(pixels, ImageFormat.JPEG, 95), ImageFormat.JPEG, 64, 48)
    assert decoded.shape == (48, 64, 3)
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - pixels).mean() < 3.0


def test_what_we_encode_passes_our_own_gate() -> None:
    data = encode_image(picture(48, 64), ImageFormat.JPEG)
    assert check_image(data, ImageFormat.JPEG, 64, 48, LimitsConfig()) is None


def test_lower_quality_is_smaller() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(encode_image(pixels, ImageFormat.JPEG, quality)) for quality in (20, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_a_view_with_strides_is_encoded_as_its_pixels() -> None:
    pixels = picture(32, 32)
    assert encode_image(pixels[:, ::-1], ImageFormat.RGB) == pixels[:, ::-1].tobytes()


def test_a_grey_file_decodes_to_three_equal_channels() -> None:
    decoded = decode_image((IMAGES / "good_grey.jpg").read_bytes(), ImageFormat.JPEG, SIDE, SIDE)
    assert decoded.shape == (SIDE, SIDE, 3)
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("damaged_data.jpg", DropReason.IMAGE_INVALID),
        ("truncated.jpg", DropReason.IMAGE_INVALID),
        ("not_an_image.jpg", DropReason.IMAGE_INVALID),
        ("claims_65500.jpg", DropReason.IMAGE_INVALID),
        ("claims_12000.jpg", DropReason.IMAGE_INVALID),
    ],
)
def test_a_bad_file_that_passed_no_gate_raises_bad_image(name: str, reason: DropReason) -> None:
    with pytest.raises(BadImage) as caught:
        decode_image((IMAGES / name).read_bytes(), ImageFormat.JPEG, SIDE, SIDE)
    assert caught.value.reason is reason


@pytest.mark.parametrize(("width", "height"), [(64, 72), (72, 64), (128, 32)])
def test_a_file_of_another_size_raises_bad_image(width: int, height: int) -> None:
    with pytest.raises(BadImage):
        decode_image((IMAGES / "good.jpg").read_bytes(), ImageFormat.JPEG, width, height)


def test_raw_bytes_of_another_size_raise_bad_image() -> None:
    with pytest.raises(BadImage) as caught:
        decode_image(bytes(10), ImageFormat.RGB, 2, 2)
    assert caught.value.reason is DropReason.IMAGE_SIZE_MISMATCH


def test_bad_image_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(BadImage(DropReason.IMAGE_INVALID))).reason is DropReason.IMAGE_INVALID


def test_mutants_are_refused_or_decoded_and_nothing_else_happens() -> None:
    rng = random.Random(20)
    names = (
        "good.jpg",
        "good_grey.jpg",
        "good_separate_scans.jpg",
        "progressive.jpg",
        "two_frame_headers.jpg",
    )
    seeds = [(IMAGES / name).read_bytes() for name in names]
    outcomes: Counter[str] = Counter()
    for _ in range(MUTANTS):
        data = mutate(rng.choice(seeds), rng)
        dropped = check_image(data, ImageFormat.JPEG, SIDE, SIDE, LimitsConfig())
        if dropped is not None:
            outcomes["gate"] += 1
            continue
        try:
            decoded = decode_image(data, ImageFormat.JPEG, SIDE, SIDE)
        except BadImage:
            outcomes["decoder"] += 1
        else:
            assert decoded.shape == (SIDE, SIDE, 3)
            outcomes["decoded"] += 1
    assert outcomes.total() == MUTANTS
    # Each way out is really walked; else the mutants would prove nothing.
    assert min(outcomes[way] for way in ("gate", "decoder", "decoded")) > 50, outcomes
