"""A limit that several keep to together: who must give, who need not, and who waits."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.share import Share

pytestmark = pytest.mark.unit


class Kept:
    """Keeps things by size; from `stuck` on they must stay."""

    def __init__(self, share: Share) -> None:
        self.num_bytes, self._share = 0, share
        self.sizes: deque[int] = deque()
        self.stuck: deque[int] = deque()

    def keep(self, size: int, *, is_stuck: bool = False) -> None:
        (self.stuck if is_stuck else self.sizes).append(size)
        self._count(size)
        self._share.make_room()

    def let_go(self) -> None:
        """All that must stay need not any more, and goes."""
        while self.stuck:
            self._count(-self.stuck.popleft())

    def forget_oldest(self) -> bool:
        if not self.sizes:
            return False
        self._count(-self.sizes.popleft())
        return True

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._share.count(self, num_bytes)


def test_the_oldest_goes_of_whoever_keeps_most() -> None:
    share = Share(10)
    small, large = Kept(share), Kept(share)
    small.keep(3)
    for _ in range(7):
        large.keep(1)
    large.keep(2)
    assert (list(small.sizes), list(large.sizes)) == ([3], [1, 1, 1, 1, 1, 2])
    small.keep(4)
    assert (list(small.sizes), list(large.sizes)) == ([4], [1, 1, 1, 1, 2]), "3 of 7 to 7"


def test_what_must_stay_costs_nobody_an_even_share_and_holds_its_keeper_back() -> None:
    told: list[int] = []
    share = Share(12, lambda: told.append(share.num_bytes))
    slow, quick = Kept(share), Kept(share)
    quick.keep(6)
    slow.keep(5, is_stuck=True)
    assert not share.holds_back(slow)
    slow.keep(4, is_stuck=True)
    assert (slow.num_bytes, quick.num_bytes, share.num_bytes) == (9, 6, 15)
    assert share.holds_back(slow)
    assert not share.holds_back(quick)
    assert told == []
    slow.let_go()
    assert told, "whoever waits is told"
    assert not share.holds_back(slow)


def test_who_has_more_than_an_even_share_gives_even_if_another_that_must_keep_all_has_most() -> None:
    share = Share(12)
    slow, quick = Kept(share), Kept(share)
    slow.keep(8, is_stuck=True)
    quick.keep(4)
    quick.keep(3)
    assert list(quick.sizes) == [3]
    assert not share.holds_back(slow)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=60))
def test_no_more_is_kept_than_what_must_be_and_the_limit(moves: list[tuple[int, int, bool]]) -> None:
    share = Share(20)
    keepers = [Kept(share) for _ in range(4)]
    for which, size, is_stuck in moves:
        before = [keeper.num_bytes for keeper in keepers]
        keepers[which].keep(size, is_stuck=is_stuck)
        assert share.num_bytes == sum(keeper.num_bytes for keeper in keepers)
        for number, (keeper, had) in enumerate(zip(keepers, before, strict=True)):
            if number != which and had <= 20 / 4:
                assert keeper.num_bytes == had, "an even share is nobody else's"
        if share.num_bytes > 20:
            over = [keeper for keeper in keepers if share.holds_back(keeper)]
            assert over
            assert all(not keeper.sizes for keeper in over)
