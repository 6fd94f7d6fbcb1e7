"""What a tenant may: frames and controls per second, pixels of a frame; and what session a request makes.

`now` is monotonic seconds. How many sessions a tenant has, and what they declare together, is counted by the
directory, over all ingresses, against `quota_of` the tenant. Capacity is decided by placement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rearview.config import LimitsConfig, ModelConfig, TenantConfig
from rearview.contract.card import ModelCard
from rearview.contract.controls import MAX_CONTROLS, check_controls
from rearview.contract.lease import Quota
from rearview.contract.opening import OpenRequest
from rearview.contract.reference import check_reference
from rearview.contract.session import SessionSpec
from rearview.contract.settings import (
    DEFAULT_JPEG_QUALITY,
    Settings,
    SettingsChange,
    check_adapters,
    check_guidance,
)
from rearview.contract.size import Size
from rearview.control.methods import Offer, choose_method, default_bank
from rearview.control.rates import Bucket
from rearview.errors import InvalidRequest, Reason

__all__ = [
    "MAX_FRAME_BUDGET_S",
    "MAX_FRAME_RATE",
    "MIN_SIDE",
    "SIDE_MULTIPLE",
    "Admission",
    "Served",
    "check_settings",
    "check_sides",
    "quota_of",
]

CONTROLS_PER_FRAME = 2.0
"""How many a tenant may send: a slider on a screen of 60 Hz, beside video of 30 frames a second."""
MAX_FRAME_RATE = 240.0
"""Highest `frame_rate` of a session, frames per second."""
MAX_FRAME_BUDGET_S = 60.0
"""Longest `frame_budget` of a session, seconds."""
MIN_SIDE = 64
"""Smallest width and height, pixels."""
SIDE_MULTIPLE = 8
"""Width and height are multiples of this: one latent pixel covers 8 by 8."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a deployment serves, and within which limits."""

    model: ModelConfig
    limits: LimitsConfig
    card: ModelCard
    offer: Offer
    motion_multiple: int = SIDE_MULTIPLE
    """Pixels of which both sides of a session with a temporal cache are a multiple."""
    whole_multiple: int = 0
    """Pixels: where both sides are a multiple, no layer of the networks rounds. 0: not known."""


