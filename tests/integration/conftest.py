"""A live service over Ray Serve, and plain streams to it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence

import grpc
import pytest
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1.translation_service_pb2_grpc import TranslationServiceStub


class Stream:
    """One synchronous Translate call that keeps to its credit."""

    def __init__(self, address: str, request: pb.Open) -> None:
        self._requests: queue.SimpleQueue[pb.TranslateRequest | None] = queue.SimpleQueue()
        self._requests.put(pb.TranslateRequest(open=request))
        self._channel = grpc.insecure_channel(address)
        self._call = TranslationServiceStub(self._channel).Translate(iter(self._requests.get, None))
        first = next(self._call)
        self.opened: pb.Opened = first.opened
        self._credit = first.frame_credit

    def translate(
        self, images: Sequence[bytes], format: pb.ImageFormat.ValueType, first: int = 0
    ) -> list[bytes]:
        """Send all, in flight as credit allows; returns the pictures in order."""
        pictures: list[bytes] = []
        sent = 0
        while len(pictures) < len(images):
            while sent < len(images) and first + sent < self._credit:
                frame = pb.Frame(frame_index=first + sent, format=format, image=images[sent])
                self._requests.put(pb.TranslateRequest(frame=frame))
                sent += 1
            answer = next(self._call)
            self._credit = answer.frame_credit
            if answer.HasField("notice"):
                continue
            assert answer.WhichOneof("message") == "frame", answer
            assert answer.frame.frame_index == first + len(pictures)
            pictures.append(answer.frame.image)
        return pictures

    def finish(self) -> None:
        """Half-close; the call must end OK with nothing left but notices."""
        self._requests.put(None)
        assert [answer for answer in self._call if not answer.HasField("notice")] == []
        self._channel.close()


@pytest.fixture
def open_stream() -> Iterator[Callable[[str, pb.Open], Stream]]:
    """Opens streams that are cancelled at the end of the test if they are still open."""
    streams: list[Stream] = []

    def open_one(address: str, request: pb.Open) -> Stream:
        streams.append(Stream(address, request))
        return streams[-1]

    yield open_one
    for stream in streams:
        stream._channel.close()
