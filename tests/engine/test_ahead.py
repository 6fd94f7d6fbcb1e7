"""What is drawn ahead is what would be drawn on the spot, whenever the thread gets to it, or never."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from rearview.contract.memories import BankSettings
from rearview.contract.settings import NoiseRule, Settings
from rearview.engine.ahead import Ahead, Draw
from rearview.engine.engine import Engine
from rearview.engine.memory.bank.merge import MergeOrders, permutation
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.noise import NoiseStore
from rearview.engine.networks.sampling import NoiseKey
from rearview.engine.scheduler import CostTable, Scheduler
from support.frames import entering
from support.tiny_bank import (
    MAX_STEPS,
    Stream,
    banked,
    denoise_span,
    play,
    tiny_bank,
    tiny_denoiser,
    video,
)
from support.toy import drain

pytestmark = pytest.mark.unit

NOISE = NoiseKey(7, 3, 1, (4, 8, 8))
DEADLINE_S = 10.0
CPU = torch.device("cpu")


class Hand(Executor):
    """One whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, lambda: fn(*args, **kwargs)))
        return future

    def do(self, count: int | None = None) -> None:
        """The oldest so many, or all."""
        count = len(self.work) if count is None else count
        doing, self.work = self.work[:count], self.work[count:]
        for future, work in doing:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except RuntimeError as error:
                    future.set_exception(error)


@dataclass(frozen=True)
class Counted:
    """A draw that counts how often it is made."""

    number: int
    made: list[int] = field(default_factory=list, compare=False)
    pinned: list[bool] = field(default_factory=list, compare=False)
    nbytes: int = 8

    def draw(self, *, pinned: bool = False) -> torch.Tensor:
        self.made.append(self.number)
        self.pinned.append(pinned)
        return torch.tensor([self.number])


def test_what_is_ready_is_taken_and_what_is_not_is_drawn_on_the_spot() -> None:
    ahead = Ahead(hand := Hand())
    one, two = Counted(1), Counted(2)
    ahead.expect("s", 0, one)
    assert torch.equal(ahead.take("s", 0, one), torch.tensor([1]))
    hand.do()
    assert ahead.take("s", 0, one) is ahead.take("s", 0, one)
    assert ahead.take("s", 0, two).tolist() == [2]
    assert ahead.take("t", 0, one).tolist() == [1]
    assert ahead.take("s", 1, one).tolist() == [1]
    assert (one.made, two.made) == ([1] * 4, [2]), "once on the thread, and all but two times on the spot"


def test_what_nobody_will_ask_for_is_not_drawn() -> None:
    ahead = Ahead(hand := Hand())
    draws = [Counted(number) for number in range(4)]
    ahead.expect("s", 0, draws[0])
    ahead.expect("s", 0, draws[0])  # It is on its way.
    ahead.expect("s", 0, draws[1])
    ahead.expect("t", 0, draws[2])
    ahead.expect("u", 0, draws[3])
    ahead.drop("t")
    hand.do()
    assert [draw.made for draw in draws] == [[], [1], [], [3]]
    assert ahead.held_bytes == 16
    ahead.drop("s")
    ahead.drop("u")
    ahead.drop("nobody")
    assert ahead.held_bytes == 0


def test_what_is_drawn_ahead_is_bounded_in_bytes() -> None:
    ahead = Ahead(hand := Hand(), max_bytes=20)
    draws = [Counted(number) for number in range(3)]
    for draw in draws:
        ahead.expect(f"s{draw.number}", 0, draw)
    hand.do()
    assert ahead.held_bytes == 16
    assert [len(draw.made) for draw in draws] == [1, 1, 0]
    ahead.drop("s0")
    ahead.expect("s2", 0, draws[2])
    hand.do()
    assert [len(draw.made) for draw in draws] == [1, 1, 1]


def test_without_a_thread_nothing_is_drawn_ahead() -> None:
    ahead = Ahead()
    ahead.expect("s", 0, NOISE)
    assert ahead.held_bytes == 0
    assert torch.equal(ahead.take("s", 0, NOISE), NOISE.draw())


def test_orders_of_a_write_are_the_permutations_of_its_layers() -> None:
    sizes = ((0, 128), (2, 32), (3, 8192), (5, 1))
    drawn = MergeOrders(11, 2, 40, sizes).draw()
    assert (drawn.dtype, drawn.nbytes) == (torch.int32, MergeOrders(11, 2, 40, sizes).nbytes)
    for (layer, size), part in zip(sizes, drawn.split([size for _, size in sizes]), strict=True):
        assert torch.equal(part.to(torch.int64), permutation(11, 2, layer, 40, size))


def test_a_draw_that_fails_on_the_thread_is_made_on_the_spot() -> None:
    class Fails(Counted):
        def draw(self, *, pinned: bool = False) -> torch.Tensor:
            if not self.made:
                self.made.append(self.number)
                raise RuntimeError("planted")
            return super().draw(pinned=pinned)

    ahead = Ahead(hand := Hand())
    ahead.expect("s", 0, what := Fails(3))
    hand.do()
    assert ahead.take("s", 0, what).tolist() == [3]
    assert what.made == [3, 3]


