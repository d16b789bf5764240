"""What has to be known of a carried medium beside what a ``Disk`` does: links, caches, clusters."""

import os
from pathlib import Path
from typing import Protocol

from mesh.adapters.system import check_path, disk_failure

__all__ = ["Medium", "SystemMedium"]


class Medium(Protocol):
    """A medium that somebody carries. Paths are those of the ``Disk`` that stands on it."""

    def is_link(self, path: str) -> bool:
        """Whether a symbolic link stands there: it may lead out of what is carried."""
        ...

    def forget(self, path: str) -> None:
        """Lets what is cached of a synced file go, so that the next reading asks the medium.

        Best effort: where the system keeps its cache, what is read back proves less.
        """
        ...

    def cluster_bytes(self) -> int:
        """What the length of a file is rounded up to."""
        ...


class SystemMedium(Medium):
    """A folder of the system.

    Args:
        root: the folder, which may itself be reached over a link: the person named it.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)

    def __repr__(self) -> str:
        return f"SystemMedium({str(self._root)!r})"

    def is_link(self, path: str) -> bool:
        """``lstat(2)``; what is not there is no link."""
        return (self._root / check_path(path)).is_symlink()

    def forget(self, path: str) -> None:
        """``posix_fadvise(2)`` with ``POSIX_FADV_DONTNEED``."""
        full = self._root / check_path(path)
        try:
            descriptor = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        except OSError:
            return

    def cluster_bytes(self) -> int:
        """The block size of the file system; on FAT that of a cluster."""
        try:
            return os.statvfs(self._root).f_bsize
        except OSError as error:
            raise disk_failure(error, "cluster bytes", str(self._root)) from error
