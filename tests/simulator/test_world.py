"""The simulated world: it finds what is planted, it replays, and its scenarios hold."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.transfer import ledger
from mesh.transfer.ledger import Taken
from mesh.transfer.source import Life
from nodes.forwarding.sender import Sender
from nodes.headquarters.ingest import Ingest
from schemas.messages import BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.stored import LaneLedger
from simulator.world.archive import SimArchive
from simulator.world.edge import LANES
from simulator.world.faults import Fault, Shape, schedule
from simulator.world.gateway import CustodyGateway, GatewayParts
from simulator.world.run import play, stage
from simulator.world.scenarios import SCENARIOS
from simulator.world.survey import Played, Total, survey
from simulator.world.world import Outcome, Program, World

ROOT = Path(__file__).parents[2]
WORKERS = ("worker1", "worker2")


async def _hold_up(world: World, rng: random.Random) -> None:
    """Workers are held up while parts wait for them, links break, and a broker forgets."""
    for turn in range(6):
        for name in WORKERS:
            world.top.cut(name)
        for edge in world.edges:
            edge.append(Lane.EVENTS, 3)
        await asyncio.sleep(30)
        for edge in world.edges:
            world.cut(edge.network, edge.path)
            edge.append(Lane.EVENTS, rng.randint(1, 3))
            edge.network.mend(edge.path)
        await asyncio.sleep(90)
        if turn % 2:
            world.top.queue.lose()
        for edge in world.edges:
            await world.check(edge)
        for name in WORKERS:
            world.top.mend(name)
        await asyncio.sleep(400)


def held_up(program: Program | None = None) -> str:
    """What is wrong with a program whose workers are held up; empty for nothing."""
    wrong = stage(0, Shape(3, 0, 1.0, 0.0, ()), _hold_up, program).violations
    return wrong[0] if wrong else ""


# --- what holds -----------------------------------------------------------------------------------


def test_no_seed_finds_a_lie() -> None:
    """I1 to I5 and I7, rows 2, 13, 16, 30, 31, 32, 33, 35, 36, 37, 39: whatever strikes."""
    shape = Shape(4, 1, 4.0)
    total = Total()
    for played in survey(range(6), shape, 1):
        total.add(played)
    assert total.found == []
    assert total.records > 100
    assert total.crashes > 6
    assert total.cuts > 6 * shape.edges


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_named_scenario(name: str) -> None:
    """Rows 16, 25, 31, 32, 35, 39: what happens at the worst time changes nothing."""
    outcome = SCENARIOS[name](1, None)
    assert outcome.violations == []
    assert outcome.rows > 50


def test_each_kind_of_fault_is_drawn() -> None:
    """A schedule heals within its world, and in enough worlds every kind strikes."""
    shape = Shape(20, 3, 30.0)
    drawn: set[Fault] = set()
    for seed in range(20):
        strikes = schedule(shape, random.Random(seed))
        assert strikes == sorted(strikes)
        assert all(one.at + one.seconds <= shape.seconds for one in strikes)
        drawn |= {one.fault for one in strikes}
    assert drawn == set(Fault)


# --- a seed is a history --------------------------------------------------------------------------


def test_a_seed_replays_in_another_process() -> None:
    """Two processes that hash differently see the same events; another seed sees others."""
    first, again, other = (_trace(hashes, seed) for hashes, seed in (("1", 3), ("2", 3), ("1", 4)))
    assert first == again
    assert first != other


def _trace(hashes: str, seed: int) -> str:
    command = [sys.executable, "-m", "simulator", "run", "--seed", str(seed)]
    ended = subprocess.run(
        [*command, "--edges", "3", "--gateways", "1", "--days", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hashes},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.rpartition("trace ")[2].strip()


def test_a_failing_seed_says_how_to_replay_it() -> None:
    """The sum of seeds names each violation with its seed."""
    total = Total()
    total.add(Played(7, Outcome(violations=["end: something is lost"])))
    assert total.found == [(7, "end: something is lost")]


# --- what is planted ------------------------------------------------------------------------------


class _Unsynced:
    """A disk, or a file of it, that says it has synced."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401  # a disk or a file
        self._real = real

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # the same
        return getattr(self._real, name)

    def open(self, path: str, mode: Any) -> Any:  # noqa: ANN401  # the same
        return _Unsynced(self._real.open(path, mode))

    def sync(self) -> None:
        """Does nothing."""

    def sync_directory(self, path: str) -> None:
        """Does nothing."""