class Admission:
    """The frames that tenants send to this ingress, against what they may; and what the deployment serves."""

    def __init__(self, served: Served) -> None:
        self.served = served
        # Kept when a tenant's last stream ends, else reconnecting would refill them.
        self._frames: dict[str, Bucket] = {}
        self._controls: dict[str, Bucket] = {}
        self._shares: dict[str, Bucket] = {}

    def take_frame(self, tenant: TenantConfig, now: float) -> float:
        """Seconds after which one more frame of the tenant fits its rate; 0: it fits, and uses it."""
        bucket = self._frames.setdefault(tenant.name, Bucket())
        wait_s = bucket.wait_s(tenant.max_frames_per_s, now)
        if not wait_s:
            bucket.spend()
        return wait_s

    def count_control(self, tenant: TenantConfig, now: float) -> float:
        """A control has come, whether it fits the tenant's rate or not. Seconds after which the next one
        does.
        """
        bucket = self._controls.setdefault(tenant.name, Bucket())
        rate = CONTROLS_PER_FRAME * tenant.max_frames_per_s
        bucket.wait_s(rate, now)
        bucket.spend()
        return bucket.wait_s(rate, now)

    def message_share(self, num_bytes: int) -> float:
        """What a message of so many bytes is of a large frame: one at most, and one for each control."""
        most = 1.0 + min(MAX_CONTROLS, len(self.served.model.controls))
        return min(most, num_bytes / self.served.limits.max_image_bytes)

    def count_shares(self, tenant: TenantConfig, shares: float, now: float) -> float:
        """So much of a large or heavy frame has come. Seconds after which the next one may: those that come
        at once are read one by one, at the tenant's rate. Frames that keep to that rate never wait, and of
        small and light ones many may come at once.
        """
        bucket, rate = self._shares.setdefault(tenant.name, Bucket(burst_s=0.0)), tenant.max_frames_per_s
        bucket.wait_s(rate, now)
        bucket.spend(shares)
        return bucket.wait_s(rate, now, tokens=0.0)

    def session(self, session_id: str, tenant: TenantConfig, request: OpenRequest) -> SessionSpec:
        """The session that is asked for, every default filled in. Raises InvalidRequest."""
        model = self.served.model
        if request.model not in ("", model.name):
            raise InvalidRequest(
                Reason.MODEL_UNKNOWN, "the model is not served here", metadata={"served": model.name}
            )
        settings = self._first_settings(request)
        self.check_resolution(tenant, *settings.size)
        bank, cache = choose_method(
            self.served.offer, request.method, request.feature_bank, request.temporal_cache
        )
        if cache is not None:
            check_sides(*settings.size, self.served.motion_multiple)
        return SessionSpec(
            session_id,
            *settings.size,
            request.max_steps or model.max_steps,
            settings,
            tenant.name,
            tenant.weight,
            bank=bank,
            cache=cache,
            max_kept_bytes=tenant.max_kept_bytes,
        )

    def change(self, settings: Settings, change: SettingsChange, max_steps: int) -> Settings:
        """`settings` after a control in a session with so many steps at most. Raises InvalidRequest."""
        check_settings(max_steps=max_steps, strength=change.strength, steps=change.steps, seed=change.seed)
        changed = change.apply(settings)
        check_settings(max_steps=max_steps, steps=changed.steps)
        self._check_look(changed)
        return changed

    def check_resize(self, tenant: TenantConfig, spec: SessionSpec, size: Size) -> None:
        """Raises InvalidRequest(RESOLUTION_UNSUPPORTED) if frames of the session cannot be of that size from
        some frame on: its memory has the room that it was given.
        """
        self.check_resolution(tenant, *size)
        if spec.cache is not None:
            check_sides(*size, self.served.motion_multiple)
        if not all(self._has_room(size, *frames) for frames in self._remembered(spec)):
            room = Size(self.served.model.width, self.served.model.height)
            raise InvalidRequest(
                Reason.RESOLUTION_UNSUPPORTED,
                f"the session's memory has room for frames of {room.width}x{room.height}",
                metadata={"max_pixels": str(room.pixels)},
            )

    def check_resolution(self, tenant: TenantConfig, width: int, height: int) -> None:
        """Raises InvalidRequest(RESOLUTION_UNSUPPORTED) if sessions of this size are not served."""
        max_pixels = min(tenant.max_pixels, self.served.limits.max_pixels)
        check_sides(width, height, SIDE_MULTIPLE)
        if width * height > max_pixels:
            raise InvalidRequest(
                Reason.RESOLUTION_UNSUPPORTED,
                f"width times height is more than {max_pixels}",
                metadata={"max_pixels": str(max_pixels)},
            )

    def check_prompt(self, prompt: str) -> None:
        """Raises InvalidRequest(PROMPT_EMPTY) for a blank prompt, PROMPT_TOO_LONG beyond the limit."""
        max_bytes = self.served.limits.max_prompt_bytes
        # No character takes less than a byte, so a huge prompt is refused before it is encoded.
        if len(prompt) > max_bytes or len(prompt.encode("utf-8", "surrogatepass")) > max_bytes:
            raise InvalidRequest(
                Reason.PROMPT_TOO_LONG,
                f"the prompt has more than {max_bytes} UTF-8 bytes",
                metadata={"field": "prompt", "max_bytes": str(max_bytes)},
            )
        if not prompt.strip():
            raise InvalidRequest(Reason.PROMPT_EMPTY, "the prompt is empty", metadata={"field": "prompt"})

    def _remembered(self, spec: SessionSpec) -> Iterator[tuple[float, float]]:
        """Of each memory of the session frames that it keeps, and those of the largest size that fit."""
        if spec.cache is not None:
            yield 1.0, 1.0
        if spec.bank is not None and self.served.offer.bank is not None:
            yield spec.bank.size_frames, default_bank(self.served.offer.bank).size_frames

    def _has_room(self, size: Size, frames: float, most: float) -> bool:
        room, whole = Size(self.served.model.width, self.served.model.height), self.served.whole_multiple
        if size.width <= room.width and size.height <= room.height and frames <= most:
            return True
        # Of other sizes layers that round may have more tokens than the pixels say.
        is_whole = whole > 0 and size.width % whole == 0 and size.height % whole == 0
        return is_whole and frames * size.pixels <= most * room.pixels

    def _first_settings(self, request: OpenRequest) -> Settings:
        model, card = self.served.model, self.served.card
        max_steps = request.max_steps or model.max_steps
        check_settings(
            max_steps=model.max_steps,
            strength=request.settings.strength,
            steps=request.settings.steps,
            seed=request.settings.seed,
            session_max_steps=max_steps,
            frame_rate=request.frame_rate,
            frame_budget_s=request.frame_budget_s,
        )
        defaults = Settings(
            strength=card.strength,
            steps=min(card.steps, max_steps),
            guidance_scale=card.guidance_scale,
            jpeg_quality=request.jpeg_quality or DEFAULT_JPEG_QUALITY,
            width=request.width or model.width,
            height=request.height or model.height,
        )
        asked = request.settings.apply(defaults)
        size = Size(asked.width or defaults.width, asked.height or defaults.height)
        settings = replace(asked, width=size.width, height=size.height)
        self._check_look(settings)
        check_settings(max_steps=max_steps, steps=settings.steps)
        return settings

    def _check_look(self, settings: Settings) -> None:
        model = self.served.model
        check_guidance(settings, embeds_scale=self.served.card.embeds_scale)
        check_adapters(settings, model.adapters, model.merged_adapters)
        check_controls(settings.controls, model.controls)
        has_adapter = model.reference is not None
        check_reference(settings.reference, settings.reference_mask, has_adapter=has_adapter)
        for text in settings.texts:
            self.check_prompt(text)


