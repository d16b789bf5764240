"""Extracts: all that is held comes out, in order; what cannot be read is named between."""

import random
from dataclasses import replace
from itertools import pairwise

from mesh.spool import batch as batches
from mesh.spool import shelf, store
from mesh.spool.frame import Owner
from mesh.spool.view.extract import Extracted, Wanted, extract
from mesh.spool.view.findings import Finding
from mesh.spool.view.sight import look
from schemas.messages import Epoch, Event, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.frames import chained
from tests.spool.world import LABELS, SMALL, opened, play, record

TURNS = 6
ALL = Wanted()
NONE = Ranges()


def _written(
    released: Ranges = NONE, *, close: bool = True, retained_bytes_max: int | None = None
) -> SimDisk:
    """Three sealed batches and three frames in journals, of two events each."""
    settings = replace(SMALL, retained_bytes_max=retained_bytes_max)
    disk = SimDisk()

    async def main(_: random.Random) -> None:
        async with opened(disk, settings, maintain=False, close=close) as spool:
            for turn in range(TURNS):
                texts = [record(f"event {2 * turn + index}") for index in range(2)]
                assert await spool.append(Lane.EVENTS, texts).settled
                if turn == TURNS // 2:
                    await spool._chores.do()
            if released:
                spool.release(Lane.EVENTS, released, "hq")
                await spool._chores.flush()
                await spool._chores._make_room()

    play(main)
    assert [path for path in disk.contents() if path.startswith("lanes/events")]
    return disk


def _extracted(
    disk: SimDisk,
    wanted: Wanted = ALL,
    *,
    running: bool = False,
) -> tuple[list[int], list[Finding]]:
    """The numbers that came, checked against what was appended, and what was found."""
    numbers: list[int] = []
    findings: list[Finding] = []
    with look(disk, lambda: None) as sight:
        again = lambda: look(disk, lambda: None)  # noqa: E731 - one call
        for item in extract(sight, Lane.EVENTS, wanted, again, running=running):
            if isinstance(item, Extracted):
                assert isinstance(item.record, Event)
                assert item.record.text == f"event {item.identity.seq}"
                assert item.identity.lane is Lane.EVENTS
                numbers.append(item.identity.seq)
            else:
                findings.append(item)
    assert all(low < high for low, high in pairwise(numbers)), "in order, each once"
    return numbers, findings


def test_all_that_is_pending_comes_in_order() -> None:
    """From batches and from journals, each number once, each with its own record."""
    assert _extracted(_written()) == (list(range(12)), [])


def test_what_was_released_comes_when_it_is_asked_for() -> None:
    """A batch of which a part was released still holds all of it."""
    disk = _written(Ranges(((3, 4), (7, 8))))
    assert _extracted(disk)[0] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert _extracted(disk, Wanted(released=True))[0] == list(range(12))


def test_numbers_narrow_it() -> None:
    """Both ends are inclusive, across the borders of batches and frames."""
    assert _extracted(_written(), Wanted(3, 8))[0] == [3, 4, 5, 6, 7, 8]
    assert _extracted(_written(), Wanted(50, 60)) == ([], [])


def test_time_narrows_it() -> None:
    """A record's own time counts: these were all made at 0."""
    assert _extracted(_written(), Wanted(since_wall_ns=1))[0] == []
    assert len(_extracted(_written(), Wanted(since_wall_ns=0))[0]) == 12


def test_damage_is_named_and_the_rest_follows() -> None:
    """Rows 8, 10: a batch that does not verify, and a frame."""
    disk = _written()
    batch = min(path for path in disk.contents() if path.startswith("lanes/events"))
    disk.flip_bit(batch, 8 * 30)
    journal = max(path for path, data in disk.contents().items() if b"event 10" in data)
    disk.flip_bit(journal, 8 * disk.contents()[journal].index(b"event 10"))
    numbers, findings = _extracted(disk)
    assert numbers == list(range(2, 10))
    assert [{str(lane): str(lost) for lane, lost in item.lost.items()} for item in findings] == [
        {"events": "0-1"},
        {"events": "10-11"},
    ]


def test_a_batch_that_is_gone_is_named_unless_it_was_released() -> None:
    """Row 24: deleted by an operator; beside a node that released it nothing is said."""
    disk = _written()
    batch = min(path for path in disk.contents() if path.startswith("lanes/events"))
    disk.unlink(batch)
    numbers, findings = _extracted(disk)
    assert numbers == list(range(2, 12))
    assert [str(finding.lost[Lane.EVENTS]) for finding in findings] == ["0-1"]

    before = _written()
    after = _written(Ranges(((0, 2),)), retained_bytes_max=0)
    assert batch not in after.contents()
    with look(before, lambda: None) as sight:
        before.unlink(batch)
        again = lambda: look(after, lambda: None)  # noqa: E731 - one call
        found = list(extract(sight, Lane.EVENTS, Wanted(), again, running=True))
    assert not [item for item in found if isinstance(item, Finding)]
    assert len(found) == 10


def test_what_an_earlier_life_left_comes_first() -> None:
    """A batch of another epoch is told under that epoch; one in a wrong place is not told."""
    disk = _written()
    identity = store.identity(disk)
    assert identity is not None
    other = Epoch(0, 5)
    _, headers, bodies = chained([2], owner=Owner(identity.store, other, bytes(16)))
    shelf.prepare(disk, Lane.EVENTS, other)
    shelf.put(disk, batches.pack(LABELS, headers, bodies))
    with look(disk, lambda: None) as sight:
        again = lambda: look(disk, lambda: None)  # noqa: E731 - one call
        found = list(extract(sight, Lane.EVENTS, ALL, again, running=False))
    told = [str(item.identity) for item in found if isinstance(item, Extracted)]
    here = identity.epoch
    assert told[:3] == [
        f"pump/{epoch}/events/{n}" for epoch, n in ((other, 0), (other, 1), (here, 0))
    ]
    path = shelf.batch_path(Lane.EVENTS, other, 0, 2)
    disk.rename(path, shelf.batch_path(Lane.EVENTS, here, 0, 2))
    assert _extracted(disk)[0] == list(range(2, 12))


def test_a_last_frame_that_is_damaged_is_named() -> None:
    """Row 8: nothing stands behind it, and yet its numbers are known to have been written."""
    disk = _written(close=False)
    journal = max(path for path, data in disk.contents().items() if b"event 11" in data)
    disk.flip_bit(journal, 8 * disk.contents()[journal].index(b"event 11"))
    numbers, findings = _extracted(disk)
    assert numbers == list(range(10))
    assert [str(finding.lost[Lane.EVENTS]) for finding in findings] == ["10-11"]
    assert _extracted(disk, running=True)[1] == []
