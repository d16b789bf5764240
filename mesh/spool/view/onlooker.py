"""An onlooker's disk: a folder that somebody else owns, in which nothing can be changed.

Whoever looks at a spool beside its node takes no lock, for a node that starts at that moment must
find it free; makes no file; and opens for reading only, so that it works on a medium that is
mounted read-only and for anybody who may read. This class holds it to that: what would change
something is refused before the disk below hears of it.
"""

from mesh.ports import Disk, DiskFile, OpenMode
from schemas.errors import DiskReadOnly

__all__ = ["ReadOnlyDisk", "ReadOnlyFile"]


class ReadOnlyDisk(Disk):
    """A disk without everything that changes it.

    Args:
        disk: the folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._disk!r})"

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens for reading."""
        if mode != "read":
            raise _refusal(mode, path)
        return ReadOnlyFile(self._disk.open(path, mode))

    def list(self, path: str) -> list[str]:
        """As the disk says."""
        return self._disk.list(path)

    def size(self, path: str) -> int:
        """As the disk says."""
        return self._disk.size(path)

    def free_bytes(self) -> int:
        """As the disk says."""
        return self._disk.free_bytes()

    def make_directory(self, path: str) -> None:
        """Refused."""
        raise _refusal("make directory", path)

    def sync_directory(self, path: str) -> None:
        """Refused."""
        raise _refusal("sync directory", path)

    def rename(self, source: str, target: str) -> None:
        """Refused."""
        raise _refusal("rename", f"{source} to {target}")

    def unlink(self, path: str) -> None:
        """Refused."""
        raise _refusal("unlink", path)

    def lock(self, path: str) -> None:
        """Refused."""
        raise _refusal("lock", path)

    def unlock(self, path: str) -> None:
        """Nothing was locked."""


class ReadOnlyFile(DiskFile):
    """A file without everything that changes it."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file

    def write(self, data: bytes | bytearray, offset: int) -> None:
        """Refused."""
        raise _refusal("write", f"{len(data)} bytes at {offset}")

    def sync(self) -> None:
        """Refused."""
        raise _refusal("sync", repr(self._file))

    def truncate(self, size: int) -> None:
        """Refused."""
        raise _refusal("truncate", f"to {size} bytes")

    def read(self, offset: int, size: int) -> bytes:
        """As the file says."""
        return self._file.read(offset, size)

    def size(self) -> int:
        """As the file says."""
        return self._file.size()

    def close(self) -> None:
        """Gives it back."""
        self._file.close()


def _refusal(operation: str, what: str) -> DiskReadOnly:
    return DiskReadOnly(f"{operation} {what}: an onlooker changes nothing")
