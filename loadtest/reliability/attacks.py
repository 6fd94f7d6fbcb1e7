"""Faults that attacks on an earlier commit, a2414e9, have found, and the tests that would find them again.

A test is named as pytest names it, without parameters; `tests/house/test_attacks.py` looks that it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ATTACKS", "Attack"]


@dataclass(frozen=True, slots=True)
class Attack:
    """What was tried, what came of it then, and who looks now."""

    tried: str
    seen: str
    tests: Sequence[str]
    """`tests/` left out."""


ATTACKS: dict[int, Attack] = {
    1: Attack(
        "ingress killed with 16 slots taken, directory in Redis",
        "no capacity for up to an hour",
        [
            "ingress/test_shared_directory.py::test_the_slots_of_an_ingress_that_died_are_free_when_its_leases_end",
            "ingress/test_shared_directory.py::test_closes_that_redis_did_not_hear_of_cost_no_more_than_a_lease_time",
        ],
    ),
    2: Attack(
        "engine thread hangs",
        "streams silent, replica never replaced",
        [
            "ingress/test_hung_is_dead.py::test_a_replica_whose_engine_hangs_is_condemned_and_ends_itself",
            "ingress/test_hung_is_dead.py::test_a_replica_that_hangs_fails_its_health_check_by_itself",
        ],
    ),
    3: Attack(
        "scale-down beside live streams",
        "live streams ended, the empty replica stayed",
        [
            "integration/test_serve_scaling.py::test_one_to_three_to_one_while_streams_run_loses_and_resets_nothing",
            "ingress/test_moves.py::test_a_drained_replica_is_left_and_no_picture_changes",
        ],
    ),
    4: Attack(
        "a tenant opens and cuts 40 times",
        "14 sessions of 2, others evicted",
        [
            "ingress/test_shared_directory.py::test_a_tenant_that_opens_and_cuts_holds_what_it_may_and_no_other_pays_for_it",
            "ingress/test_shared_directory.py::test_no_session_of_another_tenant_makes_room_when_all_slots_are_taken",
        ],
    ),
    5: Attack(
        "500 opens at 200/s when full",
        "refused after 0.9 s, a stream's p99 from 28 to 365 ms",
        [
            "ingress/test_load.py::test_a_crowd_that_cannot_be_served_asks_no_replica_and_the_directory_a_few_times",
        ],
    ),
    6: Attack(
        "Redis frozen",
        "opens unanswered for 20 s",
        [
            "ingress/test_shared_directory.py::test_opens_are_refused_soon_while_redis_is_away_and_live_streams_go_on",
            "directory/test_redis.py::test_many_calls_that_meet_a_frozen_server_all_end_in_time",
        ],
    ),
    7: Attack(
        "Redis dead",
        "opens refused late, as NO_CAPACITY",
        [
            "ingress/test_shared_directory.py::test_opens_are_refused_soon_while_redis_is_away_and_live_streams_go_on",
            "directory/test_redis.py::test_a_dead_server_is_known_and_used_again_when_it_is_back",
        ],
    ),
    8: Attack(
        "Redis answers one error",
        "leases never renewed again",
        [
            "ingress/test_shared_directory.py::test_leases_are_renewed_again_after_redis_refused_to_write",
            "directory/test_redis.py::test_a_server_that_cannot_write_is_away_until_it_is_mended",
            "ingress/test_leases.py::test_renewal_goes_on_after_an_error_that_nobody_foresaw",
        ],
    ),
    9: Attack(
        "two ingresses on one port",
        "half of the calls NOT_FOUND, quotas doubled",
        [
            "ingress/test_adoption.py::test_sessions_of_another_ingress_are_shown_listed_and_closed",
            "ingress/test_shared_directory.py::test_a_tenant_has_its_quota_once_over_all_ingresses",
        ],
    ),
    10: Attack(
        "ingress killed",
        "its sessions gone",
        [
            "ingress/test_adoption.py::test_a_session_goes_on_at_another_ingress_when_its_own_is_killed",
            "reliability/test_runs.py::test_a_run_finds_nothing_that_breaks_a_promise",
        ],
    ),
    11: Attack(
        "replica killed",
        "first good picture after 16 to 30 s",
        [
            "ingress/test_sessions_lost.py::test_sessions_of_a_lost_replica_go_on_elsewhere_behind_the_open_call",
            "ingress/test_spares.py::test_a_spare_takes_no_new_session_but_those_of_a_replica_that_is_lost",
        ],
    ),
    12: Attack(
        "GCS killed",
        "after 61 s service and `up` died",
        [
            "cli/test_watch.py::test_one_that_has_died_is_gone_after_a_few_looks",
            "cli/test_cli_up.py::test_up_starts_anew_at_its_port_when_the_gcs_has_died",
            "integration/test_ray_nodes.py::test_no_stream_notices_what_happens_to_the_gcs",
        ],
    ),
    13: Attack(
        "replica stopped for 10 s",
        "an open took 10 s",
        [
            "ingress/test_hung_is_dead.py::test_opens_while_the_only_replica_is_stopped_are_refused_soon",
            "ingress/test_hung_is_dead.py::test_a_replica_that_was_never_linked_delays_no_open_while_it_is_stopped",
        ],
    ),
    14: Attack(
        "1,500 mutated messages",
        "1,251 INTERNAL with a logged fault",
        [
            "ingress/test_door.py::test_fault_14_bytes_that_are_no_message_have_a_reason_and_leave_no_fault_in_the_log"
        ],
    ),
    15: Attack(
        "300 half-sent requests to the metrics port",
        "300 threads without a limit of time",
        [
            "ingress/test_exposition.py::test_fault_15_half_sent_requests_hold_few_threads_and_none_for_long",
            "ingress/test_exposition.py::test_without_the_token_there_are_no_metrics",
            "ingress/test_exposition.py::test_fault_15_a_service_for_everyone_shows_its_metrics_to_this_machine_unless_told_otherwise",
        ],
    ),
    16: Attack(
        "5,000 health watches, 2,000 silent connections, reflection",
        "all held, all told",
        [
            "ingress/test_door.py::test_fault_16_health_watches_of_an_address_are_bounded_and_come_back",
            "ingress/test_door.py::test_fault_16_connections_are_bounded",
            "ingress/test_door.py::test_fault_16_a_connection_that_says_nothing_is_closed",
            "ingress/test_server.py::test_there_is_no_reflection_unless_it_is_asked_for",
        ],
    ),
    17: Attack(
        "client frozen",
        "slot held for 70 s",
        ["ingress/test_frozen_client.py::test_fault_17_a_frozen_client_gives_its_slot_back_and_may_go_on"],
    ),
    18: Attack(
        "`up` killed",
        "two agents and two folders left",
        [
            "cli/test_leftovers.py::test_what_a_killed_owner_has_left_is_removed_with_its_processes_by_the_next_start"
        ],
    ),
    19: Attack(
        "`up` started 12 times on a busy machine",
        "6 failed",
        ["cli/test_leftovers.py::test_a_failed_start_of_ray_is_tried_once_more_and_the_reason_is_shown"],
    ),
    20: Attack(
        "tenants file changed",
        "read once at start",
        [
            "ingress/test_credentials.py::test_fault_20_a_tenant_that_is_taken_out_loses_its_streams_and_sessions"
        ],
    ),
    21: Attack(
        "message over the limit",
        "refused without a reason",
        ["ingress/test_door.py::test_fault_21_a_message_over_the_limit_is_answered_with_reason_and_limit"],
    ),
    22: Attack(
        "open slower than the idle limit",
        "ended IDLE at once",
        [
            "ingress/test_door.py::test_fault_22_an_open_that_takes_longer_than_silence_may_is_no_silence",
            "ingress/test_idle.py::test_an_open_slower_than_the_idle_limit_does_not_count_as_silence",
        ],
    ),
    23: Attack(
        "one NaN among the weights",
        "READY, and every picture grey",
        [
            "engine/test_not_finite.py::test_weights_that_are_not_finite_are_refused_by_name",
            "engine/test_not_finite.py::test_networks_that_break_while_they_serve_give_no_picture",
        ],
    ),
    24: Attack(
        "a bank driven by gather and scatter alone",
        "empty for ever",
        [
            "engine/memory/test_feature_bank_writes.py::test_fault_24_gather_and_scatter_alone_write_when_a_write_is_due"
        ],
    ),
}
"""By number, as they were found."""
