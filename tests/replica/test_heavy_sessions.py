"""Sessions with megabytes of past: pulled slowly, cut off on the way, and beside the frames of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
import torch
from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.memory_plan import Budget, MemoryPlan
from rearview.contract.session import SessionSpec
from rearview.engine.engine import Engine
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.export import NO_STEP, Chunk
from rearview.engine.memory.protocol import Kind, Memory, Write
from rearview.engine.memory.slots import SlotPool
from rearview.engine.networks.model import NullModel
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import Reason, Refused
from rearview.replica import stage, transfers
from rearview.replica.build import OnPlanned
from rearview.replica.stage import Stage
from rearview.replica.state import StateReader
from rearview.transport.bulk import PART_BYTES, pull
from rearview.transport.wire import Kind as Message
from support.owner import Owner, driven, engine_holds, spec
from support.raw_stream import eventually
from torch import Tensor

pytestmark = pytest.mark.integration

LAYERS = ("a", "b", "c")
LAYER_BYTES = 8 << 20


class Ballast(Memory[None, None]):  # type: ignore[type-var]
    """A past of 24 MiB that no picture depends on."""

    kind = Kind("ballast")
    operators = frozenset({OperatorKind.DENOISE})

    def __init__(self, num_slots: int) -> None:
        self._slots = SlotPool(num_slots)
        self.pasts: dict[str, dict[str, Tensor]] = {}

    def allocate(self, session: SessionSpec) -> None:
        self._slots.allocate(session.session_id)
        torch.manual_seed(int(session.session_id[:8], 16))
        self.pasts[session.session_id] = {
            layer: torch.randint(0, 256, (LAYER_BYTES,), dtype=torch.uint8) for layer in LAYERS
        }

    def free(self, session_id: str) -> None:
        self._slots.free(session_id)
        self.pasts.pop(session_id, None)

    def reset(self, session_id: str) -> None:
        raise AssertionError("no row runs here")

    def group(self, session: SessionSpec, operator: object) -> None:
        return None

    def gather(self, rows: Sequence[Row]) -> None:
        return None

    def prepare(self, rows: Sequence[Row], update: object) -> Write:
        raise AssertionError("no row runs here")

    def export(self, session_id: str) -> Iterator[Chunk]:
        yield Chunk("ballast")
        for layer, past in self.pasts[session_id].items():
            yield Chunk("ballast", 0, layer, {}, (past.clone(),))

    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        found = {chunk.layer: chunk.tensors[0] for chunk in chunks if chunk.step != NO_STEP}

        def write() -> None:
            self.pasts[session_id] = found

        return write

    def bytes_per_session(self, session: SessionSpec) -> int:
        return len(LAYERS) * LAYER_BYTES

    @property
    def free_slots(self) -> int:
        return self._slots.free_slots

    def check_integrity(self) -> None:
        self._slots.check_integrity()


@pytest.fixture(autouse=True)
def every_engine_is_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(
        config: ServiceConfig, span: SpanConfig, on_progress: object, on_planned: OnPlanned, on_built: object
    ) -> Engine:
        slots = span.fixed_slots
        assert slots is not None
        memory = Memories([Ballast(slots)], slots)
        on_planned(MemoryPlan(span.name, Budget("here", 0, 0), (), {}, slots))
        whole = Span.parse(span.name, span.operators)
        return Engine(whole, NullModel(), memory, Scheduler(CostTable(), 16))

    monkeypatch.setattr(stage, "build_engine", build)


async def past_of(replica: Stage, session: SessionSpec) -> dict[str, Tensor]:
    def look(engine: Engine) -> dict[str, Tensor]:
        chunks = engine._memory.export(session.session_id)
        return {chunk.layer: chunk.tensors[0] for chunk in chunks if chunk.tensors}

    assert replica._runner is not None
    return await replica._runner.call(look)


@asynccontextmanager
async def frozen(slots: int = 2) -> AsyncIterator[tuple[Stage, Owner, Owner, SessionSpec]]:
    """A session at a replica that is about to leave it, its owner, and somebody else."""
    async with driven(slots=slots, owners=2) as (here, (owner, other)):
        session = spec()
        assert await owner.open(session) is None
        assert await owner.freeze(session) == -1
        yield here, owner, other, session


def unsent(replica: Stage) -> int:
    """Bytes that its peers have not read, of the worst of them."""
    return max(link._writer.transport.get_write_buffer_size() for link in replica._server._links)


async def test_a_slow_reader_holds_up_neither_memory_nor_the_frames_of_others() -> None:
    async with frozen() as (here, owner, _, session), driven() as (there, (mover,)):
        beside = spec()
        assert await owner.open(beside) is None
        request = {"session_id": session.session_id, "epoch": 1}
        reader = StateReader(transfers_of(here)._origin)
        async with aclosing(pull(owner.config.link, "node", here.describe()["address"], request)) as parts:
            worst = 0
            async for part in parts:
                assert len(part) <= PART_BYTES
                reader.feed(part)
                sent = len(owner.frames)
                owner.send(beside, sent)
                await eventually(lambda sent=sent: len(owner.frames) == sent + 1)
                worst = max(worst, unsent(here))
        assert len(owner.frames) >= 24
        assert 0 < worst <= 2 * PART_BYTES
        (kept,) = reader.states()
        past = await past_of(here, session)
        assert all(torch.equal(chunk.tensors[0], past[chunk.layer]) for chunk in kept.session.memory[1:])
        assert await mover.open(session, 2, begins=owner.sources(session)) is None
        found = await past_of(there, session)
        assert found.keys() == past.keys()
        assert all(torch.equal(found[layer], past[layer]) for layer in LAYERS)


async def test_a_newer_owner_ends_a_pull_that_is_under_way() -> None:
    async with frozen() as (here, owner, other, session):
        request = {"session_id": session.session_id, "epoch": 1}
        parts = pull(owner.config.link, "node", here.describe()["address"], request)
        async with aclosing(parts):
            await anext(parts)
            assert "reason" not in await other.attach(session, epoch=2)
            with pytest.raises(Refused) as caught:
                async for _ in parts:
                    pass
        assert caught.value.reason is Reason.TAKEN_OVER


@pytest.mark.parametrize("event", ["the source dies", "the session ends there", "its owner leaves"])
async def test_an_open_that_is_cut_off_while_it_pulls_holds_nothing(
    event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first of 24 parts."""
    happened: list[asyncio.Task[None]] = []
    take = StateReader.feed

    async def happens() -> None:
        if event == "the source dies":
            await here.stop()
        elif event == "the session ends there":
            owner.close(session)
        else:
            await mover.stop()

    def feed(reader: StateReader, part: bytes) -> None:
        if not happened:
            happened.append(asyncio.create_task(happens()))
        take(reader, part)

    async with frozen() as (here, owner, _, session), driven(slots=1, owners=2) as (there, (mover, next_)):
        monkeypatch.setattr(transfers.StateReader, "feed", feed)
        opening = asyncio.create_task(mover.open(session, 2, begins=owner.sources(session)))
        await eventually(lambda: bool(happened))
        await happened[0]
        if event == "its owner leaves":
            with pytest.raises(ConnectionError):
                await opening
        else:
            reasons = {"the source dies": "REPLICA_LOST", "the session ends there": "SESSION_UNKNOWN"}
            assert await opening == reasons[event]
        await eventually(lambda: there.num_sessions == 0)
        assert await engine_holds(there) == 0
        assert await next_.open(spec()) is None


async def test_a_reader_that_leaves_costs_the_source_nothing() -> None:
    async with frozen() as (here, owner, _, session):
        request = {"session_id": session.session_id, "epoch": 1}
        for _ in range(3):
            parts = pull(owner.config.link, "node", here.describe()["address"], request)
            async with aclosing(parts):
                await anext(parts)
        await eventually(lambda: not here._requests._tasks and len(here._server._links) == 2)
        owner.link.send(Message.THAW, b'{"session_id": "", "epoch": 1}')
        owner.thaw(session)
        owner.send(session, 0)
        await eventually(lambda: owner.ordinals == [0])


def transfers_of(replica: Stage) -> transfers.Transfers:
    return replica._transfers
