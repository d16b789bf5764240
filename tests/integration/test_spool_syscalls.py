"""A spool whose system calls fail. The kernel says no, a little and a lot; the spool never lies.

The faults begin while the child runs, so no test counts the calls that came before.
"""

import re
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from mesh.adapters.system import SystemDisk
from mesh.spool import journal, store
from mesh.spool.frame import HEADER_BYTES
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from tests.spool.child import record
from tests.spool.driving import Child, audited, child
from tests.spool.tracing import Call, calls_of, injected, traced_from_start

pytestmark = pytest.mark.timeout(180)

ROTATES = {"journal_bytes_max": 1}
"""Each group is followed by a new journal."""


def batches(folder: Path) -> list[Path]:
    """What is on the shelf of the lane ``events``, oldest first."""
    return sorted(folder.glob("lanes/events/*/*.batch"))


def spans(*pairs: tuple[int, int]) -> Ranges:
    """A set of numbers."""
    return Ranges.of(pairs)


def slow(error: str) -> ParameterSet:
    """One more of the same, for a long run."""
    return pytest.param(error, marks=pytest.mark.slow)


def ended_well(process: Child) -> None:
    """What the child left is right, after a kill, twice."""
    assert process.ask("verify") == clean(process)
    process.kill()
    audited(process.folder, process.told)


def clean(process: Child) -> dict[str, object]:
    """An audit that found nothing wrong, whatever is explained."""
    found = process.ask("verify")
    return {**found, "lost": [], "reused": [], "untrue": []}


def degraded_and_recovers(process: Child, log: Path, *faults: str) -> None:
    """While the faults last nothing is promised, nothing is held up; afterwards all goes on."""
    assert process.append()["settled"]
    with injected(process.process_id, log, *faults):
        assert process.append(count=3) == {"first": 1, "settled": False}
        status = process.ask("status")
        assert status["degraded"]
        assert status["late_seconds"] < 1.0
        refused = process.append()
        assert refused["refused"].startswith("Disk"), refused
    process.until(lambda status: not status["degraded"])
    assert process.append()["settled"]
    assert process.ask("status")["explained"]["events"] == {Explained.SHED: 3}


def test_a_sync_that_fails_once(tmp_path: Path) -> None:
    """Row 13: the failed file is never synced again; the group is said once a new one has it."""
    log = tmp_path / "log"
    with child(tmp_path / "spool") as process:
        process.append(count=3)
        with injected(
            process.process_id, log, "fdatasync:error=EIO:when=1", calls="write,pwrite64"
        ):
            assert process.append(count=2) == {"first": 3, "settled": True}
            assert process.append(count=2) == {"first": 5, "settled": True}
        ended_well(process)
    calls = calls_of(log)
    failed = next(call for call in calls if call.name == "fdatasync" and call.result < 0)
    after = calls[calls.index(failed) + 1 :]
    assert failed.injected
    assert not [call for call in after if call.path == failed.path], "it is left alone"
    marks = [call.name == "write" and '"acknowledged' in call.arguments for call in calls]
    disk = [call for call in calls[: marks.index(True)] if call.name in {"pwrite64", "fdatasync"}]
    assert [call.name for call in disk[-2:]] == ["pwrite64", "fdatasync"]
    assert disk[-1].path == disk[-2].path != failed.path
    assert disk[-1].result == 0, "only a good sync is believed"


