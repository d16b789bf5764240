"""The ingest: each number once, a receipt never ahead of the archive, whatever is cut where."""

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.ports import Arrival, Stored
from mesh.spool import batch
from mesh.spool.batch import Batch
from mesh.transfer import ledger
from nodes.headquarters import verification
from nodes.headquarters.archive import Archive
from nodes.headquarters.credit import Room
from nodes.headquarters.ingest import (
    ArchiveMissing,
    BatchSetAside,
    Committed,
    LedgerRebuilt,
    NumbersDisputed,
)
from schemas import wire
from schemas.errors import Conflict, LinkDown, Refused, RefusedBecause, StoreUnusable
from schemas.limits import BATCH_BYTES_MAX, LEDGER_SPANS_MAX, MIB
from schemas.messages import Epoch, Lane, Severity
from schemas.ranges import Ranges
from schemas.stored import PartitionLedger
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import (
    EPOCH,
    LIFE,
    CrashNow,
    Desk,
    Sender,
    Watcher,
    audit_receipts,
    identities,
    ingest,
    rows,
)
from tests.schemas.samples import EXAMPLES

PARTITION = ledger.partition_of("hall", "pump")


def _ledgers() -> MemoryLedgerStore:
    return MemoryLedgerStore(random.Random(0))


def _play(main: Callable[[], Any], seconds_max: float = 3600.0) -> None:
    run(lambda _: main(), seconds_max=seconds_max)


async def _state(ledgers: MemoryLedgerStore) -> PartitionLedger:
    stored = await ledgers.load(PARTITION)
    return wire.decode_as(PartitionLedger, stored.state)


def test_batches_become_rows_and_receipts(tmp_path: Path) -> None:
    """In one commit for all that came together; once, though they come twice."""

    async def main() -> None:
        desk, watcher, sender = Desk(), Watcher(), Sender()
        worker = ingest(desk, _ledgers(), Archive(tmp_path), watcher)
        first, second = sender.batch(3), sender.batch(2)
        await worker.ingest(desk.put(second))
        assert [r.watermark for r in desk.receipts] == [0]
        assert desk.receipts[0].held == Ranges(((3, 5),))
        await worker.ingest(desk.put(first, second))
        assert desk.receipts[-1].watermark == 5
        assert desk.receipts[-1].number > desk.receipts[0].number
        assert (desk.receipts[-1].holder, desk.receipts[-1].life.counter) == ("hq", LIFE.counter)
        assert identities(tmp_path) == [("pump", "events", n) for n in range(5)]
        assert watcher.seen == [Committed(1, 2, 0), Committed(2, 3, 2)]
        assert not desk.waiting
        assert desk.accepted == 3
        audit_receipts(desk, tmp_path)

    _play(main)


def test_an_account_explains_what_will_never_come(tmp_path: Path) -> None:
    """The lane that it is about gets a receipt as well, though nothing came in it."""

    async def main() -> None:
        desk, ledgers = Desk(), _ledgers()
        worker = ingest(desk, ledgers, Archive(tmp_path))
        events, accounts = Sender(), Sender(lane=Lane.ACCOUNT)
        await worker.ingest(desk.put(events.batch(3)))
        events.next_seq = 10
        told = accounts.account(events, 1, void=Ranges(((3, 10),)))
        await worker.ingest(desk.put(told))
        assert {(r.lane, r.watermark) for r in desk.receipts[1:]} == {
            (Lane.ACCOUNT, 1),
            (Lane.EVENTS, 10),
        }
        found = ledger.find(await _state(ledgers), "hall", "pump", EPOCH, Lane.EVENTS)
        assert not ledger.account_line(found).missing

    _play(main)


def test_what_was_never_recorded_gets_no_receipt(tmp_path: Path) -> None:
    """Only one receipt of a lane waits for a node that is away: that of its present epoch."""

    async def main() -> None:
        desk, ledgers = Desk(), _ledgers()
        worker = ingest(desk, ledgers, Archive(tmp_path))
        lost, accounts = Sender(epoch=Epoch(1, 99)), Sender(lane=Lane.ACCOUNT)
        lost.next_seq = 7
        await worker.ingest(desk.put(accounts.account(lost, 1, shed=Ranges(((0, 7),)))))
        assert [(r.lane, r.epoch) for r in desk.receipts] == [(Lane.ACCOUNT, EPOCH)]
        found = ledger.find(await _state(ledgers), "hall", "pump", Epoch(1, 99), Lane.EVENTS)
        assert ledger.account_line(found).explained == {"shed": 7}

    _play(main)


