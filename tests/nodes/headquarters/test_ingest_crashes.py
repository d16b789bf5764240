"""The commit order of the ingest: killed anywhere, raced by another worker, one row a number."""

import asyncio
import random
from pathlib import Path

import pytest

from nodes.headquarters.archive import Archive
from schemas.messages import Lane
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import (
    CrashNow,
    Desk,
    Fuse,
    Sender,
    audit_receipts,
    identities,
    ingest,
)

_STEPS = {
    "archive": ("stage", "publish", "staged", "discard", "quarantine"),
    "ledgers": ("load", "compare_and_set"),
    "desk": ("publish", "accept", "refuse"),
}


@pytest.mark.parametrize("heir", ["main", pytest.param("other", marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_steps(*, after: bool, heir: str, tmp_path: Path) -> None:
    """For each call that the worker makes: it is killed there, and the next one goes on.

    The next one is the same worker, started again, or another one, which takes over what was
    committed and leaves alone what was only staged.
    """
    crashes = 0
    for step in range(200):
        root = tmp_path / str(step)
        ended = False

        async def main(step: int = step, root: Path = root) -> None:
            nonlocal ended
            desk, ledgers = Desk(), MemoryLedgerStore(random.Random(0))
            events, accounts = Sender(), Sender(lane=Lane.ACCOUNT)
            valve = Sender(node="valve", lane=Lane.LOGS)
            first = events.batch(3)
            groups = [
                [first, valve.batch(2)],
                [accounts.account(events, 1), first],
                [events.batch(2), valve.batch(1)],
            ]
            fuse = Fuse(step, after=after)
            life = 0

            async def attempt(*, fused: bool) -> None:
                archive = Archive(root)
                things = {"archive": archive, "ledgers": ledgers, "desk": desk}
                if fused:
                    things = {
                        name: fuse.wrap(thing, _STEPS[name]) for name, thing in things.items()
                    }
                worker = ingest(
                    *(things["desk"], things["ledgers"], things["archive"]),
                    seed=life,
                    worker="main" if fused else heir,
                )
                await worker.finish()
                for group in groups:
                    if not fused or group is not groups[0]:
                        desk.put(*group)
                    await worker.ingest(list(desk.waiting))
                    audit_receipts(desk, root)
                archive.close()

            desk.put(*groups[0])
            try:
                await attempt(fused=True)
                ended = True
            except CrashNow:
                audit_receipts(desk, root)
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
            last = Archive(root)
            assert all("-main-" in name for name in last.staged()), "the dead worker's alone"
            await ingest(desk, ledgers, last, seed=2).finish()
            assert last.staged() == []
            last.close()
            audit_receipts(desk, root)

        try:
            run(lambda _: main(), seconds_max=3600.0)
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


@pytest.mark.parametrize("seed", range(6))
def test_workers_that_race_give_each_number_one_row(seed: int, tmp_path: Path) -> None:
    """Three on one folder and one store, each offered everything; some die and come again."""

    async def main(rng: random.Random) -> None:
        ledgers = MemoryLedgerStore(rng, 0.05, loss=0.1)
        desks = {name: Desk() for name in ("one", "two", "three")}
        senders = [Sender(), Sender(lane=Lane.LOGS), Sender(node="valve")]

        async def work(name: str) -> None:
            life = 0
            while True:
                life += 1
                fuse = Fuse(rng.randint(5, 40), after=rng.random() < 0.5)
                archive = Archive(tmp_path)
                things = {"archive": archive, "ledgers": ledgers, "desk": desks[name]}
                for part in ("archive", "ledgers"):
                    things[part] = fuse.wrap(things[part], _STEPS[part])
                worker = ingest(
                    *(things["desk"], things["ledgers"], things["archive"]),
                    seed=seed * 1000 + life * 10 + len(name),
                    worker=name,
                    survey_seconds=60.0,
                )
                try:
                    await worker.run()
                except BaseExceptionGroup as died:
                    if died.subgroup(CrashNow) is None:
                        raise
                finally:
                    archive.close()
                await asyncio.sleep(rng.uniform(0, 2))

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work(name)) for name in desks]
            for _ in range(8):
                made = [sender.batch(rng.randint(1, 3)) for sender in senders]
                for desk in desks.values():
                    desk.put(*made)
                await asyncio.sleep(rng.uniform(0, 2))
            while any(desk.waiting for desk in desks.values()):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(1)
            for task in running:
                task.cancel()
        assert identities(tmp_path) == sorted(
            (sender.labels.node, str(sender.lane), n)
            for sender in senders
            for n in range(sender.next_seq)
        )
        for desk in desks.values():
            audit_receipts(desk, tmp_path)

    run(main, seed, seconds_max=36_000)


def test_what_a_dead_worker_committed_is_published_by_a_survey(tmp_path: Path) -> None:
    """Though nothing of that node ever comes again."""

    async def main() -> None:
        desk, ledgers = Desk(), MemoryLedgerStore(random.Random(0))
        archive = Archive(tmp_path)
        fused = Fuse(0, after=False).wrap(archive, ["publish"])
        with pytest.raises(CrashNow):
            await ingest(desk, ledgers, fused).ingest(desk.put(Sender().batch(2)))
        assert identities(tmp_path) == []
        desk.waiting.clear()
        other = ingest(desk, ledgers, archive, seed=1, worker="other", survey_seconds=10.0)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(other.run())
            await asyncio.sleep(30)
            running.cancel()
        assert identities(tmp_path) == [("pump", "events", 0), ("pump", "events", 1)]

    run(lambda _: main(), seconds_max=3600.0)
