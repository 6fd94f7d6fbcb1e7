"""What is asked of the fleet: streams that are alike, and what counts as good."""

from __future__ import annotations

from dataclasses import dataclass

from rearview.contract.lease import Load
from rearview.contract.settings import Settings
from rearview.control.placement import Asked
from rearview.planning.costs import DeviceCost

__all__ = ["Streams"]


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Live streams of one kind."""

    fps: float = 15.0
    steps: int = 2
    width: int = 512
    height: int = 512
    slo_s: float = 0.2
    """A picture is in time if it is there so long after its frame came."""
    jitter_s: float = 0.01
    """A frame comes up to so much later than on its schedule."""
    max_in_flight: int = 4
    """Frames of one stream in a replica; a newer one drives out the one that waits."""
    max_batch: int = 16

    @property
    def load(self) -> Load:
        """What a stream declares."""
        return Load.of(self.fps, self.width, self.height)

    @property
    def settings(self) -> Settings:
        """With the steps of these streams."""
        return Settings(steps=self.steps)

    def asked(self, max_load: float | None) -> Asked:
        """What placement is asked for."""
        return Asked(self.load, self.steps, settings=self.settings, max_load=max_load)

    def share(self, device: DeviceCost) -> float:
        """What a stream takes of a replica's time, with full forwards."""
        return self.asked(None).share(device.frame(self.steps))