def _forged(made: Batch) -> bytes:
    return made.data[:-1] + bytes([made.data[-1] ^ 1])


@pytest.mark.parametrize("what", ["noise", "flipped", "foreign", "chain", "name"])
def test_what_does_not_verify_is_kept_refused_and_never_receipted(
    what: str, tmp_path: Path
) -> None:
    """And what came with it is taken."""

    async def main() -> None:
        desk, watcher, ledgers = Desk(), Watcher(), _ledgers()
        worker = ingest(desk, ledgers, Archive(tmp_path), watcher)
        sender = Sender()
        first, good = sender.batch(2), sender.batch(1)
        await worker.ingest(desk.put(first))
        (bad,) = desk.put(Sender(node="valve").batch(1))
        if what == "noise":
            bad = bad._replace(payload=b"noise")
        elif what == "flipped":
            bad = bad._replace(payload=_forged(good))
        elif what == "foreign":
            bad = bad._replace(node="pump")
        elif what == "chain":
            other = Sender()
            other.batch([wire.encode(EXAMPLES["event"])])
            other.next_seq = 0
            bad = bad._replace(node="pump", payload=other.batch(2).data)
        else:
            bad = bad._replace(node="../x", payload=Sender(node="../x").batch(1).data)
        desk.waiting = [bad, *desk.put(good)[-1:]]
        await worker.ingest(list(desk.waiting))
        assert [arrival for arrival, _ in desk.refused] == [bad]
        assert identities(tmp_path) == [("pump", "events", n) for n in range(3)]
        (event,) = (event for event in watcher.seen if isinstance(event, BatchSetAside))
        kept.append((Path(event.kept_as), bad.payload))
        assert {(r.node, r.lane) for r in desk.receipts} == {("pump", Lane.EVENTS)}
        assert not desk.waiting

    kept: list[tuple[Path, bytes]] = []
    _play(main)
    assert [path.read_bytes() for path, _ in kept] == [payload for _, payload in kept]
    assert kept


def test_a_record_that_is_not_understood_blocks_nobody(tmp_path: Path) -> None:
    """Row 46: a newer node's, or one with a text that is too long; kept as it is, and receipted."""

    async def main() -> None:
        desk, sender = Desk(), Sender()
        worker = ingest(desk, _ledgers(), Archive(tmp_path))
        await worker.ingest(desk.put(sender.batch([sender.record(0), b"\x92\x63\x01"])))
        assert desk.receipts[-1].watermark == 2
        assert [row[4] for row in rows(tmp_path)] == ["event", "unknown"]

    _play(main)


def test_what_would_tear_a_ledger_apart_is_refused_for_now(tmp_path: Path) -> None:
    """No evidence against anybody: not set aside, not receipted, offered again."""

    async def main() -> None:
        desk, ledgers, sender = Desk(), _ledgers(), Sender()
        torn = Ranges(tuple((2 * n + 100, 2 * n + 101) for n in range(LEDGER_SPANS_MAX)))
        known = ledger.find(PartitionLedger("hq", LIFE), "hall", "pump", EPOCH, Lane.EVENTS)
        full = PartitionLedger("hq", LIFE, 1, (replace(known, held=torn),))
        await ledgers.compare_and_set(PARTITION, 0, wire.encode(full))
        worker = ingest(desk, ledgers, Archive(tmp_path))
        await worker.ingest(desk.put(sender.batch(2)))
        assert [refusal.reason for _, refusal in desk.refused] == [RefusedBecause.FULL]
        assert not (tmp_path / "quarantine").exists()
        assert not desk.receipts
        assert await _state(ledgers) == full

    _play(main)


