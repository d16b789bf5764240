"""What a disk holds through a crash, and every disk that a crash could leave.

A medium keeps two trees: ``seen``, what a program reads through the page cache, and ``durable``,
what is certain. In between stand the operations that were not synced. A crash leaves the durable
tree plus *some* of them. The model says which, and it is meant to allow more than any one file
system does, so that what survives here survives on ext4, xfs, btrfs and FAT:

1. Data. A write is cut at multiples of the block size (512 bytes, or 4 KiB), and any subset of its
   blocks survives: torn and out of order. Two writes to one block go through one page, so the later
   one brings the earlier one with it.
2. Length. A write that makes a file longer also makes a change of length, which may survive alone:
   the tail then reads as zeros.
3. Names. Creating, renaming, unlinking and making a folder are atomic, and each may be dropped
   while a later one survives, in the same folder too. A file whose name was dropped is gone,
   however often it was synced itself; what lies in a folder whose name was dropped, likewise.
4. ``sync_file`` settles the data and length of one file, and no name. ``sync_folder`` settles the
   names in one folder, and no data; a rename between folders is settled by the one it leads to,
   and takes along what happened to that file's names before.
5. A failed sync settles nothing for ever. Program and page cache go on seeing the data, a later
   sync succeeds without writing it, and a crash may keep any part of it: the pages were marked
   clean. ``drop_caches`` shows what that means.

Sources: rules 1 to 3 follow the abstract persistence model of Pillai et al., "All File Systems Are
Not Created Equal", OSDI 2014; rule 5 Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020; small bounded enumeration Mohan et al., "Finding Crash-Consistency Bugs
with Bounded Black-Box Crash Testing", OSDI 2018, where three operations sufficed for nearly all
known bugs.

Not modelled: damage to what was synced (``SimDisk.flip_bit`` and ``damage_extent`` do that on
purpose), writes inside a sector that tear, links, and space taken by names.
"""

import errno
import os
from collections import Counter
from typing import Final

from simulator.disk_tree import (
    PAGE_BYTES,
    ROOT,
    Content,
    Link,
    Operation,
    Rename,
    Tree,
    Truncate,
    Unlink,
    Write,
)

__all__ = ["Medium"]

_REMOVALS_MAX: Final = 64

_Naming = Link | Unlink | Rename


