"""A disk that counts what it is given: the wear of a flash card, as far as a process can see it."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from mesh.ports import Disk, DiskFile, OpenMode

__all__ = ["BLOCK_BYTES", "CountedDisk", "Wear"]

BLOCK_BYTES = 4096


@dataclass(slots=True)
class Wear:
    """What a disk was given.

    Args:
        written_bytes: bytes written, by the first name of the path.
        block_bytes: the same in whole blocks of 4 KiB, as often as each was dirty at a sync: what a
            file system hands to the medium at least, its own journal not counted.
        syncs: syncs of files.
        directory_syncs: syncs of folders.
        names: files made, renamed or unlinked.
    """

    written_bytes: Counter[str] = field(default_factory=Counter)
    block_bytes: int = 0
    syncs: int = 0
    directory_syncs: int = 0
    names: int = 0

    @property
    def all_syncs(self) -> int:
        """Syncs of files and of folders."""
        return self.syncs + self.directory_syncs


class CountedDisk(Disk):
    """Passes everything on to another disk.

    Args:
        disk: the other one.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self.wear = Wear()

    def take(self) -> Wear:
        """What was counted since the last call."""
        with self._lock:
            wear, self.wear = self.wear, Wear()
        return wear

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file."""
        if mode == "create":
            self._count_name()
        return _CountedFile(self, self._disk.open(path, mode), path.partition("/")[0])

    def make_directory(self, path: str) -> None:
        """Makes a folder and those above it."""
        self._disk.make_directory(path)

    def sync_directory(self, path: str) -> None:
        """Syncs a folder."""
        with self._lock:
            self.wear.directory_syncs += 1
        self._disk.sync_directory(path)

    def rename(self, source: str, target: str) -> None:
        """Renames a file."""
        self._count_name()
        self._disk.rename(source, target)

    def unlink(self, path: str) -> None:
        """Removes a name."""
        self._count_name()
        self._disk.unlink(path)

    def list(self, path: str) -> list[str]:
        """The names in a folder."""
        return self._disk.list(path)

    def size(self, path: str) -> int:
        """Length of a file."""
        return self._disk.size(path)

    def free_bytes(self) -> int:
        """What can still be written."""
        return self._disk.free_bytes()

    def lock(self, path: str) -> None:
        """Takes a lock."""
        self._disk.lock(path)

    def unlock(self, path: str) -> None:
        """Gives it back."""
        self._disk.unlock(path)

    def count_write(self, place: str, size: int) -> None:
        """A file was written."""
        with self._lock:
            self.wear.written_bytes[place] += size

    def count_sync(self, blocks: int, *, synced: bool) -> None:
        """Dirty blocks went to the medium."""
        with self._lock:
            self.wear.syncs += synced
            self.wear.block_bytes += blocks * BLOCK_BYTES

    def _count_name(self) -> None:
        with self._lock:
            self.wear.names += 1


class _CountedFile(DiskFile):
    def __init__(self, disk: CountedDisk, file: DiskFile, place: str) -> None:
        self._disk = disk
        self._file = file
        self._place = place
        self._dirty: set[int] = set()

    def write(self, data: bytes, offset: int) -> None:
        self._disk.count_write(self._place, len(data))
        self._dirty.update(range(offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES)))
        self._file.write(data, offset)

    def sync(self) -> None:
        self._disk.count_sync(len(self._dirty), synced=True)
        self._dirty.clear()
        self._file.sync()

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def close(self) -> None:
        # What was not synced goes to the medium all the same, some time later.
        self._disk.count_sync(len(self._dirty), synced=False)
        self._dirty.clear()
        self._file.close()
