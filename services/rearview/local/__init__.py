"""The whole service on this machine for the time of a command: through Ray, or as plain processes."""

from rearview.local.joined_ray import JoinedRayService
from rearview.local.plain import PlainService, Replica, SpanOfReplicas
from rearview.local.ray_service import RayService, deploy
from rearview.local.service import LocalService

__all__ = [
    "JoinedRayService",
    "LocalService",
    "PlainService",
    "RayService",
    "Replica",
    "SpanOfReplicas",
    "deploy",
]