class Medium:
    """A disk's state: what is seen, what is durable, and what stands in between.

    Args:
        tree: what it begins with, all of it durable.
        capacity_bytes: how much the files may take, in pages.
    """

    def __init__(self, tree: Tree, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.durable = tree
        self.seen = self.durable.copy()
        # In the order in which they were done, and once more by what settles them: a long life
        # leaves thousands of names that nobody syncs, which no sync may have to look through.
        self._pending: dict[int, Operation] = {}
        self._data: dict[int, dict[int, Operation]] = {}
        self._names: dict[int, dict[int, _Naming]] = {}
        self._names_of: dict[int, dict[int, _Naming]] = {}
        self._done = 0
        self.doubtful: list[Write | Truncate] = []
        self.opened: Counter[int] = Counter()
        self.unreadable: dict[int, list[tuple[int, int]]] = {}
        self._allocated_bytes: int | None = None
        self._removals = 0
        self._next_node = 1 + max(ROOT, *self.durable.files, *self.durable.folders)

    @property
    def unsynced(self) -> list[Operation]:
        """What a crash may keep or drop, in the order in which it was done."""
        return [*self.doubtful, *self._pending.values()]

    def find(self, path: str) -> int | None:
        """The node that a path means to a program, or ``None``.

        Raises:
            NotADirectoryError: a file stands where a folder should.
        """
        node = ROOT
        for name in path.split("/") if path else []:
            entries = self.seen.folders.get(node)
            if entries is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if name not in entries:
                return None
            node = entries[name]
        return node

    def free_bytes(self) -> int:
        """The capacity, less the pages of all files that have a name or are open."""
        if self._allocated_bytes is None:
            used = {node for _, node in self.seen.walk()} | self.opened.keys()
            files = self.seen.files
            self._allocated_bytes = sum(_allocated(files[n].length) for n in used & files.keys())
        return max(0, self.capacity_bytes - self._allocated_bytes)

    def do(self, operation: Operation) -> None:
        """Does an operation: seen at once, durable later."""
        if isinstance(operation, Write | Truncate):
            before = self.seen.files[operation.node].length
            self.seen.apply(operation)
            if self._allocated_bytes is not None:
                after = self.seen.files[operation.node].length
                self._allocated_bytes += _allocated(after) - _allocated(before)
        else:
            self.seen.apply(operation)
            self._allocated_bytes = None
            self._removals += not isinstance(operation, Link)
        self._note(operation)

    def write(self, node: int, offset: int, data: bytes | bytearray) -> bool:
        """Writes as much as there is room for; whether that was all."""
        length = self.seen.files[node].length
        room = _allocated(length) + self.free_bytes() // PAGE_BYTES * PAGE_BYTES - offset
        fits = data[: max(0, room)]
        if fits:
            self.do(Write(node, offset, bytes(fits), length))
        return len(fits) == len(data)

    def close(self, node: int) -> None:
        """One program less has this file open."""
        self.opened[node] -= 1
        if not self.opened[node]:
            del self.opened[node]
        self._allocated_bytes = None

    def new_file(self) -> int:
        """A node without a name yet."""
        node = self._take_node()
        self.seen.files[node], self.durable.files[node] = Content(), Content()
        return node

    def new_folder(self) -> int:
        """A node without a name yet."""
        node = self._take_node()
        self.seen.folders[node], self.durable.folders[node] = {}, {}
        return node

    def sync_file(self, node: int) -> None:
        """Settles data and length of a file."""
        settled = self._settle_data(node)
        for operation in settled:
            self.durable.apply(operation)
        # What was in doubt and is overwritten now is decided: it is lost.
        self.doubtful = [
            old
            for old in self.doubtful
            if not any(_overlap(old, new) for new in settled if isinstance(new, Write | Truncate))
        ]

    def fail_sync_file(self, node: int) -> None:
        """Settles nothing, and never will."""
        lost = self._settle_data(node)
        self.doubtful.extend(one for one in lost if isinstance(one, Write | Truncate))

    def sync_folder(self, folder: int) -> None:
        """Settles the names in a folder."""
        settled = dict(self._names.pop(folder, {}))
        for number, operation in list(settled.items()):
            if isinstance(operation, Rename):
                # It takes along what happened to that file's names before.
                earlier = self._names_of[operation.node].items()
                settled.update({before: one for before, one in earlier if before < number})
        for number, operation in sorted(settled.items()):
            self.durable.apply(operation)
            del self._pending[number]
            _strike(self._names, operation.folder, number)
            _strike(self._names_of, operation.node, number)
        if self._removals >= _REMOVALS_MAX:
            self._forget_files()

    def drop_caches(self) -> None:
        """Reads come from the medium again: what failed syncs had left in the cache is lost."""
        for node in {one.node for one in self.doubtful}:
            self.seen.files[node] = self.durable.files[node].copy()
            for operation in self._data.get(node, {}).values():
                self.seen.apply(operation)
        self.doubtful = []

    def _forget_files(self) -> None:
        """Frees the memory of files that have no name on either side, and that nobody has open."""
        self._removals = 0
        kept = {node for tree in (self.seen, self.durable) for _, node in tree.walk()}
        kept |= self.opened.keys() | {one.node for one in self.unsynced}
        for node in self.seen.files.keys() - kept:
            del self.seen.files[node], self.durable.files[node]

    def _note(self, operation: Operation) -> None:
        self._done += 1
        self._pending[self._done] = operation
        if isinstance(operation, Link | Unlink | Rename):
            self._names.setdefault(operation.folder, {})[self._done] = operation
            self._names_of.setdefault(operation.node, {})[self._done] = operation
        else:
            self._data.setdefault(operation.node, {})[self._done] = operation

    def _settle_data(self, node: int) -> list[Operation]:
        """What stands in between for a file's data and length; no longer."""
        settled = self._data.pop(node, {})
        for number in settled:
            del self._pending[number]
        return list(settled.values())

    def _take_node(self) -> int:
        node, self._next_node = self._next_node, self._next_node + 1
        return node


def _strike(index: dict[int, dict[int, _Naming]], place: int, number: int) -> None:
    found = index.get(place, {})
    found.pop(number, None)
    if not found:
        index.pop(place, None)


def _overlap(old: Write | Truncate, new: Write | Truncate) -> bool:
    if old.node != new.node:
        return False
    if isinstance(old, Write) and isinstance(new, Write):
        return old.offset < new.offset + len(new.data) and new.offset < old.offset + len(old.data)
    return True


def _allocated(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
