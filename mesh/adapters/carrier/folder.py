"""One folder of a carried directory: how it is written, and how it is read.

*Written* for a medium that may be pulled out at any moment, and whose file system may rename in two
steps, of which a crash leaves one, both or none: beside (``….new``), synced, read back from the
medium and compared, renamed. A name is only ever given to the bytes that belong to it, so it does
not matter what a crash leaves of a renaming: the bytes under a name are right, or the name is not
there. Names are durable after ``settle``.

*Read* as if by an enemy: no link is followed, neither for a file nor for a folder of ours; nothing
but regular files is opened; nothing is read beyond its bound.
"""

from contextlib import suppress
from typing import Final

from mesh.adapters.carrier.medium import Medium
from mesh.ports import Disk
from schemas.errors import DiskFailed, Refused, RefusedBecause

__all__ = ["NEW", "CarriedFolder"]

NEW: Final = ".new"


class CarriedFolder:
    """A folder and the files in it. Synchronous, as ``Disk``.

    Args:
        disk: the carried directory.
        medium: the same.
        path: of the folder in it.
    """

    def __init__(self, disk: Disk, medium: Medium, path: str) -> None:
        self._disk = disk
        self._medium = medium
        self.path = path

    def __repr__(self) -> str:
        return f"CarriedFolder({self._disk!r}, {self.path!r})"

    def within(self, name: str) -> "CarriedFolder":
        """A folder in this one."""
        return CarriedFolder(self._disk, self._medium, f"{self.path}/{name}")

    def is_link(self, name: str) -> bool:
        """Whether a name in it is a symbolic link."""
        return self._medium.is_link(f"{self.path}/{name}")

    def check(self) -> None:
        """Whether neither the folder nor one above it is a link.

        Raises:
            Refused: ``bad_name``: which one is.
        """
        for path in self._upwards():
            if self._medium.is_link(path):
                raise Refused(RefusedBecause.BAD_NAME, f"{path} is a symbolic link: not followed")

    def _upwards(self) -> list[str]:
        names = self.path.split("/")
        return ["/".join(names[: end + 1]) for end in range(len(names))]

    def names(self) -> list[str]:
        """All names in it, sorted; none where there is no such folder.

        Raises:
            Refused: ``bad_name``: a link stands in its place.
            DiskFailed: the medium does not tell.
        """
        self.check()
        return self._disk.list(self.path)

    def read(self, name: str, size_max: int) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: it is not there.
            Refused: ``too_large``, or ``bad_name`` for a link.
            DiskFailed: the medium does not give it back, or it is no regular file.
        """
        path = f"{self.path}/{name}"
        if self._medium.is_link(path):
            raise Refused(RefusedBecause.BAD_NAME, "a symbolic link: not followed")
        size = self._disk.size(path)
        if size > size_max:
            raise Refused(RefusedBecause.TOO_LARGE, f"{size} bytes, at most {size_max}")
        file = self._disk.open(path, "read")
        try:
            return file.read(0, size_max + 1)
        finally:
            file.close()

    # --- what changes it -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes the folder and those above it; their names are durable on return.

        Raises:
            Refused: ``bad_name``: a link stands in the place of one.
            DiskFailed: it is not there.
        """
        self.check()
        for path in self._upwards():
            self._disk.make_directory(path)
            self._disk.sync_directory(path.rpartition("/")[0])

    def put(self, name: str, data: bytes) -> bool:
        """Puts a file there, unless the same one is; its name is durable after ``settle``.

        Returns:
            Whether it was written.

        Raises:
            DiskFailed: it is not there, or does not read back as it was written.
        """
        path = f"{self.path}/{name}"
        with suppress(FileNotFoundError, Refused, DiskFailed):
            if self.read(name, len(data)) == data:
                return False
        new = path + NEW
        try:
            self._disk.unlink(new)
            self._write(new, data)
            self._disk.rename(new, path)
        except DiskFailed:
            # On a full stick half a file is room that something else needs.
            with suppress(DiskFailed):
                self._disk.unlink(new)
            raise
        return True

    def _write(self, path: str, data: bytes) -> None:
        file = self._disk.open(path, "create")
        try:
            file.write(data, 0)
            file.sync()
        finally:
            file.close()
        self._medium.forget(path)
        file = self._disk.open(path, "read")
        try:
            found = file.read(0, len(data) + 1)
        finally:
            file.close()
        if found != data:
            raise DiskFailed(f"{path}: it was written and synced, and reads back otherwise")

    def remove(self, name: str) -> None:
        """Removes a file; fine when it is not there.

        Raises:
            DiskFailed: it is still there.
        """
        self._disk.unlink(f"{self.path}/{name}")

    def settle(self) -> None:
        """Returns only when the names in it are durable.

        Raises:
            DiskFailed: nobody knows.
        """
        self._disk.sync_directory(self.path)
