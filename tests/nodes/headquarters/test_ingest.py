"""The ingest: each number once, a receipt never ahead of the archive, whatever is cut where."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.ports import Arrival, Stored
from mesh.spool import batch
from mesh.spool.batch import Batch
from mesh.transfer import ledger
from nodes.headquarters import ingest as ingests
from nodes.headquarters.archive import Archive
from nodes.headquarters.ingest import ArchiveMissing, BatchSetAside, Committed, LedgerRebuilt
from schemas import wire
from schemas.errors import Conflict, LinkDown, RefusedBecause, StoreUnusable
from schemas.limits import LEDGER_SPANS_MAX
from schemas.messages import Epoch, Lane, Stage
from schemas.ranges import Ranges
from schemas.stored import PartitionLedger
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import (
    EPOCH,
    LIFE,
    Desk,
    Sender,
    Watcher,
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


def _audit_receipts(desk: Desk, root: Path) -> None:
    """No receipt speaks of what is not in the archive or explained there."""
    there = {(node, epoch, lane, seq) for node, epoch, lane, seq, *_ in rows(root)}
    for receipt in desk.receipts:
        assert receipt.stage is Stage.ARCHIVED
        for seq in receipt.held:
            assert (receipt.node, str(receipt.epoch), receipt.lane, seq) in there


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
        _audit_receipts(desk, tmp_path)

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
        full = PartitionLedger("hq", LIFE, 0, (replace(known, held=torn),))
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
    monkeypatch.setattr(ingests, "INGEST_RAW_BYTES_MAX", 500)

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
        _audit_receipts(desk, tmp_path)

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
                    raise _CrashNow
                return await ledgers.load(partition)

            compare_and_set = ledgers.compare_and_set

        archive = Archive(tmp_path)
        with pytest.raises(_CrashNow):
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
        other_root = tmp_path / "other"
        other = ingest(Desk(), ledgers, Archive(other_root), seed=5)

        class _Raced:
            def __init__(self) -> None:
                self.raced = False

            load = ledgers.load

            async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
                if not self.raced:
                    self.raced = True
                    await other.ingest(Desk().put(first))
                return await ledgers.compare_and_set(partition, version, state)

        worker = ingest(desk, _Raced(), Archive(tmp_path / "mine"))
        await worker.ingest(desk.put(first, second))
        assert identities(other_root) == [("pump", "events", 0), ("pump", "events", 1)]
        assert identities(tmp_path / "mine") == [("pump", "events", 2), ("pump", "events", 3)]
        assert desk.receipts[-1].watermark == 4
        assert Archive(tmp_path / "mine").staged() == []

    _play(main)


# --- crashes --------------------------------------------------------------------------------------


class _CrashNow(BaseException):
    """The process is gone. No error: nobody may handle it but the test."""


class _Fuse:
    """Lets so many calls through, over all that is wrapped; then the process is gone."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.left = calls
        self.after = after

    def wrap(self, thing: object, names: Sequence[str]) -> object:
        """The same thing, whose named calls count."""
        fuse = self

        class _Fused:
            def __getattr__(self, name: str) -> Callable[..., Any]:
                found: Callable[..., Any] = getattr(thing, name)
                if name not in names:
                    return found
                if asyncio.iscoroutinefunction(found):

                    async def later(*arguments: object) -> object:
                        fuse.burn(last=False)
                        outcome = await found(*arguments)
                        fuse.burn(last=True)
                        return outcome

                    return later

                def now(*arguments: object) -> object:
                    fuse.burn(last=False)
                    outcome = found(*arguments)
                    fuse.burn(last=True)
                    return outcome

                return now

        return _Fused()

    def burn(self, *, last: bool) -> None:
        """One call less."""
        if last is self.after:
            self.left -= 1
            if self.left < 0:
                raise _CrashNow


