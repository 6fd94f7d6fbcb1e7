"""rearview: live video translation with diffusion models, as a service."""

__version__ = "0.1.0"
