"""Where compiled networks of a span lie on this machine, and their use at a start."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.card import is_opaque
from rearview.engine.acceleration.compiled import use
from rearview.engine.acceleration.stock import Stock
from rearview.engine.networks.model import DiffusionModel, Model
from rearview.environment import cache_folder
from rearview.replica.kept import digest_of, key_of

__all__ = ["folder_of", "stock_of", "use_compiled"]

logger = logging.getLogger(__name__)


def folder_of(config: ServiceConfig, span: SpanConfig, device: torch.device) -> Path | None:
    """Where those of a span lie, by all that they follow from. None: there is no place for them, or no
    network. Reads a little of each file of the model.
    """
    place = cache_folder()
    if place is None or is_opaque(config.model.checkpoint):
        return None
    return place / "networks" / digest_of(key_of(config, span, device))


def stock_of(config: ServiceConfig, span: SpanConfig, device: torch.device) -> Stock | None:
    """Those of a span; None: see `folder_of`."""
    folder = folder_of(config, span, device)
    return None if folder is None else Stock(folder)


def use_compiled(config: ServiceConfig, span: SpanConfig, model: Model, device: torch.device) -> str:
    """Let the model run from them; returns what they are in few characters, "" if it runs as it is."""
    stock = stock_of(config, span, device) if config.model.compiled else None
    if stock is None or not stock.digest or not isinstance(model, DiffusionModel):
        return ""
    use(stock, model)
    logger.info("%s runs compiled networks", span.name)
    return stock.digest
