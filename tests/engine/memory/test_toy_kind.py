"""A kind of memory that the package does not know: the running mean of each session's pictures, of decode.

It is added by one line of a registry, and no file of the service is touched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import KINDS, Layouts, MemoryOptions, RegisteredKind, build_memories
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.export import (
    Chunk,
    Incoming,
    check_fields,
    check_tensors,
    decode_chunk,
    encode_chunk,
)
from rearview.engine.memory.protocol import Kind, Memory, Updates, Views, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.networks.model import Forward, NullModel
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import InvalidRequest
from support.frames import content, entering, planes_of
from support.toy import drain
from torch import Tensor

pytestmark = pytest.mark.unit

PIXELS = 4
SPAN = Span.parse("whole", ["encode", "denoise-0", "decode"])


@dataclass(frozen=True, eq=False)
class Means:
    """View and update in one: means before, or after, these pictures."""

    mean_BP: Tensor
    count_B: Tensor
    key: None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.mean_BP, self.count_B

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        return ()

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor] = ()) -> Means:
        return Means(*tensors)

    def beside(self, indices: Sequence[int]) -> Means:
        rows = [*range(len(self.count_B)), *indices]
        return Means(self.mean_BP[rows], self.count_B[rows])


MEAN = Kind[Means, Means]("mean")


class MeanPicture(Memory[Means, Means]):
    """A mean and a count per session."""

    kind = MEAN
    operators = frozenset({OperatorKind.DECODE})

    def __init__(self, num_slots: int) -> None:
        self._slots = SlotPool(num_slots)
        self._ids: set[str] = set()
        self.means = torch.zeros(num_slots, PIXELS, dtype=torch.float64)
        self.counts = torch.zeros(num_slots, dtype=torch.int64)

    def allocate(self, spec: SessionSpec) -> None:
        self._slots.allocate(spec.session_id)
        self._ids.add(spec.session_id)

    def free(self, session_id: str) -> None:
        if session_id in self._ids:
            self.reset(session_id)
            self._slots.free(session_id)
            self._ids.remove(session_id)

    def reset(self, session_id: str) -> None:
        slot = self._slots.slot(session_id)
        self.means[slot], self.counts[slot] = 0.0, 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        return True

    def num_writes(self, row: Row) -> int:
        return int(row.ordinal % 2 == 0)

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        return spec.height

    def gather(self, rows: Sequence[Row]) -> Means:
        slots = [self._slots.slot(row.session_id) for row in rows]
        return Means(self.means[slots], self.counts[slots])

    def prepare(self, rows: Sequence[Row], update: Means) -> Write:
        slots = [self._slots.slot(row.session_id) for row in rows]
        assert update.mean_BP.shape == (len(rows), PIXELS)

        def write() -> None:
            self.means[slots], self.counts[slots] = update.mean_BP, update.count_B

        return write

    def export(self, session_id: str) -> Iterator[Chunk]:
        slot = self._slots.slot(session_id)
        values = {"format": 1, "count": int(self.counts[slot])}
        yield Chunk(MEAN.name, values=values, tensors=(self.means[slot].clone(),))

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        (chunk,) = chunks
        header = Incoming.sort([chunk]).headers[0]
        check_fields(header, {"format": 1})
        (mean,) = check_tensors(chunk.tensors, chunk.step, "mean", [(PIXELS,)], torch.float64)
        slot, count = self._slots.slot(session_id), header.get("count")
        if not isinstance(count, int) or count < 0:
            raise ValueError("the export's count is none")

        def write() -> None:
            self.means[slot], self.counts[slot] = mean, count

        return write

    def bytes_per_session(self, spec: SessionSpec) -> int:
        return 8 * (PIXELS + 1)

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        self._slots.check_integrity()
        owned = [self._slots.slot(name) for name in self._ids]
        free = [slot for slot in range(len(self.counts)) if slot not in owned]
        assert not self.means[free].any(), "a free slot holds a mean"
        assert not self.counts[free].any(), "a free slot holds a count"


REGISTERED = RegisteredKind(
    MEAN.name, MeanPicture.operators, lambda span, layouts, options: MeanPicture(options.num_slots)
)


class Steadies(NullModel):
    """A picture is half itself and half the mean of those before it."""

    def __init__(self, fails_at: int = -1) -> None:
        self._fails_at = fails_at
        self.decoded: list[int] = []
        """Rows of each forward."""

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        past = views.of(MEAN)
        if past is None:
            return super().forward(rows, views)
        self.decoded.append(len(rows))
        if len(self.decoded) - 1 == self._fails_at:
            raise RuntimeError("planted")
        pictures_BP = torch.stack([content(row) for row in rows])
        count_B = past.count_B + 1
        mean_BP = past.mean_BP + (pictures_BP - past.mean_BP) / count_B[:, None]
        outputs = torch.where(past.count_B[:, None] > 0, (pictures_BP + past.mean_BP) / 2, pictures_BP)
        return Forward([planes_of(each) for each in outputs], Updates({MEAN.name: Means(mean_BP, count_B)}))


def memories(num_slots: int = 4, span: Span = SPAN) -> Memories:
    options = MemoryOptions(num_slots=num_slots, height=8, width=8, dtype=torch.float64)
    return build_memories(span, Layouts(), options, (*KINDS, REGISTERED))


def engine(model: NullModel | None = None, num_slots: int = 4, max_batch: int = 8) -> Engine:
    scheduler = Scheduler(CostTable(), max_batch)
    return Engine(SPAN, model or Steadies(), memories(num_slots), scheduler, clock=lambda: 0.0)


def spec_of(name: str) -> SessionSpec:
    return SessionSpec(name, 8, 8, 1, Settings("a", 0.5, 1))


def clip(seed: int, frames: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(PIXELS, generator=generator, dtype=torch.float64) for _ in range(frames)]


def play(each: Engine, clips: dict[str, list[Tensor]], first: int = 0) -> dict[str, list[Tensor]]:
    """All frames of open sessions at once."""
    left: dict[str, dict[int, Tensor]] = {name: {} for name in clips}
    for name, frames in clips.items():
        for n, frame in enumerate(frames, first):
            each.admit(entering(name, n, frame), 0.0)
    for frame in drain(each):
        left[frame.session_id][frame.ordinal] = content(frame)
    return {name: [found[n] for n in sorted(found)] for name, found in left.items()}


def by_hand(frames: list[Tensor]) -> list[Tensor]:
    mean, pictures = torch.zeros(PIXELS, dtype=torch.float64), []
    for n, frame in enumerate(frames):
        pictures.append((frame + mean) / 2 if n else frame)
        mean = mean + (frame - mean) / (n + 1)
    return pictures


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_sessions_together_are_as_each_alone_and_as_by_hand() -> None:
    model, clips = Steadies(), {name: clip(i) for i, name in enumerate("abc")}
    together = engine(model)
    for name in clips:
        together.open(spec_of(name))
    found = play(together, clips)
    assert max(model.decoded) == 3, "rows of different sessions share a forward, those of one never"
    for name, frames in clips.items():
        alone = engine()
        alone.open(spec_of(name))
        assert equal(found[name], play(alone, {name: frames})[name])
        assert equal(found[name], by_hand(frames))


def test_a_session_that_moved_by_way_of_bytes_goes_on_as_if_it_had_not() -> None:
    here, there = engine(), engine()
    here.open(spec_of("a"))
    there.open(spec_of("in the way"))
    before = play(here, {"a": clip(0)[:3]})["a"]
    state = here.export("a")
    chunks = [decode_chunk(b"".join(encode_chunk(chunk))) for chunk in state.memory]
    there.import_(replace(state, memory=chunks))
    assert equal([*before, *play(there, {"a": clip(0)[3:]}, first=3)["a"]], by_hand(clip(0)))


def test_a_failed_forward_runs_again_without_a_trace() -> None:
    each = engine(Steadies(fails_at=2))
    each.open(spec_of("a"))
    assert equal(play(each, {"a": clip(0)})["a"], by_hand(clip(0)))


def test_a_used_slot_is_like_a_new_one_and_a_leftover_is_found() -> None:
    each = engine(num_slots=1)
    for name in "ab":
        each.open(spec_of(name))
        assert equal(play(each, {name: clip(0)})[name], by_hand(clip(0)))
        each.close(name)
        each.check_integrity()
    memory = MeanPicture(2)
    memory.means[1, 2] = 1.0
    with pytest.raises(AssertionError, match="free slot"):
        memory.check_integrity()


def test_what_is_no_export_is_refused_and_changes_nothing() -> None:
    each = memories()
    each.allocate(spec_of("a"))
    (chunk,) = each.export("a")
    for wrong in (
        {"values": {"format": 2, "count": 1}},
        {"values": {"format": 1}},
        {"tensors": ()},
        {"kind": "bank"},
    ):
        with pytest.raises(ValueError, match=r"export|shapes"):
            each.import_("a", [replace(chunk, **wrong)])
    each.check_integrity()
    assert each.bytes_per_session(spec_of("a")) == 40


def test_it_is_asked_for_where_its_operator_is_and_nowhere_else() -> None:
    assert memories().names == {"mean"}
    assert memories(span=Span.parse("first", ["encode", "denoise-0"])).names == set()
    row = next(iter(ready(engine())))
    assert row.operator.kind is OperatorKind.ENCODE
    assert row.writes == 0


def test_what_it_costs_and_what_keeps_rows_apart_reach_the_scheduler() -> None:
    each = engine()
    each.open(spec_of("a"))
    each.admit(entering("a", 0, clip(0)[0]), 0.0)
    for _ in range(2):
        each.step(0.0)
    (row,) = each._ready.queues
    assert row.operator.kind is OperatorKind.DECODE
    assert row.writes == 1
    assert row.group == (OperatorKind.DECODE, (("mean", 8),))


def ready(each: Engine) -> Iterator[Row]:
    each.open(spec_of("a"))
    each.admit(entering("a", 0, clip(0)[0]), 0.0)
    return iter(each._ready.queues)


def test_the_known_kinds_are_still_refused_where_there_are_none() -> None:
    each = memories()
    with pytest.raises(InvalidRequest, match="this service keeps no feature bank"):
        each.allocate(replace(spec_of("a"), bank=BankSettings()))
    assert each.free_slots == 4


def test_a_model_that_reads_a_memory_and_leaves_nothing_loses_its_frames(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Silence here would be a memory that stays empty for ever."""

    class Forgets(Steadies):
        def forward(self, rows: Sequence[Row], views: Views) -> Forward:
            return Forward(super().forward(rows, views).outputs)

    each = engine(Forgets())
    each.open(spec_of("a"))
    each.admit(entering("a", 0, clip(0)[0]), 0.0)
    left = [emission for _ in range(6) for emission in each.step(0.0).emissions]
    assert [emission.planes for emission in left] == [None]
    assert "leaves something to each memory" in caplog.text
