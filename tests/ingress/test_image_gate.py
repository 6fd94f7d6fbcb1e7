"""The walk over an image's markers, with the files of `images/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rearview.config import LimitsConfig
from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason
from rearview.ingress.image_gate import check_image

pytestmark = pytest.mark.unit

IMAGES = Path(__file__).parent / "images"
LIMITS = LimitsConfig()
SIDE = 64
MEBIBYTE = 1 << 20

OUTCOMES = {
    "good.jpg": None,
    "good_grey.jpg": None,
    "good_separate_scans.jpg": None,
    "damaged_data.jpg": None,  # the decoder's to find
    "empty.jpg": DropReason.IMAGE_EMPTY,
    "truncated.jpg": DropReason.IMAGE_INVALID,
    "truncated_header.jpg": DropReason.IMAGE_INVALID,
    "two_frame_headers.jpg": DropReason.IMAGE_INVALID,
    "many_scans.jpg": DropReason.IMAGE_INVALID,
    "claims_zero.jpg": DropReason.IMAGE_INVALID,
    "cmyk.jpg": DropReason.IMAGE_INVALID,
    "png.jpg": DropReason.IMAGE_INVALID,
    "not_an_image.jpg": DropReason.IMAGE_INVALID,
    "progressive.jpg": DropReason.IMAGE_NOT_BASELINE,
    "arithmetic.jpg": DropReason.IMAGE_NOT_BASELINE,
    "lossless.jpg": DropReason.IMAGE_NOT_BASELINE,
    "claims_65500.jpg": DropReason.IMAGE_TOO_LARGE,
    "claims_12000.jpg": DropReason.IMAGE_TOO_LARGE,
    "other_size.jpg": DropReason.IMAGE_SIZE_MISMATCH,
}


def check(
    data: bytes, kind: ImageFormat = ImageFormat.JPEG, limits: LimitsConfig = LIMITS
) -> DropReason | None:
    return check_image(data, kind, SIDE, SIDE, limits)


def good() -> bytes:
    return (IMAGES / "good.jpg").read_bytes()


class CountedBytes(bytes):
    """Bytes that count how often they are looked into."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return super().__getitem__(key)


def test_every_file_has_its_outcome() -> None:
    found = {path.name: check(path.read_bytes()) for path in IMAGES.glob("*.jpg")}
    assert found == OUTCOMES


def test_every_prefix_of_a_good_file_is_refused() -> None:
    data = good()
    assert {check(data[:length]) for length in range(1, len(data))} == {DropReason.IMAGE_INVALID}


def test_a_12_bit_file_is_not_baseline() -> None:
    data = bytearray(good())
    data[data.index(b"\xff\xc0") + 4] = 12
    assert check(bytes(data)) is DropReason.IMAGE_NOT_BASELINE


def test_an_arithmetic_conditioning_segment_is_not_baseline() -> None:
    assert check(good()[:2] + b"\xff\xcc\x00\x04\x00\x00" + good()[2:]) is DropReason.IMAGE_NOT_BASELINE


def test_an_embedded_thumbnail_does_not_count_as_a_frame() -> None:
    segment = b"\xff\xe1" + (len(good()) + 2).to_bytes(2, "big") + good()
    assert check(good()[:2] + segment + good()[2:]) is None


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    assert check(good()[:2] + b"\xff" * 9 + good()[2:]) is None


def test_bytes_after_the_end_are_allowed() -> None:
    assert check(good() + bytes(100)) is None


def test_the_byte_limit_is_inclusive() -> None:
    limits = LimitsConfig(max_image_bytes=4096)
    padded = good().ljust(4096, b"\0")
    assert check(padded, limits=limits) is None
    assert check(padded + b"\0", limits=limits) is DropReason.IMAGE_TOO_LARGE


def test_size_is_refused_before_the_picture_is_looked_at() -> None:
    assert check(b"\xff" * (MEBIBYTE + 1)) is DropReason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    "filling",
    [b"\xff\xe0\x00\x02", b"\xff\x01", b"\xff", b"\xff\xd0", b"\xff\xda", b"\xff\xe0\xff\xff" + bytes(65533)],
    ids=["empty segments", "TEM", "fill bytes", "restarts", "scans", "long segments"],
)
def test_a_mebibyte_of_markers_is_refused_in_a_bounded_number_of_steps(filling: bytes) -> None:
    data = CountedBytes((b"\xff\xd8" + filling * (MEBIBYTE // len(filling)))[:MEBIBYTE])
    assert check(data) is DropReason.IMAGE_INVALID
    assert data.reads < 2_000


@pytest.mark.parametrize(
    ("size", "outcome"),
    [
        (SIDE * SIDE * 3, None),
        (SIDE * SIDE * 3 - 1, DropReason.IMAGE_SIZE_MISMATCH),
        (SIDE * SIDE * 3 + 1, DropReason.IMAGE_SIZE_MISMATCH),
        (0, DropReason.IMAGE_EMPTY),
    ],
)
def test_raw_rgb_has_exactly_its_bytes(size: int, outcome: DropReason | None) -> None:
    assert check(bytes(size), ImageFormat.RGB) is outcome


def test_raw_rgb_is_bounded_by_pixels_and_not_by_the_limit_of_encoded_images() -> None:
    assert check_image(bytes(1024 * 1024 * 3), ImageFormat.RGB, 1024, 1024, LIMITS) is None


@pytest.mark.parametrize(
    ("size", "outcome"),
    [(1, None), (MEBIBYTE, None), (MEBIBYTE + 1, DropReason.IMAGE_TOO_LARGE), (0, DropReason.IMAGE_EMPTY)],
)
def test_opaque_bytes_are_only_weighed(size: int, outcome: DropReason | None) -> None:
    assert check(bytes(size), ImageFormat.OPAQUE) is outcome
