"""How a group becomes frames, and how the groups follow each other."""

import asyncio
import random
from itertools import accumulate, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.spool import commit, journal, store
from mesh.spool.commit import Entry
from schemas.limits import FRAME_BODY_BYTES_MAX, KIB, RECORDS_PER_FRAME_MAX
from schemas.messages import Lane
from simulator.disk import SimDisk
from tests.spool.world import CALM, opened, play, record

SIZES = st.lists(
    st.tuples(st.integers(0, 64 * KIB), st.integers(1, 5000)).filter(
        lambda run: run[0] * run[1] < 1 << 22
    ),
    min_size=1,
    max_size=4,
)


@given(SIZES)
@example([(200, 1000)])
@example([(0, 5000)])
@example([(0, RECORDS_PER_FRAME_MAX), (1, 1)])
@example([(128, 1024), (1, 1), (64 * KIB, 3)])
def test_frames_are_as_long_as_they_may_be(runs: list[tuple[int, int]]) -> None:
    """All records, in order, in frames within their bounds, none of which could take one more."""
    records = [bytes(size) for size, count in runs for _ in range(count)]
    size = sum(map(len, records))
    cuts = commit._cut(Entry(Lane.EVENTS, 7, records, size))
    assert [one for cut in cuts for one in cut.records] == records
    assert [cut.first for cut in cuts] == [
        7 + before for before in accumulate((len(cut.records) for cut in cuts[:-1]), initial=0)
    ]
    for cut in cuts:
        assert cut.size == sum(map(len, cut.records)) <= FRAME_BODY_BYTES_MAX
        assert 0 < len(cut.records) <= RECORDS_PER_FRAME_MAX
    for cut, after in pairwise(cuts):
        full = cut.size + len(after.records[0]) > FRAME_BODY_BYTES_MAX
        assert full or len(cut.records) == RECORDS_PER_FRAME_MAX


def test_who_goes_on_together_is_committed_together() -> None:
    """Eight that each append again once they are served: one group a round, none of fewer."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, CALM, maintain=False, close=False) as spool:

            async def produce(name: int) -> None:
                for n in range(5):
                    assert await spool.append(Lane.EVENTS, [record(f"{name} {n}")]).settled

            async with asyncio.TaskGroup() as tasks:
                for name in range(8):
                    tasks.create_task(produce(name))
        identity = store.identity(disk)
        assert identity is not None
        content = journal.read(disk, 1, identity.store, identity.epoch)
        frames = [item.header for item in content.frames if item.header.lane is Lane.EVENTS]
        assert [header.count for header in frames] == [8] * 5

    play(main)
