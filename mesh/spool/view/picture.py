"""A picture: what the folder of a spool holds, for somebody who looks on while its owner writes.

Its owner seals journals, releases and unlinks all the
while, so what is read one after another need not fit together. The order of taking makes it fit:

1. the journals that are there are opened, and stay readable when their names go, until their
   blocks are used again: their first bytes tell, and then it is as if they were not there;
2. the shelves are listed;
3. the cursor is read;
4. the journals are listed once more, and those that are new are opened.

Frames leave a journal only for the shelf, and a batch leaves the shelf only once the cursor or the
header of a journal says so, durably. So what is missing in 2 is in 1, or is explained by 3 or 4:
*no hole is seen that is none*. Where a whole journal came and went between 1 and 4, or ``STORE``
changed, the picture is taken again, a bounded number of times.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from mesh.ports import Disk, DiskFile, OpenMode
from mesh.spool import cursor, journal, shelf
from mesh.spool.view.onlooker import ReadOnlyDisk, ReadOnlyFile
from schemas.errors import DiskFailed, Overloaded
from schemas.limits import CURSOR_BYTES_MAX, KIB, STORE_BYTES_MAX

__all__ = ["Picture", "take"]

_STORE: Final = "STORE"
_STORE_BYTES_MAX: Final = KIB + STORE_BYTES_MAX
_ATTEMPTS_MAX: Final = 20
_JOURNALS_KEPT_OPEN_MAX: Final = 64
_HEAD_BYTES: Final = 64


def take(disk: Disk, pause: Callable[[], object]) -> "Picture":
    """A picture in which all fits together.

    Args:
        disk: the spool's folder.
        pause: waits a moment for the owner, before another attempt.

    Raises:
        Overloaded: the owner is too busy for it; later there may be a moment.
        DiskFailed: the medium does not give it back, or permission is missing.
    """
    for _ in range(_ATTEMPTS_MAX):
        picture = Picture(disk)
        if picture.fits:
            return picture
        picture.close()
        pause()
    raise Overloaded(
        f"the spool changed while it was read, {_ATTEMPTS_MAX} times in a row: try again"
    )


class Picture(ReadOnlyDisk):
    """What was there when it was taken; batches are read from the disk when they are asked for.

    Args:
        disk: the spool's folder.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._kept: dict[str, DiskFile] = {}
        self._names: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self.fits = False
        try:
            self.fits = self._take()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Picture({self._disk!r}, {len(self._kept)} kept, fits={self.fits})"

    def close(self) -> None:
        """Gives all descriptors back. May be called twice."""
        for file in self._kept.values():
            file.close()
        self._kept.clear()

    # --- what was there ------------------------------------------------------------------------

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens for reading only; what was kept opens even where its name is gone."""
        kept = self._kept.get(path) if mode == "read" else None
        return super().open(path, mode) if kept is None else _Shared(kept)

    def list(self, path: str) -> list[str]:
        """The names that were there."""
        names = self._names.get(path)
        if names is None:
            # A shelf that was made since was not there.
            return [] if path.startswith(f"{shelf.FOLDER}/") else self._disk.list(path)
        return list(names)

    def size(self, path: str) -> int:
        """Length of a file; of a batch when the picture was taken."""
        known = self._sizes.get(path)
        if known is not None:
            return known
        kept = self._kept.get(path)
        return self._disk.size(path) if kept is None else kept.size()

    # --- the taking --------------------------------------------------------------------------

    def _take(self) -> bool:
        """Takes all in order; whether it fits together."""
        before = self._whole(_STORE, _STORE_BYTES_MAX)
        early = journal.numbers(self._disk)
        kept = self._keep(early)
        self._list_shelves()
        released = self._whole(cursor.PATH, 2 * CURSOR_BYTES_MAX)
        late = journal.numbers(self._disk)
        new = [number for number in late if number > max(early, default=0)]
        there = self._keep(new)
        names = [journal.journal_path(number) for number in sorted({*kept, *there})]
        names += self._list_spares()
        self._names[journal.FOLDER] = [name.rpartition("/")[2] for name in names]
        for path, data in ((_STORE, before), (cursor.PATH, released)):
            if data is not None:
                self._kept[path] = _Bytes(data)
        # Of those that came since, none may have gone again: what it explained would be missing.
        first, last = max(early, default=0) + 1, max(late, default=0)
        settled = there == list(range(first, last + 1)) and bool(late) >= bool(early)
        return settled and self._whole(_STORE, _STORE_BYTES_MAX) == before

    def _keep(self, numbers: Sequence[int]) -> Sequence[int]:
        """Opens journals, of very many, which nobody is sealing, the oldest; returns what is there.

        One that has gone was sealed: its frames are on the shelf.
        """
        there = []
        for number in numbers:
            path = journal.journal_path(number)
            try:
                if len(self._kept) < _JOURNALS_KEPT_OPEN_MAX:
                    self._kept[path] = _Journal(self._disk.open(path, "read"), path)
                    # While its name stands, what was read of it is its own.
                    self._disk.size(path)
            except FileNotFoundError:
                gone = self._kept.pop(path, None)
                if gone is not None:
                    gone.close()
                continue
            there.append(number)
        return there

    def _list_spares(self) -> Sequence[str]:
        """What is kept for later journals: it holds nothing, and takes space."""
        there = []
        for name in self._disk.list(journal.FOLDER):
            path = f"{journal.FOLDER}/{name}"
            if path.startswith(journal.SPARE):
                with suppress(FileNotFoundError):
                    self._sizes[path] = self._disk.size(path)
                    there.append(path)
        return there

    def _list_shelves(self) -> None:
        lanes = self._disk.list(shelf.FOLDER)
        self._names[shelf.FOLDER] = lanes
        for lane in lanes:
            above = f"{shelf.FOLDER}/{lane}"
            self._names[above] = self._disk.list(above)
            for epoch in self._names[above]:
                self._list_shelf(f"{above}/{epoch}")

    def _list_shelf(self, folder: str) -> None:
        there = []
        for name in self._disk.list(folder):
            try:
                self._sizes[f"{folder}/{name}"] = self._disk.size(f"{folder}/{name}")
            except FileNotFoundError:
                continue
            there.append(name)
        self._names[folder] = there

    def _whole(self, path: str, size: int) -> bytes | None:
        """A small file; ``None`` where there is none, or the medium does not give all of it."""
        try:
            file = self._disk.open(path, "read")
        except FileNotFoundError:
            return None
        try:
            return file.read(0, size)
        except DiskFailed:
            # A reader of it gets from the disk what can be had, and tells the rest.
            return None
        finally:
            file.close()


class _Shared(ReadOnlyFile):
    """A file that stays open for the next reader; the picture closes it."""

    def close(self) -> None:
        """Later."""


class _Journal(ReadOnlyFile):
    """A journal that must still be what it was: a new head is written before anything else is."""

    def __init__(self, file: DiskFile, path: str) -> None:
        super().__init__(file)
        self._path = path
        self._head = self._read_head()

    def read(self, offset: int, size: int) -> bytes:
        data = self._file.read(offset, size)
        if self._read_head()[: len(self._head)] != self._head:
            raise FileNotFoundError(self._path)
        return data

    def _read_head(self) -> bytes:
        try:
            return self._file.read(0, _HEAD_BYTES)
        except DiskFailed:
            # The medium does not give it back, which is for a reader of the journal to tell.
            return b""


class _Bytes(ReadOnlyFile):
    """A file as it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(self)
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Nothing is open."""
