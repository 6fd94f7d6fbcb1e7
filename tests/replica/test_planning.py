"""A replica's memory as it starts: refused before weights are loaded, or planned, told and kept to."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from rearview.config import ServiceConfig, load_config
from rearview.contract.chain import OperatorKind
from rearview.contract.memory_plan import Budget, MemoryPlan
from rearview.engine import device_memory
from rearview.engine.bench import TimedControls, Timing
from rearview.engine.memory.compose import Memories
from rearview.errors import ConfigError
from rearview.machine import this_machine
from rearview.model_config import ControlConfig, ReferenceConfig
from rearview.replica import build
from rearview.replica.build import build_engine, controls_to_time, parts_of
from rearview.replica.memories import memories_of
from rearview.replica.needs import known_plan, sharing
from rearview.replica.planning import Planning
from rearview.replica.stage import Stage
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, quickly_stopped, running
from support.tiny import SIZE, write_tiny_checkpoint
from support.tiny_control import write_tiny_control
from support.tiny_depth import write_tiny_depth
from support.tiny_reference import reference_file
from transformers import DPTForDepthEstimation

pytestmark = pytest.mark.integration

OPERATORS = ["encode", "denoise-0", "decode"]
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def config_of(folder: Path, **span: Any) -> ServiceConfig:
    model = {"checkpoint": str(folder), "device": "cpu", "dtype": "float32", "max_steps": 1}
    return load_config(
        {
            "model": {**model, "width": SIZE, "height": SIZE},
            "spans": [{"name": "fused", "operators": OPERATORS, **span}],
            "bank": {},
            "ingress": {"port": 0},
        }
    )


def with_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """On a machine with so much."""
    machine = replace(this_machine(), memory_bytes=num_bytes)
    monkeypatch.setattr(device_memory, "this_machine", lambda: machine)


def planned(config: ServiceConfig) -> tuple[MemoryPlan, int]:
    """The plan, and the slots that the engine has."""
    plans: list[MemoryPlan] = []
    engine = build_engine(config, config.spans[0], None, plans.append)
    return plans[0], engine.free_slots


def test_a_start_that_cannot_fit_is_refused_before_any_weight_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(build, "load_model", loads)
    with_memory(monkeypatch, 40 * MIB)
    with pytest.raises(ConfigError, match=r"span fused needs .* GiB of memory, and CPU has 40 MiB: weights "):
        build_engine(config_of(folder, slots=4096), config_of(folder, slots=4096).spans[0])


def test_what_is_only_known_once_it_is_loaded_is_refused_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process has is much more than this model: it alone is too much."""
    config = config_of(folder)
    with_memory(monkeypatch, 60 * MIB)
    with pytest.raises(ConfigError, match=r"CPU has 60 MiB: process .* GiB, weights .* Without any session"):
        build_engine(config, config.spans[0])


def test_a_model_of_which_not_one_sample_fits_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "measure", measure)
    config = config_of(folder)
    expected = r"not enough memory for the smallest forward\. fused: .* weights .*, 16 slots of"
    with pytest.raises(ConfigError, match=expected):
        build_engine(config, config.spans[0])


