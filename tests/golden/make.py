"""The golden files' maker: ``python -m tests.golden.make``. Writes each once, overwrites none.

A golden file is what version 1 wrote on the day it was made. Where a test finds that today's
program reads it otherwise, or writes other bytes, the program is wrong, or there is a version 2 to
be made beside it. Of what was zero nothing is kept: the end of ``cursor.1`` is cut off, and
``store.1/`` holds the pieces of a whole store (``tests.golden.store``), ``store.1.json`` how long
its files are and what must be found in them.
"""

import json
from pathlib import Path

from mesh.spool import batch, cursor
from mesh.spool.batch import Labels
from mesh.spool.frame import CHAIN_START, Owner, pack
from mesh.spool.journal import END, Journal, journal_path
from mesh.spool.store import create
from mesh.transfer.custody.entry import Draft, Kind
from mesh.transfer.custody.journal import Journal as Custodial
from schemas import wire
from schemas.messages import Epoch, Event, Instant, Lane, Severity
from schemas.ranges import Ranges
from schemas.stored import (
    Closed,
    Cursor,
    CustodyHead,
    CustodyLane,
    CustodyRelease,
    JournalHeader,
    LaneLedger,
    LaneMark,
    Numbers,
    PastEpoch,
    Reserved,
    StoreIdentity,
)
from simulator.disk import SimDisk
from tests.golden import store
from tests.schemas.samples import EPOCH, EXAMPLES

__all__ = ["BATCH_RECORDS", "FOLDER", "LABELS", "OWNER", "RECORDS", "STORE", "make"]

FOLDER = Path(__file__).parent
OWNER = Owner(b"S" * 16, EPOCH, b"B" * 16)
LABELS = Labels("hall", "pump", "eu", "acme")
_PAST = PastEpoch(
    Epoch(2, 7),
    {Lane.EVENTS: Numbers(LaneMark(9, b"C" * 16), 9, {"evicted": Ranges(((2, 4),))}, 3)},
)
STORE = StoreIdentity(OWNER.store, "hall", "pump", EPOCH, Epoch(2, 7), b"M" * 16, (_PAST,))
RECORDS = [
    wire.encode(Event(n, n, "golden", Severity.NOTICE, f"record {n}", {"n": str(n)}))
    for n in range(5)
]
BATCH_RECORDS = [RECORDS[:2], RECORDS[2:]]
_AT = Instant(1_767_225_600_000_000_000, 5_000_000_000)
_Framed = tuple[bytes, bytes]
"""A frame, and the chain after it."""


def _journal() -> bytes:
    disk = SimDisk()
    disk.make_directory("journal")
    stated = {
        Lane.EVENTS: Numbers(LaneMark(3, CHAIN_START), 64, {"void": Ranges(((1, 3),))}, 7),
        Lane.LOGS: Numbers(LaneMark(0, CHAIN_START), 0),
    }
    header = JournalHeader(
        *(OWNER.store, OWNER.epoch, OWNER.boot, 42),
        *(_AT.wall_ns, 7_000_000_000, _AT.mono_ns),
        stated,
    )
    made = Journal.create(disk, header)
    first, chained = _framed(Lane.EVENTS, 3, RECORDS[:3], CHAIN_START)
    line, _ = _framed(Lane.LOGS, 0, RECORDS[3:4], CHAIN_START)
    made.append(first + line + _control(Reserved({Lane.EVENTS: 128})) + END)
    last, _ = _framed(Lane.EVENTS, 6, RECORDS[4:], chained)
    made.append(last + _control(Closed({Lane.EVENTS: 7, Lane.LOGS: 1})) + END)
    return disk.contents()[journal_path(42)]


def _framed(lane: Lane | None, first: int, records: list[bytes], before: bytes) -> _Framed:
    body = b"".join(records)
    head, header = pack(OWNER, 42, lane, first, len(records), body, before, _AT)
    return head + body, header.chain_after


def _control(message: Reserved | Closed) -> bytes:
    body = wire.encode(message)
    return pack(OWNER, 42, None, 0, 0, body, CHAIN_START, _AT)[0] + body


def _batch() -> bytes:
    headers, bodies, first, before = [], [], 10, CHAIN_START
    for records in BATCH_RECORDS:
        body = b"".join(records)
        _, header = pack(OWNER, 42, Lane.EVENTS, first, len(records), body, before, _AT)
        headers.append(header)
        bodies.append(body)
        first, before = header.stop, header.chain_after
    return batch.pack(LABELS, headers, bodies).data


def _custody() -> bytes:
    """A journal of custody: a snapshot of one lane, a batch as it came, a release."""
    disk = SimDisk()
    disk.make_directory("journal")
    lane = CustodyLane(LaneLedger("hall", "pump", EPOCH, Lane.LOGS, Ranges(((0, 9),))))
    head = CustodyHead(OWNER.store, "gateway", EPOCH, b"M" * 16, 42, _AT.wall_ns, 1, {"41": 5000})
    snapshot = [Draft(Kind.HEAD, wire.encode(head)), Draft(Kind.LANE, wire.encode(lane))]
    made, _ = Custodial.create(disk, head, snapshot, _AT)
    batch_1 = (FOLDER / "batch.1").read_bytes()
    release = CustodyRelease("hall", "pump", EPOCH, Lane.LOGS, Ranges(((0, 4),)), "hq", 4)
    made.append([Draft(Kind.BATCH, batch_1), Draft(Kind.RELEASE, wire.encode(release))], _AT)
    return disk.contents()[journal_path(42)]


def _cursor() -> bytes:
    disk = SimDisk()
    cursor.prepare(disk)
    released = {f"{EPOCH}/events": Ranges(((0, 2),))}
    cursor.store(disk, Cursor(2, released, {f"{EPOCH}/events/hq": 2}))
    return disk.contents()[cursor.PATH].rstrip(b"\0")


def _store() -> bytes:
    disk = SimDisk()
    create(disk, STORE)
    return disk.contents()["STORE"]


def make(folder: Path) -> list[str]:
    """Writes what is not there yet; returns the names."""
    files = {f"{name}.1.msgpack": wire.encode(message) for name, message in EXAMPLES.items()}
    files |= {
        "journal.1": _journal(),
        "batch.1": _batch(),
        "custody.1": _custody(),
        "cursor.1": _cursor(),
        "STORE.1": _store(),
    }
    written = []
    for name, data in files.items():
        path = folder / name
        if not path.exists():
            path.write_bytes(data)
            written.append(name)
    return written + _make_store(folder)


def _make_store(folder: Path) -> list[str]:
    """The whole store, where there is nothing of it."""
    told = folder / "store.1.json"
    if told.exists() or (folder / "store.1").exists():
        return []
    files, found = store.build()
    small, sizes = store.pieces(files)
    for name, data in small.items():
        path = folder / "store.1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    text = json.dumps({"bytes": sizes, "found": found}, indent=1, sort_keys=True)
    told.write_text(text + "\n", encoding="utf-8")
    return ["store.1", told.name]


if __name__ == "__main__":
    print("\n".join(make(FOLDER)) or "all are there; none is overwritten")
