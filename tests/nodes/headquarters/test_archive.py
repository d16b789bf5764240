"""The archive: rows once, whatever is cut short."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.spool import batch
from nodes.headquarters import archive as archives
from nodes.headquarters.archive import Archive
from nodes.headquarters.rows import Rows, rows_of
from schemas.errors import DiskFailed
from schemas.messages import Lane
from schemas.ranges import Ranges
from tests.nodes.headquarters.world import Sender, identities, rows


def _rows(sender: Sender, records: list[bytes] | int) -> Rows:
    made = sender.batch(records)
    return rows_of(made.header, made.header.present, batch.open_batch(made))


def test_rows_are_what_was_sent(tmp_path: Path) -> None:
    """Identity, kind, canonical bytes."""
    archive, sender = Archive(tmp_path), Sender()
    archive.stage("000-a", [_rows(sender, 3)])
    assert rows(tmp_path) == [], "staged is not committed"
    archive.publish("000-a")
    found = rows(tmp_path)
    assert [(row[0], row[1], row[2], row[3]) for row in found] == [
        ("pump", str(sender.owner.epoch), "events", n) for n in range(3)
    ]
    for number, (*_, kind, record) in enumerate(found):
        assert kind == "event"
        assert record == sender.record(number)
    archive.close()


def test_each_site_and_lane_has_its_files(tmp_path: Path) -> None:
    """Where a query looks for them."""
    archive = Archive(tmp_path)
    senders = [Sender(), Sender(lane=Lane.LOGS), Sender(site="yard"), Sender(node="valve")]
    archive.stage("000-a", [_rows(sender, 2) for sender in senders])
    archive.publish("000-a")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert found == [
        "archive/site=hall/lane=events/day=2026-01-01/000-a.parquet",
        "archive/site=hall/lane=logs/day=2026-01-01/000-a.parquet",
        "archive/site=yard/lane=events/day=2026-01-01/000-a.parquet",
    ]
    assert len(identities(tmp_path)) == 8


def test_only_new_numbers_become_rows() -> None:
    """The others stand in a file already."""
    made = Sender().batch(5)
    records = batch.open_records(made)
    kept = rows_of(made.header, Ranges(((1, 2), (4, 5))), batch.open_batch(made))
    assert list(kept.seqs) == [1, 4]
    assert kept.records == [records[1], records[4]]
    assert len(rows_of(made.header, Ranges(), batch.open_batch(made))) == 0


def test_publishing_twice_changes_nothing(tmp_path: Path) -> None:
    """Whoever comes next may repeat it."""
    archive = Archive(tmp_path)
    archive.stage("000-a", [_rows(Sender(), 2)])
    archive.publish("000-a")
    archive.publish("000-a")
    archive.publish("000-never")
    assert archive.staged() == []
    assert len(identities(tmp_path)) == 2


@pytest.mark.parametrize("cut", range(13))
def test_publishing_that_was_cut_short_is_finished(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every sync and rename; by another archive over the same folder."""
    archive = Archive(tmp_path)
    senders = [Sender(), Sender(lane=Lane.LOGS)]
    archive.stage("000-a", [_rows(sender, 2) for sender in senders])
    calls = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def limited(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls > cut:
                raise OSError(5, "Input/output error")
            return call(*arguments)

        return limited

    with monkeypatch.context() as patched:
        patched.setattr(archives, "_sync", counted(archives._sync))
        patched.setattr(Path, "rename", counted(Path.rename))
        if cut < 11:
            with pytest.raises(DiskFailed):
                archive.publish("000-a")
            assert archive.staged() == (["000-a"] if cut < 10 else [])
        else:
            archive.publish("000-a")
    again = Archive(tmp_path)
    again.publish("000-a")
    assert again.staged() == []
    assert len(identities(tmp_path)) == 4


def test_staging_again_replaces(tmp_path: Path) -> None:
    """What a failure left under the name goes; what was discarded is gone."""
    archive, sender = Archive(tmp_path), Sender()
    archive.stage("000-a", [_rows(sender, 2), _rows(Sender(lane=Lane.LOGS), 1)])
    archive.stage("000-a", [_rows(sender, 1)])
    archive.publish("000-a")
    assert identities(tmp_path) == [("pump", "events", 2)]
    archive.stage("000-b", [_rows(sender, 1)])
    archive.discard("000-b")
    archive.publish("000-b")
    assert len(identities(tmp_path)) == 1


def test_a_disk_that_fails_is_said_in_our_words(tmp_path: Path) -> None:
    """Whatever the library or the system calls it."""
    archive = Archive(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DiskFailed):
        archive.stage("000-a", [_rows(Sender(), 1)])
    with pytest.raises(DiskFailed):
        archive.staged()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFailed):
        Archive(tmp_path / "file")


def test_a_quote_in_the_path_is_no_trouble(tmp_path: Path) -> None:
    """A configured folder may be called anything."""
    root = tmp_path / "it's"
    archive = Archive(root)
    archive.stage("000-a", [_rows(Sender(), 1)])
    archive.publish("000-a")
    assert list(root.rglob("*.parquet"))


def test_what_is_refused_is_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its digest, once; not more than so many; never an exception."""
    archive = Archive(tmp_path)
    monkeypatch.setattr(archives, "_QUARANTINE_FILES_MAX", 2)
    first = archive.quarantine(b"one")
    assert Path(first).read_bytes() == b"one"
    assert archive.quarantine(b"one") == first
    assert archive.quarantine(b"two")
    assert archive.quarantine(b"three") == ""
    shutil.rmtree(tmp_path)
    assert archive.quarantine(b"four") == ""


def test_a_record_of_an_unknown_layout_is_kept_as_it_is(tmp_path: Path) -> None:
    """A newer node's record: canonical bytes, no fields."""
    archive = Archive(tmp_path)
    archive.stage("000-a", [_rows(Sender(), [b"\x92\x63\x01"])])
    archive.publish("000-a")
    ((*_, kind, record),) = rows(tmp_path)
    assert (kind, record) == ("unknown", b"\x92\x63\x01")
