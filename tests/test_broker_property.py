"""The broker's state machine under random operations: nothing lost, leased twice or out of order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.broker.leases import Consumer
from streaming.broker.subscription import Policy
from tests.subscription_bench import SECOND, Bench

OPERATION = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 4), st.integers(0, 2)),
    st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 5)),
    st.tuples(st.just("ack"), st.integers(0, 11), st.integers(1, 3)),
    st.tuples(st.just("nack"), st.integers(0, 11), st.integers(1, 2)),
    st.tuples(st.just("extend"), st.integers(0, 11), st.integers(1, 30)),
    st.tuples(st.just("pass"), st.integers(1, 12), st.just(0)),
    st.tuples(st.just("reconnect"), st.integers(0, 2), st.just(0)),
)


@settings(max_examples=500)
@given(
    st.lists(OPERATION, max_size=60),
    st.booleans(),
    st.sampled_from([(0, 0), (3 * SECOND, 20 * SECOND)]),
    st.integers(0, 4),
)
def test_nothing_is_lost_leased_twice_or_out_of_order(
    operations: list[tuple[str, int, int]], ordered: bool, backoff: tuple[int, int], most: int
) -> None:
    """Any sequence of events, then draining: every message is acknowledged once, and each rule holds on the way."""
    bench = Bench(Policy(ordered=ordered, min_backoff_us=backoff[0], max_backoff_us=backoff[1]))
    consumers = [bench.consumer(lease_s=10, max_messages=most) for _ in range(3)]
    keys: dict[int, str] = {}
    held: dict[int, tuple[str, Consumer, int]] = {}  # message -> ack id, holder, deadline
    early: dict[int, Consumer] = {}  # acknowledged, but an earlier one of the key is not
    acked: set[int] = set()
    ack_ids: dict[int, str] = {}

    def end_late() -> None:
        for one in [one for one, (_, _, deadline) in held.items() if deadline <= bench.now_us]:
            give_back(one)

    def give_back(one: int) -> None:
        key = keys[one]
        gone = [other for other in keys if ordered and key and keys[other] == key and other >= one] or [one]
        for other in gone:
            held.pop(other, None)
            early.pop(other, None)

    def acknowledge(some: list[int]) -> None:
        early.update({one: held.pop(one)[1] for one in some})
        ids = [ack_ids[one] for one in some]
        done = [one for one in early if not (ordered and keys[one]) or not earlier_open(one)]
        assert sorted(bench.ack(ids)) == sorted(done)
        acked.update(done)
        for one in done:
            del early[one]

    def earlier_open(one: int) -> bool:
        """Whether an earlier message of its key is neither done with nor acknowledged before its turn."""
        return any(keys[other] == keys[one] and other < one and other not in acked | early.keys() for other in keys)

    def take(consumer: Consumer, limit: int) -> None:
        taken = bench.take(consumer, limit)
        assert len(taken) <= limit
        for one, ack_id in taken.items():
            assert one not in held, "leased twice"
            assert one not in acked | early.keys(), "came after it was done with"
            if ordered and keys[one]:
                for earlier in (other for other in keys if keys[other] == keys[one] and other < one):
                    assert earlier in acked or earlier in early or held[earlier][1] is consumer, "out of order"
            held[one] = (ack_id, consumer, bench.now_us + consumer.lease_us)
            ack_ids[one] = ack_id
        assert not most or sum(holder is consumer for _, holder, _ in held.values()) <= most

    for name, first, second in operations:
        some = list(held)[first : first + second]
        if name == "publish":
            key = ("", "a", "b")[second]
            keys.update(dict.fromkeys(bench.publish(first, key), key))
        elif name == "take":
            take(consumers[first], second)
        elif name == "ack":
            acknowledge(some)
        elif name == "nack":
            bench.queue.modify([held[one][0] for one in some], [0] * len(some), bench.now_us)
            for one in some:
                if one in held:
                    give_back(one)
        elif name == "extend":
            chosen = list(held)[first : first + 1]
            bench.queue.modify([held[one][0] for one in chosen], [second] * len(chosen), bench.now_us)
            for one in chosen:
                held[one] = (*held[one][:2], bench.now_us + second * SECOND)
        elif name == "pass":
            bench.pass_s(first)
            end_late()
        else:
            consumers[first] = bench.consumer(lease_s=10, max_messages=most)
        assert bench.queue.counts() == {"unacknowledged": len(keys) - len(acked), "leased": len(held)}

    for _ in range(200):
        if len(acked) == len(keys):
            break
        bench.pass_s(30)
        end_late()
        take(consumers[0], 1000)
        acknowledge([one for one in held if held[one][1] is consumers[0]])
    assert acked == set(keys), "lost"
    assert bench.queue.unacknowledged() == []
    assert bench.queue._keys.parked == 0
    assert bench.queue._keys._keys == {}
