"""The style classifier: seeded, and able to tell filters apart on pictures it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("skimage")
from rearview_lab.data.photos import HELD_OUT, held_out_square
from rearview_lab.data.styles import FILTERS
from rearview_lab.evaluation.classifier import StyleClassifier, train_classifier
from rearview_lab.evaluation.runner import as_picture

pytestmark = pytest.mark.unit

STYLES = ("natural", "pencil", "neon", "blueprint", "pixel-art")


@pytest.fixture(scope="module")
def classifier() -> StyleClassifier:
    torch.set_num_threads(1)
    return train_classifier(STYLES, num_scenes=120, num_steps=120)


def filtered(style: str) -> list[torch.Tensor]:
    pictures = [held_out_square(photo.name, 128) for photo in HELD_OUT]
    return [as_picture(torch.from_numpy(FILTERS[style](picture))) for picture in pictures]


def test_it_names_filters_of_held_out_photographs(classifier: StyleClassifier) -> None:
    found = classifier.accuracy({style: filtered(style) for style in STYLES})
    assert np.mean(list(found.values())) >= 0.9, found


def test_it_says_what_was_taken_for_what(classifier: StyleClassifier) -> None:
    shown = {"pencil": filtered("neon")}
    assert classifier.accuracy(shown) == {"pencil": 0.0}
    assert classifier.confusions(shown) == {"pencil": {"neon": 2}}


def test_the_same_seed_gives_the_same_network_and_leaves_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (train_classifier(STYLES, num_scenes=4, num_steps=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [list(one.networks[-1].parameters()) for one in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
