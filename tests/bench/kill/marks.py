"""The marks: which phase of the spool's work each call on the disk belongs to, and where to die.

A disk in front of the real one. Before each call that changes something it writes the call's phase
into a page that the parent can read after the end, one byte for each thread; and where it was told
to, it kills its own process: before the n-th call of a phase, after it, or with half the bytes of a
write handed over.
"""

import mmap
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mesh.ports import Disk, DiskFile, OpenMode
from mesh.spool import events, journal
from schemas.messages import Lane
from schemas.ranges import Ranges

__all__ = ["PAGE_BYTES", "PHASES", "Death", "MarkedDisk", "Marks", "phases_at_the_end"]

PHASES: Final = ("none", "open", "append", "rotate", "seal", "release", "evict", "spare", "close")
PAGE_BYTES: Final = 4096
_CHOSEN: Final = 0
_SLOTS: Final = 8
_BATCH: Final = re.compile(r"lanes/([a-z]+)/[^/]+/(\d+)-(\d+)\.batch")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Death:
    """Where to die: ``where`` is before, half or after of the ``nth`` call of a phase."""

    phase: str
    nth: int
    where: str


class Marks:
    """Notes the phase of each call, and kills where it was told to.

    Args:
        page: the file that the parent reads.
        death: where to die; ``None`` for nowhere.
    """

    def __init__(self, page: Path, death: Death | None) -> None:
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), PAGE_BYTES)
        self._death = death
        self._left = death.nth if death else 0
        self._slots: dict[int, int] = {}
        self._lock = threading.Lock()
        self._released = dict.fromkeys(Lane, Ranges())
        self._evicting = False
        self.stage = "open"

    def observe(self, event: object) -> None:
        """Port ``Observer``: what is given up is being given up until its first file is gone."""
        if isinstance(event, events.Evicted):
            self._evicting = True

    def releasing(self, lane: Lane, numbers: Ranges) -> None:
        """These numbers are released: their files may go for that reason."""
        self._released[lane] |= numbers

    def run(
        self,
        operation: str,
        path: str,
        work: Callable[[], _T],
        half: Callable[[], object] | None = None,
        offset: int = 0,
    ) -> _T:
        """Does a piece of work within its phase."""
        with self._lock:
            phase = self._phase(operation, path, offset)
            slot = self._slots.setdefault(threading.get_ident(), len(self._slots) % _SLOTS)
            fatal = self._counts(phase)
        self._page[1 + slot] = PHASES.index(phase)
        if fatal and self._death is not None and self._death.where != "after":
            if self._death.where == "half" and half is not None:
                half()
            self._die(phase)
        done = work()
        if fatal:
            self._die(phase)
        self._page[1 + slot] = 0
        return done

    def _counts(self, phase: str) -> bool:
        if self._death is None or self._death.phase != phase:
            return False
        self._left -= 1
        return self._left == 0

    def _die(self, phase: str) -> None:
        self._page[_CHOSEN] = PHASES.index(phase)
        os.kill(os.getpid(), signal.SIGKILL)

    def _phase(self, operation: str, path: str, offset: int) -> str:
        if self.stage != "run":
            return self.stage
        if path.startswith(journal.FOLDER):
            return self._journal_phase(operation, path, offset)
        if path.startswith("cursor"):
            return "release"
        batch = _BATCH.fullmatch(path)
        if operation == "unlink" and batch is not None:
            first, last = int(batch[2]), int(batch[3])
            if self._released[Lane(batch[1])].covers(first, last + 1):
                return "release"
            self._evicting = False
            return "evict"
        return "seal"

    def _journal_phase(self, operation: str, path: str, offset: int) -> str:
        """The writer begins journals and appends; the worker retires them and makes the spare."""
        if threading.current_thread().name.startswith("writer"):
            if offset:
                return "append"
            # A loss is stated in the header of a journal that is begun for it.
            return "evict" if self._evicting else "rotate"
        if path.startswith(journal.SPARE) and operation != "unlink":
            return "spare"
        return "seal"


def phases_at_the_end(page: Path) -> tuple[str, ...]:
    """In which phases a process died: the chosen one, or all that its threads were in."""
    data = page.read_bytes()
    if data[_CHOSEN]:
        return (PHASES[data[_CHOSEN]],)
    found = {PHASES[code] for code in data[1 : 1 + _SLOTS] if code}
    return tuple(sorted(found)) or ("none",)


class MarkedDisk(Disk):
    """Port ``Disk``: another one, with marks."""

    def __init__(self, disk: Disk, marks: Marks) -> None:
        self._disk = disk
        self._marks = marks

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """As the port says."""
        if mode == "read":
            return self._disk.open(path, mode)
        file = self._marks.run("open", path, lambda: self._disk.open(path, mode))
        return _MarkedFile(file, path, self._marks)

    def make_directory(self, path: str) -> None:
        """As the port says."""
        self._marks.run("make_directory", path, lambda: self._disk.make_directory(path))

    def sync_directory(self, path: str) -> None:
        """As the port says."""
        self._marks.run("sync_directory", path, lambda: self._disk.sync_directory(path))

    def rename(self, source: str, target: str) -> None:
        """As the port says."""
        self._marks.run("rename", source, lambda: self._disk.rename(source, target))

    def unlink(self, path: str) -> None:
        """As the port says."""
        self._marks.run("unlink", path, lambda: self._disk.unlink(path))

    def list(self, path: str) -> list[str]:
        """As the port says."""
        return self._disk.list(path)

    def size(self, path: str) -> int:
        """As the port says."""
        return self._disk.size(path)

    def free_bytes(self) -> int:
        """As the port says."""
        return self._disk.free_bytes()

    def lock(self, path: str) -> None:
        """As the port says."""
        self._disk.lock(path)

    def unlock(self, path: str) -> None:
        """As the port says."""
        self._disk.unlock(path)

    def __getattr__(self, name: str) -> object:
        """What this disk does not mark, it passes on."""
        return getattr(self._disk, name)


class _MarkedFile(DiskFile):
    def __init__(self, file: DiskFile, path: str, marks: Marks) -> None:
        self._file = file
        self._path = path
        self._marks = marks
        self._at = 0

    def write(self, data: bytes, offset: int) -> None:
        self._at = offset
        self._marks.run(
            "write",
            self._path,
            lambda: self._file.write(data, offset),
            lambda: self._file.write(data[: len(data) // 2], offset),
            offset,
        )

    def sync(self) -> None:
        self._marks.run("sync", self._path, self._file.sync, offset=self._at)

    def truncate(self, size: int) -> None:
        self._marks.run("truncate", self._path, lambda: self._file.truncate(size), offset=size)

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)
