"""A service as one wall uses it: a client of its own, with the wall's token, and what is served there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from rearview.client import Client, ImageFormat, Model, OpenOptions, Tls, Token
from rearview.contract.opening import OpenRequest
from rearview.studio.dials import dials_said
from rearview.studio.flow import MAX_UNACKNOWLEDGED
from rearview.studio.spoken import UNSPOKEN, plain

__all__ = ["Endpoint", "Service", "described", "options_for"]


@dataclass(frozen=True)
class Endpoint:
    """Where a service is, and as whom the gateway comes if a page does not say who it is."""

    address: str
    token: Token = None
    tls: Tls | bool = False

    def client(self, token: str | None = None) -> Client:
        """For a wall with `token`; its own, which is not shared."""
        return Client(self.address, self.token if token is None else token, tls=self.tls)


@dataclass(eq=False)
class Service:
    """An entered client, and the model behind it."""

    id: str
    """As in the list of models; empty: the service that the gateway was started for."""
    client: Client
    model: Model
    on_closed: Callable[[], None] = lambda: None

    @property
    def format(self) -> ImageFormat:
        """How a page's frames are to be read there."""
        return ImageFormat.JPEG if ImageFormat.JPEG in self.model.formats else ImageFormat.OPAQUE

    async def close(self) -> None:
        """Nobody uses it any more."""
        try:
            await self.client.__aexit__(None, None, None)
        finally:
            self.on_closed()


def options_for(asked: OpenRequest, model: Model) -> OpenOptions:
    """How to open what a page has asked for with this model: what it left open is the model's own choice.

    Steps beyond the model's are cut to them, since the page may have asked another model.
    """
    said: dict[str, Any] = {one.name: getattr(asked, one.name) for one in fields(asked)}
    settings = said.pop("settings")
    given = {name: value for name, value in said.items() if name not in UNSPOKEN and value not in (0, None)}
    given |= settings.named()
    for name in ("steps", "max_steps"):
        if name in given:
            given[name] = min(given[name], model.max_steps)
    options: Any = {**given, "answer_window": MAX_UNACKNOWLEDGED // 4}
    typed: OpenOptions = options
    return typed


def described(model: Model) -> dict[str, Any]:
    """A model as pages are told: with what controllers may turn, and from where to where."""
    content: dict[str, Any] = plain(model)
    content["multiple"] = content.pop("side_multiple")
    content["motion_multiple"] = content.pop("motion_side_multiple")
    return {**content, "title": model.name, "dials": dials_said(model.max_steps)}
