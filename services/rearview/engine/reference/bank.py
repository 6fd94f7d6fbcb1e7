"""A feature bank in its plainest form, for `frame.py`: one session, a dictionary, loops over tokens.

No pool, slots, masks, padding or batches, and none of their code. What it shares with `FeatureBank` is
the rule for when to write and the counters that key the merge.
Shape legend: N present tokens, M remembered tokens, C channels; the leading 1 is the only row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from rearview.contract.memories import BankPolicy, BankSettings, MergeMetric, PromptChange
from rearview.contract.settings import Settings
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.memory.bank.merge import permutation

__all__ = ["PlainBank", "PlainView"]

Features = tuple[Tensor, Tensor, Tensor]
"""Keys, values and outputs, (tokens, C) each."""


@dataclass(slots=True)
class PlainBank:
    """The past of one session."""

    settings: BankSettings
    layout: BankLayout
    frames: dict[tuple[int, int], list[Features]] = field(default_factory=dict)
    """(step, layer) to what is kept: one merged frame, or a queue of them, oldest first."""
    timestep_index: dict[int, int] = field(default_factory=dict)
    """Step to that of the frame that wrote last."""
    prompt: dict[int, str] = field(default_factory=dict)
    """Step to the prompt of its last frame."""
    changed_at: dict[int, int] = field(default_factory=dict)
    """Step to the ordinal at which that prompt came."""

    def view(self, frame: Settings, ordinal: int, step: int) -> PlainView:
        """Begin one forward of one frame. Applies what a changed prompt or timestep does."""
        timestep_index = frame.visited[step]
        if self.prompt.setdefault(step, frame.style) != frame.style:
            self.prompt[step], self.changed_at[step] = frame.style, ordinal
            if self.settings.prompt_change is PromptChange.CLEAR:
                self._clear(step)
        moved = self.timestep_index.get(step, timestep_index) != timestep_index
        if moved and not self.settings.keep_on_timestep_change:
            self._clear(step)
        return PlainView(self, frame, ordinal, step)

    def _clear(self, step: int) -> None:
        self.frames = {key: kept for key, kept in self.frames.items() if key[0] != step}


class PlainView:
    """The `AttentionMemory` of one frame at one step."""

    def __init__(self, bank: PlainBank, frame: Settings, ordinal: int, step: int) -> None:
        self._bank, self._frame, self._ordinal, self._step = bank, frame, ordinal, step
        self._is_empty = all(written != step for written, _ in bank.frames)
        self._fresh: dict[int, Features] = {}

    def extend(self, layer: int, key_1NC: Tensor, value_1NC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        past = self._past(layer)
        if not past:
            return key_1NC[:, :0], value_1NC[:, :0], None
        keys, values = torch.cat([f[0] for f in past]), torch.cat([f[1] for f in past])
        return keys[None], values[None], None

    def fuse(self, layer: int, output_1NC: Tensor) -> Tensor:
        past = self._past(layer)
        if not past or not self._bank.layout.layers[layer].fuses:
            return output_1NC
        settings, outputs = self._bank.settings, torch.cat([features[2] for features in past])
        strength = settings.fusion_strength * self._fade()
        fused = output_1NC.clone()
        for j, token in enumerate(output_1NC[0]):
            similarity = F.cosine_similarity(token[None], outputs)
            if similarity.max() >= settings.fusion_threshold:
                fused[0, j] = (1 - strength) * token + strength * outputs[similarity.argmax()]
        return fused

    def record(self, layer: int, key_1NC: Tensor, value_1NC: Tensor, output_1NC: Tensor) -> None:
        if self._bank.layout.layers[layer].is_below(self._bank.settings.layers):
            self._fresh[layer] = (key_1NC[0], value_1NC[0], output_1NC[0])

    def commit(self) -> None:
        """Write this frame, if the bank is empty or the ordinal's turn has come."""
        settings = self._bank.settings
        if not self._is_empty and (self._ordinal - settings.phase) % settings.interval != 0:
            return
        for layer, fresh in self._fresh.items():
            past = self._past(layer)
            if past and settings.policy is BankPolicy.MERGE:
                kept = [self._merged(layer, past[0], fresh)]
            else:
                kept = [*past, fresh][-settings.max_frames :]
            self._bank.frames[self._step, layer] = kept
        self._bank.timestep_index[self._step] = self._frame.visited[self._step]

    def _past(self, layer: int) -> list[Features]:
        return self._bank.frames.get((self._step, layer), [])

    def _fade(self) -> float:
        settings = self._bank.settings
        changed_at = self._bank.changed_at.get(self._step)
        if settings.prompt_change is not PromptChange.FADE or changed_at is None:
            return 1.0
        return min(1.0, (self._ordinal - changed_at) / settings.fade_frames)

    def _merged(self, layer: int, old: Features, new: Features) -> Features:
        settings = self._bank.settings
        keys, values, outputs = (torch.cat(pair) for pair in zip(old, new, strict=True))
        order = permutation(self._frame.seed, self._step, layer, self._ordinal, len(keys)).tolist()
        split = int(len(order) * settings.merge_ratio)
        metric = {MergeMetric.KEYS: keys, MergeMetric.VALUES: values, MergeMetric.OUTPUTS: outputs}
        target = _assign(metric[settings.metric], order[:split], order[split:])
        return _average(keys, target), _average(values, target), _average(outputs, target)


def _assign(metric: Tensor, sources: list[int], destinations: list[int]) -> dict[int, list[int]]:
    """Each destination with itself and the sources that are most like it."""
    groups = {destination: [destination] for destination in destinations}
    for source in sources:
        similarity = F.cosine_similarity(metric[source][None], metric[destinations])
        groups[destinations[int(similarity.argmax())]].append(source)
    return groups


def _average(tokens: Tensor, groups: dict[int, list[int]]) -> Tensor:
    return torch.stack([tokens[members].mean(dim=0) for members in groups.values()])
