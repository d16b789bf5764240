"""Small documents in one file, by tinydb, on a storage of ours.

The file is one line, ``holdfast-registry 1 <crc32 of what follows, 8 hex digits>``, and after it
the JSON of tinydb. Invariants:

1. A change is written beside (``<path>.new``), synced, renamed over the file, and the folder
   synced. So after a crash the file is the one before or the one after; tinydb's own storage
   rewrites in place, and a crash between its two calls leaves neither.
2. What counts is what this object last made durable, not what the page cache holds: a change that
   failed is not seen by later reads.
3. A damaged file never stops a start. It is set aside as ``<path>.damaged-<n>``, an observer is
   told, and the registry begins empty. A file that cannot be *opened* is no damage: permission or
   descriptors are missing, and forgetting everything for that would be the worse fault.

One failure leaves more than one outcome: when only the sync of the folder fails, the old document
stands for this process, and after a crash either may.
"""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tinydb import TinyDB, where
from tinydb.storages import Storage
from tinydb.table import Table

from mesh.ports import Disk, Observer, Registry
from schemas.errors import Damaged, DiskFailed, Refused, RefusedBecause

__all__ = ["RegistryDamaged", "TinyRegistry"]

REGISTRY_BYTES_MAX: Final = 1024 * 1024
"""All documents together, as a file."""

_MAGIC: Final = b"holdfast-registry 1 "
_HEADER_BYTES: Final = len(_MAGIC) + 9
_DAMAGED_FILES_MAX: Final = 9
_TABLE: Final = "documents"

_Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RegistryDamaged:
    """A registry's file did not verify, and it began empty.

    Args:
        path: the file.
        set_aside: where its bytes are kept; empty when the disk refused to move them yet.
        reason: what was wrong, for a person.
    """

    path: str
    set_aside: str
    reason: str


class TinyRegistry(Registry):
    """Documents by name, in one file. Synchronous; one owner at a time.

    Args:
        disk: where the file lies; its folder is made when it is not there.
        path: the file.
        observer: is told ``RegistryDamaged``.

    Raises:
        DiskFailed: the file cannot be opened.
    """

    def __init__(self, disk: Disk, path: str, observer: Observer) -> None:
        self._storage = _DiskStorage(disk, path, observer)
        self._tiny = TinyDB(storage=lambda: self._storage)

    def __repr__(self) -> str:
        return f"TinyRegistry({self._storage!r})"

    def get(self, name: str) -> dict[str, object] | None:
        """A fresh copy of the document, or ``None``."""
        found = self._table().get(where("name") == name)
        return found["document"] if isinstance(found, Mapping) else None

    def put(self, name: str, document: Mapping[str, object]) -> None:
        """Replaces a document; durable on return.

        Raises:
            Refused: ``wrong_type`` for what JSON cannot say, ``too_large``.
            DiskFailed: the old one still stands.
        """
        table, row = self._table(), {"name": name, "document": dict(document)}
        # Not ``upsert``, which writes and syncs the file twice for a new document.
        if table.contains(where("name") == name):
            table.update(row, where("name") == name)
        else:
            table.insert(row)

    def remove(self, name: str) -> None:
        """Removes a document; writes nothing when it is not there."""
        if self._table().contains(where("name") == name):
            self._table().remove(where("name") == name)

    def names(self) -> list[str]:
        """The names of all documents, sorted."""
        return sorted(str(row["name"]) for row in self._table())

    def _table(self) -> Table:
        # Made anew each time: a table caches its next id and queries, and a write that failed
        # would leave them ahead of what is durable.
        return Table(self._tiny.storage, _TABLE, cache_size=0)


class _DiskStorage(Storage):
    """What tinydb reads and writes: the text that is known to be durable."""

    def __init__(self, disk: Disk, path: str, observer: Observer) -> None:
        self._disk = disk
        self._path = path
        self._folder = path.rpartition("/")[0]
        self._observer = observer
        self._text = b"{}"
        self._damage = ""
        self._folder_durable = False
        try:
            self._text = self._load()
        except FileNotFoundError:
            return
        except Damaged as damage:
            self._damage = str(damage)
            with suppress(DiskFailed):
                self._set_aside()
            if self._damage:
                self._observer.observe(RegistryDamaged(path, "", self._damage))

    def __repr__(self) -> str:
        return f"{self._path!r}, {len(self._text)} bytes, damage={self._damage!r}"

    def read(self) -> _Tables | None:
        """Parsed anew each time, because tinydb changes what it is given before it writes."""
        tables: _Tables = json.loads(self._text)
        return tables

    def write(self, data: _Tables) -> None:
        """Writes beside, syncs, renames, syncs the folder."""
        text = _encoded(data)
        content = _MAGIC + b"%08x\n" % zlib.crc32(text) + text
        if len(content) > REGISTRY_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"registry {self._path}: {len(content)} bytes, at most {REGISTRY_BYTES_MAX}",
            )
        if self._damage:
            self._set_aside()
        self._replace(content)
        self._text = text

    def _replace(self, content: bytes) -> None:
        if not self._folder_durable:
            self._make_folder()
        beside = f"{self._path}.new"
        self._disk.unlink(beside)
        try:
            file = self._disk.open(beside, "create")
            try:
                file.write(content, 0)
                file.sync()
            finally:
                file.close()
            self._disk.rename(beside, self._path)
        except DiskFailed:
            # On a full disk this gives the space back; the leftover itself would do no harm.
            with suppress(DiskFailed):
                self._disk.unlink(beside)
            raise
        self._disk.sync_directory(self._folder)

    def _make_folder(self) -> None:
        """A name is durable once the folder that holds it was synced: so all folders above, too."""
        self._disk.make_directory(self._folder)
        above = self._folder
        while above:
            above = above.rpartition("/")[0]
            self._disk.sync_directory(above)
        self._folder_durable = True

    def _load(self) -> bytes:
        file = self._disk.open(self._path, "read")
        try:
            content = file.read(0, REGISTRY_BYTES_MAX + 1)
        except DiskFailed as error:
            raise Damaged(str(error)) from error
        finally:
            file.close()
        header, text = content[:_HEADER_BYTES], content[_HEADER_BYTES:]
        if header != _MAGIC + b"%08x\n" % zlib.crc32(text):
            raise Damaged(f"registry {self._path}: {len(content)} bytes do not verify")
        # The process before may have ended between its rename and its sync of the folder.
        with suppress(DiskFailed):
            self._disk.sync_directory(self._folder)
        return text

    def _set_aside(self) -> None:
        """Keeps the damaged bytes; beyond the ninth file the last one is replaced."""
        taken = set(self._disk.list(self._folder))
        name = self._path.rpartition("/")[2]
        number = next(
            (n for n in range(1, _DAMAGED_FILES_MAX) if f"{name}.damaged-{n}" not in taken),
            _DAMAGED_FILES_MAX,
        )
        target = f"{self._path}.damaged-{number}"
        self._disk.rename(self._path, target)
        reason, self._damage = self._damage, ""
        self._disk.sync_directory(self._folder)
        self._observer.observe(RegistryDamaged(self._path, target, reason))


def _encoded(data: _Tables) -> bytes:
    """JSON, ASCII only, in the order of insertion; no NaN, which JSON does not know."""
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(
            RefusedBecause.WRONG_TYPE, f"a document for the registry is not JSON: {error}"
        ) from error
