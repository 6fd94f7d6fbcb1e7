"""How sessions survive the loss of what serves them: the section `recovery` of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RecoveryConfig"]


class RecoveryConfig(BaseModel):
    """What is kept of sessions outside their replicas, and how long a lost one is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    give_up_s: float = Field(default=30.0, ge=0)
    """A session for which no lane is found for so long ends with REPLICA_LOST. 0: one try."""
    at_a_time: int = Field(default=8, ge=1, le=1024)
    """Sessions of one ingress that are moved or recovered at a time."""
    input_bytes: int = Field(default=32 << 20, ge=1 << 20)
    """Images of one session that its ingress keeps, as received, to send them again. One that is full takes
    no further frame until a checkpoint makes room."""
    checkpoint_interval_s: float = Field(default=1.0, gt=0)
    """Least time between two checkpoints of one session."""
    checkpoint_bytes_per_s: int = Field(default=32 << 20, ge=0)
    """Bytes of checkpoints that one session may send to its ingress in a second: a larger past is kept less
    often. 0: no checkpoints; a session with a past is then rebuilt from its last frames."""
    park_after_s: float = Field(default=1.0, ge=0)
    """A session whose connection was lost gives its slots back after so long; what it remembers waits at
    the ingress, within `checkpoint_bytes`."""
    checkpoint_bytes: int = Field(default=1 << 30, ge=0)
    """Checkpoints that one ingress keeps in its memory; sessions beyond it have none."""
