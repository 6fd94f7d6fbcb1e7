"""`translate --reference`: whatever a user has becomes what the service takes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rearview.cli.choices import parse_mask, parse_reference
from rearview.client.references import MASK_SIDE, SIDE
from rearview.contract.reference import MAX_MASK_BYTES, MAX_PICTURE_BYTES, ImageFile
from rearview.ingress.references import check_picture
from support.tiny_reference import half_mask, pixels

pytestmark = pytest.mark.unit


def write(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def decoded(file: ImageFile) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file.data)))


def noise(height: int, width: int) -> Image.Image:
    """What no encoder makes small."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
@pytest.mark.parametrize("size", [(900, 1200), (40, 30)])
def test_any_picture_becomes_one_that_the_service_takes(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    picture, scale = parse_reference(str(write(tmp_path / name, noise(*size))))
    assert scale is None
    assert picture.num_bytes <= MAX_PICTURE_BYTES
    assert decoded(picture).shape == (SIDE, SIDE, 3)
    check_picture("reference", picture)


def test_the_square_in_the_middle_is_kept_upright_and_over_white(tmp_path: Path) -> None:
    levels = np.full((100, 300, 4), 255, np.uint8)
    levels[:, :100], levels[:, 100:200, :3], levels[:, 200:] = 0, (200, 30, 30), 0
    levels[:50, 100:200, 3] = 0
    picture, _ = parse_reference(str(write(tmp_path / "a.png", Image.fromarray(levels))))
    found = decoded(picture)
    assert np.abs(found[20, 112].astype(int) - 255).max() <= 8
    assert np.abs(found[200, 112].astype(int) - (200, 30, 30)).max() <= 12


@pytest.mark.parametrize(
    ("name", "scale"), [("a.png=0.6", 0.6), ("a.png=0", 0.0), ("a.png", None), ("b=1.png", None)]
)
def test_a_scale_stands_behind_the_file(tmp_path: Path, name: str, scale: float | None) -> None:
    for file in ("a.png", "b=1.png"):
        write(tmp_path / file, Image.fromarray(pixels(1)))
    assert parse_reference(f"{tmp_path}/{name}")[1] == scale


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere.png", "No such file"),
        ("text.png", "no picture that can be read"),
        ("a.png=2.5", "scales are 0 to 2"),
        ("a.png=much", "'much' is no scale"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path / "a.png", Image.fromarray(pixels(1)))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(typer.BadParameter, match=text):
        parse_reference(f"{tmp_path}/{name}")


def test_a_mask_keeps_its_shape_and_becomes_small(tmp_path: Path) -> None:
    mask = parse_mask(write(tmp_path / "mask.png", Image.fromarray(half_mask(768, 1024))))
    found = decoded(mask)
    assert found.shape == (96, MASK_SIDE)
    assert (int(found[:, :60].min()), int(found[:, 68:].max())) == (255, 0)
    check_picture("reference_mask", mask)
    rough = parse_mask(write(tmp_path / "rough.png", noise(500, 500)))
    assert rough.num_bytes <= MAX_MASK_BYTES
