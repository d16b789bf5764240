"""A spool on a disk that never syncs: what the power-cut bench must find, or it finds nothing.

Everything else is as in ``tests.bench.powercut.spool``. As a program:
``python -m tests.bench.powercut.hasty FOLDER SEED ROUND``.
"""

import asyncio
import sys

from mesh.adapters.system import SystemDisk
from mesh.ports import DiskFile, OpenMode
from tests.bench.powercut.spool import work

__all__ = ["HastyDisk"]


class _HastyFile(DiskFile):
    """A file that says that it is durable, and is not."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file

    def write(self, data: bytes, offset: int) -> None:
        """Writes."""
        self._file.write(data, offset)

    def sync(self) -> None:
        """Does nothing."""

    def read(self, offset: int, size: int) -> bytes:
        """Reads."""
        return self._file.read(offset, size)

    def size(self) -> int:
        """Length in bytes."""
        return self._file.size()

    def truncate(self, size: int) -> None:
        """Cuts."""
        self._file.truncate(size)

    def close(self) -> None:
        """Closes."""
        self._file.close()


class HastyDisk(SystemDisk):
    """The real disk, but nothing is ever synced."""

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file that never syncs."""
        return _HastyFile(super().open(path, mode))

    def sync_directory(self, path: str) -> None:
        """Does nothing."""


if __name__ == "__main__":
    asyncio.run(work(HastyDisk(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