def test_syncs_that_keep_failing(tmp_path: Path) -> None:
    """Row 14: degraded, nothing promised, the process lives; it recovers when the disk does."""
    log = tmp_path / "log"
    with child(tmp_path / "spool") as process:
        degraded_and_recovers(process, log, "fdatasync:error=EIO:when=1+")
        ended_well(process)
    failed = [call.path for call in calls_of(log) if call.name == "fdatasync" and call.result < 0]
    assert len(failed) == len(set(failed)) > 1, "no file is ever synced twice after a failure"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("pwrite64:error=ENOSPC:when=1+", id="write"),
        pytest.param("openat:error=ENOSPC:when=1+", id="create"),
        pytest.param("fsync:error=ENOSPC:when=1+", id="sync of the folder"),
    ],
)
def test_no_space_for_a_journal(tmp_path: Path, fault: str) -> None:
    """Row 16: what cannot be written is refused and explained; appends go on when space is back."""
    with child(tmp_path / "spool", **ROTATES) as process:
        degraded_and_recovers(process, tmp_path / "log", fault)
        ended_well(process)


def test_no_space_that_only_the_sync_sees(tmp_path: Path) -> None:
    """Row 17: delayed allocation says so at the sync; the file is left alone, all goes on later."""
    with child(tmp_path / "spool") as process:
        degraded_and_recovers(process, tmp_path / "log", "fdatasync:error=ENOSPC:when=1+")
        ended_well(process)


def test_no_space_for_a_batch(tmp_path: Path) -> None:
    """Row 16: where a rename fails, appending goes on, the journal stays, and is sealed later."""
    folder, log = tmp_path / "spool", tmp_path / "log"
    with child(folder, maintain=False, **ROTATES) as process:
        for _ in range(4):
            assert process.append(count=2)["settled"]
        process.kill()
    before = set(journal.numbers(SystemDisk(folder)))
    tracer = traced_from_start(log, "?rename,?renameat,?renameat2:error=ENOSPC:when=1+")
    with child(folder, before=tracer, told=process.told) as process:
        process.until(lambda _: bool([call for call in calls_of(log) if call.result < 0]))
        assert process.append(count=2)["settled"]
        assert not batches(folder)
        assert len(before & set(journal.numbers(SystemDisk(folder)))) >= 4
        process.kill()
    with child(folder, told=process.told) as process:
        process.until(lambda _: len(batches(folder)) >= 4)
        ended_well(process)


def test_no_space_for_the_cursor(tmp_path: Path) -> None:
    """Row 16: nothing is unlinked before the cursor is durable, however often writing it fails."""
    folder, log = tmp_path / "spool", tmp_path / "log"
    with child(folder, retained_bytes_max=0, **ROTATES) as process:
        for _ in range(4):
            process.append(count=2)
        process.until(lambda _: len(batches(folder)) >= 3)
        before = batches(folder)
        with injected(process.process_id, log, "pwrite64:error=ENOSPC:when=1+"):
            process.ask("release", lane="events", stop=4)
            process.until(lambda _: bool([c for c in calls_of(log) if c.path.endswith("cursor")]))
            assert batches(folder)[: len(before)] == before
        process.until(lambda _: before[1] not in batches(folder))
        ended_well(process)