def test_all_that_is_drawn_for_a_device_is_pinned() -> None:
    ahead = Ahead(hand := Hand(), pinned=True)
    ahead.expect("s", 0, what := Counted(1))
    hand.do()
    ahead.take("s", 0, what)
    ahead.take("s", 1, what)
    assert what.pinned == [True, True]


def test_the_thread_ends_when_nobody_refers_to_it_any_more() -> None:
    before = set(threading.enumerate())
    ahead = Ahead(ThreadPoolExecutor(1))
    ahead.expect("s", 0, NOISE)
    (thread,) = set(threading.enumerate()) - before
    del ahead
    gc.collect()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def streams() -> list[Stream]:
    """Fresh noise, fixed noise and none between steps; banks that merge; a change of seed; lost frames."""
    banks = [BankSettings(interval=2, fusion_threshold=0.9), BankSettings(interval=1, merge_ratio=0.75), None]
    made = []
    for i in range(4):
        spec = banked(f"s{i}", banks[i % 3], steps=1 + i % 3, seed=i, noise_rule=list(NoiseRule)[(1 - i) % 3])
        changes = {3: replace(spec.settings, seed=9 + i, noise_rule=NoiseRule.FRESH)}
        made.append(Stream(spec, video(7, seed=i), changes, lost=frozenset({5} if i == 1 else ())))
    return made


class Watched(Ahead):
    """Counts what was ready when it was asked for, and what was drawn on the spot."""

    ready = late = 0

    def take(self, owner: str, place: Hashable, what: Draw) -> torch.Tensor:
        found = super().take(owner, place, what)
        coming = self._places.get(owner, {}).get(place)
        if coming is not None and coming.is_there and coming.drawn.result() is found:
            self.ready += 1
        else:
            self.late += 1
        return found


@dataclass
class Drawing:
    """An engine whose noise and permutations are drawn ahead."""

    executor: Executor | None
    ahead: Watched = field(init=False)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.ahead = Watched(self.executor)
        plain = tiny_denoiser()
        denoiser = Denoiser(
            plain.unet,
            plain.schedule,
            plain.conditioning,
            torch.float64,
            plain.bank_layout,
            NoiseStore(self.ahead),
        )
        memory = Memories([tiny_bank(6, size_frames=1.0, ahead=self.ahead)], 6, ahead=self.ahead)
        model = DiffusionModel(None, denoiser, device=CPU, dtype=torch.float64)
        self.engine = Engine(
            denoise_span(),
            model,
            memory,
            Scheduler(CostTable(), 16),
            clock=lambda: 0.0,
        )


def is_same(left: Sequence[torch.Tensor | None], right: Sequence[torch.Tensor | None]) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("pace", ["at once", "now and then", "never", "a thread"])
def test_pictures_are_the_same_whenever_the_thread_gets_to_it(pace: str) -> None:
    plain = Drawing(None)
    expected = play(plain.engine, streams(), seed=3)
    chance, hand = random.Random(1), Hand()
    drawing = Drawing(ThreadPoolExecutor(1) if pace == "a thread" else hand)

    def each_step() -> None:
        if pace == "at once":
            hand.do()
        elif pace == "now and then":
            chance.shuffle(hand.work)
            hand.do(chance.randrange(1 + len(hand.work)))

    found = play(drawing.engine, streams(), seed=3, each_step=each_step)
    for name, latents in expected.items():
        assert is_same(found[name], latents), name
    assert drawing.ahead.late > 0
    assert drawing.ahead.held_bytes == 0, "a closed session kept what was drawn for it"
    assert drawing.ahead.ready > 0 or pace in ("never", "a thread")


def test_what_was_drawn_for_another_seed_is_not_taken() -> None:
    drawing = Drawing(hand := Hand())
    spec = banked("s", None, noise_rule=NoiseRule.FRESH)
    drawing.engine.open(spec)
    other = replace(spec.settings, seed=77)
    latents = video(3)

    def admit(ordinal: int, version: int) -> int:
        drawing.engine.admit(entering("s", ordinal, latents[ordinal], version), 0.0)
        drain(drawing.engine)
        hand.do()
        return drawing.ahead.ready

    assert admit(0, 0) == 0
    held_bytes = drawing.ahead.held_bytes
    assert held_bytes > 0
    drawing.engine.update("s", 1, other)
    assert admit(1, 1) == 0, "noise of another seed"
    assert drawing.ahead.held_bytes == held_bytes, "what was drawn for the first seed went"
    assert admit(2, 1) > 0
    drawing.engine.close("s")
    assert drawing.ahead.held_bytes == 0


def test_settings_that_only_wait_for_their_frame_draw_nothing() -> None:
    drawing = Drawing(hand := Hand())
    drawing.engine.open(banked("s", None))
    drawing.engine.update("s", 1, Settings("a", 0.6, MAX_STEPS, noise_rule=NoiseRule.FRESH))
    assert hand.work == []
