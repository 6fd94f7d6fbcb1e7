"""Which replicas sessions go to, and whether they move later: the section `placement` of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PlacementConfig"]


class PlacementConfig(BaseModel):
    """How much of a replica is given away. A session takes what it declares (`frame_rate`, 30 if it says
    nothing) times what a frame was measured to cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_load: float | None = Field(default=None, gt=0)
    """Share of a replica's time that sessions may declare together; a new one beyond it is refused with
    NO_CAPACITY. 0.8 leaves a fifth for what costs vary by. None: slots alone are the limit, since sessions
    that send less than they declare, or drop what is late, do well beyond it."""
    rebalance_every_s: float | None = Field(default=None, gt=0)
    """How often each ingress looks whether one of its sessions is to leave a full replica for a clearly
    emptier one, which costs the session a short gap. None: sessions stay where they were placed."""
