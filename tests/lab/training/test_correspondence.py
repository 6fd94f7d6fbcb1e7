"""Where tokens were is named rightly, and attention that finds them there is what the loss asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.training.correspondence import Correspondence, targets
from rearview_lab.training.model import LATENT_CHANNELS, TEXT_LENGTH, TEXT_WIDTH, build_unet

pytestmark = pytest.mark.unit

SIDE, LENGTH = 6, 4


def moving(*shifts: float) -> Tensor:
    """One clip; between two frames each the picture's content moves left by so many tokens."""
    motion = torch.eye(3)[:2].repeat(1, len(shifts), 1, 1)
    motion[0, :, 0, 2] = torch.tensor(shifts) * 2 / SIDE
    return motion


def found(motion: Tensor, frame: int, token: int, max_frames: int = 3) -> dict[tuple[int, int], float]:
    index, weight = targets(motion, SIDE, torch.tensor([token]), max_frames)
    every: dict[tuple[int, int], float] = {}
    for place, share in zip(index[frame, 0].tolist(), weight[frame, 0].tolist(), strict=True):
        if share > 1e-6:
            every[divmod(place, SIDE * SIDE)] = every.get(divmod(place, SIDE * SIDE), 0) + share
    return every


def test_first_frame_finds_itself_alone():
    assert found(moving(1, 1, 1), frame=0, token=8) == {(0, 8): 1.0}


def test_motion_adds_up_over_the_frames_of_the_bank():
    assert found(moving(1, 0, 2), frame=3, token=7) == pytest.approx(
        {(3, 7): 1 / 4, (2, 9): 1 / 4, (1, 9): 1 / 4, (0, 10): 1 / 4}, abs=1e-5
    )
    assert found(moving(1, 0, 2), frame=3, token=7, max_frames=1) == pytest.approx(
        {(3, 7): 1 / 2, (2, 9): 1 / 2}, abs=1e-5
    )


def test_between_tokens_the_neighbours_share():
    assert found(moving(0.25), frame=1, token=8) == pytest.approx(
        {(1, 8): 1 / 2, (0, 8): 3 / 8, (0, 9): 1 / 8}, abs=1e-5
    )


def test_what_came_from_outside_is_found_in_its_own_frame_alone():
    assert found(moving(3), frame=1, token=5) == pytest.approx({(1, 5): 1.0})


def test_clips_do_not_mix():
    index, weight = targets(moving(1, 1).repeat(2, 1, 1, 1), SIDE, torch.arange(SIDE * SIDE), 3)
    frame = index // (SIDE * SIDE)
    clip = torch.arange(6)[:, None, None] // 3
    assert bool((((frame // 3) == clip) | (weight == 0)).all())
    assert torch.allclose(weight.sum(-1), torch.ones(6, SIDE * SIDE))


class _Lookalike(nn.Module):
    """Stands for self-attention: two heads whose queries and keys are the tokens themselves."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.to_q = self.to_k = nn.Identity()

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        return tokens_BNC


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleDict({"attn1": _Lookalike()})

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        found: Tensor = self.up_blocks["attn1"](tokens_BNC)
        return found


def test_loss_is_least_where_the_same_content_looks_alike():
    torch.manual_seed(0)
    unet = _Denoiser()
    correspondence = Correspondence(unet, max_frames=3)
    content = 12 * torch.nn.functional.normalize(torch.randn(SIDE, SIDE + LENGTH, 64), dim=-1)
    clip = torch.stack([content[:, frame : frame + SIDE].flatten(0, 1) for frame in range(LENGTH)])

    def loss(motion: Tensor) -> float:
        with correspondence.watched():
            unet(clip)
        return float(correspondence.loss(motion))

    # Content moves left by one token a frame: what is here was one token further right.
    right, still, backwards = loss(moving(1, 1, 1)), loss(moving(0, 0, 0)), loss(moving(-1, -1, -1))
    assert right < min(still, backwards) - 0.2
    assert right < 1.6, "equal shares of up to four frames cost at most ln 4"


def test_only_forwards_with_gradient_count():
    torch.manual_seed(0)
    unet = build_unet()
    correspondence = Correspondence(unet, max_frames=3)
    latent, text = torch.randn(4, LATENT_CHANNELS, 12, 12), torch.randn(4, TEXT_LENGTH, TEXT_WIDTH)

    def loss(*, before: float | None) -> Tensor:
        with correspondence.watched():
            if before is not None:
                with torch.no_grad():
                    unet(before * latent, 399, text)
            unet(latent, 399, text)
        torch.manual_seed(1)
        return correspondence.loss(moving(0.5, 0.5, 0.5))

    alone = loss(before=None)
    assert torch.equal(alone, loss(before=3.0))
    alone.backward()
    last = unet.up_blocks[2].attentions[1].transformer_blocks[0].attn1.to_q.weight.grad
    assert bool((last.abs().sum(1) > 0).all()), "every head after the middle"
