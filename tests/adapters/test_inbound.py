"""The queue between a connection and its reader: bounded, in order, honest about what it sheds."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.inbound import InboundQueue
from mesh.ports import Delivery
from schemas.limits import BROKER_GROUP_MESSAGES_MAX
from schemas.messages import Instant


def delivery(number: int, qos: int = 0, size: int = 0) -> Delivery:
    """A message that can be told from others."""
    return Delivery("a", b"%d" % number + bytes(size), qos, False, False, Instant(0, number), None)  # noqa: FBT003, fields by position


def drain(queue: InboundQueue) -> list[Delivery]:
    """All that is inside, a group at a time."""

    async def read() -> list[Delivery]:
        queue.close()
        groups = [group async for group in queue]
        assert all(0 < len(group) <= BROKER_GROUP_MESSAGES_MAX for group in groups)
        return [each for group in groups for each in group]

    return asyncio.run(read())


@given(st.lists(st.lists(st.integers(0, 1), max_size=30), max_size=20), st.integers(1, 40))
def test_read_plus_shed_is_what_came(arrivals: list[list[int]], bound: int) -> None:
    """QoS 1 is never shed, the order is kept, the newest QoS 0 survive."""
    queue, sent = InboundQueue(bound, 1 << 20, lambda: None), []
    for qualities in arrivals:
        group = [delivery(len(sent) + index, qos) for index, qos in enumerate(qualities)]
        sent.extend(group)
        queue.extend(group)
        assert queue.full == (sum(each.qos for each in sent) > bound)
    kept = drain(queue)
    shed = [each for each in sent if each not in kept]
    assert len(kept) + queue.shed == len(sent)
    assert kept == [each for each in sent if each in kept]
    assert not any(each.qos for each in shed)
    plain = [each.received.mono_ns for each in kept if not each.qos]
    assert not shed or not plain or max(s.received.mono_ns for s in shed) < min(plain)


def test_bytes_are_bounded_as_well() -> None:
    """A few large messages fill the queue as many small ones do."""
    queue = InboundQueue(1000, 10_000, lambda: None)
    queue.extend([delivery(number, 0, 3000) for number in range(10)])
    assert queue.shed == 7
    queue.extend([delivery(number, 1, 6000) for number in range(3)])
    assert queue.full
    assert not queue.overflows
    queue.extend([delivery(3, 1, 6000)])
    assert queue.overflows
    assert [each.qos for each in drain(queue)] == [1, 1, 1, 1]


def test_room_is_told_once_and_late() -> None:
    """Reading starts again when half is free, not at the first free place."""

    async def scenario() -> None:
        told: list[int] = []
        queue = InboundQueue(1500, 1 << 20, lambda: told.append(len(queue)))
        queue.extend([delivery(number, 1) for number in range(2500)])
        assert queue.full
        await anext(queue)
        assert queue.full
        await anext(queue)
        assert not queue.full
        await anext(queue)
        assert told == [452]

    asyncio.run(scenario())


def test_a_cancelled_wait_takes_nothing_and_ends_nothing() -> None:
    """A reader may wait with a deadline, and go on."""

    async def scenario() -> None:
        queue = InboundQueue(10, 1000, lambda: None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(queue)
        queue.extend([delivery(1)])
        assert [each.payload for each in await anext(queue)] == [b"1"]

    asyncio.run(scenario())
