"""Back-off in virtual time."""

from __future__ import annotations

import pytest
from rearview.client.reconnect import Attempts, Reconnect

pytestmark = pytest.mark.unit

POLICY = Reconnect(first_wait_s=0.1, max_wait_s=2.0)


def waits(attempts: Attempts, limit_s: float, retry_after_s: float | None = None) -> list[float]:
    """Fail at once after every wait, from time 100 on, until it is given up."""
    now, found = 100.0, []
    while (wait_s := attempts.wait_s(now, limit_s, retry_after_s)) is not None:
        now += wait_s
        found.append(wait_s)
    return found


def test_waits_double_up_to_the_cap_with_jitter_below() -> None:
    for number, wait_s in enumerate(waits(Attempts(POLICY), limit_s=60)):
        cap = min(2.0, 0.1 * 2**number)
        assert cap / 2 <= wait_s <= cap


def test_it_is_given_up_within_the_limit() -> None:
    found = waits(Attempts(POLICY), limit_s=10)
    assert 8 - 1e-9 <= sum(found) <= 10


def test_never_sooner_than_the_server_asks() -> None:
    assert all(wait_s >= 5 for wait_s in waits(Attempts(POLICY), limit_s=60, retry_after_s=5))


def test_a_wait_longer_than_the_limit_is_given_up_at_once() -> None:
    assert Attempts(POLICY).wait_s(0.0, 3.0, retry_after_s=5.0) is None


def test_a_good_connection_begins_the_count_and_the_time_anew() -> None:
    attempts = Attempts(POLICY)
    waits(attempts, limit_s=10)
    attempts.renew()
    wait_s = attempts.wait_s(500.0, 10, None)
    assert wait_s is not None
    assert wait_s <= 0.1


def test_clients_that_are_cut_off_together_do_not_come_back_together() -> None:
    first = {Attempts(POLICY).wait_s(0.0, 10, None) for _ in range(20)}
    assert len(first) > 1


def test_a_server_has_longer_to_show_itself_when_others_have_not_done_so_either() -> None:
    attempts, found = Attempts(Reconnect(accept_timeout_s=1.0, open_timeout_s=3.0)), []
    for number in range(8):
        found.append(attempts.accept_s)
        attempts.wait_s(float(number), 1e9, None)
    assert found == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    attempts.renew()
    assert attempts.accept_s == 1.0
