"""The audio track of the input, in the output: packet by packet where the container allows, else encoded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av

from rearview.client.containers import Container
from rearview.client.pictures import open_container, without_secrets

__all__ = ["AudioTrack"]

LAYOUT_OF_CHANNELS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Some containers know a number of channels only; encoders want to know where they are."""


class AudioTrack:
    """The first audio track of a file or address, for the open container `output`, which is a `kind` with
    sound; make it before anything is muxed. Raises MediaError for a track that cannot be opened.
    """

    def __init__(self, path: str, output: Any, kind: Container) -> None:
        assert kind.audio is not None
        self._output, self._encoder = output, kind.audio
        self._input = open_container(path, without_secrets(path))
        self._source = self._input.streams.audio[0]
        self._start_s = Fraction(self._input.start_time or 0, 1_000_000)
        self.is_copied = self._source.codec_context.name in kind.copied
        if self.is_copied:
            self._stream = output.add_stream_from_template(self._source)
        else:
            rate = self._source.rate if self._source.rate in self._encoder.rates else 48_000
            layout = LAYOUT_OF_CHANNELS.get(self._source.layout.nb_channels, "stereo")
            self._stream = output.add_stream(self._encoder.name, rate=rate, layout=layout)
        self._packets = self._copied() if self.is_copied else self._transcoded()
        self._waiting: Any = None

    def write_until(self, end_s: float | None) -> None:
        """Mux what begins before `end_s`; None: all that is left. Muxers want tracks interleaved."""
        while (packet := self._waiting or next(self._packets, None)) is not None:
            if end_s is not None and packet.dts is not None and packet.dts * packet.time_base >= end_s:
                self._waiting = packet
                return
            self._waiting = None
            self._output.mux(packet)

    def close(self) -> None:
        self._input.close()

    def _copied(self) -> Iterator[Any]:
        shift = round(self._start_s / self._source.time_base)
        for packet in self._input.demux(self._source):
            if packet.dts is None:
                continue
            packet.dts -= shift
            packet.pts = packet.pts - shift if packet.pts is not None else packet.dts
            packet.stream = self._stream
            yield packet

    def _transcoded(self) -> Iterator[Any]:
        layout, rate = self._stream.layout.name, self._stream.rate
        resampler = av.AudioResampler(self._encoder.format, layout, rate, self._encoder.frame_at(rate))
        for frame in chain(self._input.decode(self._source), (None,)):
            for piece in resampler.resample(frame):
                if piece.pts is not None:
                    piece.pts -= round(self._start_s / piece.time_base)
                yield from self._stream.encode(piece)
        yield from self._stream.encode(None)
