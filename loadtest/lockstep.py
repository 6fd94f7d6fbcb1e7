"""What a frame costs between an ingress and three spans when nothing else is there: no gRPC, no model.

    python -m loadtest.lockstep
    python -m loadtest.lockstep --against ../another-clone

Three stages and who feeds them share one process and one event loop, of the kind that Ray uses, with the
real links between them; one frame is on its way, or eight. Two clones, each with its own environment, take
turns, so that a busy machine slows both: read the ratios, and of the figures the least.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated, cast

import numpy as np
import typer
import uvloop
from numpy.typing import NDArray
from rearview.config import ServiceConfig
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.replica.stage import Stage
from rearview.transport.codec import SPOKEN, FrameCodec
from rearview.transport.links import Link, LinkPool, LinkServer
from rearview.transport.wire import Body, Kind, encode_json, encode_spec

from loadtest.service import NULL_CUT, pipeline_config

__all__ = ["main"]

FRAMES = 120
"""Per turn and number of streams."""
STREAMS = 8
HERE = Path(__file__).parent.parent

Turn = Mapping[str, float]
"""Milliseconds by figure."""


def main(
    against: Annotated[Path | None, typer.Option(help="Another clone, set up, to take turns with.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Of each clone.")] = 30,
    size: Annotated[int, typer.Option(min=1, help="Bytes of a frame.")] = 50_000,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Measure a frame's way through three spans without a model, in one process."""
    if worker:
        uvloop.run(_work(size))
        return
    clones = [HERE, *([against.resolve()] if against else [])]
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(clone, size)) for clone in clones]
        rounds = [[_turn(each) for each in workers] for _ in range(turns)]
    for name in rounds[0][0]:
        found = [[turn[name] for turn in side] for side in zip(*rounds, strict=True)]
        least = " against ".join(f"{min(side):.3f}" for side in found)
        ratio = statistics.median(side[0] / side[-1] for side in zip(*found, strict=True))
        print(f"{name}, ms: least {least}" + (f", median ratio {ratio:.2f}" if against else ""))


@contextmanager
def _worker(clone: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    python = clone / ".venv" / "bin" / "python"
    command = [str(python if python.exists() else sys.executable), "-m", "loadtest.lockstep", "--worker"]
    process = subprocess.Popen(
        [*command, "--size", str(size)], cwd=clone, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        _turn(process)  # Warms it up.
        yield process
        cast(IO[str], process.stdin).close()


def _turn(process: subprocess.Popen[str]) -> Turn:
    ask, answer = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    ask.write("go\n")
    ask.flush()
    turn: Turn = json.loads(answer.readline())
    return turn


async def _work(size: int) -> None:
    config = pipeline_config("null", NULL_CUT)
    stages = [Stage(config, index, f"stage-{index}", "node") for index in range(len(config.spans))]
    for stage in stages:
        await stage.start()
    feeder = _Feeder(config)
    await feeder.dial([stage.describe()["address"] for stage in stages])
    picture = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    while await asyncio.to_thread(sys.stdin.readline):
        turn: dict[str, float] = {}
        for streams in (1, STREAMS):
            cpu_s = time.process_time()
            taken = await asyncio.gather(*(feeder.stream(picture, FRAMES // streams) for _ in range(streams)))
            turn[f"CPU a frame, streams {streams}"] = (time.process_time() - cpu_s) / FRAMES * 1e3
            if streams == 1:
                turn["p50 of a frame alone"] = statistics.median(taken[0]) * 1e3
        print(json.dumps(turn), flush=True)
    await feeder.stop()
    for stage in stages:
        await stage.stop()


class _Feeder:
    """The links of an ingress, without what it decides."""

    def __init__(self, config: ServiceConfig) -> None:
        self._server = LinkServer(config.link, "node", on_message=self._take, on_closed=lambda _: None)
        self._pool = LinkPool(config.link, "node", on_message=self._take, on_closed=lambda _: None)
        self._codec = FrameCodec(SPOKEN.newest, [span.name for span in config.spans])
        self._awaited: dict[tuple[str, int], asyncio.Future[None]] = {}

    async def dial(self, addresses: Sequence[str]) -> None:
        self._links = [await self._pool.get(address) for address in addresses]
        self._nexts = [*addresses[1:], str(await self._server.start())]

    async def stream(self, picture: NDArray[np.uint8], frames: int) -> list[float]:
        """Seconds from each frame's sending until its return; the next one is sent after it."""
        session_id, taken = uuid.uuid4().hex, []
        session = encode_spec(SessionSpec(session_id, 64, 64, 2, Settings(prompt="a")))
        for link, following in zip(self._links, self._nexts, strict=True):
            content = {"session": session, "epoch": 1, "next": following, "version": self._codec.version}
            assert "reason" not in await link.request(Kind.OPEN, content), "the session was refused"
        for ordinal in range(frames):
            back = self._awaited[session_id, ordinal] = asyncio.get_running_loop().create_future()
            started_s = time.perf_counter()
            frame = Frame(session_id, ordinal, {PICTURE: picture}, place=ordinal, epoch=1)
            self._links[0].send(Kind.FRAME, *self._codec.encode(frame, time.monotonic()))
            await back
            taken.append(time.perf_counter() - started_s)
        for link in self._links:
            link.send(Kind.CLOSE, encode_json({"session_id": session_id, "epoch": 1}))
        return taken

    async def stop(self) -> None:
        await self._pool.stop()
        await self._server.stop()

    def _take(self, link: Link, kind: Kind, body: Body) -> None:
        if kind is Kind.FRAME:
            frame = self._codec.decode(body, time.monotonic())
            self._awaited.pop((frame.session_id, frame.ordinal)).set_result(None)


if __name__ == "__main__":
    typer.run(main)
