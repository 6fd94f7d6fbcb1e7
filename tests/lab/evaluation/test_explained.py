"""What a colour map and a 5x5 filter explain: filters wholly, lines and tiles hardly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("cv2")
pytest.importorskip("skimage")
from rearview_lab.data.styles import FILTERS
from rearview_lab.evaluation.clips import generated_clip
from rearview_lab.evaluation.explained import GOAL, Explained, explained_share
from rearview_lab.evaluation.report import Evaluation
from rearview_lab.evaluation.runner import as_picture

pytestmark = pytest.mark.unit

SIZE = 96


@pytest.fixture(scope="module")
def sources() -> list[Tensor]:
    return [as_picture(frame) for frame in generated_clip("pan", 8, SIZE).frames]


def curve(picture: Tensor) -> Tensor:
    """Another colour for each colour, far from linear."""
    return (picture.flip(0) ** 2 * 0.8 + 0.1 * torch.sin(6 * picture)).clamp(0, 1)


def blur(picture: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(picture[None], [2] * 4, mode="reflect"), 5, 1)[0]


def hatched(picture: Tensor) -> Tensor:
    """Slanted lines, darker where the picture is dark: of a fine grid that no 5x5 window of it tells."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return picture * (1 - 0.9 * ((rows + columns) // 4 % 2))


def edges(picture: Tensor) -> Tensor:
    """Lengths of gradients: local, and not linear."""
    grey = picture.mean(0)
    across, down = grey.diff(dim=1, prepend=grey[:, :1]), grey.diff(dim=0, prepend=grey[:1])
    return (6 * torch.hypot(across, down)).clamp(0, 1).expand(3, -1, -1)


@pytest.mark.parametrize(
    "style", [curve, blur, lambda picture: blur(curve(picture)), lambda picture: 1 - picture]
)
def test_a_filter_is_explained(sources: list[Tensor], style: Callable[[Tensor], Tensor]) -> None:
    assert explained_share(sources, [style(each) for each in sources]) > 0.97


def test_lines_and_edges_are_not(sources: list[Tensor]) -> None:
    added = [source + edges(source) for source in sources]
    assert explained_share(sources, [hatched(each) for each in sources]) < GOAL
    assert explained_share(sources, added) < explained_share(sources, [curve(each) for each in sources]) - 0.2


def test_what_was_fitted_counts_for_nothing(sources: list[Tensor]) -> None:
    """Noise can be fitted a little, by some 500 numbers, and is never explained."""
    generator = torch.Generator().manual_seed(0)
    noise = [source + 0.1 * torch.randn(source.shape, generator=generator) for source in sources]
    assert abs(explained_share(sources, noise)) < 0.1
    fitted_well = [curve(each) if index % 2 == 0 else noise[index] for index, each in enumerate(sources)]
    assert explained_share(sources, fitted_well) < 0


def test_a_style_that_changes_nothing_neither_passes_nor_fails(sources: list[Tensor]) -> None:
    assert math.isnan(explained_share(sources, sources))
    assert Explained(0.1, math.nan).reaches_goal is None
    assert Explained(GOAL, None).reaches_goal
    assert not Explained(GOAL + 0.01, 0.5).reaches_goal


def test_what_the_training_asks_for_is_within_the_goal_and_a_palette_is_not() -> None:
    frames = generated_clip("occlusion", 4, SIZE).frames
    sources = [as_picture(frame) for frame in frames]

    def share(style: str) -> float:
        targets = [torch.from_numpy(FILTERS[style](frame.numpy())) for frame in frames]
        return explained_share(sources, [as_picture(target) for target in targets])

    palette = explained_share(sources, [curve(each) for each in sources])
    assert max(share("pixel-art"), share("cyberpunk")) < GOAL < 0.9 < palette


def test_the_table_counts_the_styles_within_the_goal() -> None:
    found = Evaluation({"checkpoint": "tiny"})
    found.explained = {
        "natural": Explained(0.2, math.nan), "neon": Explained(0.4, 0.35), "a cat": Explained(0.9, None)
    }  # fmt: skip
    text = found.markdown()
    assert "| natural | 20% | - | - |" in text
    assert "| neon | 40% | 35% | yes |" in text
    assert "| a cat | 90% | - | no |" in text
    assert "| within the goal | 1 styles |" in text
    assert found.as_dict()["explained"]["natural"]["teacher"] is None
