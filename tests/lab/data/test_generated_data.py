"""The generated data is a function of seed and index, and every style changes the picture."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.data.dataset import Dataset, make_record, write_dataset
from rearview_lab.data.scenes import SCENE_SIZE, make_scene
from rearview_lab.data.styles import FILTERS, PIXEL_ART_TILE, STYLES

pytestmark = pytest.mark.unit


def test_scene_depends_on_seed_and_index_alone():
    assert np.array_equal(make_scene(3, 11), make_scene(3, 11))
    assert not np.array_equal(make_scene(3, 11), make_scene(4, 11))
    assert not np.array_equal(make_scene(3, 11), make_scene(3, 12))


def test_scenes_have_contrast_and_the_stated_size():
    for index in range(8):
        scene = make_scene(0, index)
        assert scene.shape == (SCENE_SIZE, SCENE_SIZE, 3)
        assert scene.dtype == np.uint8
        assert scene.std() > 1


def test_filters_are_deterministic_and_differ_from_each_other():
    scene = make_scene(0, 1)
    styled = {style: FILTERS[style](scene) for style in STYLES}
    for style, picture in styled.items():
        assert picture.shape == scene.shape, style
        assert np.array_equal(picture, FILTERS[style](scene)), style
    for first in STYLES:
        for second in STYLES:
            if first < second:
                difference = np.abs(styled[first].astype(float) - styled[second]).mean()
                assert difference > 2, f"{first} and {second} differ by {difference:.2f} levels"


def test_natural_style_is_the_scene_itself():
    scene = make_scene(0, 2)
    assert np.array_equal(FILTERS["natural"](scene), scene)


def test_pixel_art_is_constant_inside_its_tiles():
    picture = FILTERS["pixel-art"](make_scene(0, 1))
    inner = picture[1 : PIXEL_ART_TILE - 1, 1 : PIXEL_ART_TILE - 1]
    assert (inner == inner[0, 0]).all()


def test_dataset_file_holds_the_records_in_order(tmp_path):
    path = tmp_path / "scenes.u8"
    write_dataset(path, num_scenes=3, seed=5, num_workers=1)
    data = Dataset.load(path)
    assert len(data) == 3
    assert np.array_equal(data.rows[2], make_record(2, seed=5))
    assert not list(tmp_path.glob("*.part"))


def test_dataset_of_other_scenes_or_teachers_is_made_anew(tmp_path):
    path = tmp_path / "scenes.u8"
    write_dataset(path, num_scenes=1, seed=5, num_workers=1)
    written = path.stat().st_mtime_ns
    write_dataset(path, num_scenes=1, seed=5, num_workers=1)
    assert path.stat().st_mtime_ns == written
    write_dataset(path, num_scenes=1, seed=6, num_workers=1)
    assert np.array_equal(Dataset.load(path).rows[0], make_record(0, seed=6))
