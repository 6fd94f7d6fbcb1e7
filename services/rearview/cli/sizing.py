"""The size of a session whose pictures keep their shape (`Fit.KEEP`)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rearview.client import Client, Model, OpenOptions
    from rearview.client.fitting import Room
    from rearview.config import ServiceConfig
    from rearview.contract.methods import Method

__all__ = ["check_size", "offered_room", "room_of", "shaped_options", "sized_for"]

SIDE_MULTIPLE = 8
TRY_EVERY_S = 0.2


def room_of(config: ServiceConfig) -> Room:
    """The sizes of sessions of a service that is not started yet; as large as its model's own. Raises
    ConfigError for a checkpoint that is not there.
    """
    from rearview.client.fitting import Room
    from rearview.contract.card import size_multiple

    model, cache = config.model, config.cache
    # A service that keeps caches has pools of its own size, whatever method this session has.
    multiple = SIDE_MULTIPLE if cache is None else size_multiple(model.checkpoint)
    return Room(min(model.width * model.height, config.limits.max_pixels), multiple)


def check_size(size: tuple[int, int], room: Room, limit: int) -> None:
    """Raises BadParameter for a `--size` that a service with this room, and `limit` pixels, does not take."""
    width, height = size
    text = f"{width}x{height}"
    if width % room.multiple or height % room.multiple:
        text = f"{text}: both sides must be multiples of {room.multiple}, with this model and method"
        raise typer.BadParameter(text, param_hint="--size")
    if not all(room.min_side <= side <= room.max_side for side in size) or width * height > limit:
        text = f"{text}: sides are {room.min_side} to {room.max_side}, and at most {limit} pixels in all"
        raise typer.BadParameter(text, param_hint="--size")


def sized_for(config: ServiceConfig, size: tuple[int, int]) -> ServiceConfig:
    """The service with memories that have room for sessions of this size."""
    model = config.model.model_copy(update={"width": size[0], "height": size[1]})
    return config.model_copy(update={"model": model})


async def shaped_options(client: Client, options: OpenOptions, source: tuple[int, int]) -> OpenOptions:
    """With the size that a running server takes for pictures shaped as `source`.

    As they are for a server of a release that does not describe its model: it gives the model's own size. One
    that is not there yet is waited for, as by a session that opens. Raises Unreachable.
    """
    from rearview.client.losses import NotSpoken

    try:
        model = await _described(client)
    except NotSpoken:
        return options
    width, height = offered_room(model, options.get("method")).snapped(source)
    return {**options, "width": width, "height": height}


async def _described(client: Client) -> Model:
    from rearview.cli.server import PATIENCE_S
    from rearview.client.losses import NotSpoken, Unreachable

    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await client.describe_model()
        except NotSpoken:
            raise
        except Unreachable:
            if time.monotonic() >= give_up_s:
                raise
        await asyncio.sleep(TRY_EVERY_S)


def offered_room(model: Model, method: Method | None) -> Room:
    """The sizes of sessions of a model that a server has described; as large as its own. `method`: None is
    the deployment's.
    """
    from rearview.client.fitting import Room
    from rearview.contract.methods import Method

    has_motion = (method or model.default_method) is Method.LIVE2DIFF
    multiple = model.motion_side_multiple if has_motion else model.side_multiple
    pixels = min(model.width * model.height, model.max_pixels)
    # Without motion modules the session is refused, which says why.
    return Room(pixels, multiple or model.side_multiple, model.min_side)