def test_much_at_once_is_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records cost far more memory opened than closed; a commit opens so many bytes, no more."""
    monkeypatch.setattr(verification, "INGEST_RAW_BYTES_MAX", 500)

    async def main() -> None:
        desk, watcher, sender = Desk(), Watcher(), Sender()
        worker = ingest(desk, _ledgers(), Archive(tmp_path), watcher)
        await worker.ingest(desk.put(*[sender.batch(5) for _ in range(10)]))
        taken = [event.batches for event in watcher.seen if isinstance(event, Committed)]
        assert sum(taken) == 10
        assert max(taken) <= 3
        assert len(identities(tmp_path)) == 50

    _play(main)


def test_a_ledger_that_cannot_be_read_stops_the_worker(tmp_path: Path) -> None:
    """It would take everything anew; a person must look."""

    async def main() -> None:
        desk, ledgers = Desk(), _ledgers()
        await ledgers.compare_and_set(PARTITION, 0, b"not a ledger")
        worker = ingest(desk, ledgers, Archive(tmp_path))
        with pytest.raises(StoreUnusable, match=str(PARTITION)):
            await worker.ingest(desk.put(Sender().batch(1)))

    _play(main)


# --- outcomes that are not known ------------------------------------------------------------------


class _Late:
    """A store whose answer is lost, and whose write may take effect only later."""

    def __init__(self, when: str) -> None:
        self.real = _ledgers()
        self.when = when
        self.late: list[tuple[int, int, bytes]] = []

    async def load(self, partition: int) -> Stored:
        """The newest state."""
        return await self.real.load(partition)

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        """Now, never, or just before the next one."""
        if self.when == "done":
            self.when = ""
            await self.real.compare_and_set(partition, version, state)
            raise LinkDown("no answer")
        if self.when == "never":
            self.when = ""
            raise LinkDown("no answer")
        if self.when == "late":
            self.when = ""
            self.late.append((partition, version, state))
            raise LinkDown("no answer")
        found = await self.real.compare_and_set(partition, version, state)
        await self.land()
        return found

    async def land(self) -> None:
        """What is under way arrives."""
        late, self.late = self.late, []
        for write in late:
            with_conflict = True
            try:
                await self.real.compare_and_set(*write)
            except Conflict:
                with_conflict = False
            assert not with_conflict, "a fence stands before it"


@pytest.mark.parametrize("when", ["done", "never", "late"])
def test_a_commit_whose_outcome_is_not_known(when: str, tmp_path: Path) -> None:
    """The answer is lost: it was made, it was not, or it is still on its way."""

    async def main() -> None:
        desk, ledgers, sender = Desk(), _Late(when), Sender()
        worker = ingest(desk, ledgers, Archive(tmp_path))
        await worker.ingest(desk.put(sender.batch(3)))
        await ledgers.land()
        await worker.finish()
        assert identities(tmp_path) == [("pump", "events", n) for n in range(3)]
        assert desk.receipts[-1].watermark == 3
        assert not desk.waiting
        audit_receipts(desk, tmp_path)

    _play(main)


def test_a_commit_of_a_dead_worker_that_is_still_on_its_way(tmp_path: Path) -> None:
    """Its staged files are discarded only once it can no longer take effect."""

    async def main() -> None:
        desk, ledgers, sender = Desk(), _Late("late"), Sender()
        made = sender.batch(3)

        class _Dies:
            """The worker dies as it looks again."""

            def __init__(self) -> None:
                self.loads = 0

            async def load(self, partition: int) -> Stored:
                self.loads += 1
                if self.loads > 1:
                    raise CrashNow
                return await ledgers.load(partition)

            compare_and_set = ledgers.compare_and_set

        archive = Archive(tmp_path)
        with pytest.raises(CrashNow):
            await ingest(desk, _Dies(), archive).ingest(desk.put(made))
        assert len(archive.staged()) == 1
        next_worker = ingest(desk, ledgers, Archive(tmp_path), seed=1)
        await next_worker.finish()
        assert archive.staged() == []
        await ledgers.land()
        await next_worker.ingest(list(desk.waiting))
        assert identities(tmp_path) == [("pump", "events", n) for n in range(3)]

    _play(main)


def test_another_worker_came_first(tmp_path: Path) -> None:
    """A conflict: what it took is subtracted, the rest is staged anew."""

    async def main() -> None:
        desk, ledgers, sender = Desk(), _ledgers(), Sender()
        first, second = sender.batch(2), sender.batch(2)
        other = ingest(Desk(), ledgers, Archive(tmp_path), seed=5, worker="other")

        class _Raced:
            def __init__(self) -> None:
                self.raced = False

            load = ledgers.load

            async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
                if not self.raced:
                    self.raced = True
                    await other.ingest(Desk().put(first))
                return await ledgers.compare_and_set(partition, version, state)

        archive = Archive(tmp_path)
        worker = ingest(desk, _Raced(), archive)
        await worker.ingest(desk.put(first, second))
        assert identities(tmp_path) == [("pump", "events", n) for n in range(4)]
        assert desk.receipts[-1].watermark == 4
        assert archive.staged() == []

    _play(main)


@pytest.mark.parametrize("seed", range(4))
def test_a_store_that_loses_answers_only_delays(seed: int, tmp_path: Path) -> None:
    """Three in ten calls get no answer; run by ``run``, as at headquarters."""

    async def main(rng: random.Random) -> None:
        desk = Desk()
        ledgers = MemoryLedgerStore(rng, 0.05, loss=0.3)
        senders = [Sender(), Sender(lane=Lane.LOGS), Sender(node="valve")]
        worker = ingest(desk, ledgers, Archive(tmp_path), seed=seed)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(worker.run())
            for _ in range(12):
                desk.put(*[sender.batch(rng.randint(1, 4)) for sender in senders])
                await asyncio.sleep(rng.uniform(0, 2))
            while desk.waiting:  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(1)
            running.cancel()
        expected = sorted(
            (sender.labels.node, str(sender.lane), n)
            for sender in senders
            for n in range(sender.next_seq)
        )
        assert identities(tmp_path) == expected
        audit_receipts(desk, tmp_path)

    run(main, seed, seconds_max=36_000)


def test_arrivals_are_opened_by_their_own_words_only() -> None:
    """The header's site, node and lane are the subject's: nobody speaks in another's name."""
    made = Sender().batch(1)
    arrival = Arrival("hall", "pump", "events", made.data, redelivered=False, token=0)
    assert verification._parse(arrival).header == made.header
    for change in ({"site": "yard"}, {"node": "valve"}, {"lane": "logs"}):
        with pytest.raises(Exception, match="foreign"):
            verification._parse(arrival._replace(**change))  # type: ignore[arg-type]
    assert batch.parse(made.data).header == made.header


