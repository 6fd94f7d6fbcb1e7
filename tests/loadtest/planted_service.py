"""A server of `Translate` with one planted fault, to see that the generator catches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from rearview.v1 import error_reason_pb2
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1 import translation_service_pb2_grpc as pb_grpc

from loadtest.echo import WINDOW_FRAMES

MARKED = 5
"""The frame to which most faults happen."""


class Fault(Enum):
    NONE = "none"
    NO_ANSWER = "no answer to one frame"
    ANSWER_TWICE = "one answer twice"
    SWAP = "two answers swapped"
    INVENT = "an answer to a frame that was never sent"
    FOREIGN_IMAGE = "the image of another stream"
    OTHER_TIME = "another presentation time"
    CREDIT_FALLS = "credit that falls"
    CREDIT_WITHHELD = "no credit beyond the first window"
    NO_OPENED = "no opened"
    OPENED_TWICE = "opened twice"
    NO_END = "no end after the half-close"
    CUT = "an error in mid-stream"
    REFUSED = "no capacity"
    STALL = "nothing for a while"
    DROPS = "every second frame dropped"
    GROUPS_OF_THREE = "answers only when three frames wait"


@dataclass
class PlantedServicer(pb_grpc.TranslationServiceServicer):
    """Echoes frames, with a fault."""

    fault: Fault = Fault.NONE
    stall_s: float = 0.3
    acknowledged: list[int] = field(default_factory=list)
    opens: list[pb.Open] = field(default_factory=list)
    _answered: int = 0

    async def Translate(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.TranslateRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.TranslateResponse]:
        waiting: list[pb.Frame] = []
        received = 0
        async for request in request_iterator:
            if request.HasField("open"):
                self.opens.append(request.open)
                if self.fault is Fault.REFUSED:
                    await _refuse(context)
                for response in self._open():
                    yield response
            elif request.HasField("credit"):
                self.acknowledged.append(request.credit.received_answers)
            else:
                received += 1
                waiting.append(request.frame)
                if self.fault is Fault.STALL and request.frame.frame_index == MARKED:
                    await asyncio.sleep(self.stall_s)
                if self.fault is Fault.CUT and request.frame.frame_index == MARKED:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                for response in self._answer(waiting, received):
                    yield response
        if self.fault is Fault.NO_END:
            await asyncio.Event().wait()

    def _open(self) -> list[pb.TranslateResponse]:
        opened = pb.TranslateResponse(opened=pb.Opened(session_id="planted"), frame_credit=WINDOW_FRAMES)
        if self.fault is Fault.NO_OPENED:
            return []
        return [opened] * (2 if self.fault is Fault.OPENED_TWICE else 1)

    def _answer(self, waiting: list[pb.Frame], received: int) -> list[pb.TranslateResponse]:
        held_back = self.fault is Fault.SWAP and waiting[0].frame_index == MARKED and len(waiting) == 1
        if held_back or (self.fault is Fault.GROUPS_OF_THREE and len(waiting) < 3):
            return []
        frames = waiting[::-1] if self.fault is Fault.SWAP else list(waiting)
        waiting.clear()
        credit = WINDOW_FRAMES + (0 if self.fault is Fault.CREDIT_WITHHELD else received)
        return [self._response(frame, credit) for frame in frames for _ in range(self._times(frame))]

    def _times(self, frame: pb.Frame) -> int:
        if frame.frame_index != MARKED:
            return 1
        return {Fault.NO_ANSWER: 0, Fault.ANSWER_TWICE: 2}.get(self.fault, 1)

    def _response(self, frame: pb.Frame, credit: int) -> pb.TranslateResponse:
        marked = frame.frame_index == MARKED
        if self.fault is Fault.DROPS and frame.frame_index % 2:
            dropped = pb.Dropped(
                frame_index=frame.frame_index, reason=error_reason_pb2.DROP_REASON_SUPERSEDED
            )
            return pb.TranslateResponse(dropped=dropped, frame_credit=credit)
        picture = pb.TranslatedFrame(
            frame_index=frame.frame_index,
            presentation_offset=frame.presentation_offset,
            format=frame.format,
            image=frame.image,
            timings=pb.Timings(spans=[pb.SpanTiming(span="echo")]),
        )
        if marked and self.fault is Fault.INVENT:
            picture.frame_index = 10_000
        if marked and self.fault is Fault.FOREIGN_IMAGE:
            picture.image = (99).to_bytes(8, "little") + frame.image[8:]
        if marked and self.fault is Fault.OTHER_TIME:
            picture.presentation_offset.nanos += 1
        if marked and self.fault is Fault.CREDIT_FALLS:
            credit -= 2
        return pb.TranslateResponse(frame=picture, frame_credit=credit)


async def _refuse(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="ERROR_REASON_NO_CAPACITY", domain="rearview.v1"))
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full", details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))
