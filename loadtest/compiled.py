"""What compiling ahead of time gains: frames a second of the engine, compiled and as it is, in turns.

    python -m loadtest.compiled

The bundled model as a service of this machine would run it (`fused`, all cores): sessions that always have a
frame waiting, from bytes to bytes, with the feature bank and without. What is missing is compiled first, and
takes minutes; it lies in a folder of its own, or where `--cache` says.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rearview.cli.server import local_config
from rearview.config import ServiceConfig
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.replica.build import build_engine, examples, parts_of
from rearview.replica.compiling import compile_span

from loadtest.figures import RESULTS, Figure, ResultFile, show

__all__ = ["Arm", "figures", "main", "measure"]

FRAMES = 6
"""Distinct ones, of noise over a gradient."""
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Arm:
    """Sessions on one engine."""

    sessions: int
    banked: bool

    @property
    def setting(self) -> str:
        bank = "feature bank" if self.banked else "per frame"
        return f"pocket 256x256, 2 steps, {bank}, {self.sessions} session{'s' if self.sessions > 1 else ''}"


ARMS = tuple(Arm(sessions, banked) for banked in (False, True) for sessions in (1, 4))


@dataclass(frozen=True, slots=True)
class Rates:
    """Frames a second of an arm, round by round."""

    eager: Sequence[float]
    compiled: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return statistics.median(c / e for c, e in zip(self.compiled, self.eager, strict=True))


def measure(engines: Mapping[bool, Engine], specs: Sequence[SessionSpec], frames: int, rounds: int) -> Rates:
    """Of sessions `specs`, `frames` of each in a round. `engines`: as it is (False), and compiled."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for is_compiled in (False, True) if number % 2 == 0 else (True, False):
            rates[is_compiled].append(_rate(engines[is_compiled], specs, frames))
    return Rates(rates[False], rates[True])


def _rate(engine: Engine, specs: Sequence[SessionSpec], frames: int) -> float:
    for spec in specs:
        engine.open(spec)
    images = _images(specs[0])
    _play(engine, specs, 0, WARM_UP, images)
    started_s = time.perf_counter()
    _play(engine, specs, WARM_UP, frames, images)
    seconds = time.perf_counter() - started_s
    for spec in specs:
        engine.close(spec.session_id)
    return frames * len(specs) / seconds


def _play(
    engine: Engine,
    specs: Sequence[SessionSpec],
    start: int,
    frames: int,
    images: Sequence[NDArray[np.uint8]],
) -> None:
    for ordinal in range(start, start + frames):
        image = torch.from_numpy(images[ordinal % len(images)])
        for spec in specs:
            engine.admit(Frame(spec.session_id, ordinal, {PICTURE: image}), 0.0)
        while engine.has_work:
            for left in engine.step(0.0).emissions:
                assert left.planes is not None, "a frame was lost"
                left.planes[PICTURE].numpy().tobytes()


def _images(spec: SessionSpec) -> list[NDArray[np.uint8]]:
    ramp = np.linspace(0, 200, spec.width)[None, :, None]
    random = np.random.default_rng(0)
    return [
        (ramp + random.integers(0, 56, (spec.height, spec.width, 3))).astype(np.uint8) for _ in range(FRAMES)
    ]


def figures(rates: Mapping[Arm, Rates]) -> list[Figure]:
    """What is told of the arms."""
    found = []
    for arm, each in rates.items():
        found += [
            Figure("FPS of the engine as it is", arm.setting, statistics.median(each.eager), "FPS"),
            Figure("FPS of the engine, compiled", arm.setting, statistics.median(each.compiled), "FPS"),
            Figure("compiled over as it is", arm.setting, each.ratio, "x"),
        ]
    return found


def _engines(config: ServiceConfig) -> Mapping[bool, Engine]:
    found = {}
    for is_compiled in (False, True):
        model = config.model.model_copy(update={"compiled": is_compiled})
        found[is_compiled] = build_engine(config.model_copy(update={"model": model}), config.spans[0])
    return found


def _banked(config: ServiceConfig) -> SessionSpec:
    """As a service opens a session with a bank."""
    return next(iter(examples(config, parts_of(config, config.spans[0], 1).memory)))


def _sessions(spec: SessionSpec, arm: Arm) -> list[SessionSpec]:
    spec = spec if arm.banked else replace(spec, bank=None)
    return [replace(spec, session_id=str(number)) for number in range(arm.sessions)]


def main(
    frames: Annotated[int, typer.Option(min=1, help="Of each session, in a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Of both, in turns.")] = 5,
    cache: Annotated[Path | None, typer.Option(help="Folder for what is compiled.")] = None,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Compile the bundled model, and measure what that gains."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["REARVIEW_CACHE"] = str(cache or scratch)
        config = local_config()
        made = compile_span(config, config.spans[0], lambda text: typer.echo(text, err=True))
        engines, spec = _engines(config), _banked(config)
        rates = {arm: measure(engines, _sessions(spec, arm), frames, rounds) for arm in ARMS}
    detail = {
        "artefacts": [{**asdict(each), "sort": "", "file": bool(each.file)} for each in made],
        "rates": [{**asdict(arm), **asdict(each)} for arm, each in rates.items()],
    }
    command = f"python -m loadtest.compiled --frames {frames} --rounds {rounds}"
    result = ResultFile.of("compiled", command, figures(rates), detail)
    show(result, result.write(results))


if __name__ == "__main__":
    typer.run(main)
