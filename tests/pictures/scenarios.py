"""What is asked of the service: one line a scenario, each a service, a method and a look.

Every look but that of adapters occurs with every method; the full product would take too long. What
surprises: a window of frames that warm a temporal cache up must be sent at once, so a scenario names the
frames at which one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rearview.client import (
    BankPolicy,
    Guidance,
    Method,
    NoiseRule,
    OpenOptions,
    PromptChange,
    Rewarm,
    SettingOptions,
    WeightedPrompt,
)

from pictures.names import BankOptions, CacheOptions

__all__ = ["SCENARIOS", "Scenario"]

OIL, PENCIL, NEON = "oil painting", "pencil sketch", "neon lights"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One session: what it asks for, and what it changes on the way."""

    name: str
    service: str
    """One of `services.SERVICES`."""
    options: OpenOptions
    frames: int
    changes: Mapping[int, SettingOptions] = field(default_factory=dict)
    """By the first frame that is under them."""
    resets: Sequence[int] = (0,)
    """Frames that begin a window: if the session has any, its frames are sent at once."""
    cut_at: int | None = None
    """First frame of another scene."""
    in_flight: bool = False
    """Whether frames are sent as credit allows. Else one is answered before the next is sent."""

    def groups(self, window: int) -> Iterator[range]:
        """Frames that are sent before their answers are awaited; `window` frames warm up together."""
        at = 0
        while at < self.frames:
            size = self.frames if self.in_flight else window if at in self.resets else 1
            yield range(at, min(at + size, self.frames))
            at += size


@dataclass(frozen=True, slots=True)
class _Memory:
    """A method, and when its sessions change something: late enough for a memory to have filled."""

    options: OpenOptions
    frames: int = 12
    change_at: tuple[int, int] = (5, 9)


@dataclass(frozen=True, slots=True)
class _Look:
    options: OpenOptions
    changes: Sequence[SettingOptions] = ()
    """At most two."""
    resets: bool = False
    """Whether each change resets a temporal cache, whatever the session asks for."""


_MERGE = BankOptions(policy=BankPolicy.MERGE, interval=2, fusion_threshold=0.5)
_QUEUE = BankOptions(policy=BankPolicy.QUEUE, interval=2, max_frames=2, fusion_threshold=0.5)
_MEMORIES: Mapping[str, _Memory] = {
    "per-frame": _Memory({"method": Method.PER_FRAME}),
    "merge": _Memory({"method": Method.STREAMV2V, "feature_bank": _MERGE}),
    "queue": _Memory({"method": Method.STREAMV2V, "feature_bank": _QUEUE}),
    "window": _Memory({"method": Method.LIVE2DIFF, "temporal_cache": CacheOptions()}, 22, (10, 20)),
    "instant": _Memory(
        {"method": Method.LIVE2DIFF, "temporal_cache": CacheOptions(instant_start=True)}, 14, (3, 12)
    ),
    "both": _Memory({"method": Method.LIVE2DIFF, "feature_bank": BankOptions()}, 22, (10, 20)),
}
_GUIDED: OpenOptions = {"guidance_scale": 1.8, "negative_prompt": NEON}
_LOOKS: Mapping[str, _Look] = {
    "prompt": _Look(
        {"guidance": Guidance.NONE, "noise_rule": NoiseRule.FIXED}, ({"prompt": PENCIL}, {"seed": 8})
    ),
    "self": _Look(
        {"guidance": Guidance.SELF, "guidance_scale": 1.8, "delta": 0.5, "noise_rule": NoiseRule.FRESH},
        ({"seed": 8}, {"noise_rule": NoiseRule.FIXED}),
    ),
    "blend": _Look(
        {**_GUIDED, "guidance": Guidance.INITIALIZE, "noise_rule": NoiseRule.FIXED},
        ({"prompt": PENCIL, "blend_frames": 3},),
    ),
    "mix": _Look(
        {**_GUIDED, "guidance": Guidance.FULL, "noise_rule": NoiseRule.FRESH},
        ({"prompts": [WeightedPrompt(OIL, 1.0), WeightedPrompt(PENCIL, 3.0)]}, {"negative_prompt": PENCIL}),
    ),
    "steps": _Look(
        {"guidance": Guidance.NONE, "noise_rule": NoiseRule.FRESH}, ({"strength": 0.7}, {"steps": 1}), True
    ),
    "adapters": _Look({"adapters": "tint"}, ({"adapters": ""}, {"adapters": "tint"})),
}


def _scenario(service: str, memory: str, look: str) -> Scenario:
    kept, seen = _MEMORIES[memory], _LOOKS[look]
    changes = dict(zip(kept.change_at, seen.changes, strict=False))
    return Scenario(
        f"{service}.{memory}.{look}",
        service,
        {"prompt": OIL, "strength": 0.5, "steps": 2, "seed": 7, **kept.options, **seen.options},
        kept.frames,
        changes,
        resets=(0, *changes) if seen.resets else (0,),
    )


def _with_bank(on_change: PromptChange, service: str, memory: str, bank: BankOptions) -> Scenario:
    """At a new prompt the bank is cleared or faded."""
    plain = _scenario(service, memory, "prompt")
    options: OpenOptions = {**plain.options, "feature_bank": replace(bank, prompt_change=on_change)}
    return replace(plain, name=f"{service}.{memory}.{on_change.name.lower()}", options=options)


def _with_cache(on_change: Rewarm, service: str, *, cut: bool) -> Scenario:
    """At a new prompt, or at a cut to another scene, the cache starts again, or goes on."""
    plain = _scenario(service, "window", "prompt")
    at = plain.frames // 2
    cache = CacheOptions(scene_cut=on_change) if cut else CacheOptions(prompt_change=on_change)
    return replace(
        plain,
        name=f"{service}.window.{'cut' if cut else 'prompt'}-{on_change.name.lower()}",
        options={**plain.options, "temporal_cache": cache},
        changes={} if cut else {at: {"prompt": PENCIL}},
        resets=(0, at) if on_change is Rewarm.RESET else (0,),
        cut_at=at if cut else None,
    )


def _in_flight(service: str, memory: str, look: str) -> Scenario:
    plain = _scenario(service, memory, look)
    return replace(plain, name=f"{plain.name}.in-flight", in_flight=True)


_PRODUCT: Mapping[tuple[str, str], str] = {
    ("fused", "per-frame"): "prompt self blend mix steps adapters",
    ("fused", "merge"): "prompt self blend mix steps",
    ("fused", "window"): "prompt self steps",
    ("fused", "instant"): "blend",
    ("fused", "both"): "steps",
    ("pipeline", "per-frame"): "steps",
    ("pipeline", "queue"): "prompt blend steps",
    ("pipeline", "window"): "blend mix adapters",
    ("pipeline", "instant"): "steps",
    ("pipeline", "both"): "prompt self mix",
}
"""By service and memory, the looks."""

SCENARIOS: Sequence[Scenario] = (
    *(_scenario(*where, look) for where, looks in _PRODUCT.items() for look in looks.split()),
    _with_bank(PromptChange.CLEAR, "fused", "merge", _MERGE),
    _with_bank(PromptChange.FADE, "pipeline", "queue", _QUEUE),
    _with_cache(Rewarm.RESET, "fused", cut=False),
    _with_cache(Rewarm.KEEP, "pipeline", cut=False),
    _with_cache(Rewarm.SHADOW, "fused", cut=True),
    _with_cache(Rewarm.RESET, "pipeline", cut=True),
    _in_flight("fused", "merge", "prompt"),
    _in_flight("pipeline", "both", "blend"),
)
