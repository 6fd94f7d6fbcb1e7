"""On nothing but gRPC and the stubs: goes on elsewhere if connection or server is gone. For 256x256 JPEGs:
python clients/python_raw/resume.py 127.0.0.1:50051,127.0.0.1:50052 "oil painting" in/*.jpg
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
from rearview.v1 import settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

SILENCE_S, TRIES = 3.0, 300  # A server speaks every 2 s. So many tries without an answer take 30 s or more.
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)  # To resume: the session stays.


async def translate(addresses: Sequence[str], start: pb.Open, frames: Sequence[pb.Frame]) -> AsyncIterator:
    """One answer to each frame, `pb.TranslatedFrame` or `pb.Dropped`, in order."""
    opened, received, attempt, end, lost = pb.Opened(), 0, 0, TRIES, LOST
    while received < len(frames):
        mine = {"session_id": opened.session_id, "resume_token": opened.resume_token}
        resume = pb.Resume(received_answers=received, **mine)
        first = pb.TranslateRequest(resume=resume) if opened.session_id else pb.TranslateRequest(open=start)
        async with grpc.aio.insecure_channel(addresses[attempt % len(addresses)]) as channel:
            call = translation_service_pb2_grpc.TranslationServiceStub(channel).Translate()
            try:
                await call.write(first)
                while received < len(frames):
                    response = await asyncio.wait_for(call.read(), SILENCE_S)
                    kind = response.WhichOneof("message")
                    if kind == "opened":  # What the server has not received goes out again.
                        opened, sent, lost = response.opened, response.opened.received_frames, LOST
                    while sent < min(len(frames), response.frame_credit):
                        await call.write(pb.TranslateRequest(frame=frames[sent]))
                        sent += 1
                    if kind in ("frame", "dropped"):
                        received, end = received + 1, attempt + TRIES
                        yield getattr(response, kind)
                        await call.write(pb.TranslateRequest(credit=pb.Credit(received_answers=received)))
                await call.done_writing()  # Closes the session.
                await asyncio.wait_for(call.read(), SILENCE_S)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                if attempt >= end or (call.done() and not call.cancelled() and await call.code() not in lost):
                    raise
                attempt, lost = attempt + 1, LOST + REFUSED if opened.session_id else LOST
                await asyncio.sleep(0.1)


async def main(addresses: str, prompt: str, *paths: str) -> None:
    start = pb.Open(settings=settings_pb2.Settings(prompt=prompt), drop_policy=pb.DROP_POLICY_LOSSLESS)
    images = enumerate(Path(path).read_bytes() for path in paths)  # noqa: ASYNC240
    frames = [pb.Frame(frame_index=n, image=image, format=pb.IMAGE_FORMAT_JPEG) for n, image in images]
    async for one in translate(addresses.split(","), start, frames):
        print(one.frame_index, len(one.image) if hasattr(one, "image") else pb.DropReason.Name(one.reason))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
