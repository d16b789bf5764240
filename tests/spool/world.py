"""A spool on a simulated disk, and an audit of what it holds against what it was told."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mesh.ports import Disk
from mesh.spool import batch as batches
from mesh.spool.batch import Batch, Labels
from mesh.spool.lane import LaneSettings
from mesh.spool.spool import DEFAULT_LANES, Resources, Spool, SpoolSettings
from schemas import wire
from schemas.messages import Epoch, Event, Explained, Lane, Severity
from schemas.ranges import Ranges
from simulator.clock import SimClock, VirtualLoop, run

LABELS = Labels("hall", "pump")
SMALL = SpoolSettings(
    LABELS,
    lanes={lane: replace(DEFAULT_LANES[lane], reserved=64) for lane in Lane},
    journal_bytes_max=1,
    spare_bytes=4096,
)
"""Every group rotates, and few numbers are reserved."""

CALM = replace(SMALL, journal_bytes_max=1 << 20)
"""Nothing rotates by itself."""


class Nowhere(Executor):
    """Stands for a thread: on virtual time its calls run on the loop, one after another."""


class Watcher:
    """Port ``Observer``: keeps all events."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def observe(self, event: object) -> None:
        """Takes one event."""
        self.seen.append(event)

    def of(self, kind: type) -> list[object]:
        """Those of one kind."""
        return [event for event in self.seen if isinstance(event, kind)]


