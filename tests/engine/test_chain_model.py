"""The chain model: deterministic in whatever company, one past per session and step, the same after moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.contract.chain import Span, chain
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.watermark import Link, Watermark, first_chain, next_chain, settings_digest
from rearview.engine.engine import Engine
from rearview.engine.memory.build import MemoryOptions, build_memories
from rearview.engine.networks.chain import ChainModel, ForwardTime
from rearview.engine.player import Clip
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import ConfigError
from support.moves import play_moving
from support.toy import player
from torch import Tensor

pytestmark = pytest.mark.unit

STEPS = 2
WHOLE = Span("fused", chain(STEPS))
CUT = [Span.parse("first", ["encode", "denoise-0"]), Span.parse("last", ["denoise-1", "decode"])]


def engine(span: Span = WHOLE, slots: int = 4) -> Engine:
    model = ChainModel()
    options = MemoryOptions(num_slots=slots, height=8, width=8, dtype=torch.float32)
    return Engine(
        span,
        model,
        build_memories(span, model.layouts, options),
        Scheduler(CostTable(), 8),
        clock=lambda: 0.0,
    )


def clip(name: str, frames: int = 6, prompt: str = "a") -> Clip:
    spec = SessionSpec(name * 32, 8, 8, STEPS, Settings(prompt, steps=STEPS))
    return Clip(spec, [{PICTURE: _bytes(f"{name}-{n}".encode())} for n in range(frames)])


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def read(frame: Frame[Tensor]) -> tuple[bytes, Watermark]:
    assert frame.planes is not None
    content, mark = Watermark.read(frame.planes[PICTURE].numpy().tobytes())
    assert mark is not None
    return content, mark


def expected(of: Clip) -> list[Watermark]:
    """What the chain must be, step by step."""
    name, digest = of.spec.session_id, settings_digest(of.spec.settings)
    chains = [first_chain(name, step) for step in range(STEPS)]
    marks = []
    for ordinal, planes in enumerate(of.frames):
        assert planes is not None
        content = planes[PICTURE].numpy().tobytes()
        chains = [next_chain(each, ordinal, digest, content) for each in chains]
        links = tuple(Link(step, ordinal + 1, each) for step, each in enumerate(chains))
        marks.append(Watermark(name, ordinal, digest, links))
    return marks


@pytest.mark.parametrize("spans", [[WHOLE], CUT], ids=["fused", "cut"])
def test_an_answer_says_whose_it_is_and_all_that_came_before(spans: Sequence[Span]) -> None:
    clips = [clip("a"), clip("b", prompt="other")]
    for name, frames in player(*(engine(span) for span in spans)).play(*clips, burst=3).items():
        (of,) = (each for each in clips if each.spec.session_id == name)
        assert [read(frame)[1] for frame in frames] == expected(of)
        assert [read(frame)[0] for frame in frames] == [
            planes[PICTURE].numpy().tobytes() for planes in of.frames if planes
        ]


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 5), cut_first=st.booleans())
def test_a_session_that_moved_gives_the_same_bytes(at: int, cut_first: bool) -> None:
    legs = [[engine(span) for span in CUT], [engine()]]
    moved = play_moving(clip("a", 8), legs if cut_first else legs[::-1], [at])
    assert [read(frame)[1] for frame in moved] == expected(clip("a", 8))


def test_a_new_session_in_a_used_slot_remembers_nothing() -> None:
    one = engine(slots=1)
    first = player(one).play(clip("a"))["a" * 32]
    one.close("a" * 32)
    one.check_integrity()
    assert [read(frame)[1] for frame in player(one).play(clip("b"))["b" * 32]] == expected(clip("b"))
    assert read(first[0])[1].links != expected(clip("b"))[0].links


@pytest.mark.parametrize(
    "values", [{}, {"chain": "00", "count": 1}, {"chain": "zz", "count": 1}, {"chain": 3}]
)
def test_a_hostile_export_is_refused(values: dict[str, object]) -> None:
    one = engine()
    one.open(clip("a").spec)
    chunks = list(one._memory.export("a" * 32))
    wrong = [
        type(chunk)(chunk.kind, chunk.step, values=values if chunk.step == 0 else chunk.values)
        for chunk in chunks
    ]
    with pytest.raises(ValueError):
        one._memory.import_("a" * 32, wrong)
    one.check_integrity()


def test_a_forward_takes_the_time_that_the_checkpoint_says() -> None:
    slept: list[float] = []
    model = ChainModel(ForwardTime.parse("chain:5+1"), slept.append)
    options = MemoryOptions(num_slots=4, height=8, width=8, dtype=torch.float32)
    one = Engine(
        WHOLE,
        model,
        build_memories(WHOLE, model.layouts, options),
        Scheduler(CostTable(), 8),
        clock=lambda: 0.0,
    )
    player(one).play(clip("a", 1), clip("b", 1))
    assert slept == [pytest.approx(0.007)] * STEPS
    assert ForwardTime.parse("chain") == ForwardTime()
    for text in ("chain:", "chain:x", "chain:-1", "chain:1+nan"):
        with pytest.raises(ConfigError):
            ForwardTime.parse(text)


@given(st.binary(max_size=200))
def test_bytes_without_a_watermark_have_none(data: bytes) -> None:
    assert Watermark.read(data) == (data, None)
    mark = Watermark("0" * 32, 3, 4, (Link(0, 1, bytes(16)),))
    assert Watermark.read(mark.behind(data)) == (data, mark)
    assert Watermark.read(mark.behind(data)[1:])[1] in (mark, None)
