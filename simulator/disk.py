"""A disk in memory: it forgets what was not synced, and fails where it was told to.

It behaves as the port says. What may be left of unsynced data and names is the crash model, which
is written in ``simulator.disk_medium``; what can go wrong is planted on ``SimDisk.faults``. To a
crash lead:

``crash_images``
    every disk that a crash now could leave, bounded, as new disks;
``crash``
    one of them, drawn from a seed, for long runs;
``cut_everywhere``
    a workload, cut before each of its changes in turn.

A failing write leaves its first half, and one that finds no room what fits; a failing sync leaves
the file's data in doubt for ever (rule 5 of the model); a failing sync of a folder leaves its names
pending; any other failing operation changes nothing. Locks hold within the process and are gone
after a crash; the file of a lock is made durable at once, because it means nothing to anybody
afterwards. Kept simple: names take no space, and a folder never replaces anything.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from mesh.adapters.system import check_path
from mesh.ports import Disk, DiskFile, OpenMode
from schemas.errors import DiskFailed, StoreInUse
from simulator.disk_crash import crash_trees
from simulator.disk_faults import DiskFaults, OperationName, PowerCut, failure
from simulator.disk_medium import Medium
from simulator.disk_tree import ROOT, Link, Rename, Tree, Truncate, Unlink

__all__ = ["SimDisk", "cut_everywhere"]

CHANGES_MAX: Final = 100_000
"""A workload of more changes is not cut everywhere."""

_BLOCK_BYTES: Final = 4096
_DRAWN_FROM: Final = 64


class SimDisk(Disk):
    """A disk in memory.

    Args:
        capacity_bytes: how much the files may take, in blocks of 4 KiB.
        spend: is told for how many seconds a call stalls; ``VirtualLoop.spend``.
        tree: what it begins with.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int = 1 << 40,
        spend: Callable[[float], None] = lambda _: None,
        tree: Tree | None = None,
    ) -> None:
        self.faults = DiskFaults(spend)
        self._medium = Medium(tree or Tree(), capacity_bytes)
        self._locks: set[str] = set()

    def __repr__(self) -> str:
        return f"SimDisk({len(self._medium.unsynced)} unsynced, {self.faults})"

    @property
    def capacity_bytes(self) -> int:
        """How much the files may take; may be changed while it is in use."""
        return self._medium.capacity_bytes

    @capacity_bytes.setter
    def capacity_bytes(self, capacity_bytes: int) -> None:
        self._medium.capacity_bytes = capacity_bytes

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file."""
        self._begin("create" if mode == "create" else "open", path)
        node = self._find(path)
        if mode == "create":
            if node is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            place, node = self._place(path), self._medium.new_file()
            self._medium.do(Link(*place, node))
        if node is None:
            raise _missing(path)
        if node not in self._medium.seen.files:
            raise failure(errno.EISDIR, mode, path)
        return _SimFile(self._medium, self.faults, node, path, writable=mode != "read")

    def make_directory(self, path: str) -> None:
        """Makes a folder and those above it."""
        self._begin("make_directory", path)
        names = path.split("/") if path else []
        for depth, name in enumerate(names):
            above = self._folder("/".join(names[:depth]))
            if name not in self._medium.seen.folders[above]:
                self._medium.do(Link(above, name, self._medium.new_folder()))
        self._folder(path)

    def sync_directory(self, path: str) -> None:
        """Makes the names in a folder durable."""
        self._begin("sync_directory", path)
        self._medium.sync_folder(self._folder(path))

    def rename(self, source: str, target: str) -> None:
        """Replaces ``target`` atomically; durable after a sync of the folder that holds it."""
        self._begin("rename", source)
        check_path(target)
        node, replaced = self._find(source), self._find(target)
        if node is None or self._find(target.rpartition("/")[0]) is None:
            raise _missing(source)
        if replaced == node:
            return
        folders = self._medium.seen.folders
        if replaced in folders or (replaced is not None and node in folders):
            raise failure(errno.EISDIR, "rename", f"{source} to {target}")
        if target.startswith(f"{source}/"):
            raise failure(errno.EINVAL, "rename", f"{source} to {target}")
        self._medium.do(Rename(*self._place(source), *self._place(target), node))

    def unlink(self, path: str) -> None:
        """Removes the name of a file."""
        self._begin("unlink", path)
        node = self._find(path)
        if node in self._medium.seen.folders:
            raise failure(errno.EISDIR, "unlink", path)
        if node is not None:
            self._medium.do(Unlink(*self._place(path), node))

    def list(self, path: str) -> list[str]:
        """The names in a folder, sorted."""
        self._begin("list", path)
        return [] if self._find(path) is None else sorted(self._entries(path))

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        self._begin("size", path)
        return self._medium.seen.files[self._file(path)].length

    def free_bytes(self) -> int:
        """The capacity, less the blocks of all files that have a name or are open."""
        return self._medium.free_bytes()

    def lock(self, path: str) -> None:
        """Takes a lock of this object; a second one finds it taken."""
        self._begin("lock", path)
        if path in self._locks:
            raise StoreInUse(f"{path} is locked by process {os.getpid()}; stop it first")
        if self._find(path) is None:
            made = Link(*self._place(path), self._medium.new_file())
            self._medium.seen.apply(made)
            self._medium.durable.apply(made)
        self._locks.add(path)

    def unlock(self, path: str) -> None:
        """Gives the lock back."""
        self._locks.discard(path)

    def crash_images(
        self, generator: random.Random, *, block_bytes: int = _BLOCK_BYTES, samples_max: int = 1000
    ) -> Iterator["SimDisk"]:
        """The disks that a crash now could leave, each once, without locks and planted faults.

        Args:
            generator: draws where there are too many for all.
            block_bytes: what the device writes as a whole: 512 or 4096.
            samples_max: how many subsets to look at where there are too many for all.
        """
        for tree in crash_trees(self._medium, generator, block_bytes, samples_max):
            yield self._image(tree)

    def crash(self, generator: random.Random, *, block_bytes: int = _BLOCK_BYTES) -> "SimDisk":
        """One of the disks that a crash now could leave."""
        trees = [*crash_trees(self._medium, generator, block_bytes, _DRAWN_FROM)]
        return self._image(generator.choice(trees))

    def contents(self) -> dict[str, bytes]:
        """All files that a program sees, by path."""
        files = self._medium.seen.files
        named = ((path, files.get(node)) for path, node in self._medium.seen.walk())
        return {path: found.read(0, found.length) for path, found in named if found is not None}

    def image_hash(self) -> str:
        """SHA-256 over all paths and bytes that a program sees, in hex."""
        return self._medium.seen.digest().hex()

    def drop_caches(self) -> None:
        """What failed syncs left in the page cache is lost to the reader as well."""
        self._medium.drop_caches()

    def damage_extent(self, path: str, offset: int, size: int) -> None:
        """Reads that touch these bytes of a file fail from now on, also on later images."""
        self._medium.unreadable.setdefault(self._file(path), []).append((offset, offset + size))

    def flip_bit(self, path: str, bit: int) -> None:
        """Turns one bit of a file round, in the cache and on the medium.

        Args:
            path: which file.
            bit: which bit, 0 being the lowest of the first byte.
        """
        node = self._file(path)
        offset, place = divmod(bit, 8)
        for tree in (self._medium.seen, self._medium.durable):
            old = tree.files[node].read(offset, 1)
            if old:
                tree.files[node].write(offset, bytes([old[0] ^ 1 << place]))

    def _begin(self, operation: OperationName, path: str) -> None:
        if path or operation not in {"list", "make_directory", "sync_directory"}:
            check_path(path)
        self.faults.begin(operation, path)

    def _find(self, path: str) -> int | None:
        try:
            return self._medium.find(path)
        except NotADirectoryError as error:
            raise failure(errno.ENOTDIR, "find", path) from error

    def _file(self, path: str) -> int:
        node = self._find(path)
        if node is None:
            raise _missing(path)
        if node not in self._medium.seen.files:
            raise failure(errno.EISDIR, "find", path)
        return node

    def _folder(self, path: str) -> int:
        node = self._find(path)
        if node is None or node not in self._medium.seen.folders:
            raise failure(errno.ENOENT if node is None else errno.ENOTDIR, "find", path)
        return node

    def _entries(self, path: str) -> dict[str, int]:
        return self._medium.seen.folders[self._folder(path) if path else ROOT]

    def _place(self, path: str) -> tuple[int, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _image(self, tree: Tree) -> "SimDisk":
        image = SimDisk(capacity_bytes=self.capacity_bytes, spend=self.faults.spend, tree=tree)
        # A node that is gone may be given out again; its damage must not come back with it.
        image._medium.unreadable = {
            node: [*extents]
            for node, extents in self._medium.unreadable.items()
            if node in tree.files
        }
        return image


class _SimFile(DiskFile):
    """One open file of a simulated disk."""

    def __init__(
        self, medium: Medium, faults: DiskFaults, node: int, path: str, *, writable: bool
    ) -> None:
        self._medium = medium
        self._faults = faults
        self._node = node
        self._path = path
        self._writable = writable
        self._closed = False
        self._sync_failed = False
        medium.opened[node] += 1

    def __repr__(self) -> str:
        return f"_SimFile({self._path!r}, sync_failed={self._sync_failed})"

    def write(self, data: bytes | bytearray, offset: int) -> None:
        self._check("write", usable=self._writable)
        try:
            self._faults.begin("write", self._path, len(data))
        except DiskFailed:
            if not self._faults.read_only:
                self._medium.write(self._node, offset, data[: len(data) // 2])
            raise
        self._faults.written_bytes += len(data)
        if not self._medium.write(self._node, offset, data):
            raise failure(errno.ENOSPC, "write", self._path)

    def sync(self) -> None:
        self._check("sync")
        if self._sync_failed:
            raise DiskFailed(
                f"sync {self._path}: an earlier sync failed, so this one proves nothing"
            )
        try:
            self._faults.begin("sync", self._path)
        except DiskFailed:
            self._sync_failed = True
            self._medium.fail_sync_file(self._node)
            raise
        self._medium.sync_file(self._node)

    def read(self, offset: int, size: int) -> bytes:
        self._check("read")
        self._faults.begin("read", self._path, size)
        data = self._medium.seen.files[self._node].read(offset, size)
        for start, end in self._medium.unreadable.get(self._node, ()):
            if start < offset + len(data) and offset < end:
                raise failure(errno.EIO, "read", self._path)
        return data

    def size(self) -> int:
        self._check("size")
        return self._medium.seen.files[self._node].length

    def truncate(self, size: int) -> None:
        self._check("truncate", usable=self._writable)
        self._faults.begin("truncate", self._path, size)
        self._medium.do(Truncate(self._node, size))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._medium.close(self._node)

    def _check(self, operation: str, *, usable: bool = True) -> None:
        if self._closed or not usable:
            raise failure(errno.EBADF, operation, self._path)


def cut_everywhere(
    work: Callable[[SimDisk], object], make: Callable[[], SimDisk] = SimDisk
) -> Iterator[SimDisk]:
    """A workload, cut before each of its changes in turn; at last one that it finished.

    Args:
        work: does the same each time; note what it was promised where the test can see it.
        make: makes the disk that it begins with.

    Yields:
        The disk as the power went: ask for its ``crash_images``.
    """
    for changes in count():
        assert changes <= CHANGES_MAX, f"the workload makes more than {CHANGES_MAX} changes"
        disk = make()
        disk.faults.cut_power(changes)
        try:
            work(disk)
        except PowerCut:
            yield disk
        else:
            yield disk
            return


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
