"""Where compiled networks of a span lie on this machine, and their use at a start."""

from __future__ import annotations

import logging

import torch

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.card import is_opaque
from rearview.engine.acceleration.compiled import use
from rearview.engine.acceleration.stock import Stock
from rearview.engine.networks.model import DiffusionModel, Model
from rearview.environment import cache_folder
from rearview.replica.kept import digest_of, key_of

__all__ = ["stock_of", "use_compiled"]

logger = logging.getLogger(__name__)


def stock_of(config: ServiceConfig, span: SpanConfig, device: torch.device) -> Stock | None:
    """Those of a span, by all that they follow from. None: there is no place for them, or no network."""
    place = cache_folder()
    if place is None or is_opaque(config.model.checkpoint):
        return None
    return Stock(place / "networks" / digest_of(key_of(config, span, device)))


def use_compiled(config: ServiceConfig, span: SpanConfig, model: Model, device: torch.device) -> str:
    """Let the model run from them; returns what they are in few characters, "" if it runs as it is."""
    stock = stock_of(config, span, device) if config.model.compiled else None
    if stock is None or not stock.digest or not isinstance(model, DiffusionModel):
        return ""
    use(stock, model)
    logger.info("%s runs compiled networks", span.name)
    return stock.digest
