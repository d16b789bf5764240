"""A spool and what happens to its process: a second one, a stalled disk, a stop, too little memory.

What the process said before is true afterwards, and there is never a second writer.
"""

import resource
import signal
import time
from os import kill
from pathlib import Path

import pytest

from schemas.limits import PENDING_BYTES_MAX
from tests.spool.driving import Child, audited, child
from tests.spool.tracing import calls_of, injected

pytestmark = pytest.mark.timeout(180)

TICK_SECONDS_LATE_MAX = 0.5
"""The loop ticks every 10 ms; other work on the machine may make it this late, a stall may not."""


def ended_well(process: Child) -> None:
    """What the child left is right, after a kill, twice."""
    found = process.ask("verify")
    assert (found["lost"], found["reused"], found["untrue"]) == ([], [], [])
    process.kill()
    audited(process.folder, process.told)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Row 26: one writer; the second is told which process has it, until that one is dead."""
    folder = tmp_path / "spool"
    with child(folder) as first:
        first.append(count=3)
        with child(folder) as second:
            assert second.opening["refused"] == "StoreInUse"
            assert f"process {first.process_id}" in second.opening["said"]
        assert first.append(count=3) == {"first": 3, "settled": True}
        first.kill()
        with child(folder) as third:
            assert "open" in third.opening
            assert third.append()["settled"]
            ended_well(third)


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(30, marks=pytest.mark.slow)], ids=["3 s", "30 s"]
)
def test_a_disk_that_stalls(tmp_path: Path, seconds: int) -> None:
    """Row 27: the loop ticks on, what waits is bounded and the caller is told, nothing is lost."""
    log, half = tmp_path / "log", PENDING_BYTES_MAX * 5 // 8
    with child(tmp_path / "spool") as process:
        process.append()
        fault = f"fdatasync:delay_enter={seconds * 1_000_000}:when=1"
        with injected(process.process_id, log, fault):
            assert process.ask("flood", lane="readings", size=60_000, bytes_max=half) == {
                "taken": (half // 60_000 + 1) * 60_000
            }
            process.ask("status")
            time.sleep(0.7 * seconds)
            # The first half went to the disk long ago, if only the disk took it.
            flood = process.ask("flood", lane="readings", size=60_000, bytes_max=half)
            assert flood["refused"] == "Overloaded"
            assert flood["taken"] < half
            assert process.ask("status")["degraded"] == ""
            time.sleep(0.1 * seconds)
            assert process.ask("status")["late_seconds"] < TICK_SECONDS_LATE_MAX
            settled = process.ask("settle")
        assert settled == {"kept": (half // 60_000 + 1) + flood["taken"] // 60_000, "shed": 0}
        assert [call for call in calls_of(log) if call.injected], "the disk did not stall"
        assert process.append(lane="readings")["settled"], "there is room again"
        ended_well(process)


def test_a_process_that_is_stopped(tmp_path: Path) -> None:
    """Row 28: stopped for 3 s it keeps its lock, so nobody else writes; then it goes on."""
    folder = tmp_path / "spool"
    with child(folder) as process:
        process.append(count=3)
        process.ask("flood", lane="events", size=1000, bytes_max=200_000)
        kill(process.process_id, signal.SIGSTOP)
        try:
            with child(folder) as other:
                assert other.opening["refused"] == "StoreInUse"
            time.sleep(3)
        finally:
            kill(process.process_id, signal.SIGCONT)
        assert process.ask("settle") == {"kept": 200, "shed": 0}
        assert process.ask("status")["late_seconds"] > 2, "it was stopped"
        assert process.append() == {"first": 203, "settled": True}
        ended_well(process)


@pytest.mark.parametrize("spare_bytes", [1 << 20, 8 << 20, 24 << 20])
def test_too_little_memory(tmp_path: Path, spare_bytes: int) -> None:
    """Row 29: short of memory it refuses or dies; what it had promised is there."""
    with child(tmp_path / "spool") as process:
        for _ in range(5):
            process.append(count=20, size=500)
        status = Path(f"/proc/{process.process_id}/status").read_text("ascii")
        size = int(status.split("VmSize:")[1].split()[0]) * 1024
        hard = resource.prlimit(process.process_id, resource.RLIMIT_AS)[1]
        resource.prlimit(process.process_id, resource.RLIMIT_AS, (size + spare_bytes, hard))
        refused = 0
        try:
            for _ in range(3):
                request = {"lane": "readings", "size": 60_000, "bytes_max": 31 << 20}
                refused += process.ask("flood", **request).get("refused") == "MemoryError"
                refused += process.ask("settle").get("shed", 1)
        except EOFError:
            refused += 1
        assert refused, "memory did not run out"
        if process.process.poll() is None:
            process.kill()
    audited(process.folder, process.told)
