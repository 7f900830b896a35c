"""The broker's state machine under an injected clock: leases, redelivery, ordering keys, flow control."""

from __future__ import annotations

import pytest

from streaming.broker.errors import RefusedError
from streaming.broker.subscription import LeaseOverError, Policy
from tests.subscription_bench import SECOND, Bench


def test_delivers_in_order_and_only_once_while_leased() -> None:
    bench = Bench()
    bench.publish(3)
    bench.publish(2)
    one, other = bench.consumer(), bench.consumer()
    assert list(bench.take(one, 4)) == [100, 101, 102, 103]
    assert list(bench.take(other)) == [104]
    assert bench.take(one) == {}
    assert bench.queue.counts() == {"unacknowledged": 5, "leased": 5}


def test_a_lease_that_is_over_brings_the_message_back_and_an_acknowledged_one_stays_away() -> None:
    #   0 s        10 s
    #   |--lease---|            100 acknowledged, 101 not
    #              ^ 101 again
    bench = Bench()
    bench.publish(2)
    consumer = bench.consumer(lease_s=10)
    held = bench.take(consumer)
    assert bench.ack([held[100]]) == [100]
    bench.pass_s(9.999)
    assert bench.take(consumer) == {}
    assert bench.queue.next_us() == 10 * SECOND
    bench.pass_s(0.001)
    again = bench.take(consumer)
    assert list(again) == [101]
    assert again[101] != held[101]


def test_without_acknowledgement_a_message_comes_once_per_deadline() -> None:
    """Deadline 2 s, 5 s: at 0, 2 and 4."""
    bench = Bench()
    bench.publish(10)
    consumer, times = bench.consumer(lease_s=2), []
    for _ in range(50):
        times += list(bench.take(consumer))
        bench.pass_s(0.1)
    assert sorted(times) == sorted([*range(100, 110)] * 3)


def test_a_step_of_the_wall_clock_ends_no_lease() -> None:
    bench = Bench()
    bench.publish()
    assert len(bench.take(bench.consumer(lease_s=10))) == 1
    for hours in (-1, 2, -1):
        bench.wall_us += hours * 3600 * SECOND
        bench.pass_s(3)
        assert bench.take(bench.consumer()) == {}
    bench.pass_s(1)
    assert len(bench.take(bench.consumer())) == 1


def test_extending_moves_the_deadline_and_zero_gives_back_at_once() -> None:
    bench = Bench()
    bench.publish(2)
    consumer = bench.consumer(lease_s=10)
    held = bench.take(consumer)
    bench.queue.modify([held[100]], [60], bench.now_us)
    bench.queue.modify([held[101]], [0], bench.now_us)
    assert list(bench.take(consumer)) == [101]
    bench.pass_s(59)
    assert list(bench.take(consumer)) == [101]
    bench.pass_s(1)
    assert list(bench.take(consumer)) == [100]


def test_a_late_acknowledgement_still_counts_without_exactly_once() -> None:
    bench = Bench()
    bench.publish(2)
    consumer = bench.consumer()
    held = bench.take(consumer)
    bench.pass_s(10)
    assert bench.ack([held[100]]) == [100]  # waits to be delivered again
    assert list(bench.take(consumer)) == [101]
    assert bench.ack([held[101]]) == [101]  # leased again meanwhile
    assert bench.queue.counts() == {"unacknowledged": 0, "leased": 0}
    assert bench.ack([held[101]]) == []


def test_exactly_once_takes_only_the_latest_ack_id() -> None:
    bench = Bench(Policy(exactly_once=True))
    bench.publish(2)
    consumer = bench.consumer()
    old = bench.take(consumer)
    bench.pass_s(10)
    new = bench.take(consumer)
    with pytest.raises(LeaseOverError, match="have expired") as caught:
        bench.ack([old[100], new[101]])
    assert caught.value.metadata == {old[100]: "PERMANENT_FAILURE_INVALID_ACK_ID"}
    assert bench.open() == [100]
    with pytest.raises(LeaseOverError):
        bench.queue.modify([old[100]], [0], bench.now_us)
    bench.queue.modify([new[100]], [20], bench.now_us)
    assert bench.ack([new[100]]) == [100]


