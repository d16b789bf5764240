"""A disk in memory: it forgets what was not synced, and fails where it was told to.

It behaves as the port says, on top of ``simulator.medium``, whose docstring is the crash model: what
may be left of unsynced data and names. Added here are the record of what was done, the faults, and
the ways to a crash:

``crash_images``
    every disk that a crash now could leave, bounded, as new disks;
``crash``
    one of them, drawn from a seed, for long runs;
``cut_power``
    an end after so many changes: from then on each call raises ``PowerCut``, which no
    ``except Exception`` swallows;
``cut_everywhere``
    a workload, cut before each of its changes in turn.

A fault is planted for an operation of the port, by name (``fail("sync", after=2)``), and is spent
when it has struck. A failing write leaves its first half; a failing sync leaves the file's data in
doubt for ever (rule 5 of the model); a failing sync of a folder leaves its names pending; any other
failing operation changes nothing. Locks hold within the process and are gone after a crash; the file
of a lock is made durable at once, because it means nothing to anybody after a crash.

Kept simple: names cost no space, a folder never replaces anything, nothing can be ``/proc``.
"""

import errno
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal, NamedTuple, Self

from mesh.adapters.system import check_path, disk_failure
from mesh.ports import Disk, DiskFile, OpenMode
from schemas.errors import DiskFailed, StoreInUse
from simulator.medium import (
    ROOT,
    Link,
    Medium,
    Rename,
    Tree,
    Truncate,
    Unlink,
    Write,
    crash_trees,
)

__all__ = ["Call", "OperationName", "PowerCut", "SimDisk", "cut_everywhere"]

OperationName = Literal[
    "create",
    "list",
    "lock",
    "make_directory",
    "open",
    "read",
    "rename",
    "size",
    "sync",
    "sync_directory",
    "truncate",
    "unlink",
    "write",
]

CALLS_KEPT_MAX: Final = 10_000
"""The record keeps so many; the oldest are forgotten, their counts are not."""

CHANGES_MAX: Final = 100_000
"""A workload of more changes is not cut everywhere."""

_CHANGES: Final = frozenset(
    {
        "create",
        "make_directory",
        "rename",
        "sync",
        "sync_directory",
        "truncate",
        "unlink",
        "write",
    }
)
_SYNCS: Final = frozenset({"sync", "sync_directory"})
_BLOCK: Final = 4096
_TREE_GARBAGE_EVERY: Final = 64


class PowerCut(BaseException):
    """The power went. Not an error of the disk: nobody may handle it but the test."""


class Call(NamedTuple):
    """One operation that was asked of the disk."""

    number: int
    operation: OperationName
    path: str
    size: int = 0


