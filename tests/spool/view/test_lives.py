"""Several lives of a spool, and a lost identity: all that is there is seen, counted and judged."""

import asyncio
import random

import pytest

from mesh.spool.journal import journal_path, numbers
from mesh.spool.settings import DEFAULT_LANES
from mesh.spool.spool import SpoolStatus
from mesh.spool.view.extract import Extracted, Wanted, extract
from mesh.spool.view.findings import Finding, Grade
from mesh.spool.view.outlook import outlook
from mesh.spool.view.sight import look
from mesh.spool.view.verdict import Verdict, examine
from schemas.errors import Damaged, StoreUnusable
from schemas.messages import Epoch, Event, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import CALM, opened, play, record

OTHER = b"o" * 16


def _two_lives(*, stand_still: bool = True) -> tuple[SimDisk, Epoch, SpoolStatus]:
    """Three events on the shelf and two fresh ones, one released; then one in a life after."""
    disk = SimDisk()
    said: list[SpoolStatus] = []
    first: list[Epoch] = []

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM) as spool:
            assert await spool.append(Lane.EVENTS, [record(f"old {n}") for n in range(3)]).settled
            spool._pump.rotate()
            await asyncio.sleep(1)
            assert await spool.append(Lane.EVENTS, [record("old 3"), record("old 4")]).settled
            spool.release(Lane.EVENTS, Ranges(((0, 1),)), "hq")
            await asyncio.sleep(1)
            first.append(spool.epoch)
        if not stand_still:
            return
        async with opened(disk, CALM, seed=1, machine=OTHER) as spool:
            assert await spool.append(Lane.EVENTS, [record("new 0")]).settled
            await asyncio.sleep(1)
            said.append(spool.status())

    play(main)
    return disk, first[0], said[0] if said else None  # type: ignore[return-value]


def _texts(
    disk: SimDisk, lane: Lane = Lane.EVENTS
) -> tuple[list[tuple[Epoch, str]], list[Finding]]:
    with look(disk, lambda: None) as sight:
        items = list(
            extract(sight, lane, Wanted(), lambda: look(disk, lambda: None), running=False)
        )
    texts = [
        (item.identity.epoch, item.record.text)
        for item in items
        if isinstance(item, Extracted) and isinstance(item.record, Event)
    ]
    return texts, [item for item in items if isinstance(item, Finding)]


def _check(disk: SimDisk) -> Verdict:
    before = disk.image_hash()
    verdict = examine(disk, lambda: None)
    assert disk.image_hash() == before, "a check changes nothing"
    return verdict


def _batches(disk: SimDisk, epoch: Epoch) -> list[str]:
    return sorted(path for path in disk.contents() if f"events/{epoch}/" in path)


def _spoil(disk: SimDisk, path: str) -> None:
    disk.flip_bit(path, 8 * (len(disk.contents()[path]) - 3))


def test_what_is_pending_of_an_earlier_life_is_counted_as_the_spool_counts_it() -> None:
    """Row 25: records, bytes, and which lives have something pending."""
    disk, old, said = _two_lives()
    with look(disk, lambda: None) as sight:
        seen = outlook(sight, DEFAULT_LANES)
    for lane, status in said.lanes.items():
        assert seen.lanes[lane].records == status.pending_records, lane
        assert seen.lanes[lane].bytes == status.pending_bytes, lane
    assert tuple(epoch for epoch, count in seen.epochs.items() if count) == said.epochs
    events = seen.lanes[Lane.EVENTS]
    assert (events.past[old].records, events.past[old].end) == (4, 5)
    assert events.past[old].holders == {"hq": 1}
    assert (events.present.records, events.present.end) == (1, 1)
    assert seen.used_bytes == said.used_bytes


def test_an_earlier_life_goes_first() -> None:
    """What would be given up is named with its life, the oldest life before the present one."""
    disk, old, _ = _two_lives()
    with look(disk, lambda: None) as sight:
        places = [(item.lane, item.epoch) for item in outlook(sight, DEFAULT_LANES).goes_first]
    assert places[0] == (Lane.EVENTS, old)


def test_an_earlier_life_is_exported_first_under_its_own_name() -> None:
    """Row 25: identities never change; what was released is left out."""
    disk, old, _ = _two_lives()
    texts, findings = _texts(disk)
    assert [text for _, text in texts] == ["old 1", "old 2", "old 3", "old 4", "new 0"]
    assert {epoch for epoch, _ in texts[:4]} == {old}
    assert findings == []


def test_a_hole_in_an_earlier_life_is_damage() -> None:
    """Row 24: a batch of it that is gone, or does not verify, costs exactly its numbers."""
    disk, old, _ = _two_lives()
    assert _check(disk).sound
    gone, spoiled = _batches(disk, old)
    disk.unlink(gone)
    _spoil(disk, spoiled)
    verdict = _check(disk)
    assert not verdict.sound
    damage = [finding for finding in verdict.findings if finding.grade is Grade.DAMAGE]
    assert [str(finding.lost[Lane.EVENTS]) for finding in damage] == ["1-2", "3-4"]
    texts, findings = _texts(disk)
    assert [text for _, text in texts] == ["new 0"]
    assert sorted(str(finding.lost[Lane.EVENTS]) for finding in findings) == ["1-2", "3-4"]


def test_a_life_that_nothing_names_is_seen() -> None:
    """Its batches are exported, and a check says that the node does not know of them."""
    disk, old, _ = _two_lives()
    folder = _batches(disk, old)[0].rpartition("/")[0]
    stray = str(Epoch(old.counter, old.random ^ 1))
    disk.rename(folder, folder.replace(str(old), stray))
    verdict = _check(disk)
    assert any(
        finding.grade is Grade.REMARK and "does not name" in finding.what
        for finding in verdict.findings
    )


@pytest.mark.parametrize("rotten", [True, False], ids=["rotten", "gone"])
def test_without_store_all_is_seen_that_the_next_opening_hands_on(*, rotten: bool) -> None:
    """Rows 8, 24: the newest journal says whose it is; what is exported is what the node keeps."""
    disk, old, _ = _two_lives(stand_still=False)
    if rotten:
        disk.flip_bit("STORE", 8 * 30)
    else:
        disk.unlink("STORE")
    verdict = _check(disk)
    assert not verdict.sound
    assert (verdict.findings[0].file, verdict.findings[0].grade) == ("STORE", Grade.DAMAGE)
    assert "begins a new life" in verdict.findings[0].then
    assert len(verdict.findings) == 1
    texts, findings = _texts(disk)
    assert findings == []
    assert texts == [(old, f"old {n}") for n in range(1, 5)]

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM, seed=2) as spool:
            assert spool.epochs == (old, spool.epoch)

    play(main)
    kept, findings = _texts(disk)
    assert findings == []
    assert [item for item in kept if item[0] == old] == texts


def test_where_nothing_tells_whose_it_is_that_is_the_verdict() -> None:
    """A folder without ``STORE`` and without a journal is no spool; with a rotten one, damaged."""
    disk, _, _ = _two_lives(stand_still=False)
    for number in numbers(disk):
        disk.unlink(journal_path(number))
    disk.flip_bit("STORE", 8 * 30)
    verdict = _check(disk)
    assert not verdict.sound
    assert "one by one" in verdict.findings[0].then
    with pytest.raises(Damaged, match="checksum"):
        look(disk, lambda: None)
    disk.unlink("STORE")
    with pytest.raises(StoreUnusable, match="no spool"):
        look(disk, lambda: None)