def test_a_nack_with_an_old_ack_id_does_not_take_the_message_from_its_new_holder() -> None:
    bench = Bench()
    bench.publish()
    old = bench.take(bench.consumer())
    bench.pass_s(10)
    holder = bench.consumer()
    assert list(bench.take(holder)) == [100]
    bench.queue.modify([old[100]], [0], bench.now_us)
    assert bench.take(bench.consumer()) == {}


@pytest.mark.parametrize("ack_id", ["", "x", "7-100", "7-a-1", "7-100-1-1"])
def test_malformed_ack_ids_are_refused(ack_id: str) -> None:
    bench = Bench()
    bench.publish()
    held = bench.take(bench.consumer())
    with pytest.raises(RefusedError, match="invalid ack ID") as caught:
        bench.ack([held[100], ack_id])
    assert caught.value.code == "INVALID_ARGUMENT"
    assert bench.queue.counts()["unacknowledged"] == 1


def test_ack_ids_of_another_subscription_mean_nothing() -> None:
    bench = Bench()
    bench.publish()
    bench.take(bench.consumer())
    assert bench.ack(["8-100-1"]) == []


def test_flow_control_counts_what_is_held_and_lets_one_large_message_through() -> None:
    bench = Bench()
    bench.publish(5)
    consumer = bench.consumer(max_messages=2)
    held = bench.take(consumer)
    assert list(held) == [100, 101]
    assert bench.take(consumer) == {}
    woken = bench.woken
    bench.ack([held[100]])
    assert bench.woken > woken
    assert list(bench.take(consumer)) == [102]

    bench = Bench()
    bench.publish(3, field=b"x" * 100)
    small = bench.consumer(max_bytes=50)
    held = bench.take(small)
    assert list(held) == [100]
    bench.queue.modify([held[100]], [0], bench.now_us)
    assert list(bench.take(small)) == [100]


def test_what_is_leased_is_bounded_whatever_consumers_ask_for() -> None:
    bench = Bench()
    field = b"\x12" + b"x" * 3_000_000
    for _ in range(100):
        bench.publish(field=field)
    consumer = bench.consumer()
    held: dict[int, str] = {}
    while taken := bench.take(consumer):
        held.update(taken)
    assert len(held) == 90  # 256 MB, and what the last one is beyond it
    bench.queue.acknowledge(list(held.values())[:20])
    while taken := bench.take(consumer):
        held.update(taken)
    assert len(held) == 100


def test_a_response_stays_below_what_clients_receive() -> None:
    bench = Bench()
    bench.publish(5, field=b"x" * 1_000_000)
    assert list(bench.take(bench.consumer())) == [100, 101, 102, 103]


def test_retry_policy_delays_what_was_given_back_longer_each_time() -> None:
    bench = Bench(Policy(min_backoff_us=10 * SECOND, max_backoff_us=30 * SECOND))
    bench.publish()
    consumer = bench.consumer(lease_s=600)
    for wait_s in (10, 20, 30, 30):
        held = bench.take(consumer)
        bench.queue.modify([held[100]], [0], bench.now_us)
        bench.pass_s(wait_s - 0.001)
        assert bench.take(consumer) == {}
        bench.pass_s(0.001)


def test_dead_letters_after_the_last_attempt() -> None:
    bench = Bench(Policy(max_attempts=5))
    bench.publish(2)
    consumer = bench.consumer()
    for _ in range(5):
        assert bench.letters == []
        bench.ack([bench.take(consumer).get(101, "7-1-1")])
        bench.pass_s(10)
    assert bench.letters == [100]
    assert bench.take(consumer) == {}
    assert bench.queue.counts()["unacknowledged"] == 0


def test_retention_drops_old_messages_from_backlog_and_returned() -> None:
    bench = Bench(Policy(retention_us=600 * SECOND))
    bench.publish(2)
    consumer = bench.consumer(lease_s=10)
    assert list(bench.take(consumer, 1)) == [100]
    bench.pass_s(300)
    bench.publish()
    bench.pass_s(301)
    assert list(bench.take(consumer)) == [102]
    assert bench.queue.counts()["unacknowledged"] == 1


