"""Which replicas sessions go to, and how many there are: the sections `placement` and `scaling`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PlacementConfig", "ScalingConfig"]


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


class ScalingConfig(BaseModel):
    """How many replicas a span with `max_replicas` has: see docs/scaling.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_share: float = Field(default=0.7, gt=0, le=1)
    """Share of a replica's time that sessions are to declare together: above it another one is ordered. What
    is left is for what costs vary by, and for those that come before the other one is there."""
    frame_age_slo_s: float | None = Field(default=None, gt=0)
    """Another replica is ordered when more than 5 % of all pictures come later than so long after their
    frames, for the span in which frames wait longest. None: load and slots alone decide."""
    hold_s: float = Field(default=60.0, ge=0)
    """How long fewer replicas must be enough before one is emptied and goes."""
    window_s: float = Field(default=300.0, gt=0)
    """How far back growth is looked for: longer sees slower growth, and an eighth of it is the quickest."""
    node_s: float = Field(default=0.0, ge=0)
    """From the order of a machine until it is there. 0: machines wait for replicas."""
    image_s: float = Field(default=0.0, ge=0)
    """From then until a replica begins to load the model: its image, and the start of its process. The rest
    of the time to capacity (weights, graphs) is measured at every start. Demand is looked at so far ahead."""
    idle_s: float = Field(default=600.0, ge=0)
    """How long nobody must have asked for a session before a span with `min_replicas` 0 has no replica."""
