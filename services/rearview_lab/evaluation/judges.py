"""Figures that need weights which are not bundled: CLIP and a depth estimator, from local folders.

Definitions: CLIP consistency is the cosine of the embeddings of neighbouring output frames, text alignment
that of frame and prompt; the depth error is the mean squared difference of the depths of input and output,
each scaled to [0, 1] by its own extremes. Figures of other models or scalings are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rearview.errors import ConfigError
from torch import Tensor

__all__ = ["ClipJudge", "DepthJudge", "Judges"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DEPTH_MEAN = DEPTH_STD = (0.5, 0.5, 0.5)

Panel = Callable[[Tensor, Tensor], dict[str, float]]
"""Input and output picture (3, H, W) in [0, 1] to figures; keeps what it needs of the frame before."""


class ClipJudge:
    """A CLIPModel folder, tokenizer included."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be loaded."""
        from transformers import CLIPModel, CLIPTokenizer

        self._model: Any = _loaded(CLIPModel, folder, "--clip")
        self._tokenizer: Any = _loaded(CLIPTokenizer, folder, "--clip")
        self._size = int(self._model.config.vision_config.image_size)

    @torch.inference_mode()
    def picture(self, picture: Tensor) -> Tensor:
        """Unit embedding of a picture."""
        pixels = _prepared(picture, self._size, CLIP_MEAN, CLIP_STD)
        return _unit(self._model.visual_projection(self._model.vision_model(pixels).pooler_output))

    @torch.inference_mode()
    def text(self, prompt: str) -> Tensor:
        """Unit embedding of a prompt."""
        most = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompt, truncation=True, max_length=most, return_tensors="pt")
        found = self._model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return _unit(self._model.text_projection(found.pooler_output))


class DepthJudge:
    """A folder of any depth estimator that transformers knows (DPT, Depth Anything, …)."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder cannot be loaded."""
        from transformers import AutoModelForDepthEstimation

        self._model: Any = _loaded(AutoModelForDepthEstimation, folder, "--depth")
        config = self._model.config
        inner = getattr(config, "backbone_config", None)
        size = getattr(config, "image_size", None) or getattr(inner, "image_size", None) or 384
        self._size = int(size[0] if isinstance(size, list | tuple) else size)

    @torch.inference_mode()
    def depth(self, picture: Tensor) -> Tensor:
        """(h, w) in [0, 1]: each picture by its own extremes."""
        found = self._model(_prepared(picture, self._size, DEPTH_MEAN, DEPTH_STD)).predicted_depth[0].float()
        scaled: Tensor = (found - found.min()) / (found.max() - found.min()).clamp(min=1e-6)
        return scaled


@dataclass(frozen=True)
class Judges:
    """Those that were given; none gives no figures."""

    clip: ClipJudge | None = None
    depth: DepthJudge | None = None

    def panel(self, prompt: str) -> Panel:
        """For the frames of one clip in one look, in order."""
        parts = []
        if self.clip is not None:
            parts.append(_clip_panel(self.clip, prompt))
        if self.depth is not None:
            parts.append(_depth_panel(self.depth))

        def judge(source: Tensor, picture: Tensor) -> dict[str, float]:
            return {name: value for part in parts for name, value in part(source, picture).items()}

        return judge


def _clip_panel(clip: ClipJudge, prompt: str) -> Panel:
    text = clip.text(prompt)
    last: list[Tensor] = []

    def judge(source: Tensor, picture: Tensor) -> dict[str, float]:
        found = clip.picture(picture)
        figures = {"text_alignment": float(found @ text)}
        if last:
            figures["clip_consistency"] = float(found @ last.pop())
        last.append(found)
        return figures

    return judge


def _depth_panel(depth: DepthJudge) -> Panel:
    def judge(source: Tensor, picture: Tensor) -> dict[str, float]:
        return {"depth_error": float((depth.depth(source) - depth.depth(picture)).square().mean())}

    return judge


def _prepared(picture: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(1, 3, size, size), normalised."""
    small = torch.nn.functional.interpolate(
        picture[None], size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    shape = (1, 3, 1, 1)
    return (small.clamp(0, 1) - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _unit(embedding: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embedding[0].float(), dim=0)


def _loaded(kind: Any, folder: Path, option: str) -> Any:
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{option} {str(folder)!r} cannot be loaded: {reason}") from None
    return loaded.eval() if isinstance(loaded, torch.nn.Module) else loaded