def test_one_key_stays_with_one_consumer_until_it_holds_nothing_of_it() -> None:
    bench = Bench(Policy(ordered=True))
    bench.publish(2, "a")
    bench.publish(1, "b")
    bench.publish(1, "a")
    bench.publish(1)
    one, other = bench.consumer(), bench.consumer()
    held = bench.take(one, 2)
    assert list(held) == [100, 101]
    assert list(bench.take(other)) == [102, 104]  # key b and the one without a key; 103 waits for key a
    bench.ack([held[100]])
    assert bench.take(other) == {}
    bench.ack([held[101]])
    assert list(bench.take(other)) == [103]


def test_redelivery_of_a_key_takes_back_what_followed() -> None:
    bench = Bench(Policy(ordered=True))
    bench.publish(4, "a")
    one, other = bench.consumer(), bench.consumer()
    held = bench.take(one)
    bench.queue.modify([held[101]], [0], bench.now_us)
    assert bench.take(other) == {}  # 100 is still with the first consumer
    assert bench.ack([held[102], held[103]]) == []  # taken back: too late
    again = bench.take(one)
    assert list(again) == [101, 102, 103]
    assert bench.ack([held[100], *again.values()]) == [100, 101, 102, 103]
    assert bench.queue.counts()["unacknowledged"] == 0


def test_redelivery_of_a_key_brings_even_what_was_acknowledged_before_its_turn() -> None:
    bench = Bench(Policy(ordered=True))
    bench.publish(4, "a")
    consumer = bench.consumer(lease_s=10, max_messages=4)
    held = bench.take(consumer)
    assert bench.ack([held[102], held[101], held[102]]) == []
    assert consumer.held == 2
    assert bench.ack([held[100]]) == [100, 101, 102]
    bench.publish(1, "a")
    held |= bench.take(consumer)
    assert bench.ack([held[104]]) == []
    bench.pass_s(10)  # 103 was not acknowledged in time
    assert list(bench.take(consumer)) == [103, 104]


def test_retry_policy_delays_the_whole_key() -> None:
    bench = Bench(Policy(ordered=True, min_backoff_us=5 * SECOND, max_backoff_us=60 * SECOND))
    bench.publish(2, "a")
    consumer = bench.consumer(lease_s=100)
    held = bench.take(consumer)
    bench.queue.modify([held[100]], [0], bench.now_us)
    bench.publish(1, "a")
    bench.pass_s(4)
    assert bench.take(consumer) == {}
    bench.pass_s(1)
    assert list(bench.take(consumer)) == [100, 101, 102]


def test_acknowledgements_from_before_a_restart_count_while_the_message_is_still_in_the_backlog() -> None:
    bench = Bench()
    bench.publish(3)
    assert bench.ack(["7-101-1"]) == [101]
    assert bench.queue.unacknowledged()[0][1] == [100, 102]
    assert list(bench.take(bench.consumer())) == [100, 102]
    assert bench.queue.counts()["unacknowledged"] == 2
    bench.publish(3)
    bench.queue.acknowledge(["7-99-1", "7-105-3", "7-106-1", "9-104-1"])  # before, inside, behind, of another
    assert list(bench.take(bench.consumer())) == [103, 104]


def test_progress_tells_what_is_left_of_the_batches_that_changed() -> None:
    bench = Bench()
    bench.publish(3)
    bench.publish(2)
    bench.publish(1)
    held = bench.take(bench.consumer(), 4)
    bench.queue.acknowledge([held[101], held[103]])
    assert [(list(batch.ids), left, done) for batch, left, done in bench.queue.progress()] == [
        ([100, 101, 102], [100, 102], False),
        ([103, 104], [104], False),
    ]
    assert bench.queue.progress() == []
    bench.queue.acknowledge([held[100], held[102]])
    assert [(left, done) for _, left, done in bench.queue.progress()] == [([], True)]
    bench.queue.acknowledge(["7-105-1"])  # still in the backlog
    assert [(left, done) for _, left, done in bench.queue.progress()] == [([], False)]


def test_groups_that_are_acknowledged_leave_nothing_behind() -> None:
    bench = Bench()
    consumer = bench.consumer(lease_s=600)
    for _ in range(10_000):
        bench.publish()
        bench.queue.acknowledge(bench.take(consumer).values())
    assert bench.queue.unacknowledged() == []
    assert len(bench.queue._leases._heap) < 5000  # the only trace of a delivery until its deadline
