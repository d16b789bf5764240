"""Writes the golden files, once: ``python -m tests.golden.make``. Never overwrites one.

A golden file is what version 1 wrote on the day it was made. Where a test finds that today's
program writes other bytes, the program is wrong, or there is a version 2 to be made beside it.
"""

from pathlib import Path

from mesh.spool import batch, cursor
from mesh.spool.batch import Labels
from mesh.spool.commit import Entry, Group, Standing, Writer
from mesh.spool.frame import CHAIN_START, Owner, pack
from mesh.spool.journal import journal_path
from mesh.spool.store import create
from schemas import wire
from schemas.messages import Event, Instant, Lane, Severity
from schemas.ranges import Ranges
from schemas.stored import Cursor, StoreIdentity
from simulator.disk import SimDisk
from tests.schemas.samples import EPOCH, EXAMPLES

__all__ = ["BATCH_RECORDS", "FOLDER", "LABELS", "OWNER", "RECORDS", "STORE", "make"]

FOLDER = Path(__file__).parent
OWNER = Owner(b"S" * 16, EPOCH, b"B" * 16)
LABELS = Labels("hall", "pump", "eu", "acme")
STORE = StoreIdentity(OWNER.store, "hall", "pump", EPOCH, None, b"M" * 16)
RECORDS = [
    wire.encode(Event(n, n, "golden", Severity.NOTICE, f"record {n}", {"n": str(n)}))
    for n in range(5)
]
BATCH_RECORDS = [RECORDS[:2], RECORDS[2:]]
_AT = Instant(1_767_225_600_000_000_000, 5_000_000_000)


def _entry(lane: Lane, first: int, records: list[bytes]) -> Entry:
    return Entry(lane, first, records, sum(map(len, records)))


def _journal() -> bytes:
    disk = SimDisk()
    disk.make_directory("journal")
    writer = Writer(disk, OWNER, {}, 41)
    standing = {Lane.EVENTS: Standing(64, {"void": Ranges(((1, 3),))}, 7)}
    entries = [_entry(Lane.EVENTS, 3, RECORDS[:3]), _entry(Lane.LOGS, 0, RECORDS[3:4])]
    writer.commit(Group(_AT, entries, standing, {Lane.EVENTS: 64}))
    closing = {Lane.EVENTS: Standing(7, {}, 7)}
    entries = [_entry(Lane.EVENTS, 6, RECORDS[4:])]
    writer.commit(Group(_AT, entries, closing, {}, close=True))
    return disk.contents()[journal_path(42)]


def _batch() -> bytes:
    headers, bodies, first, before = [], [], 10, CHAIN_START
    for records in BATCH_RECORDS:
        body = b"".join(records)
        _, header = pack(OWNER, 42, Lane.EVENTS, first, len(records), body, before, _AT)
        headers.append(header)
        bodies.append(body)
        first, before = header.stop, header.chain_after
    return batch.pack(LABELS, headers, bodies).data


def _cursor() -> bytes:
    disk = SimDisk()
    released = {f"{EPOCH}/events": Ranges(((0, 2),))}
    cursor.store(disk, Cursor(2, released, {f"{EPOCH}/events/hq": 2}))
    return disk.contents()[cursor.PATH]


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
        "cursor.1": _cursor(),
        "STORE.1": _store(),
    }
    written = []
    for name, data in files.items():
        path = folder / name
        if not path.exists():
            path.write_bytes(data)
            written.append(name)
    return written


if __name__ == "__main__":
    print("\n".join(make(FOLDER)) or "all are there; none is overwritten")