def test_a_lost_ledger_gives_no_record_a_second_row(tmp_path: Path) -> None:
    """The store is gone, the archive is not: what has a row is held; receipts are of a new life."""

    async def main() -> None:
        desk, watcher, sender = Desk(), Watcher(), Sender()
        first, second = sender.batch(3), sender.batch(2)
        await ingest(desk, _ledgers(), Archive(tmp_path)).ingest(desk.put(first, second))
        before = desk.receipts[-1]
        anew = ingest(desk, _ledgers(), Archive(tmp_path), watcher, seed=1)
        await anew.ingest(desk.put(second, sender.batch(1)))
        assert identities(tmp_path) == [("pump", "events", n) for n in range(6)]
        assert desk.receipts[-1].watermark == 6
        assert desk.receipts[-1].life != before.life
        assert LedgerRebuilt(PARTITION, 5) in watcher.seen

    _play(main)


def test_what_a_restored_archive_lost_is_asked_for_again(tmp_path: Path) -> None:
    """A day-old backup: told once, a life of its own, and no row twice when senders offer again."""

    async def main() -> None:
        desk, watcher, sender, ledgers = Desk(), Watcher(), Sender(), _ledgers()
        valve = Sender(node=_neighbour(), lane=Lane.LOGS)
        kept, lost, other = sender.batch(3), sender.batch(2), valve.batch(1)
        archive = Archive(tmp_path / "hq")
        await ingest(desk, ledgers, archive).ingest(desk.put(kept))
        shutil.copytree(tmp_path / "hq", tmp_path / "backup")
        await ingest(desk, ledgers, archive).ingest(desk.put(lost, other))
        before = desk.receipts[-1]
        archive.close()
        shutil.rmtree(tmp_path / "hq")
        (tmp_path / "backup").rename(tmp_path / "hq")
        desk.receipts.clear()
        worker = ingest(desk, ledgers, Archive(tmp_path / "hq"), watcher, seed=1)
        await worker.ingest(desk.put(sender.batch(1)))
        missing = [event for event in watcher.seen if isinstance(event, ArchiveMissing)]
        assert [(event.partition, event.held) for event in missing] == [(PARTITION, 6)]
        announced = {(it.node, it.watermark, it.chain_at) for it in desk.receipts[:2]}
        assert announced == {("pump", 3, 3), (valve.labels.node, 0, 0)}
        assert all(it.life != before.life for it in desk.receipts)
        await worker.ingest(desk.put(kept, lost, other))
        assert desk.receipts[-2].watermark == 6
        assert len(identities(tmp_path / "hq")) == 7 == len({*identities(tmp_path / "hq")})
        again = ingest(desk, ledgers, Archive(tmp_path / "hq"), watcher, seed=2)
        await again.ingest(desk.put(sender.batch(1)))
        assert len([event for event in watcher.seen if isinstance(event, ArchiveMissing)]) == 1
        audit_receipts(desk, tmp_path / "hq")

    _play(main)


