"""The program as a camera of this machine, for calls and for programs that know cameras alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from rearview.errors import ConfigError
from rearview.studio.pictures import Picture, contained

__all__ = ["Device", "VirtualCamera"]

WIDTH, HEIGHT, FPS = 1280, 720, 30
"""What programs expect of a camera; a smaller picture stands in its middle, enlarged."""
INSTALL = "pip install 'rearview[camera]'"


class Device(Protocol):
    """What is used of `pyvirtualcam.Camera`."""

    device: str

    def send(self, frame: Picture) -> None:
        """A frame, (height, width, 3), RGB."""

    def close(self) -> None:
        """The camera is gone."""


class VirtualCamera:
    """An output of that kind."""

    name = "the virtual camera"

    def __init__(self, device: Device) -> None:
        self._device = device

    @classmethod
    def open(cls, make: Callable[..., Device] | None = None, **options: Any) -> VirtualCamera:
        """`make`: what makes a device, pyvirtualcam's own by default, with `options` such as `device`.

        Raises ConfigError where there is no such device, or no pyvirtualcam.
        """
        if make is None:
            try:
                make = import_module("pyvirtualcam").Camera
            except ImportError as error:
                raise ConfigError(f"--virtual-camera: {error.name} is missing: {INSTALL}") from None
        try:
            return cls(make(width=WIDTH, height=HEIGHT, fps=FPS, **options))
        except RuntimeError as error:
            raise ConfigError(f"--virtual-camera: {error}") from None

    @property
    def device(self) -> str:
        """The camera's name where programs list cameras."""
        return self._device.device

    def send(self, picture: Picture) -> None:
        """Show a picture. Raises OSError once the device is gone."""
        try:
            self._device.send(contained(picture, WIDTH, HEIGHT))
        except RuntimeError as error:
            raise OSError(str(error)) from None

    def close(self) -> None:
        """The camera is gone."""
        self._device.close()
