"""Forwards are captured while a replica starts; what its sessions run then is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.config import ServiceConfig
from rearview.contract.chain import Span
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.calibration import example_payloads
from rearview.engine.engine import Engine
from rearview.engine.memory.build import MemoryOptions, build_memories
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.replica import captured
from rearview.replica.captured import SIZES, capture_span, captures, sizes_up_to
from support.frames import content, entering
from support.stand_in_graphs import StandInRecorder
from support.tiny import SIZE, random_frames, whole_chain, write_tiny_checkpoint
from support.toy import drain
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
SESSIONS, FRAMES = 4, 10
BANK = BankSettings(interval=2, fusion_threshold=0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def spec_of(name: str, span: Span) -> SessionSpec:
    return SessionSpec(name, SIZE, SIZE, len(span.steps), Settings(name, steps=2), bank=BANK)


def play(engine: Engine, span: Span) -> dict[tuple[str, int], Tensor]:
    """Sessions that come one after another, so that forwards have every number of rows."""
    found: dict[tuple[str, int], Tensor] = {}
    opened: list[str] = []
    for number, frame in enumerate(random_frames(FRAMES)):
        if number % 2 == 0 and len(opened) < SESSIONS:
            opened.append(f"s{len(opened)}")
            engine.open(spec_of(opened[-1], span))
        for name in opened:
            ordinal = number - 2 * int(name[1:])
            engine.admit(entering(name, ordinal, frame), 0.0)
        for left in drain(engine):
            picture = content(left)
            assert picture is not None
            found[left.session_id, left.ordinal] = picture
    return found


def engine_of(checkpoint: Path, recorder: StandInRecorder | None) -> tuple[Engine, DiffusionModel]:
    span = whole_chain()
    model = load_model(str(checkpoint), span, CPU, torch.float64)
    assert isinstance(model, DiffusionModel)
    options = MemoryOptions(
        num_slots=SESSIONS, height=SIZE, width=SIZE, dtype=torch.float64, bank=BANK, latent_scale=8
    )
    memory = build_memories(span, model.layouts, options)
    if recorder is not None:
        example = spec_of("", span)
        kinds = [(example, example_payloads(str(checkpoint), span, example))]
        capture_span(span, model, memory, kinds, SESSIONS, recorder, print)
        memory.check_integrity()
    return Engine(span, model, memory, Scheduler(CostTable(), SESSIONS)), model


def test_nothing_is_captured_while_sessions_run(checkpoint: Path) -> None:
    span, recorder = whole_chain(), StandInRecorder()
    eager = play(engine_of(checkpoint, None)[0], span)
    engine, _ = engine_of(checkpoint, recorder)
    recorded = recorder.recorded
    found = play(engine, span)
    assert recorder.recorded == recorded
    assert recorded >= 3 * SESSIONS
    assert [key for key in eager if not torch.equal(eager[key], found[key])] == []


def test_forwards_of_other_sizes_are_filled_up_to_the_next(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that three rows are replayed when they come for the first time, beside captured pairs and fours."""
    monkeypatch.setattr(captured, "SIZES", (1, 2, 4))
    span, recorder = whole_chain(), StandInRecorder()
    eager = play(engine_of(checkpoint, None)[0], span)
    engine, model = engine_of(checkpoint, recorder)
    recorded, calls = recorder.recorded, [model.vae, *(each.call for each in model.denoisers.values())]
    eager_before = [call.counts.eager for call in calls]
    found = play(engine, span)
    assert recorder.recorded == recorded
    assert [call.counts.eager for call in calls] == eager_before
    assert max((found[key] - eager[key]).abs().max() for key in eager) <= 1


def test_no_forward_is_filled_beyond_what_its_span_runs_together() -> None:
    assert sizes_up_to(4) == (1, 2, 3, 4)
    assert sizes_up_to(10) == (*range(1, 9), 10)
    assert sizes_up_to(32) == sizes_up_to(64) == SIZES


def test_graphs_are_for_cuda_and_can_be_left_out() -> None:
    config = ServiceConfig()
    assert captures(config, torch.device("cuda"))
    assert not captures(config, CPU)
    without = config.model_copy(update={"model": config.model.model_copy(update={"graphs": False})})
    assert not captures(without, torch.device("cuda"))
    assert SIZES[:8] == tuple(range(1, 9))
