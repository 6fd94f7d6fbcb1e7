"""What a deployment serves, as a client is told: the model, its vocabulary and the limits."""

from __future__ import annotations

from rearview.access import TenantConfig
from rearview.contract.card import is_opaque
from rearview.contract.methods import Method
from rearview.contract.model import Model, Style
from rearview.contract.stream import ImageFormat
from rearview.control.admission import MIN_SIDE, SIDE_MULTIPLE, Served

__all__ = ["model_of"]


def model_of(served: Served, tenant: TenantConfig) -> Model:
    """The model of a deployment, within the limits of the tenant that asks."""
    model, limits, card, methods = served.model, served.limits, served.card, served.offer.methods
    opaque = is_opaque(model.checkpoint)
    return Model(
        name=model.name,
        width=model.width,
        height=model.height,
        side_multiple=SIDE_MULTIPLE,
        motion_side_multiple=served.motion_multiple if Method.LIVE2DIFF in methods else 0,
        min_side=MIN_SIDE,
        strength=card.strength,
        steps=min(card.steps, model.max_steps),
        max_steps=model.max_steps,
        methods=methods,
        default_method=served.offer.default,
        formats=(ImageFormat.OPAQUE,) if opaque else (ImageFormat.JPEG, ImageFormat.RGB),
        styles=tuple(
            Style(name, prompt, tuple(card.phrases.get(name, ()))) for name, prompt in card.styles.items()
        ),
        takes_any_prompt=not card.phrases,
        adapters=tuple(sorted(model.adapters)),
        merged_adapters=tuple(sorted(model.merged_adapters)),
        controls=tuple(sorted(model.controls)),
        sent_controls=tuple(sorted(name for name, one in model.controls.items() if one.picture == "sent")),
        takes_reference=model.reference is not None,
        max_image_bytes=limits.max_image_bytes,
        max_pixels=min(tenant.max_pixels, limits.max_pixels),
        max_prompt_bytes=limits.max_prompt_bytes,
    )