@dataclass(slots=True)
class _Fault:
    operation: OperationName
    after: int
    times: int
    path: str | None
    error: int = 0
    stall_seconds: float = 0.0


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
        self.capacity_bytes = capacity_bytes
        self.read_only = False
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT_MAX)
        self.counts: Counter[str] = Counter()
        self.written_bytes = 0
        self._spend = spend
        self._medium = Medium(tree)
        self._faults: list[_Fault] = []
        self._unreadable: dict[int, list[tuple[int, int]]] = {}
        self._locks: set[str] = set()
        self._open: Counter[int] = Counter()
        self._changes_left: int | None = None
        self._removals = 0

    def __repr__(self) -> str:
        unsynced = len(self._medium.unsynced)
        return f"SimDisk({self.counts.total()} calls, {unsynced} unsynced, faults={self._faults})"

    # The port.

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file."""
        self._begin("create" if mode == "create" else "open", path)
        folder, name = self._parent(path, mode)
        node = None if folder is None else self._medium.seen.folders[folder].get(name)
        if mode == "create":
            if node is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if folder is None:
                raise _failure(errno.ENOENT, mode, path)
            node = self._medium.new_file()
            self._medium.do(Link(folder, name, node))
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if node not in self._medium.seen.files:
            raise _failure(errno.EISDIR, mode, path)
        self._open[node] += 1
        return _SimFile(self, node, path, writable=mode != "read")

    def make_directory(self, path: str) -> None:
        """Makes a folder and those above it."""
        self._begin("make_directory", path, root=True)
        folder = ROOT
        for name in path.split("/") if path else []:
            node = self._medium.seen.folders[folder].get(name)
            if node is None:
                node = self._medium.new_folder()
                self._medium.do(Link(folder, name, node))
            elif node not in self._medium.seen.folders:
                raise _failure(errno.ENOTDIR, "make directory", path)
            folder = node

    def sync_directory(self, path: str) -> None:
        """Makes the names in a folder durable."""
        self._begin("sync_directory", path, root=True)
        folder = self._find(path)
        if folder is None or folder not in self._medium.seen.folders:
            raise _failure(errno.ENOENT, "sync directory", path)
        self._medium.sync_folder(folder)
        if self._removals >= _TREE_GARBAGE_EVERY:
            self._removals = 0
            self._medium.forget_files({node for node, users in self._open.items() if users})

    def rename(self, source: str, target: str) -> None:
        """Replaces ``target`` atomically; durable after a sync of its folder."""
        check_path(target)
        self._begin("rename", source)
        from_folder, from_name = self._parent(source, "rename")
        to_folder, to_name = self._parent(target, "rename")
        node = self._find(source)
        if node is None or from_folder is None or to_folder is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source, None, target)
        replaced = self._find(target)
        if replaced == node:
            return
        folders = self._medium.seen.folders
        if replaced in folders or (replaced is not None and node in folders):
            raise _failure(errno.EISDIR, "rename", f"{source} to {target}")
        if target.startswith(f"{source}/"):
            raise _failure(errno.EINVAL, "rename", f"{source} to {target}")
        self._medium.do(Rename(from_folder, from_name, to_folder, to_name, node))
        self._removals += replaced is not None

    def unlink(self, path: str) -> None:
        """Removes the name of a file."""
        self._begin("unlink", path)
        folder, name = self._parent(path, "unlink")
        node = self._find(path)
        if node is None or folder is None:
            return
        if node in self._medium.seen.folders:
            raise _failure(errno.EISDIR, "unlink", path)
        self._medium.do(Unlink(folder, name, node))
        self._removals += 1

    def list(self, path: str) -> list[str]:
        """The names in a folder, sorted."""
        self._begin("list", path, root=True)
        node = self._find(path)
        if node in self._medium.seen.files:
            raise _failure(errno.ENOTDIR, "list", path)
        return [] if node is None else sorted(self._medium.seen.folders[node])

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        self._begin("size", path)
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if node not in self._medium.seen.files:
            raise DiskFailed(f"size {path}: not a regular file")
        return self._medium.seen.files[node].length

    def free_bytes(self) -> int:
        """The capacity, less the blocks of all files that are named or open."""
        return max(0, self.capacity_bytes - self._allocated_bytes())

    def lock(self, path: str) -> None:
        """Takes a lock of this object; a second one finds it taken."""
        self._begin("lock", path)
        folder, name = self._parent(path, "lock")
        if folder is None:
            raise _failure(errno.ENOENT, "lock", path)
        if path in self._locks:
            raise StoreInUse(f"{path} is locked by process {os.getpid()}; stop it first")
        if self._find(path) is None:
            made = Link(folder, name, self._medium.new_file())
            self._medium.seen.apply(made)
            self._medium.durable.apply(made)
        self._locks.add(path)

    def unlock(self, path: str) -> None:
        """Gives the lock back."""
        self._locks.discard(path)

    # Crashes.

    def crash_images(
        self, generator: random.Random, *, block_bytes: int = _BLOCK, tries_max: int = 4096
    ) -> Iterator["SimDisk"]:
        """The disks that a crash now could leave, each once, without locks and faults.

        Args:
            generator: draws where there are too many for all.
            block_bytes: what the device writes as a whole: 512 or 4096.
            tries_max: how many subsets of the unsynced operations to look at.
        """
        for tree in crash_trees(self._medium, generator, block_bytes, tries_max):
            yield self._image(tree)

    def crash(self, generator: random.Random, *, block_bytes: int = _BLOCK) -> "SimDisk":
        """One of the disks that a crash now could leave."""
        images = [*crash_trees(self._medium, generator, block_bytes, 64)]
        return self._image(generator.choice(images))

    def cut_power(self, after: int) -> None:
        """Ends after so many more changes (syncs count): each later call raises ``PowerCut``."""
        self._changes_left = after

    def image_hash(self) -> str:
        """SHA-256 over all paths and bytes that a program sees, in hex."""
        return self._medium.seen.digest().hex()

    def contents(self) -> dict[str, bytes]:
        """All files that a program sees, by path."""
        files = self._medium.seen.files
        named = ((path, files.get(node)) for path, node in self._medium.seen.walk())
        return {path: found.read(0, found.length) for path, found in named if found is not None}

    def drop_caches(self) -> None:
        """What failed syncs left in the page cache is lost to the reader as well."""
        self._medium.drop_caches()

    # Faults.

    def fail(
        self,
        operation: OperationName,
        error: int = errno.EIO,
        *,
        after: int = 0,
        times: int = 1,
        path: str | None = None,
    ) -> None:
        """Lets an operation fail.

        Args:
            operation: which.
            error: an ``errno``.
            after: how many of them still succeed.
            times: how many then fail.
            path: only those on this path.
        """
        self._faults.append(_Fault(operation, after, times, path, error=error))

    def stall(
        self,
        operation: OperationName,
        seconds: float,
        *,
        after: int = 0,
        times: int = 1,
        path: str | None = None,
    ) -> None:
        """Lets an operation take long, as a card does that collects its garbage; see ``fail``."""
        self._faults.append(_Fault(operation, after, times, path, stall_seconds=seconds))

    def damage_extent(self, path: str, offset: int, size: int) -> None:
        """Reads that touch these bytes fail from now on, also on later images."""
        self._unreadable.setdefault(self._file(path), []).append((offset, offset + size))

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

    # What a file needs of its disk.

    def _write(self, file: "_SimFile", data: bytes, offset: int) -> None:
        try:
            self._begin("write", file.path, len(data))
        except DiskFailed:
            if not self.read_only:
                self._store(file.node, data[: len(data) // 2], offset)
            raise
        length = self._medium.seen.files[file.node].length
        end = offset + len(data)
        grown = _allocated(end) - _allocated(length)
        if grown > 0 and grown > self.free_bytes():
            room = _allocated(length) + self.free_bytes() // _BLOCK * _BLOCK - offset
            self._store(file.node, data[: max(0, room)], offset)
            raise _failure(errno.ENOSPC, "write", file.path)
        self._store(file.node, data, offset)

    def _store(self, node: int, data: bytes, offset: int) -> None:
        if data:
            length = self._medium.seen.files[node].length
            self._medium.do(Write(node, offset, bytes(data), length))
            self.written_bytes += len(data)

    def _read(self, file: "_SimFile", offset: int, size: int) -> bytes:
        self._begin("read", file.path, size)
        data = self._medium.seen.files[file.node].read(offset, size)
        for start, end in self._unreadable.get(file.node, ()):
            if start < offset + len(data) and offset < end:
                raise _failure(errno.EIO, "read", file.path)
        return data

    def _sync(self, file: "_SimFile") -> None:
        try:
            self._begin("sync", file.path)
        except DiskFailed:
            self._medium.fail_sync_file(file.node)
            raise
        self._medium.sync_file(file.node)

    def _truncate(self, file: "_SimFile", size: int) -> None:
        self._begin("truncate", file.path, size)
        self._medium.do(Truncate(file.node, size))

    def _length(self, file: "_SimFile") -> int:
        return self._medium.seen.files[file.node].length

    def _close(self, file: "_SimFile") -> None:
        self._open[file.node] -= 1

    # Privates.

    def _begin(
        self, operation: OperationName, path: str, size: int = 0, *, root: bool = False
    ) -> None:
        """Records a call; raises what was planted for it."""
        if path or not root:
            check_path(path)
        if self._changes_left is not None and operation in _CHANGES:
            self._changes_left -= 1
        if self._changes_left is not None and self._changes_left < 0:
            raise PowerCut(f"before {operation} {path}")
        self.calls.append(Call(self.counts.total(), operation, path, size))
        self.counts[operation] += 1
        for fault in [*self._faults]:
            self._strike(fault, operation, path)
        if self.read_only and operation in _CHANGES - _SYNCS:
            raise _failure(errno.EROFS, operation, path)

    def _strike(self, fault: _Fault, operation: OperationName, path: str) -> None:
        if fault.operation != operation or fault.path not in {None, path}:
            return
        if fault.after:
            fault.after -= 1
            return
        fault.times -= 1
        if not fault.times:
            self._faults.remove(fault)
        self._spend(fault.stall_seconds)
        if fault.error:
            raise _failure(fault.error, operation, path)

    def _find(self, path: str) -> int | None:
        node: int | None = ROOT
        for name in path.split("/") if path else []:
            entries = self._medium.seen.folders.get(ROOT if node is None else node)
            if entries is None:
                raise _failure(errno.ENOTDIR, "find", path)
            node = entries.get(name)
            if node is None:
                return None
        return node

    def _parent(self, path: str, operation: str) -> tuple[int | None, str]:
        above, _, name = path.rpartition("/")
        folder = self._find(above)
        if folder is not None and folder not in self._medium.seen.folders:
            raise _failure(errno.ENOTDIR, operation, path)
        return folder, name

    def _file(self, path: str) -> int:
        node = self._find(path)
        if node is None or node not in self._medium.seen.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _allocated_bytes(self) -> int:
        tree = self._medium.seen
        used = {node for _, node in tree.walk()} | {node for node, n in self._open.items() if n}
        return sum(_allocated(tree.files[node].length) for node in used & tree.files.keys())

    def _image(self, tree: Tree) -> Self:
        image = type(self)(capacity_bytes=self.capacity_bytes, spend=self._spend, tree=tree)
        image._unreadable = {node: [*extents] for node, extents in self._unreadable.items()}
        return image


class _SimFile(DiskFile):
    """One open file of a simulated disk."""

    def __init__(self, disk: SimDisk, node: int, path: str, *, writable: bool) -> None:
        self.node = node
        self.path = path
        self._disk: SimDisk | None = disk
        self._writable = writable
        self._sync_failed = False

    def __repr__(self) -> str:
        return f"_SimFile({self.path!r}, sync_failed={self._sync_failed})"

    def write(self, data: bytes, offset: int) -> None:
        self._here("write", change=True)._write(self, data, offset)

    def sync(self) -> None:
        disk = self._here("sync")
        if self._sync_failed:
            raise DiskFailed(
                f"sync {self.path}: an earlier sync failed, so this one proves nothing"
            )
        try:
            disk._sync(self)
        except DiskFailed:
            self._sync_failed = True
            raise

    def read(self, offset: int, size: int) -> bytes:
        return self._here("read")._read(self, offset, size)

    def size(self) -> int:
        return self._here("size")._length(self)

    def truncate(self, size: int) -> None:
        self._here("truncate", change=True)._truncate(self, size)

    def close(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            disk._close(self)

    def _here(self, operation: str, *, change: bool = False) -> SimDisk:
        if self._disk is None or (change and not self._writable):
            raise _failure(errno.EBADF, operation, self.path)
        return self._disk


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
        disk.cut_power(changes)
        try:
            work(disk)
        except PowerCut:
            yield disk
        else:
            yield disk
            return


def _failure(error: int, operation: str, path: str) -> DiskFailed:
    return disk_failure(OSError(error, os.strerror(error)), operation, path)


def _allocated(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
