"""Files of version 1, as they were written on the day they were made, are read as then."""

from pathlib import Path

import pytest

from mesh.spool import batch, cursor, journal, store
from mesh.transfer.custody import journal as custodial
from schemas import wire
from schemas.messages import Lane
from schemas.ranges import Ranges
from schemas.stored import Closed, CustodyRelease, Reserved
from simulator.disk import SimDisk
from tests.golden.make import BATCH_RECORDS, FOLDER, LABELS, OWNER, RECORDS, STORE, make
from tests.schemas.samples import EPOCH, EXAMPLES


def _disk(path: str, data: bytes) -> SimDisk:
    disk = SimDisk()
    if "/" in path:
        disk.make_directory(path.rpartition("/")[0])
    disk.open(path, "create").write(data, 0)
    return disk


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_message_reads_and_writes_as_in_version_1(name: str) -> None:
    """Row 48: a digest or chain over these bytes holds for ever."""
    data = (FOLDER / f"{name}.1.msgpack").read_bytes()
    assert wire.decode(data) == EXAMPLES[name]
    assert wire.encode(EXAMPLES[name]) == data


def test_a_journal_of_version_1_is_read() -> None:
    """Row 48: frames, reservation, explanation and close."""
    data = (FOLDER / "journal.1").read_bytes()
    content = journal.read(_disk(journal.journal_path(42), data), 42, OWNER.store, EPOCH)
    assert content.header is not None
    assert content.header.lanes[Lane.EVENTS].explained == {"void": Ranges(((1, 3),))}
    assert content.header.lanes[Lane.EVENTS].reserved == 64
    assert content.header.lanes[Lane.EVENTS].statement == 7
    assert not content.broken
    found = [
        (frame.header.lane, frame.header.first, data[frame.body_offset : frame.end])
        for frame in content.frames
    ]
    assert found == [
        (Lane.EVENTS, 3, b"".join(RECORDS[:3])),
        (Lane.LOGS, 0, RECORDS[3]),
        (Lane.EVENTS, 6, RECORDS[4]),
    ]
    assert content.reserved == (Reserved({Lane.EVENTS: 128}),)
    assert content.closed == Closed({Lane.EVENTS: 7, Lane.LOGS: 1})


def test_a_batch_of_version_1_is_read() -> None:
    """Row 48: its header, and its records with their chain.

    Compressed bytes may differ between versions of zstd, so they are not written again.
    """
    data = (FOLDER / "batch.1").read_bytes()
    found = batch.parse(data)
    assert (found.header.site, found.header.region) == (LABELS.site, LABELS.region)
    assert (found.header.first, found.header.last, found.header.frames) == (10, 14, (2, 3))
    assert batch.open_records(found) == [record for part in BATCH_RECORDS for record in part]


def test_a_cursor_of_version_1_is_read() -> None:
    """Row 48: what was released, and by whom."""
    found = cursor.load(_disk("cursor", (FOLDER / "cursor.1").read_bytes()))
    assert found.generation == 2
    assert found.released == {f"{EPOCH}/events": Ranges(((0, 2),))}
    assert found.holders == {f"{EPOCH}/events/hq": 2}


def test_a_store_of_version_1_is_read() -> None:
    """Row 48: who it is, and what of its past may be pending."""
    assert store.identity(_disk("STORE", (FOLDER / "STORE.1").read_bytes())) == STORE


def test_a_journal_of_custody_of_version_1_is_read() -> None:
    """Row 48: its snapshot, a batch as it came, a release."""
    data = (FOLDER / "custody.1").read_bytes()
    content = custodial.read(_disk(journal.journal_path(42), data), 42, OWNER.store)
    assert content.is_complete
    assert content.head is not None
    assert (content.head.holder, content.head.ends) == ("gateway", {"41": 5000})
    assert [lane.ledger.held for lane in content.lanes] == [Ranges(((0, 9),))]
    batch_seen, release = content.seen
    kept = data[batch_seen.entry.body_offset : batch_seen.entry.end]
    assert kept == (FOLDER / "batch.1").read_bytes()
    assert isinstance(release.what, CustodyRelease)
    assert release.what.numbers == Ranges(((0, 4),))
    assert content.broken == ()


def test_what_can_be_written_again_is_written_alike(tmp_path: Path) -> None:
    """Byte for byte, but for what zstd compressed."""
    make(tmp_path)
    for path in sorted(tmp_path.glob("*.1*")):
        if path.is_file() and path.name not in {"batch.1", "store.1.json"}:
            assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def test_no_golden_file_is_overwritten(tmp_path: Path) -> None:
    """What is there stays, whatever today's program would write."""
    (tmp_path / "STORE.1").write_bytes(b"old")
    written = make(tmp_path)
    assert "STORE.1" not in written
    assert (tmp_path / "STORE.1").read_bytes() == b"old"
    assert make(tmp_path) == []
