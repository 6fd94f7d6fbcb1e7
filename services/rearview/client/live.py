"""Pictures that do not wait: a camera, or an address at which somebody sends. Always the newest one."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av.error

from rearview.client.fitting import Fit, fit_frame
from rearview.client.pictures import MediaError, Picture, open_container

__all__ = ["LiveSource"]

_CAMERAS = {
    "linux": ("v4l2", "/dev/video0"),
    "darwin": ("avfoundation", "0"),
    "win32": ("dshow", "video=Integrated Camera"),
}

_REMEDY = "--camera chooses one, `rearview doctor` looks closer, and the studio takes the browser's"


class LiveSource:
    """A thread reads, and what nobody took in time is gone. No sound."""

    is_live = True
    audio_path: str | None = None
    paths: tuple[Path, ...] = ()
    num_frames: int | None = None
    time_base = Fraction(1, 90_000)

    def __init__(self, name: str, container: Any, frame_rate: Fraction) -> None:
        """`container`: of PyAV, open; it is closed at the end. Raises MediaError if it has no video."""
        if not container.streams.video:
            container.close()
            raise MediaError(f"{name}: has no video")
        stream = container.streams.video[0]
        aspect = stream.sample_aspect_ratio or 1
        self.name, self.frame_rate = name, frame_rate
        self.size = (max(1, round(stream.width * aspect)), max(1, stream.height))
        self._aspect = Fraction(aspect)
        self._container = container
        self._stop = threading.Event()
        self._newest = _Newest()

    @classmethod
    def camera(cls, device: str | None, frame_rate: Fraction) -> Self:
        """`device`: default the first one. Raises MediaError if there is no camera."""
        format, default = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
        name, options = device or default, {"framerate": str(round(frame_rate))}
        try:
            container = open_container(name, f"camera {name}", format=format, options=options)
        except MediaError as error:
            raise MediaError(f"{error} ({_REMEDY})") from None
        return cls(name, container, frame_rate)

    def stop(self) -> None:
        """Let `pictures` end after the present one."""
        self._stop.set()
        self._newest.put(None)

    def pictures(self, width: int, height: int, fit: Fit) -> Iterator[Picture]:
        """See `Source`."""
        reader = threading.Thread(target=self._read, name="rearview-live", daemon=True)
        reader.start()
        start_s: float | None = None
        try:
            while not self._stop.is_set() and (frame := self._newest.take()) is not None:
                time_s = frame.time or 0.0
                start_s = time_s if start_s is None else start_s
                pts = round((time_s - start_s) / self.time_base)
                yield Picture(fit_frame(frame, width, height, fit, self._aspect), pts, self.time_base)
        finally:
            self._stop.set()
            reader.join(timeout=2.0)
            if not reader.is_alive():  # Else it still reads from it.
                self._container.close()

    def _read(self) -> None:
        with contextlib.suppress(av.error.FFmpegError):
            for frame in self._container.decode(self._container.streams.video[0]):
                self._newest.put(frame)
                if self._stop.is_set():
                    break
        self._newest.put(None)


class _Newest:
    """A place for one frame; a newer one replaces it. None is the end, and stays."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Any = None
        self._is_full = self._is_over = False

    def put(self, frame: Any) -> None:
        with self._changed:
            if self._is_over:
                return
            # The last frame of all is not replaced by the end.
            self._is_over = frame is None
            if not (self._is_over and self._is_full):
                self._frame, self._is_full = frame, True
            self._changed.notify()

    def take(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._is_full or self._is_over)
            frame = self._frame if self._is_full else None
            self._is_full = False
            return frame
