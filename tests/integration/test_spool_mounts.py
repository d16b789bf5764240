"""A spool on file systems that really are full, read-only or failing. Needs root.

The tracer's faults are what the kernel might say; these are what it does say.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.spool.driving import Child, audited, child

pytestmark = [pytest.mark.powercut, pytest.mark.timeout(180)]


def command(*words: object) -> None:
    """Runs a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"


@contextmanager
def mounted(folder: Path, *how: object) -> Iterator[Path]:
    """A mount that ends with the block."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir()
    command("mount", *how, folder)
    try:
        yield folder
    finally:
        command("umount", folder)


@contextmanager
def ext4(image: Path, mebibytes: int, folder: Path) -> Iterator[Path]:
    """An ext4 in a file, which takes no more room than what is written to it."""
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", image)
    with mounted(folder, "-o", "loop,errors=remount-ro", image) as mount:
        yield mount


def append_until_refused(process: Child) -> int:
    """Appends 50 kB at a time until the spool is degraded; how many were taken."""
    for taken in range(2000):
        if not process.append(lane="alarms", size=50_000).get("settled"):
            return taken
    raise AssertionError("the disk is never full")


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """Row 16: no space left: refused, alive; where others make room it goes on; nothing is lost."""
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as mount:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        told = tmp_path / "told"
        # Nothing is left free for others: what is to be seen is the kernel's refusal.
        with child(mount / "spool", told=told, headroom_bytes=0, spare_bytes=1 << 18) as process:
            assert append_until_refused(process) > 20
            assert process.ask("status")["degraded"]
            ballast.unlink()
            process.until(lambda status: not status["degraded"])
            assert process.append()["settled"]
            found = process.ask("verify")
            assert (found["lost"], found["reused"], found["untrue"]) == ([], [], [])
            process.kill()
        audited(mount / "spool", told, headroom_bytes=0)


def test_a_file_system_that_becomes_read_only(tmp_path: Path) -> None:
    """Row 18: read-only in the middle of work: refused, alive, no crash; nothing said is lost."""
    told = tmp_path / "told"
    with ext4(tmp_path / "image", 64, tmp_path / "mount") as mount:
        with child(mount / "spool", told=told) as process:
            for _ in range(5):
                assert process.append(count=3)["settled"]
            command("mount", "-o", "remount,abort", mount)
            assert process.append(count=3)["settled"] is False
            assert process.append()["refused"] in {"DiskReadOnly", "DiskFailed"}
            assert process.ask("read", lane="events")["numbers"] == [[0, 15]]
            assert process.ask("status")["late_seconds"] < 1.0
            process.kill()
        with child(mount / "spool", told=told) as process:
            assert "refused" in process.opening
            assert str(mount) in process.opening["said"]
    with mounted(tmp_path / "again", "-o", "loop", tmp_path / "image") as mount:
        audited(mount / "spool", told)


def test_a_block_device_that_fails(tmp_path: Path) -> None:
    """Rows 14, 15: the device takes no more blocks: what a failed sync left is not read."""
    told = tmp_path / "told"
    with (
        mounted(tmp_path / "store", "-t", "tmpfs", "-o", "size=12m", "tmpfs") as store,
        ext4(store / "image", 64, tmp_path / "mount") as mount,
        child(mount / "spool", told=told) as process,
    ):
        taken = append_until_refused(process)
        for path in (mount / "spool" / "journal").iterdir():
            forget(path)
        assert process.ask("read", lane="alarms")["numbers"] == [[0, taken]]
        assert process.ask("status")["degraded"]
        process.kill()
    assert taken > 20


def forget(path: Path) -> None:
    """Has the kernel forget what it holds of a file: the next read asks the device."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
