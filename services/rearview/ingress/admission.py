"""What admission must know of the checkpoint that is served: read from its files, once."""

from __future__ import annotations

from rearview.config import ServiceConfig
from rearview.contract.card import ModelCard, has_motion, size_multiple
from rearview.control.admission import SIDE_MULTIPLE, Served
from rearview.control.methods import Offer

__all__ = ["read_served"]


def read_served(config: ServiceConfig) -> Served:
    """What the deployment serves. Raises ConfigError for a checkpoint that is not there or makes no sense."""
    model = config.model
    return Served(
        model=model,
        limits=config.limits,
        card=ModelCard.read(model.checkpoint),
        offer=Offer(config.bank, config.cache, has_motion=has_motion(model.checkpoint, model.motion)),
        motion_multiple=SIDE_MULTIPLE if config.cache is None else size_multiple(model.checkpoint),
        whole_multiple=size_multiple(model.checkpoint),
    )