_STEPS = {
    "archive": ("stage", "publish", "staged", "discard", "quarantine"),
    "ledgers": ("load", "compare_and_set"),
    "desk": ("publish", "accept", "refuse"),
}


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_steps(*, after: bool, tmp_path: Path) -> None:
    """For each call that the worker makes: it is killed there, and the next one goes on."""
    crashes = 0
    for step in range(200):
        root = tmp_path / str(step)
        ended = False

        async def main(step: int = step, root: Path = root) -> None:
            nonlocal ended
            desk, ledgers = Desk(), _ledgers()
            events, accounts = Sender(), Sender(lane=Lane.ACCOUNT)
            valve = Sender(node="valve", lane=Lane.LOGS)
            first = events.batch(3)
            groups = [
                [first, valve.batch(2)],
                [accounts.account(events, 1), first],
                [events.batch(2), valve.batch(1)],
            ]
            fuse = _Fuse(step, after=after)
            life = 0

            async def attempt(*, fused: bool) -> None:
                archive = Archive(root)
                things = {"archive": archive, "ledgers": ledgers, "desk": desk}
                if fused:
                    things = {
                        name: fuse.wrap(thing, _STEPS[name]) for name, thing in things.items()
                    }
                worker = ingest(things["desk"], things["ledgers"], things["archive"], seed=life)
                await worker.finish()
                for group in groups:
                    if not fused or group is not groups[0]:
                        desk.put(*group)
                    await worker.ingest(list(desk.waiting))
                    _audit_receipts(desk, root)
                archive.close()

            desk.put(*groups[0])
            try:
                await attempt(fused=True)
                ended = True
            except _CrashNow:
                _audit_receipts(desk, root)
                life = 1
                await attempt(fused=False)
            assert identities(root) == [
                ("pump", "account", 0),
                *[("pump", "events", n) for n in range(5)],
                *[("valve", "logs", n) for n in range(3)],
            ]
            assert not desk.waiting
            newest = {(r.node, r.lane): r.watermark for r in desk.receipts}
            assert newest == {
                ("pump", Lane.EVENTS): 5,
                ("pump", Lane.ACCOUNT): 1,
                ("valve", Lane.LOGS): 3,
            }
            numbers: dict[str, int] = {}
            for receipt in desk.receipts:
                assert receipt.number >= numbers.get(receipt.node, 0), "receipts count up"
                numbers[receipt.node] = receipt.number
            assert not list((root / "staging").iterdir())
            _audit_receipts(desk, root)

        try:
            _play(main)
        except BaseException as error:
            error.add_note(f"killed at call {step}, {'after' if after else 'before'} it")
            raise
        if ended:
            break
        crashes += 1
    else:
        pytest.fail("the worker never came to its end")
    print(f"killed at {crashes} calls")
    assert crashes > 20


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
        _audit_receipts(desk, tmp_path)

    run(main, seed, seconds_max=36_000)


def test_arrivals_are_opened_by_their_own_words_only() -> None:
    """The header's site, node and lane are the subject's: nobody speaks in another's name."""
    made = Sender().batch(1)
    arrival = Arrival("hall", "pump", "events", made.data, redelivered=False, token=0)
    assert ingests._verify(arrival).header == made.header
    for change in ({"site": "yard"}, {"node": "valve"}, {"lane": "logs"}):
        with pytest.raises(Exception, match="foreign"):
            ingests._verify(arrival._replace(**change))  # type: ignore[arg-type]
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


def test_a_lost_archive_is_told(tmp_path: Path) -> None:
    """The ledger counts as held what the archive no longer has: once, with the file's name."""

    async def main() -> None:
        desk, watcher, sender, ledgers = Desk(), Watcher(), Sender(), _ledgers()
        await ingest(desk, ledgers, Archive(tmp_path / "a")).ingest(desk.put(sender.batch(3)))
        worker = ingest(desk, ledgers, Archive(tmp_path / "b"), watcher, seed=1)
        await worker.ingest(desk.put(sender.batch(1)))
        await worker.ingest(desk.put(sender.batch(1)))
        missing = [event for event in watcher.seen if isinstance(event, ArchiveMissing)]
        assert [(event.partition, event.held) for event in missing] == [(PARTITION, 3)]

    _play(main)
