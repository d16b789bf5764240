"""Verification: portions that open to little, read ahead of what is archived, in order."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mesh.adapters.system import SystemClock
from mesh.ports import Arrival
from nodes.headquarters.archive import Archive
from nodes.headquarters.ingest import Ingest
from nodes.headquarters.rows import Rows, show
from nodes.headquarters.verification import Parsed, Verified, open_all, parse_all, portions
from schemas import wire
from schemas.errors import Refused
from schemas.limits import FRAME_BODY_BYTES_MAX, INGEST_RAW_BYTES_MAX
from schemas.messages import Event, Severity
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import LIFE, Desk, Sender, Watcher, identities

_T = TypeVar("_T")
_SECONDS_MAX = 20.0


def _parsed(*arrivals: Arrival) -> list[Parsed]:
    return [(it, found) for it, found in parse_all(arrivals) if not isinstance(found, Refused)]


def _raw(portion: Sequence[Parsed]) -> int:
    return sum(batch.header.raw_bytes for _, batch in portion)


def _large(desk: Desk, portions_wanted: float) -> list[Arrival]:
    """Batches of one frame each, as large as it may be, which open to so many portions."""
    sender = Sender()
    one = wire.encode(Event(0, 0, "tested", Severity.NOTICE, "x" * 4000))
    size = FRAME_BODY_BYTES_MAX // len(one)
    count = int(portions_wanted * INGEST_RAW_BYTES_MAX / (size * len(one)))
    return desk.put(*(sender.batch([one] * size) for _ in range(count)))


def test_portions_open_to_what_may_be_open() -> None:
    """All in their order, none above the bound, all of about one size."""
    arrivals = _large(Desk(), 2.1)
    found = portions(_parsed(*arrivals))
    assert [arrival for portion in found for arrival, _ in portion] == arrivals
    sizes = [_raw(portion) for portion in found]
    assert len(sizes) == 3
    assert max(sizes) <= INGEST_RAW_BYTES_MAX
    assert min(sizes) > 0.8 * max(sizes)
    assert portions([]) == []


def test_what_was_read_beforehand_is_what_would_be_read_later() -> None:
    """And of what came again nothing is: most of it is not new."""
    (arrival,) = Desk().put(Sender().batch(5))
    ((_, found),) = open_all(_parsed(arrival))
    assert isinstance(found, Verified)
    assert found.shown is not None
    later = show(Rows(found.header, found.header.present, found.records))
    assert found.shown.fields.keys() == later.fields.keys()
    assert found.shown.fields["text"].data == later.fields["text"].data  # type: ignore[union-attr]
    ((_, again),) = open_all(_parsed(arrival._replace(redelivered=True)))
    assert isinstance(again, Verified)
    assert again.shown is None


class _Verifier(ThreadPoolExecutor):
    """One thread, which tells when it has opened two portions."""

    def __init__(self) -> None:
        super().__init__(1)
        self.opened = 0
        self.ahead = threading.Event()

    def submit(self, job: Callable[..., _T], /, *arguments: object, **more: object) -> Future[_T]:
        """As its kind does."""
        future = super().submit(job, *arguments, **more)
        if job is open_all:
            future.add_done_callback(self._count)
        return future

    def _count(self, _: object) -> None:
        self.opened += 1
        if self.opened > 1:
            self.ahead.set()


class _WaitingArchive(Archive):
    """Does not write before the next portion is verified."""

    def __init__(self, root: Path, verifier: _Verifier) -> None:
        super().__init__(root)
        self.verifier = verifier
        self.open_when_staged: list[int] = []

    def stage(self, name: str, rows: Iterable[Rows]) -> None:
        """Once the verifier is ahead."""
        assert self.verifier.ahead.wait(_SECONDS_MAX), "nothing is verified meanwhile"
        self.open_when_staged.append(self.verifier.opened)
        super().stage(name, rows)


def test_the_next_portion_is_verified_while_one_is_archived(tmp_path: Path) -> None:
    """Never more than one ahead; commits keep the order in which batches came."""

    async def main() -> None:
        desk = Desk()
        arrivals = _large(desk, 2.9)
        ledgers = MemoryLedgerStore(random.Random(0))
        worker = Ingest(
            *("hq", LIFE, desk, ledgers, archive, executor),  # type: ignore[arg-type]
            *(SystemClock(), random.Random(0).randbytes, Watcher()),
            verifier=verifier,
        )
        await worker.ingest(arrivals)
        marks = [receipt.watermark for receipt in desk.receipts]
        assert len(marks) == 3
        assert marks == sorted(marks)
        assert not desk.waiting
        assert len(identities(tmp_path)) == marks[-1]

    with _Verifier() as verifier, ThreadPoolExecutor(1) as executor:
        archive = _WaitingArchive(tmp_path, verifier)
        asyncio.run(main())
        archive.close()
    for staged, opened in enumerate(archive.open_when_staged, start=1):
        assert opened <= staged + 1