def resources(
    disk: Disk, seed: int = 0, watcher: Watcher | None = None, machine: bytes = b"m" * 16
) -> Resources:
    """What a spool needs, on the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    generator = random.Random(seed)
    return Resources(
        disk=disk,
        clock=SimClock(loop),
        writer=Nowhere(),
        worker=Nowhere(),
        entropy=generator.randbytes,
        boot=generator.randbytes(16),
        machine=machine,
        observer=watcher or Watcher(),
    )


def record(text: str) -> bytes:
    """The canonical bytes of an event."""
    return wire.encode(Event(0, 0, "tested", Severity.NOTICE, text))


@asynccontextmanager
async def opened(
    disk: Disk,
    settings: SpoolSettings = CALM,
    *,
    seed: int = 0,
    watcher: Watcher | None = None,
    maintain: bool = True,
    close: bool = True,
    machine: bytes = b"m" * 16,
) -> AsyncIterator[Spool]:
    """A spool with its chores running; closed in order at the end, unless told otherwise."""
    spool = await Spool.open(resources(disk, seed, watcher, machine), settings)
    chores = asyncio.get_running_loop().create_task(spool.maintain() if maintain else _nothing())
    try:
        yield spool
    finally:
        if chores.done():
            chores.result()
        chores.cancel()
        await asyncio.wait([chores])
    if close:
        await spool.close()


async def _nothing() -> None:
    """No chores."""


@dataclass
class Said:
    """What was said to a spool and by it, through all its lives: the plain list to compare with."""

    produced: dict[Lane, dict[int, bytes]] = field(default_factory=dict)
    acknowledged: dict[Lane, set[int]] = field(default_factory=dict)
    released: dict[Lane, set[int]] = field(default_factory=dict)
    handed_out: dict[Lane, int] = field(default_factory=dict)
    evicted: bool = False

    async def append(self, spool: Spool, lane: Lane, texts: list[str]) -> bool:
        """Appends, waits, and notes what was promised."""
        records = [record(text) for text in texts]
        appended = spool.append(lane, records)
        numbers = range(appended.first, appended.first + appended.records)
        known = self.produced.setdefault(lane, {})
        for number, data in zip(numbers, records, strict=True):
            assert number not in known, f"{lane}/{number} was handed out twice"
            known[number] = data
        self.note(spool)
        settled = await appended.settled
        if settled:
            self.acknowledged.setdefault(lane, set()).update(numbers)
        self.note(spool)
        return settled

    def release(self, spool: Spool, lane: Lane, numbers: Ranges) -> None:
        """Releases, as a receipt would."""
        self.released.setdefault(lane, set()).update(numbers)
        spool.release(lane, numbers, "hq")

    def note(self, spool: Spool) -> None:
        """Notes how far numbers were handed out."""
        for lane in Lane:
            seen = self.handed_out.get(lane, 0)
            self.handed_out[lane] = max(seen, spool.next_seq(lane))


async def pending(spool: Spool, lane: Lane, epoch: Epoch | None = None) -> list[Batch]:
    """All pending batches of a lane, in the order in which a forwarder would get them."""
    found: list[Batch] = []
    start = 0
    while (batch := await spool.next_batch(lane, start, epoch)) is not None:
        assert batch.header.last >= start, "the next batch is a later one"
        found.append(batch)
        start = batch.header.last + 1
    return found


def records_of(found: list[Batch]) -> dict[int, bytes]:
    """Records by number; their chains are checked."""
    held: dict[int, bytes] = {}
    last: Batch | None = None
    for batch in found:
        header = batch.header
        for number, data in zip(header.present, batches.open_records(batch), strict=True):
            assert number not in held, f"{header}: {number} comes twice"
            held[number] = data
        if last is not None and last.header.last + 1 == header.first:
            assert last.header.chain_after == header.chain_before, "the chain goes on"
        last = batch
    assert list(held) == sorted(held), "in order"
    return held


def explained_of(spool: Spool, lane: Lane) -> Mapping[str, Ranges]:
    """The numbers that will never arrive, by reason."""
    return spool._lanes[lane].explained


async def audit(spool: Spool, said: Said, *, damaged: bool = False) -> None:
    """Invariants I1, I2, I3 and I5 of the list of faults, and that no number comes twice.

    Args:
        spool: just opened after a crash, or at rest.
        said: what was said to it.
        damaged: whether something was damaged on purpose, so that losses may be called so.
    """
    for lane in Lane:
        held = records_of(await pending(spool, lane))
        explained = explained_of(spool, lane)
        produced = said.produced.get(lane, {})
        if lane is not Lane.ACCOUNT:
            for number, data in held.items():
                assert produced.get(number) == data, f"{lane}/{number} was never appended"
        known = {number for numbers in explained.values() for number in bounded_iter(numbers)}
        gone = said.released.get(lane, set())
        acknowledged = said.acknowledged.get(lane, set())
        lost = acknowledged - held.keys() - gone
        if not damaged:
            lost -= set(bounded_iter(explained.get(Explained.EVICTED, Ranges())))
            assert not lost, f"acknowledged and lost: {lane} {sorted(lost)}, {explained}"
            damage = set(bounded_iter(explained.get(Explained.DAMAGED, Ranges())))
            # A torn frame with a whole header is called damaged: nobody can know.
            assert not damage & acknowledged, f"{lane}: nothing was damaged: {explained}"
        assert not lost - known, (
            f"acknowledged, lost and unexplained: {lane} {sorted(lost - known)}"
        )
        state = spool._lanes[lane]
        everything = Ranges.of([(0, spool.next_seq(lane))])
        waiting = Ranges.of([(spool.next_seq(lane) - len(state.waiting), spool.next_seq(lane))])
        accounted = spool.released(lane) | waiting | Ranges.of([(n, n + 1) for n in held])
        for numbers in explained.values():
            accounted |= numbers
        assert everything - accounted == Ranges(), f"{lane}: unaccounted {everything - accounted}"
        assert accounted - everything == Ranges(), f"{lane}: beyond {accounted - everything}"
        assert not known & held.keys(), f"{lane}: pending and explained {known & held.keys()}"
        beyond = said.handed_out.get(lane, 0)
        assert spool.next_seq(lane) >= beyond, f"{lane}: {beyond - 1} was handed out already"


def bounded_iter(numbers: Ranges) -> list[int]:
    """The numbers of a set, of which a huge span shows its beginning only."""
    return [n for start, stop in numbers.spans for n in range(start, min(stop, start + 5_000))]


def play(
    main: Callable[[random.Random], object], seed: int = 0, seconds_max: float | None = 1e6
) -> None:
    """Runs a coroutine on virtual time."""
    run(main, seed, seconds_max=seconds_max)  # type: ignore[arg-type]


def reserved(numbers: int) -> SpoolSettings:
    """Settings with other reservations."""
    return replace(SMALL, lanes={lane: LaneSettings(0.0, numbers) for lane in Lane})