def _neighbour() -> str:
    """Another node of the same partition."""
    names = (f"valve-{number}" for number in range(10_000))
    return next(name for name in names if ledger.partition_of("hall", name) == PARTITION)


def test_other_records_under_held_numbers_are_kept_and_told_once(tmp_path: Path) -> None:
    """An alarm that names where the second ones are; the first ones are rows."""

    async def main() -> None:
        desk, watcher, sender, twin = Desk(), Watcher(), Sender(), Sender()
        worker = ingest(desk, _ledgers(), Archive(tmp_path), watcher)
        twin.batch([wire.encode(EXAMPLES["event"])])
        await worker.ingest(desk.put(sender.batch(1)))
        other = twin.batch(2)
        for _ in range(3):
            await worker.ingest(desk.put(other))
        (alarm,) = (event for event in watcher.seen if isinstance(event, NumbersDisputed))
        assert alarm.severity is Severity.CRITICAL
        told.append((Path(alarm.kept_as), other.data))
        assert [refusal.reason for _, refusal in desk.refused] == [RefusedBecause.BAD_CHAIN] * 3
        assert identities(tmp_path) == [("pump", "events", 0)]

    told: list[tuple[Path, bytes]] = []
    _play(main)
    ((path, kept),) = told
    assert path.read_bytes() == kept


def test_a_clone_that_cuts_its_batches_elsewhere_is_found_out(tmp_path: Path) -> None:
    """Its batch passes over the number up to which headquarters knows the other's chain."""

    async def main() -> None:
        desk, watcher, sender, twin = Desk(), Watcher(), Sender(), Sender()
        worker = ingest(desk, _ledgers(), Archive(tmp_path), watcher)
        twin.batch([wire.encode(EXAMPLES["event"])])
        await worker.ingest(desk.put(sender.batch(3)))
        await worker.ingest(desk.put(twin.batch(4)))
        assert [refusal.reason for _, refusal in desk.refused] == [RefusedBecause.BAD_CHAIN]
        assert len([event for event in watcher.seen if isinstance(event, NumbersDisputed)]) == 1
        await worker.ingest(desk.put(sender.batch(2)))
        assert identities(tmp_path) == [("pump", "events", number) for number in range(5)]

    _play(main)


class _SmallStore(MemoryLedgerStore):
    """Takes states of so many bytes."""

    bytes_max = 0

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        """Refuses a larger one."""
        if len(state) > self.bytes_max:
            raise Refused(RefusedBecause.TOO_LARGE, f"{len(state)} bytes")
        return await super().compare_and_set(partition, version, state)


def test_a_ledger_that_outgrows_its_store_stops_nobody_else(tmp_path: Path) -> None:
    """What would make it larger is refused and may come again; the rest is taken."""

    async def main() -> None:
        desk, ledgers, watcher = Desk(), _SmallStore(random.Random(0)), Watcher()
        worker = ingest(desk, ledgers, Archive(tmp_path), watcher)
        sender, neighbour = Sender(), Sender(node=_neighbour())
        ledgers.bytes_max = 400
        await worker.ingest(desk.put(sender.batch(1)))
        ledgers.bytes_max = len((await ledgers.load(PARTITION)).state) + 30
        await worker.ingest(desk.put(neighbour.batch(1), sender.batch(1)))
        ((refused, refusal),) = desk.refused
        assert (refused.node, refusal.reason) == (neighbour.labels.node, RefusedBecause.FULL)
        assert not desk.waiting
        assert identities(tmp_path) == [("pump", "events", 0), ("pump", "events", 1)]
        assert await asyncio.to_thread(lambda: not Archive(tmp_path).staged())

    _play(main)


def test_receipts_grant_what_there_is_room_for(tmp_path: Path) -> None:
    """Nothing while nobody knows; a share and a time once the way in is fuller than half."""

    async def main() -> None:
        room = [Room(), Room(90, 100), Room(10 * MIB, 1 << 30)]
        desk, sender = Desk(), Sender(lane=Lane.LOGS)
        worker = ingest(desk, _ledgers(), Archive(tmp_path), room=lambda: room[0])
        for _ in range(3):
            await worker.ingest(desk.put(sender.batch(1)))
            room.pop(0)
        free, full, wide = desk.receipts
        assert (free.credit_bytes, free.not_before_ms) == (0, 0)
        assert full.credit_bytes == BATCH_BYTES_MAX
        assert full.not_before_ms > 0
        assert wide.credit_bytes > BATCH_BYTES_MAX
        assert wide.not_before_ms == 0

    _play(main)