@pytest.mark.parametrize("error", [slow("EDQUOT"), "EROFS", slow("EFBIG")])
def test_other_ways_to_say_no(tmp_path: Path, error: str) -> None:
    """Row 18: quota, a read-only file system, a file too large: degraded, alive, and back again."""
    with child(tmp_path / "spool", **ROTATES) as process:
        faults = [f"{call}:error={error}:when=1+" for call in ("pwrite64", "openat")]
        degraded_and_recovers(process, tmp_path / "log", *faults)
        ended_well(process)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Rows 18, 20: the kernel cuts a write short, then refuses; the group goes to a new file."""
    folder, limit = tmp_path / "spool", 64 * 1024
    with child(folder) as process:
        process.ask("limit", what="RLIMIT_FSIZE", soft=limit)
        with injected(process.process_id, tmp_path / "log", calls="pwrite64"):
            for number in range(30):
                assert process.append(size=8000) == {"first": number, "settled": True}
            assert process.append(count=2, size=60_000)["settled"] is False
            assert process.ask("status")["degraded"]
        process.until(lambda status: not status["degraded"])
        assert process.append()["settled"]
        short = [call for call in calls_of(tmp_path / "log") if 0 < call.result < asked(call)]
        assert short, "no write was cut short"
        ended_well(process)


def asked(call: Call) -> int:
    """How many bytes a ``pwrite64`` was to write."""
    return int(re.findall(r", (\d+)", call.arguments)[-2])


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "openat", "fsync"])
def test_an_interrupted_call_goes_on(tmp_path: Path, call: str) -> None:
    """Row 20: EINTR is passed over; nobody notices."""
    with child(tmp_path / "spool", **ROTATES) as process:
        fault = f"{call}:error=EINTR:when=1"
        with injected(process.process_id, tmp_path / "log", fault):
            assert process.append(count=3)["settled"]
        assert [c for c in calls_of(tmp_path / "log") if c.injected]
        assert process.ask("status")["degraded"] == ""
        ended_well(process)


def test_a_write_that_claims_to_be_short(tmp_path: Path) -> None:
    """Row 20: a short write goes on where it stopped; what never arrived is stated, not half said.

    The tracer returns 1,000 and writes nothing, so the first 1,000 bytes are missing.
    """
    log = tmp_path / "log"
    with child(tmp_path / "spool") as process:
        process.append(count=2)
        with injected(process.process_id, log, "pwrite64:retval=1000:when=1"):
            assert process.append(count=3, size=600) == {"first": 2, "settled": True}
        process.append(count=2)
        first, second = calls_of(log)[:2]
        assert asked(second) == asked(first) - 1000, "it goes on with the rest"
        found = process.ask("verify")
        assert found["explained"]["events"] == {Explained.DAMAGED: [[2, 5]]}
        assert found["untrue"] == []
        process.kill()
    after = audited(tmp_path / "spool", process.told, [Explained.DAMAGED])
    assert after.pending[Lane.EVENTS] - spans((5, 7)) == spans((0, 2))


@pytest.mark.parametrize("when", ["read", "sealed", "opened"])
def test_a_write_that_never_happened(tmp_path: Path, when: str) -> None:
    """Row 12: the disk says ok and writes nothing: found on reading back, stated to the number."""
    folder, log = tmp_path / "spool", tmp_path / "log"
    records = [record(f"events-{n}-{n + 1}", 100) for n in (2, 3, 4)]
    size = HEADER_BYTES + sum(map(len, records)) + len(journal.END)
    with child(folder, journal_bytes_max=1 << 20) as process:
        process.append(count=2)
        with injected(process.process_id, log, f"pwrite64:retval={size}:when=1"):
            assert process.append(count=3) == {"first": 2, "settled": True}
        assert asked(calls_of(log)[0]) == size, "the disk lied about all of the group"
        process.append(count=2)
        if when == "read":
            assert process.ask("read", lane="events")["numbers"] == [[0, 2], [5, 7]]
        if when == "sealed":
            process.ask("fill", lane="logs", bytes_min=5 << 18)
            process.until(lambda status: bool(status["explained"]["events"]))
        if when != "opened":
            found = process.ask("verify")
            assert found["explained"]["events"] == {Explained.DAMAGED: [[2, 5]]}
            assert found["lost"] == ["events/2", "events/3", "events/4"]
        process.kill()
    after = audited(folder, process.told, [Explained.DAMAGED])
    assert after.pending[Lane.EVENTS] == spans((0, 2), (5, 7))
    assert after.explains(Lane.EVENTS, Explained.DAMAGED) - spans((7, 1 << 40)) == spans((2, 5))


def test_a_batch_that_cannot_be_read(tmp_path: Path) -> None:
    """Row 10: EIO in one batch: stated to the number, set aside, and the later ones come."""
    folder = tmp_path / "spool"
    with child(folder, **ROTATES) as process:
        for _ in range(5):
            process.append(count=3)
        process.until(lambda _: len(batches(folder)) >= 4)
        # A bad read is tried once more.
        with injected(process.process_id, tmp_path / "log", "pread64:error=EIO:when=1..2"):
            assert process.ask("read", lane="events")["numbers"] == [[3, 15]]
        process.until(lambda status: status["explained"]["events"] == {Explained.DAMAGED: 3})
        process.until(lambda _: bool(list((folder / "quarantine").iterdir())))
        process.kill()
    after = audited(folder, process.told, [Explained.DAMAGED])
    assert after.explains(Lane.EVENTS, Explained.DAMAGED) - spans((15, 1 << 40)) == spans((0, 3))
    assert after.pending[Lane.EVENTS] == spans((3, 15))


def test_a_sector_of_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    """Row 10: EIO within a journal: exactly the frames that lie there are stated as damaged."""
    folder, log = tmp_path / "spool", tmp_path / "log"
    with child(folder) as process:
        for _ in range(24):
            process.append(size=900)
        process.kill()
    disk = SystemDisk(folder)
    identity = store.identity(disk)
    assert identity is not None
    (number,) = journal.numbers(disk)
    content = journal.read(disk, number, identity.store, identity.epoch)
    path = folder / journal.journal_path(number)
    # The first two look at the head only; then it is read whole, then sector by sector.
    tracer = traced_from_start(log, "pread64:error=EIO:when=3+4", path=path)
    with child(folder, before=tracer, maintain=False) as process:
        process.kill()
    bad = [place(call) for call in calls_of(log) if call.result < 0 and asked_read(call) <= 4096]
    assert bad, "no sector was bad"
    hit = Ranges.of(
        [
            (frame.header.first, frame.header.stop)
            for frame in content.frames
            if frame.header.lane is Lane.EVENTS
            if any(frame.offset < stop and start < frame.end for start, stop in bad)
        ]
    )
    assert 0 < len(hit) < 24
    after = audited(folder, process.told, [Explained.DAMAGED])
    assert after.explains(Lane.EVENTS, Explained.DAMAGED) - spans((24, 1 << 40)) == hit
    assert after.pending[Lane.EVENTS] == spans((0, 24)) - hit


def asked_read(call: Call) -> int:
    """How many bytes a ``pread64`` was to read."""
    return int(re.findall(r", (\d+)", call.arguments)[-2])


def place(call: Call) -> tuple[int, int]:
    """Where a ``pread64`` was to read."""
    size, start = map(int, re.findall(r", (\d+)", call.arguments)[-2:])
    return start, start + size


@pytest.mark.parametrize("error", ["EMFILE", slow("ENFILE")])
def test_no_more_descriptors(tmp_path: Path, error: str) -> None:
    """Row 19: new work is refused, the cursor is kept; all goes on when there are some again."""
    folder = tmp_path / "spool"
    with child(folder, retained_bytes_max=0, **ROTATES) as process:
        for _ in range(4):
            process.append(count=2)
        process.until(lambda _: len(batches(folder)) >= 3)
        process.ask("release", lane="events", stop=2)
        process.until(lambda _: batches(folder)[0].name.startswith(f"{2:020d}"))
        if error == "EMFILE":
            process.ask("limit", what="RLIMIT_NOFILE", soft=3)
            _refuses_and_keeps(process)
            process.ask("limit", what="RLIMIT_NOFILE", soft=-1)
        else:
            fault = "openat:error=ENFILE:when=1+"
            with injected(process.process_id, tmp_path / "log", fault):
                _refuses_and_keeps(process)
        process.until(lambda status: not status["degraded"])
        assert process.append()["settled"]
        process.until(lambda _: batches(folder)[0].name.startswith(f"{4:020d}"))
        ended_well(process)


def _refuses_and_keeps(process: Child) -> None:
    kept = (process.folder / "cursor").read_bytes()
    there = batches(process.folder)
    process.ask("release", lane="events", stop=4)
    assert process.append()["settled"] is False
    assert "refused" in process.append()
    assert (process.folder / "cursor").read_bytes() == kept
    assert batches(process.folder) == there
