"""The whole evaluation: which clips, methods and looks, and its parts one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path

import torch
from rearview.contract.card import ModelCard
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.weights.formats import Additions
from torch import Tensor

from rearview_lab.data.prompts import PHRASES, canonical_prompt
from rearview_lab.data.styles import FILTERS
from rearview_lab.evaluation.choices import Part
from rearview_lab.evaluation.classifier import train_classifier
from rearview_lab.evaluation.clips import (
    GENERATED,
    SAMPLES,
    Clip,
    file_clips,
    generated_clip,
    looping_clip,
    sample_clip,
)
from rearview_lab.evaluation.explained import explained_figures
from rearview_lab.evaluation.judges import Judges
from rearview_lab.evaluation.metrics import mean
from rearview_lab.evaluation.parts import (
    Look,
    autoencoder_figures,
    clip_floor,
    clip_runs,
    drift,
    held_out_frames,
    held_out_outputs,
    step_figures,
)
from rearview_lab.evaluation.report import Classified, Evaluation
from rearview_lab.evaluation.runner import Method, Translator, as_picture

__all__ = ["Part", "Plan", "evaluate", "looks_of"]

STEP_NUMBERS = (1, 2, 4)
CLASSIFIED_FRAMES = 4
"""Of each run of the sample clip, besides the held-out photographs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that an evaluation can choose."""

    checkpoint: str = "pocket"
    """A bundled name, a folder, a single file or a hub id."""
    styles: tuple[str, ...] = ()
    """Of the checkpoint's card; other texts are prompts. Empty: all of the card."""
    methods: tuple[Method, ...]
    noises: tuple[NoiseRule, ...] = (NoiseRule.FIXED, NoiseRule.FRESH)
    clips: tuple[str, ...] = (*SAMPLES, *GENERATED)
    files: tuple[Path, ...] = ()
    """Videos, or folders of them, besides `clips`."""
    frames: int = 24
    """Per clip. A temporal cache streams only after its first window, of 8 frames unless told."""
    size: int = 256
    """Side of the pictures, pixels."""
    steps: int | None = None
    """None: the card's, as with `strength`."""
    strength: float | None = None
    seed: int = 0
    additions: Additions | None = None
    """What is replaced in the checkpoint or added to it."""
    parts: tuple[Part, ...] = tuple(Part)
    drift_styles: int = 2
    """How many of the styles are followed over 1,000 frames."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    judges: Judges = field(default_factory=Judges)


def evaluate(plan: Plan, say: Callable[[str], None] = lambda text: None) -> Evaluation:
    """Run the plan's parts; `say` hears what is under way. Raises ConfigError for an unusable checkpoint."""
    looks = looks_of(plan)
    steps = looks[0].settings.steps
    most = max(steps, *STEP_NUMBERS) if Part.STEPS in plan.parts else steps
    translator = Translator(
        plan.checkpoint,
        plan.size,
        most,
        device=plan.device,
        dtype=plan.dtype,
        additions=plan.additions,
    )
    for method in plan.methods:
        if not translator.supports(method):
            say(f"{method.name} is left out: the checkpoint lacks what it needs")
    plan = replace(plan, methods=tuple(filter(translator.supports, plan.methods)))
    found = Evaluation(_setting(plan, looks))
    if Part.AUTOENCODER in plan.parts:
        found.autoencoder_db = autoencoder_figures(translator, plan.size)
    if Part.WARP in plan.parts:
        _compare(plan, translator, looks, found, say)
    if Part.STEPS in plan.parts:
        say("steps")
        found.steps = step_figures(translator, plan.size, looks, STEP_NUMBERS)
    if Part.CLASSIFIER in plan.parts:
        say("style classifier")
        found.classified = _classify(plan, translator, looks)
    if Part.FILTER in plan.parts:
        say("what a filter could do")
        found.explained = explained_figures(translator, clips_of(plan), looks)
    if Part.DRIFT in plan.parts:
        loop = looping_clip(plan.size)
        for method in plan.methods:
            if method.has_memory:
                say(f"drift: {method.name}")
                found.drift[method.name] = drift(translator, loop, method, looks[: plan.drift_styles])
    return found


def looks_of(plan: Plan) -> list[Look]:
    """The plan's styles as the checkpoint is asked for them."""
    card = ModelCard.read(plan.checkpoint)
    steps = plan.steps or card.steps
    strength = plan.strength or card.strength
    styles = plan.styles or tuple(card.styles) or tuple(PHRASES)
    return [
        Look(style, Settings(_prompt(card, style), strength, steps=steps, seed=plan.seed)) for style in styles
    ]


def clips_of(plan: Plan) -> list[Clip]:
    """Raises OSError for a file that cannot be read."""
    known = [
        sample_clip(name, plan.frames, plan.size)
        if name in SAMPLES
        else generated_clip(name, plan.frames, plan.size)
        for name in plan.clips
    ]
    return known + [clip for path in plan.files for clip in file_clips(path, plan.frames, plan.size)]


def _prompt(card: ModelCard, style: str) -> str:
    if style in card.styles:
        return card.styles[style]
    return canonical_prompt(style) if style in PHRASES else style


def _setting(plan: Plan, looks: Sequence[Look]) -> dict[str, object]:
    settings = looks[0].settings
    banks = [method.bank for method in plan.methods if method.bank is not None]
    windows = [method.window for method in plan.methods if method.cache is not None]
    return {
        "checkpoint": plan.checkpoint,
        "size": plan.size,
        "frames": plan.frames,
        "clips": [*plan.clips, *(path.name for path in plan.files)],
        "steps": settings.steps,
        "strength": settings.strength,
        "seed": plan.seed,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "bank": {
            name: value.value if isinstance(value, Enum) else value
            for bank in banks[:1]
            for name, value in asdict(bank).items()
        },
        "cache": asdict(windows[0]) if windows else {},
    }


def _compare(
    plan: Plan, translator: Translator, looks: Sequence[Look], found: Evaluation, say: Callable[[str], None]
) -> None:
    for clip in clips_of(plan):
        found.floors.append(clip_floor(translator, clip))
        for method in plan.methods:
            for noise in plan.noises:
                say(f"{clip.name}: {method.name}, {noise.name.lower()} noise")
                found.runs += clip_runs(translator, clip, method, noise, looks, plan.judges)


def _classify(plan: Plan, translator: Translator, looks: Sequence[Look]) -> Classified | None:
    """None if none of the styles has a filter."""
    known = [look for look in looks if look.style in FILTERS]
    if not known:
        return None
    frames = _classified_frames(plan.size)
    outputs = [pictures for _, pictures in held_out_outputs(translator, frames, known)]
    pictures = {look.style: [row[i] for row in outputs] for i, look in enumerate(known)}
    filtered = {
        look.style: [torch.from_numpy(FILTERS[look.style](frame.numpy())) for frame in frames]
        for look in known
    }
    targets = {style: [as_picture(each) for each in shown] for style, shown in filtered.items()}
    rebuilt = {style: [translator.rebuild(each) for each in shown] for style, shown in filtered.items()}
    classifier = train_classifier(seed=plan.seed)
    return Classified(
        classifier.accuracy(pictures),
        classifier.confusions(pictures),
        on_filters=mean(classifier.accuracy(targets).values()),
        on_rebuilt=mean(classifier.accuracy(rebuilt).values()),
    )


def _classified_frames(size: int) -> list[Tensor]:
    frames = list(held_out_frames(size).values())
    for name in SAMPLES:
        frames += sample_clip(name, 10 * CLASSIFIED_FRAMES, size).frames[9::10]
    return frames
