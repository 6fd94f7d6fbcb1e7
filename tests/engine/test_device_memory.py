"""How much memory a device has, and what forwards had of it at most."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from rearview.contract.chain import OperatorKind
from rearview.contract.memory_plan import Budget
from rearview.engine.bench import TimedControls
from rearview.engine.calibration import Timings, example_payloads, measure
from rearview.engine.device_memory import budget_of, counter_of, is_counted
from rearview.engine.memory.build import MemoryOptions, build_memories
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.memoryless import Memoryless
from rearview.machine import this_machine
from support.tiny import session, whole_chain
from support.toy import Holds, ToyModel
from support.toy_cache import SINK, ToyCache
from support.toy_clips import cached_spec

pytestmark = pytest.mark.unit

GIB = 2**30


def test_a_host_has_what_the_system_or_the_group_allows() -> None:
    small = replace(this_machine(), memory_bytes=3 * GIB)
    assert budget_of(torch.device("cpu"), sharers=2, machine=small) == Budget(
        "CPU", 3 * GIB, 3 * GIB // 2, most_slots=16
    )
    assert budget_of(torch.device("cpu")).num_bytes == this_machine().memory_bytes


def test_what_apple_recommends_decides_auto_and_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    mac = replace(this_machine(), memory_bytes=16 * GIB)
    found = budget_of(torch.device("mps"), sharers=2, machine=mac)
    assert found == Budget("Apple GPU", 16 * GIB, 6 * GIB, most_slots=16)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, free_gib: int, reserved_gib: int = 0) -> None:
    """As CUDA would say it of a device of 80 GiB: there is none here."""
    said = {"mem_get_info": (free_gib * GIB, 80 * GIB), "memory_reserved": reserved_gib * GIB}
    for name, value in {**said, "get_device_name": "a GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


@pytest.mark.parametrize(
    ("sharers", "share", "free_gib", "reserved_gib", "expected_gib"),
    [
        (1, 1.0, 70, 4, (74, 74)),
        (1, 0.5, 70, 4, (74, 40)),  # Ray does not hold anybody to what was reserved.
        (1, 1.0, 8, 0, (8, 8)),
        (2, 1.0, 78, 0, (78, 40)),
        (2, 1.0, 44, 0, (44, 40)),
        (2, 1.0, 30, 0, (30, 30)),
    ],
)
def test_a_device_has_what_is_free_or_our_own_within_the_share_that_was_reserved(
    sharers: int,
    share: float,
    free_gib: int,
    reserved_gib: int,
    expected_gib: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who starts second beside another has as much as the first."""
    pretend_gpu(monkeypatch, free_gib, reserved_gib)
    budget = budget_of(torch.device("cuda"), sharers, share)
    assert budget.where == "a GPU"
    assert (budget.num_bytes, budget.own_bytes) == tuple(each * GIB for each in expected_gib)
    assert is_counted(torch.device("cuda"))
    assert not is_counted(torch.device("cpu"))


def test_room_for_captured_forwards_is_kept_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, free_gib=80)
    gpu, host = torch.device("cuda"), torch.device("cpu")
    assert budget_of(gpu).graph_bytes == 4 * GIB
    assert budget_of(gpu, sharers=2).graph_bytes == 2 * GIB
    assert budget_of(gpu, graph_bytes=7).graph_bytes == 7, "it was told"
    assert budget_of(host).graph_bytes == 0


@pytest.mark.skipif(not this_machine().has_proc, reason="needs /proc")
def test_a_host_s_counter_sees_what_was_freed_again() -> None:
    counter = counter_of(torch.device("cpu"))
    assert counter is not None
    before = counter.now()
    counter.reset()
    taken = torch.ones(64 << 20, dtype=torch.uint8)
    del taken
    assert 48 << 20 < counter.most() - before < 128 << 20
    assert counter_of(torch.device("mps")) is None


@dataclass
class Counted:
    """A counter of a device of which a forward takes a fixed part, and some for each sample."""

    model: ToyModel
    resets: int = 0
    before: int = field(default=1000)

    def now(self) -> int:
        return self.before

    def reset(self) -> None:
        self.resets += 1
        self.model.batches.clear()

    def most(self) -> int:
        samples = max((len(batch) for batch in self.model.batches), default=0)
        return self.before + 50 + 10 * samples


def test_calibration_learns_what_forwards_take_by_their_samples() -> None:
    model = ToyModel()
    counter, spec = Counted(model), session("")
    memory = build_memories(
        whole_chain(2), model.layouts, MemoryOptions(num_slots=1, height=64, width=64, dtype=torch.float32)
    )
    payloads = example_payloads("null", whole_chain(2), spec)
    found = measure(model, memory, whole_chain(2), spec, payloads, (1, 2, 4), counter=counter)
    for kind in OperatorKind:
        assert found[kind].row_bytes == {1: 60, 2: 70, 4: 90}
        assert found[kind].window_bytes == {}
    assert counter.resets > 9
    unknown = measure(model, memory, whole_chain(2), spec, payloads, (1, 2))
    assert unknown[OperatorKind.ENCODE].row_bytes == {}


def test_rows_with_controls_are_counted_apart_at_every_size() -> None:
    """Else a full batch of them would have to do with the workspace of one."""
    model, spec, span = ToyModel(), session(""), whole_chain(2)
    memory = build_memories(
        span, model.layouts, MemoryOptions(num_slots=1, height=64, width=64, dtype=torch.float32)
    )
    payloads = example_payloads("null", span, spec)
    controls = TimedControls(("edges", "pose"), {"edges"})
    found = measure(model, memory, span, spec, payloads, (1, 2, 4), None, Counted(model), controls)
    by_samples = {1: 60, 2: 70, 4: 90}
    assert found[OperatorKind.DENOISE].control_bytes == found[OperatorKind.ENCODE].control_bytes == by_samples
    assert found[OperatorKind.DECODE].control_bytes == {}
    plain = measure(model, memory, span, spec, payloads, (1, 2), None, Counted(model))
    assert plain[OperatorKind.DENOISE].control_bytes == {}


def test_windows_are_counted_apart() -> None:
    model, cache = ToyModel(), ToyCache(slots=1)
    spec = replace(cached_spec(""), session_id="")
    payloads = [{"latent": torch.zeros(2, dtype=torch.int64)}] * 5
    span = whole_chain(3)
    found = measure(model, Memories([cache], 1), span, spec, payloads, (1, 2), counter=Counted(model))
    assert found[OperatorKind.DENOISE].window_bytes == {SINK: 60}, "one row, though of several samples"
    assert found[OperatorKind.DENOISE].row_bytes == {1: 60, 2: 70}


def test_a_size_for_which_there_is_no_memory_is_not_timed_nor_a_larger_one() -> None:
    def error() -> Exception:
        return torch.OutOfMemoryError("CUDA out of memory.")

    def timed(holds: int) -> Timings:
        model, span, spec = ToyModel(fails=Holds(holds), error=error), whole_chain(2), session("")
        return measure(model, Memoryless(1), span, spec, example_payloads("null", span, spec), (1, 2, 4, 8))

    for timing in timed(holds=3).values():
        assert set(timing.row_s) == {1, 2}
    with pytest.raises(torch.OutOfMemoryError):
        timed(holds=0)