def quota_of(tenant: TenantConfig) -> Quota:
    """What the tenant's sessions may take together."""
    return Quota(tenant.max_streams, tenant.max_frames_per_s, tenant.max_pixels_per_s or math.inf)


def check_sides(width: int, height: int, multiple: int) -> None:
    """Raises InvalidRequest(RESOLUTION_UNSUPPORTED) unless both are multiples and large enough; pixels."""
    for field, side in (("width", width), ("height", height)):
        if side < MIN_SIDE or side % multiple:
            raise InvalidRequest(
                Reason.RESOLUTION_UNSUPPORTED,
                f"{field} must be a multiple of {multiple} and at least {MIN_SIDE}",
                metadata={"field": field, "multiple": str(multiple)},
            )


def check_settings(
    *,
    max_steps: int,
    strength: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    session_max_steps: int | None = None,
    frame_rate: float | None = None,
    frame_budget_s: float | None = None,
) -> None:
    """Raises InvalidRequest(SETTING_OUT_OF_RANGE) with metadata `field` for the first senseless number.

    None is not looked at: apply defaults before or after. `max_steps` is the most that the model serves
    (for a control: that the session asked for), `session_max_steps` is `Open.max_steps`.
    """
    _require("strength", strength is None or 0.0 < strength <= 1.0, "in (0, 1]")
    _require("steps", steps is None or 1 <= steps <= max_steps, f"1 to {max_steps}")
    _require("seed", seed is None or 0 <= seed < 1 << 64, "an unsigned 64-bit number")
    top = session_max_steps
    _require("max_steps", top is None or 1 <= top <= max_steps, f"1 to {max_steps}")
    rate, budget = frame_rate, frame_budget_s
    _require("frame_rate", rate is None or 0.0 < rate <= MAX_FRAME_RATE, f"above 0, up to {MAX_FRAME_RATE:g}")
    _require(
        "frame_budget",
        budget is None or (math.isfinite(budget) and 0.0 < budget <= MAX_FRAME_BUDGET_S),
        f"above 0, up to {MAX_FRAME_BUDGET_S:g} s",
    )


def _require(field: str, holds: bool, range_text: str) -> None:
    # A comparison with NaN is false, so NaN never holds.
    if not holds:
        raise InvalidRequest(
            Reason.SETTING_OUT_OF_RANGE, f"{field} must be {range_text}", metadata={"field": field}
        )