def _unsynced(parts: GatewayParts) -> CustodyGateway:
    disk: Any = _Unsynced(parts.disk)
    return CustodyGateway(replace(parts, disk=disk))


def test_a_receipt_before_the_sync_is_found() -> None:
    """Planted in a gateway: what it has receipted is not on its disk when the power goes."""

    async def act(world: World, rng: random.Random) -> None:
        (one,) = world.gateways
        for _ in range(8):
            world.cut(world.top, one.name)
            for edge in world.edges:
                edge.append(rng.choice(LANES), 3)
            await asyncio.sleep(60)
            await one.crash(0)
            one.start()
            await asyncio.sleep(60)
            world.check_gateway(one)
            world.top.mend(one.name)
            await asyncio.sleep(60)

    shape = Shape(4, 1, 1.0, 0.0, ())
    assert stage(0, shape, act).violations == []
    wrong = stage(0, shape, act, Program(gateway=_unsynced)).violations
    assert "nobody holds it" in wrong[0] or "lost nothing" in wrong[0]


def test_a_sound_program_is_held_up_and_loses_nothing() -> None:
    """Rows 35, 36: what the planted programs fail at, the real one does."""
    assert held_up() == ""


class _UnsyncedArchive(SimArchive):
    """A receipt before the sync, at headquarters."""

    def sync(self, name: str) -> None:
        del name

    def publish(self, name: str) -> None:
        """Says that it did, and does it when it is asked what is staged."""
        del name


def test_a_receipt_before_the_rows_is_found() -> None:
    """Planted in an archive: rows are receipted that are not durable."""
    wrong = held_up(Program(archive=_UnsyncedArchive))
    assert "ahead of the archive" in wrong


class _HastyIngest(Ingest):
    """The ledger after the acknowledgement."""

    async def _set(self, number: int, stored: object, made: object, name: str) -> bool:
        del number, stored, made, name
        return True


def test_a_ledger_after_the_acknowledgement_is_found() -> None:
    """Planted in the ingest: rows are published and acknowledged, and the ledger does not know."""
    wrong = held_up(Program(ingest=_HastyIngest))
    assert "has two rows" in wrong or "ledger" in wrong


@pytest.mark.parametrize(
    "program",
    [
        Program(gateway=_unsynced),
        Program(archive=_UnsyncedArchive),
        Program(ingest=_HastyIngest),
    ],
    ids=["gateway", "archive", "ingest"],
)
def test_drawn_faults_find_it_too(program: Program) -> None:
    """What is planted needs no scene made for it: a few seeds of drawn faults end in a lie."""
    shape = Shape(4, 1, 4.0)
    assert any(play(seed, shape, program).violations for seed in range(8))


def test_an_overlap_sliced_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the ledger: of a batch that overlaps what is held, all counts as new."""
    real = ledger.take

    def take(
        known: LaneLedger, header: BatchHeader, now: int, inside: Callable[[int], bytes | None]
    ) -> Taken:
        taken = real(known, header, now, inside)
        return Taken(taken.ledger, header.present, 0) if taken.new else taken

    monkeypatch.setattr(ledger, "take", take)
    assert "has two rows" in held_up()


class _EagerSender(Sender):
    """Releases what the transport has accepted."""

    def _on_answer(self, route, transfer, part, answer, now) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super()._on_answer(route, transfer, part, answer, now)
        if transfer.is_accepted:
            header = transfer.batch.header
            receipt = Receipt(
                *("hq", Epoch(1, 1), 1, Stage.HELD, header.site, header.node, header.epoch),
                *(header.lane, header.last + 1, b"", 0),
            )
            life = Life(header.site, header.node, header.epoch)
            self._source.release(life, header.lane, header.present, receipt)


def test_a_release_by_acknowledgement_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the forwarder: what the transport accepted is released without a receipt."""
    monkeypatch.setattr("nodes.forwarder.Sender", _EagerSender)
    assert "released without a receipt" in held_up()
