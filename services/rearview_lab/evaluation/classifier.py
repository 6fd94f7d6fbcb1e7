"""Names the style of a picture: a few small networks that have seen nothing but the styles' own filters.

It learns from the filters' pictures of photographs and scenes of the training, and is then asked about
translated held-out frames: what it gets right there, the model draws as its teacher does. Targets are
blurred a little at random, so that the answer does not hang on single pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from rearview_lab.data.photos import Image, photo_crop
from rearview_lab.data.scenes import SCENE_SIZE, make_scene
from rearview_lab.data.styles import FILTERS, STYLES
from rearview_lab.evaluation.appearance import describe

__all__ = ["StyleClassifier", "train_classifier"]

SCENE_SEED = 77_077
NUM_SCENES = 700
NUM_STEPS = 600
NUM_NETWORKS = 7
ROWS_PER_STEP = 512
WIDTH = 96
PEAK_RATE = 5e-3
CROP = 112  # pixels
MAX_BLUR = 1.0  # pixels, standard deviation
_JITTER = 0.05  # of a feature's own spread
_LIMIT = 4.0  # spreads from the mean; more says no more


@dataclass(frozen=True)
class StyleClassifier:
    """Trained by `train_classifier`."""

    styles: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    """Their verdicts are averaged: one alone depends on its seed where styles are close."""
    centre: Tensor
    """(features,), as `spread`: what makes features comparable."""
    spread: Tensor

    @torch.inference_mode()
    def names(self, pictures_BCHW: Tensor) -> list[str]:
        """The style of each picture, values in [0, 1]."""
        features = ((describe(pictures_BCHW) - self.centre) / self.spread).clamp(-_LIMIT, _LIMIT)
        votes = torch.stack([network(features).softmax(1) for network in self.networks]).mean(0)
        return [self.styles[index] for index in votes.argmax(1).tolist()]

    def accuracy(self, pictures: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        """Share of each style's pictures (3, H, W) that are named right."""
        return {
            style: float(np.mean([name == style for name in self.names(torch.stack(list(shown)))]))
            for style, shown in pictures.items()
        }

    def confusions(self, pictures: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, int]]:
        """Per style what its wrongly named pictures were taken for, and how often."""
        found: dict[str, dict[str, int]] = {}
        for style, shown in pictures.items():
            names = self.names(torch.stack(list(shown)))
            wrong = {name: names.count(name) for name in sorted(set(names)) if name != style}
            if wrong:
                found[style] = wrong
        return found


def train_classifier(
    styles: Sequence[str] = STYLES,
    *,
    seed: int = 0,
    num_scenes: int = NUM_SCENES,
    num_steps: int = NUM_STEPS,
) -> StyleClassifier:
    """Half a minute on one core. The same arguments give the same network; torch's seed is left alone."""
    rng = np.random.default_rng([SCENE_SEED, seed])
    features = torch.stack([_scene_features(rng, index, styles) for index in range(num_scenes)])
    labels = torch.arange(len(styles)).repeat(num_scenes)
    rows = features.flatten(0, 1)
    centre, spread = rows.mean(0), rows.std(0) + 1e-3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scaled = ((rows - centre) / spread).clamp(-_LIMIT, _LIMIT)
        networks = [_fit(rng, scaled, labels, len(styles), num_steps) for _ in range(NUM_NETWORKS)]
    return StyleClassifier(tuple(styles), tuple(networks), centre, spread)


def _fit(
    rng: np.random.Generator, rows: Tensor, labels: Tensor, num_styles: int, num_steps: int
) -> nn.Module:
    network = nn.Sequential(
        nn.Linear(rows.shape[1], WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, num_styles)
    )
    optimiser = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=num_steps)
    for _ in range(num_steps):
        chosen = torch.from_numpy(rng.integers(len(rows), size=ROWS_PER_STEP))
        batch = rows[chosen] + _JITTER * torch.randn(ROWS_PER_STEP, rows.shape[1])
        loss = nn.functional.cross_entropy(network(batch), labels[chosen], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def _scene_features(rng: np.random.Generator, index: int, styles: Sequence[str]) -> Tensor:
    """(style, features) of one scene: its content says nothing about the label."""
    scene = _scene(index)
    top, left = rng.integers(SCENE_SIZE - CROP + 1, size=2)
    sigma = float(rng.uniform(0, MAX_BLUR))
    pictures = []
    for style in styles:
        crop = FILTERS[style](scene)[top : top + CROP, left : left + CROP]
        pictures.append(cv2.GaussianBlur(crop, (0, 0), sigma) if sigma > 0.3 else crop)
    return describe(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)


def _scene(index: int) -> Image:
    """Mostly crops of the training's photographs: drawn scenes may look like a style by themselves."""
    if index % 4 == 0:
        return make_scene(SCENE_SEED, index)
    return photo_crop(np.random.default_rng([SCENE_SEED, index]), SCENE_SIZE)
