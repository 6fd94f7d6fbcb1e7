"""Noise on the device of the rows: what is kept of it, and that it is always what `noise` draws."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from rearview.contract.settings import NoiseRule
from rearview.engine.ahead import Ahead
from rearview.engine.networks.noise import NoiseStore
from rearview.engine.networks.sampling import NoiseKey, noise
from rearview.engine.rows import Row
from support.tiny_bank import banked, make_row, video
from torch import Tensor

pytestmark = pytest.mark.unit

SHAPE = (4, 8, 8)
NBYTES = 4 * 8 * 8 * 4


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[NoiseKey]:
    """What has been drawn."""
    keys: list[NoiseKey] = []
    draw = NoiseKey.draw

    def counted(key: NoiseKey, **options: bool) -> Tensor:
        keys.append(key)
        return draw(key, **options)

    monkeypatch.setattr(NoiseKey, "draw", counted)
    return keys


def row(seed: int, ordinal: int = 0, rule: NoiseRule = NoiseRule.FIXED, session: str = "s") -> Row:
    spec = banked(session, None, seed=seed, noise_rule=rule)
    return make_row(spec, video(1)[0], ordinal)


def rows_of(
    store: NoiseStore, rows: Sequence[Row], steps: Sequence[int | None], dtype: torch.dtype = torch.float32
) -> Tensor:
    return store.rows(rows, steps, torch.zeros(len(rows), *SHAPE, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_row_gets_its_own_noise(dtype: torch.dtype) -> None:
    store = NoiseStore()
    rows = [row(seed, ordinal, rule) for rule in NoiseRule for seed in (0, 1) for ordinal in (0, 5)]
    for steps in ([0] * len(rows), [i % 3 if i % 4 else None for i in range(len(rows))]):
        for _ in range(2):  # Drawn, and as it was kept.
            found = rows_of(store, rows, steps, dtype)
            assert found.dtype is dtype
            for got, each, step in zip(found, rows, steps, strict=True):
                wanted = (
                    torch.zeros(SHAPE) if step is None else noise(each.settings, each.ordinal, step, SHAPE)
                )
                assert torch.equal(got, wanted.to(dtype))


def test_fixed_noise_is_drawn_once_for_all_sessions_and_frames(drawn: list[NoiseKey]) -> None:
    store = NoiseStore()
    for ordinal in range(5):
        rows_of(store, [row(3, ordinal), row(3, ordinal, session="t"), row(4, ordinal)], [0, 0, 1])
    assert drawn == [NoiseKey(3, None, 0, SHAPE), NoiseKey(4, None, 1, SHAPE)]


def test_noise_of_another_shape_or_type_is_another(drawn: list[NoiseKey]) -> None:
    store = NoiseStore()
    for like in (torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE).double(), torch.zeros(1, 4, 8, 16)):
        for _ in range(2):
            assert store.rows([row(3)], [0], like).shape == like.shape
    assert len(drawn) == 3


def test_fixed_noise_is_bounded_and_the_one_goes_that_was_not_used_longest(drawn: list[NoiseKey]) -> None:
    store = NoiseStore(max_bytes=3 * NBYTES)
    for seed in (1, 2, 3, 1, 4):
        rows_of(store, [row(seed)], [0])
    del drawn[:]
    rows_of(store, [row(seed) for seed in (1, 3, 4)], [0] * 3)
    assert drawn == []
    rows_of(store, [row(2)], [0])
    assert [key.seed for key in drawn] == [2]
    together = rows_of(store, [row(seed) for seed in range(10, 16)], [0] * 6)
    del drawn[:]
    rows_of(store, [row(seed) for seed in (13, 14, 15, 12)], [0] * 4)
    assert [key.seed for key in drawn] == [12]
    for got, seed in zip(together, range(10, 16), strict=True):
        assert torch.equal(got, noise(row(seed).settings, 0, 0, SHAPE))


def test_of_a_window_only_what_comes_after_it_is_drawn_ahead(drawn: list[NoiseKey]) -> None:
    work: list[object] = []

    class Asks(Ahead):
        is_on = True

        def expect(self, owner: str, place: object, what: object) -> None:
            work.append((owner, place, what))

    store = NoiseStore(Asks())
    window = [row(3, ordinal, NoiseRule.FRESH) for ordinal in range(4)]
    rows_of(store, [*window, row(3, 9, NoiseRule.FRESH, "t")], [1] * 5)
    expected = {"s": 4, "t": 10}
    assert work == [(name, ("noise", 1), NoiseKey(3, n, 1, SHAPE)) for name, n in expected.items()]
    assert [key.ordinal for key in drawn] == [0, 1, 2, 3, 9]


def test_for_a_device_all_noise_is_drawn_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    draw = NoiseKey.draw

    def noted(key: NoiseKey, *, pinned: bool = False) -> Tensor:
        seen.append(pinned)
        return draw(key)

    monkeypatch.setattr(NoiseKey, "draw", noted)
    rows_of(NoiseStore(Ahead(pinned=True)), [row(3), row(3, 0, NoiseRule.FRESH)], [0, 0])
    assert seen == [True, True]
