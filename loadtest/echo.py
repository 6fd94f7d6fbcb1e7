"""A server of `Translate` that returns every image at once: the floor under any transport figure.

What a frame costs here is gRPC and the generator alone; the difference to the service with the null model
is the service's own. It keeps the protocol: credit, one answer per frame, in order, flush on half-close.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1 import translation_service_pb2_grpc as pb_grpc

__all__ = ["EchoServicer", "echo_server", "start_server"]

WINDOW_FRAMES = 8
START_TIMEOUT_S = 30.0


class EchoServicer(pb_grpc.TranslationServiceServicer):
    """Answers each frame with its own image."""

    async def Translate(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.TranslateRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.TranslateResponse]:
        received = 0
        async for request in request_iterator:
            if request.HasField("open"):
                opened = pb.Opened(session_id="echo", width=request.open.width, height=request.open.height)
                yield pb.TranslateResponse(opened=opened, frame_credit=WINDOW_FRAMES)
            elif request.HasField("frame"):
                received += 1
                frame = pb.TranslatedFrame(
                    frame_index=request.frame.frame_index,
                    presentation_offset=request.frame.presentation_offset,
                    format=request.frame.format,
                    image=request.frame.image,
                )
                yield pb.TranslateResponse(frame=frame, frame_credit=received + WINDOW_FRAMES)


async def start_server(servicer: pb_grpc.TranslationServiceServicer) -> tuple[grpc.aio.Server, str]:
    """A server on a free loopback port and its address; the caller stops it."""
    server = grpc.aio.server()
    pb_grpc.add_TranslationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """Address and pid of an echo server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(START_TIMEOUT_S):
            raise RuntimeError(f"the echo server did not start within {START_TIMEOUT_S:g} s")
        assert process.pid is not None
        yield ours.recv(), process.pid
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    async def serve() -> None:
        server, address = await start_server(EchoServicer())
        pipe.send(address)
        await server.wait_for_termination()

    asyncio.run(serve())
