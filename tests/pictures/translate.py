"""One service, started and asked for the pictures of scenarios: what runs once for each of the two versions.

    python -m pictures.translate LABEL SERVICES_FOLDER SERVICE INPUTS_FOLDER OUT_FOLDER SCENARIO...

Imports of `rearview` only what stays where modules move: the client, the configuration, the local service
and the samples. A scenario that fails leaves no file, and its frames count as missing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import rearview
from numpy.typing import NDArray
from rearview.client import (
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    ImageFormat,
    OpenOptions,
    Session,
    Translated,
)

from pictures.compare import write_pictures
from pictures.names import LocalService
from pictures.scenarios import SCENARIOS, Scenario
from pictures.services import SIZE, read_frames, service_config

__all__ = ["NOT_STARTED", "main"]

NOT_STARTED = 75
"""Exit code where the service did not start, which may go better at the next try."""
ANSWER_TIMEOUT_S = 90.0
"""How long a group of frames may take. On a loaded machine a window takes a few seconds."""
FIXED: OpenOptions = {
    "width": SIZE,
    "height": SIZE,
    "drop_policy": DropPolicy.LOSSLESS,
    "answer_format": ImageFormat.RGB,
    "send_quality": 0,
}


def main(label: str, services: str, service: str, inputs: str, out: str, *names: str) -> int:
    """Exit code: 0 also if scenarios have failed. `label` stands before what is said of the progress."""
    say = partial(_say, label)
    used = Path(rearview.__file__).resolve().parent.parent
    if used != Path(services).resolve():
        raise SystemExit(f"rearview was imported from {used}, not from {services}")
    chosen = [scenario for scenario in SCENARIOS if scenario.name in names]
    config = service_config(service, Path(inputs))
    with ExitStack() as stack:
        try:
            local = stack.enter_context(LocalService(config))
        except Exception as error:  # The edge of a start: whatever Ray or a socket says.
            say(f"{service} did not start: {type(error).__name__}: {error}")
            return NOT_STARTED
        say(f"{service} was ready after {local.ready_s:.0f} s")
        asyncio.run(_translate_all(local.address, chosen, Path(inputs), Path(out), say))
    return 0


def _say(label: str, text: str) -> None:
    print(f"{label}: {text}", file=sys.stderr, flush=True)


async def _translate_all(
    address: str, scenarios: Sequence[Scenario], inputs: Path, out: Path, say: Callable[[str], None]
) -> None:
    async with Client(address) as client:
        for scenario in scenarios:
            started_s = time.monotonic()
            try:
                pictures = await _translate(client, scenario, inputs)
            except Exception as error:  # The edge of a scenario: the others are still to be seen.
                say(f"{scenario.name} failed: {type(error).__name__}: {error}")
                continue
            write_pictures(out, scenario.name, pictures)
            took_s = time.monotonic() - started_s
            say(f"{scenario.name}: {len(pictures)} of {scenario.frames} frames, {took_s:.1f} s")


async def _translate(client: Client, scenario: Scenario, inputs: Path) -> dict[int, NDArray[np.uint8]]:
    frames = read_frames(inputs, scenario.frames, scenario.cut_at)
    pictures: dict[int, NDArray[np.uint8]] = {}
    async with client.open(**{**FIXED, **scenario.options}) as session:
        for group in scenario.groups(session.opened.warm_up_frames):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                for index in group:
                    if index in scenario.changes:
                        await session.control(**scenario.changes[index])
                    await session.send(frames[index])
                if group.stop == scenario.frames:  # A window that is under way waits for no more.
                    await session.finish()
                await _take(session, group, pictures)
    return pictures


async def _take(session: Session, group: range, pictures: dict[int, NDArray[np.uint8]]) -> None:
    """Answers up to that of the group's last frame."""
    async for answer in session:
        if isinstance(answer, ControlApplied) and answer.rejected_reason is not None:
            raise RuntimeError(f"a control was rejected: {answer.rejected_reason.name}")
        if isinstance(answer, Translated):
            pictures[answer.frame_index] = answer.image
        if isinstance(answer, Translated | Dropped) and answer.frame_index == group[-1]:
            return


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