@pytest.mark.parametrize(("call", "what"), [(1, "the weights"), (2, "the slots")])
def test_what_torch_cannot_allocate_is_told_with_the_sum(
    call: int, what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what others take of a device meanwhile."""
    calls: list[object] = []

    def make(*args: Any) -> Memories:
        calls.append(args)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return memories_of(*args)

    monkeypatch.setattr(build, "memories_of", make)
    config = config_of(folder)
    with pytest.raises(ConfigError, match=rf"not enough memory for {what}\. fused: .*, 16 slots of"):
        build_engine(config, config.spans[0])


def test_the_slot_that_costs_were_measured_with_is_gone_before_the_others_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Memories]] = []

    def make(*args: Any) -> Memories:
        assert [each() for each in made if each() is not None] == []
        memory = memories_of(*args)
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(build, "memories_of", make)
    engine = build_engine(config_of(folder), config_of(folder).spans[0])
    assert (len(made), engine.free_slots) == (2, 16)


def test_a_plan_tells_process_weights_forwards_and_slots(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(folder, slots=3)
    with caplog.at_level(logging.INFO):
        plan, slots = planned(config)
    assert slots == plan.slots == 3
    process, libraries, weights, forwards = plan.parts
    assert process.num_bytes > 50 * MIB
    assert (process.is_certain, libraries.is_certain) == (True, False)
    model = parts_of(config, config.spans[0], 1).model
    assert weights.num_bytes == model.weight_bytes > 0  # type: ignore[attr-defined]
    assert (forwards.name, forwards.is_certain) == ("forwards of 16", False)
    assert plan.slot["bank"] > 0
    assert f"memory of {plan}" in caplog.text


@pytest.mark.parametrize(("more_slots", "slots"), [(0.5, 1), (5.5, 5), (99.0, 16)])
def test_auto_takes_what_is_left_on_a_host_up_to_sixteen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more_slots: float, slots: int
) -> None:
    monkeypatch.setattr("rearview.replica.planning.anonymous_bytes", lambda: 300 * MIB)
    monkeypatch.setattr("rearview.replica.planning.resident_bytes", lambda: 300 * MIB)
    monkeypatch.setattr("rearview.replica.planning.workspace_bytes", lambda *_: 100 * MIB)
    plan, _ = planned(config_of(folder, slots=1))
    room = 400 * MIB + plan.parts[2].num_bytes + more_slots * plan.slot_bytes
    with_memory(monkeypatch, int(room / 0.9) + 1)
    assert planned(config_of(folder, slots="auto")) == (
        replace(
            plan,
            slots=slots,
            budget=Budget("CPU", int(room / 0.9) + 1, int(room / 0.9) + 1, most_slots=16),
        ),
        slots,
    )


class Eight:
    """Counts 8 MiB for each forward, once."""

    def __init__(self) -> None:
        assert Eight.made == 0, "measured a second time"
        Eight.made += 1

    made = 0

    def now(self) -> int:
        return 0

    def reset(self) -> None:
        pass

    def most(self) -> int:
        return 8 * MIB


def test_a_second_start_knows_what_forwards_take_without_measuring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path))
    monkeypatch.setattr("rearview.replica.kept.NEGLIGIBLE_S", 10.0)
    monkeypatch.setattr(build, "counter_of", lambda device: Eight())
    config = config_of(folder, slots="auto")
    (first, _), (second, _) = planned(config), planned(config)
    assert first.parts[3].num_bytes == second.parts[3].num_bytes == 8 * MIB


SHARES: Mapping[str, tuple[dict[str, Any], bool, tuple[int, float]]] = {
    "a host of all replicas": ({"replicas": 2, "max_replicas": 4}, True, (4, 1.0)),
    "a device that nobody reserves": ({"replicas": 2}, False, (2, 1.0)),
    "half a device": ({"replicas": 2, "num_gpus": 0.5}, False, (1, 0.5)),
    "a device": ({"replicas": 4, "num_gpus": 1}, False, (1, 1.0)),
    "two devices, of which one is used": ({"num_gpus": 2}, False, (1, 1.0)),
}


@pytest.mark.parametrize("case", SHARES)
def test_who_shares_a_device(case: str, folder: Path) -> None:
    span, on_cpu, expected = SHARES[case]
    config = config_of(folder, **span)
    assert sharing(config, config.spans[0], on_cpu=on_cpu) == expected


async def test_a_replica_tells_the_slots_that_it_has(folder: Path) -> None:
    stage = Stage(config_of(folder, slots="auto"), 0, "stage", "node")
    with quickly_stopped():
        await stage.start()
        told = stage.describe()
        await stage.stop()
    assert told["slots"] == told["free_slots"] == 16
    assert str(told["memory"]).startswith("fused: ")
    assert "16 slots of " in str(told["memory"])


async def test_a_service_with_slots_auto_serves() -> None:
    async with running(slots="auto") as service, RawStream(service.address) as stream:
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for index in range(3):
            await stream.frame(index)
        await stream.read_answers(3)
        assert (stream.indices, stream.drops) == ([0, 1, 2], [])
        (stage,) = service.stages
        assert stage.describe()["slots"] == 16
        assert stage.describe()["free_slots"] == 15


def test_the_workspace_of_controls_is_planned_for_the_batch(folder: Path, tmp_path: Path) -> None:
    """It grows with the samples as measured, where one that is not controlled takes less."""
    control = write_tiny_control(tmp_path / "control", folder)
    config = config_of(folder)
    named = {"edges": ControlConfig(path=str(control), picture="canny")}
    config = config.model_copy(update={"model": config.model.model_copy(update={"controls": named})})
    rows = Timing({1: 0.1}, {}, 0.0, {1: 10 * MIB, 2: 12 * MIB}, {}, 0.05, {1: 20 * MIB, 2: 35 * MIB})
    plan = Planning(config, config.spans[0], torch.device("cpu")).plan([{OperatorKind.DENOISE: rows}])
    assert plan.parts[-1].name == "forwards of 16"
    assert plan.parts[-1].num_bytes == (20 + 15 * 15) * MIB


def test_all_controls_are_timed_the_largest_first(folder: Path, tmp_path: Path) -> None:
    """One that is only sent is not drawn."""
    whole, small = (write_tiny_control(tmp_path / name, folder) for name in ("b", "a"))
    network = ControlNetModel.from_pretrained(small)
    config = {**network.config, "down_block_types": ["DownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"}
    ControlNetModel.from_config(config).save_pretrained(small)
    found = config_of(folder)
    named = {
        "b": ControlConfig(path=str(whole), picture="canny"),
        "a": ControlConfig(path=str(small), picture="sent"),
    }
    found = found.model_copy(update={"model": found.model.model_copy(update={"controls": named})})
    model = parts_of(found, found.spans[0], 1).model
    assert controls_to_time(found.model, model) == TimedControls(["b", "a"], {"b"})


def test_pools_are_made_once_the_number_of_slots_is_known(folder: Path) -> None:
    config = config_of(folder, slots=7)
    engine = build_engine(config, config.spans[0])
    assert engine.free_slots == 7
    engine.check_integrity()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("operators", [OPERATORS, ["encode"], ["denoise-0"], ["decode"]])
def test_the_weights_of_controls_are_known_before_they_are_loaded(
    operators: list[str], folder: Path, tmp_path: Path
) -> None:
    """Where there are denoising steps the ControlNets, where frames are encoded what draws depth, once."""
    control, depth = write_tiny_control(tmp_path / "control", folder), write_tiny_depth(tmp_path / "depth")
    shown = {"path": str(control), "picture": "depth", "depth": str(depth)}
    found = []
    for controls in ({}, {"near": shown}, {"near": shown, "far": shown}):
        config = config_of(folder)
        named = {name: ControlConfig(**each) for name, each in controls.items()}
        model = config.model.model_copy(update={"controls": named})
        span = config.spans[0].model_copy(update={"operators": operators})
        config = config.model_copy(update={"model": model, "spans": [span]})
        budget = Budget("this machine", 0, 0)
        (known,) = known_plan(config, span, "float32", budget).parts
        loaded: Any = parts_of(config, span, 1).model
        assert known.num_bytes == pytest.approx(loaded.weight_bytes, rel=0.02)
        found.append(known.num_bytes)
    network = sum(each.numel() for each in ControlNetModel.from_pretrained(control).parameters())
    drawing = sum(each.numel() for each in DPTForDepthEstimation.from_pretrained(depth).parameters())
    nets, draws = int("denoise-0" in operators), int("encode" in operators)
    assert found[1] - found[0] == 4 * (nets * network + draws * drawing)
    assert found[2] - found[1] == 4 * nets * network


@pytest.mark.parametrize("operators", [OPERATORS, ["encode", "decode"]])
def test_the_weights_of_a_reference_adapter_are_known_before_they_are_loaded(
    operators: list[str], folder: Path, tmp_path: Path
) -> None:
    """Where there are denoising steps: what the adapter adds to the UNet, and its image encoder."""
    file = reference_file(tmp_path, folder, "plus")
    found = []
    for reference in (None, ReferenceConfig(path=file.path, image_encoder=file.image_encoder)):
        config = config_of(folder)
        model = config.model.model_copy(update={"reference": reference})
        span = config.spans[0].model_copy(update={"operators": operators})
        config = config.model_copy(update={"model": model, "spans": [span]})
        (known,) = known_plan(config, span, "float32", Budget("this machine", 0, 0)).parts
        loaded: Any = parts_of(config, span, 1).model
        assert known.num_bytes == pytest.approx(loaded.weight_bytes, rel=0.02)
        found.append((known.num_bytes, loaded.weight_bytes))
    assert (found[1][0] > found[0][0]) == ("denoise-0" in operators)
    assert found[1][0] - found[0][0] == pytest.approx(found[1][1] - found[0][1], rel=0.001)
