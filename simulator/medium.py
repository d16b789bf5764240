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
purpose), writes inside a sector that tear, and links.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Final, NamedTuple

__all__ = [
    "ROOT",
    "Content",
    "Link",
    "Medium",
    "Operation",
    "Rename",
    "Tree",
    "Truncate",
    "Unlink",
    "Write",
    "crash_trees",
]

ROOT: Final = 0
"""The node of the root folder."""

EXHAUSTIVE_UNITS: Final = 12
"""Up to so many blocks, lengths and names, each subset is generated: four operations of 4 KiB."""

EXHAUSTIVE_OPERATIONS: Final = 4
"""Up to so many operations, each subset of whole ones is generated, and each one torn as the last."""

TORN_UNITS_MAX: Final = 64
"""At so many places a long operation is torn on purpose; the others are left to chance."""

_PAGE: Final = 4096
_ZEROS: Final = bytes(_PAGE)


class Write(NamedTuple):
    """Bytes to a file, which was ``length_before`` bytes long."""

    node: int
    offset: int
    data: bytes
    length_before: int


class Grow(NamedTuple):
    """A file is at least so long; what is new reads as zeros."""

    node: int
    length: int


class Truncate(NamedTuple):
    """A file is exactly so long; what is new reads as zeros."""

    node: int
    length: int


class Link(NamedTuple):
    """A name for a new file or folder."""

    folder: int
    name: str
    node: int


class Unlink(NamedTuple):
    """A name is gone, if it still means this node."""

    folder: int
    name: str
    node: int


class Rename(NamedTuple):
    """A name is gone, if it still means this node, and another one means it."""

    source_folder: int
    source: str
    folder: int
    name: str
    node: int


Operation = Write | Grow | Truncate | Link | Unlink | Rename


class Content:
    """The bytes of one file, in pages that copies share. Zeros stand behind the end."""

    __slots__ = ("length", "pages")

    def __init__(self) -> None:
        self.length = 0
        self.pages: list[bytes] = []

    def copy(self) -> "Content":
        """Another file with the same bytes; costs a pointer a page."""
        twin = Content()
        twin.length, twin.pages = self.length, self.pages.copy()
        return twin

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset``; fewer only at the end."""
        end = min(offset + size, self.length)
        if offset >= end:
            return b""
        first = offset // _PAGE
        joined = b"".join(self.pages[first : -(-end // _PAGE)])
        return joined[offset - first * _PAGE : end - first * _PAGE]

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes, and makes the file longer where needed."""
        self.resize(max(self.length, offset + len(data)))
        done = 0
        while done < len(data):
            page, start = divmod(offset + done, _PAGE)
            piece = data[done : done + _PAGE - start]
            old = self.pages[page]
            self.pages[page] = old[:start] + piece + old[start + len(piece) :]
            done += len(piece)

    def resize(self, length: int) -> None:
        """Cuts, or adds zeros."""
        self.pages.extend([_ZEROS] * (-(-length // _PAGE) - len(self.pages)))
        del self.pages[-(-length // _PAGE) :]
        if length < self.length and length % _PAGE:
            kept = self.pages[-1][: length % _PAGE]
            self.pages[-1] = kept + _ZEROS[len(kept) :]
        self.length = length


class Tree:
    """Folders and files by node, and what operations do to them."""

    def __init__(self) -> None:
        self.files: dict[int, Content] = {}
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}

    def copy(self) -> "Tree":
        """A tree that changes apart from this one."""
        twin = Tree()
        twin.files = {node: content.copy() for node, content in self.files.items()}
        twin.folders = {node: entries.copy() for node, entries in self.folders.items()}
        return twin

    def walk(self) -> Iterator[tuple[str, int]]:
        """Path and node of all that has a name, sorted within each folder."""
        waiting = [("", ROOT)]
        while waiting:
            above, folder = waiting.pop()
            for name, node in sorted(self.folders[folder].items()):
                yield above + name, node
                if node in self.folders:
                    waiting.append((f"{above}{name}/", node))

    def key(self) -> tuple[object, ...]:
        """Equal for two trees in which a program sees the same."""
        return tuple(
            (path,) if content is None else (path, content.length, tuple(content.pages))
            for path, content in ((path, self.files.get(node)) for path, node in self.walk())
        )

    def digest(self) -> bytes:
        """SHA-256 over all that a program sees."""
        digest = hashlib.sha256()
        for path, node in self.walk():
            content = self.files.get(node)
            length = -1 if content is None else content.length
            digest.update(f"{len(path)} {path} {length}\n".encode("utf-8", "surrogateescape"))
            if content is not None:
                digest.update(content.read(0, content.length))
        return digest.digest()

    def apply(self, operation: Operation) -> None:
        """Does one operation; on a name that no longer means its node it does nothing."""
        match operation:
            case Write(node, offset, data, _):
                self.files[node].write(offset, data)
            case Grow(node, length):
                content = self.files[node]
                content.resize(max(content.length, length))
            case Truncate(node, length):
                self.files[node].resize(length)
            case Link(folder, name, node):
                self.folders[folder][name] = node
            case Unlink(folder, name, node):
                self._forget(folder, name, node)
            case Rename(source_folder, source, folder, name, node):
                self._forget(source_folder, source, node)
                self.folders[folder][name] = node

    def _forget(self, folder: int, name: str, node: int) -> None:
        if self.folders[folder].get(name) == node:
            del self.folders[folder][name]


class Medium:
    """A disk's state: what is seen, what is durable, and what stands in between.

    Args:
        tree: what it begins with, all of it durable.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self.durable = tree or Tree()
        self.seen = self.durable.copy()
        self.pending: list[Operation] = []
        self.doubtful: list[Write | Truncate] = []
        self._next_node = 1 + max(ROOT, *self.durable.files, *self.durable.folders)

    @property
    def unsynced(self) -> list[Operation]:
        """What a crash may keep or drop, in the order in which it was done."""
        return [*self.doubtful, *self.pending]

    def do(self, operation: Operation) -> None:
        """Does an operation: seen at once, durable later."""
        self.seen.apply(operation)
        self.pending.append(operation)

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
        settled, self.pending = _parted(self.pending, lambda one: _is_data(one, node))
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
        lost, self.pending = _parted(self.pending, lambda one: _is_data(one, node))
        self.doubtful.extend(one for one in lost if isinstance(one, Write | Truncate))

    def sync_folder(self, folder: int) -> None:
        """Settles the names in a folder."""
        moved: set[int] = set()
        settled: set[int] = set()
        for index in range(len(self.pending) - 1, -1, -1):
            operation = self.pending[index]
            if not isinstance(operation, Link | Unlink | Rename):
                continue
            if operation.folder == folder or operation.node in moved:
                settled.add(index)
                if isinstance(operation, Rename):
                    moved.add(operation.node)
        for index in sorted(settled):
            self.durable.apply(self.pending[index])
        self.pending = [one for index, one in enumerate(self.pending) if index not in settled]

    def drop_caches(self) -> None:
        """Reads come from the medium again: what failed syncs had left in the cache is lost."""
        for node in {one.node for one in self.doubtful}:
            self.seen.files[node] = self.durable.files[node].copy()
            for operation in self.pending:
                if _is_data(operation, node):
                    self.seen.apply(operation)
        self.doubtful = []

    def forget_files(self, in_use: set[int]) -> None:
        """Frees the memory of files that have no name on either side, and that nobody has open."""
        named = {node for tree in (self.seen, self.durable) for _, node in tree.walk()}
        named |= in_use | {one.node for one in self.unsynced}
        for node in self.seen.files.keys() - named:
            del self.seen.files[node], self.durable.files[node]

    def _take_node(self) -> int:
        node, self._next_node = self._next_node, self._next_node + 1
        return node


def crash_trees(
    medium: Medium, generator: random.Random, block_bytes: int, tries_max: int
) -> Iterator[Tree]:
    """Trees that a crash could leave, each once.

    Up to ``EXHAUSTIVE_UNITS`` units (blocks, lengths, names) all of them, if ``tries_max`` allows.
    Beyond that: each prefix of the operations; up to ``EXHAUSTIVE_OPERATIONS`` operations each
    subset of whole ones, and the prefixes with each block of the last operation missing, alone, and
    last; then random subsets.

    Args:
        medium: what crashed; not changed.
        generator: draws the random subsets.
        block_bytes: what the device writes as a whole.
        tries_max: how many subsets to look at; several may give the same tree.
    """
    units = _Units(medium.unsynced, block_bytes)
    known: set[tuple[object, ...]] = set()
    tried: set[int] = set()
    for mask in islice(units.masks(generator), tries_max):
        chosen = units.closed(mask)
        if chosen in tried:
            continue
        tried.add(chosen)
        tree = medium.durable.copy()
        for operation in units.chosen(chosen):
            tree.apply(operation)
        key = tree.key()
        if key not in known:
            known.add(key)
            yield tree


class _Units:
    """Operations cut into what survives as a whole or not at all; sets of them are bit masks."""

    def __init__(self, operations: Sequence[Operation], block_bytes: int) -> None:
        groups = [_cut(operation, block_bytes) for operation in operations]
        self._units = [unit for group in groups for unit in group]
        self._ends = list(accumulate(map(len, groups), initial=0))
        self._needs = _same_block(self._units, block_bytes)

    def chosen(self, mask: int) -> Iterator[Operation]:
        return (unit for index, unit in enumerate(self._units) if mask >> index & 1)

    def closed(self, mask: int) -> int:
        """With what the pages of the chosen blocks had taken before."""
        closed, rest = mask, mask
        while rest:
            lowest = rest & -rest
            closed |= self._needs[lowest.bit_length() - 1]
            rest ^= lowest
        return closed

    def masks(self, generator: random.Random) -> Iterator[int]:
        if len(self._units) <= EXHAUSTIVE_UNITS:
            yield from range(1 << len(self._units))
            return
        for end in self._ends:
            yield _ones(0, end)
        if len(self._ends) - 1 <= EXHAUSTIVE_OPERATIONS:
            yield from self._whole_subsets()
            yield from self._torn_last(generator)
        while True:
            yield self._random(generator)

    def _whole_subsets(self) -> Iterator[int]:
        spans = [_ones(start, end) for start, end in self._spans()]
        for mask in range(1 << len(spans)):
            yield sum(span for index, span in enumerate(spans) if mask >> index & 1)

    def _torn_last(self, generator: random.Random) -> Iterator[int]:
        for start, end in self._spans():
            before, span = _ones(0, start), _ones(start, end)
            places = min(TORN_UNITS_MAX, end - start)
            for unit in sorted(generator.sample(range(start, end), places)):
                yield before | (span ^ 1 << unit)
                yield before | 1 << unit
                yield before | _ones(start, unit)

    def _random(self, generator: random.Random) -> int:
        """Half of the time a prefix whose last operation is torn, else anything, thin or dense."""
        if generator.random() < 0.5:  # noqa: PLR2004  # named in the docstring
            start, end = generator.choice(self._spans())
            return _ones(0, start) | generator.getrandbits(end - start) << start
        share = generator.random()
        return sum(1 << index for index in range(len(self._units)) if generator.random() < share)

    def _spans(self) -> list[tuple[int, int]]:
        return list(pairwise(self._ends))


def _cut(operation: Operation, block_bytes: int) -> list[Operation]:
    if not isinstance(operation, Write):
        return [operation]
    node, offset, data, length = operation
    end = offset + len(data)
    bounds = [offset, *range((offset // block_bytes + 1) * block_bytes, end, block_bytes), end]
    cut: list[Operation] = [
        Write(node, start, data[start - offset : stop - offset], length)
        for start, stop in pairwise(bounds)
        if start < stop
    ]
    return [*cut, Grow(node, end)] if end > length else cut


def _same_block(units: Sequence[Operation], block_bytes: int) -> list[int]:
    """For each unit those before it that went to the same block, as a mask."""
    earlier: dict[tuple[int, int], int] = {}
    needs = []
    for index, unit in enumerate(units):
        if not isinstance(unit, Write):
            needs.append(0)
            continue
        block = (unit.node, unit.offset // block_bytes)
        needs.append(earlier.get(block, 0))
        earlier[block] = earlier.get(block, 0) | 1 << index
    return needs


def _ones(start: int, end: int) -> int:
    return (1 << end) - (1 << start)


def _parted(
    operations: Sequence[Operation], belongs: Callable[[Operation], bool]
) -> tuple[list[Operation], list[Operation]]:
    inside = [one for one in operations if belongs(one)]
    return inside, [one for one in operations if not belongs(one)]


def _is_data(operation: Operation, node: int) -> bool:
    return isinstance(operation, Write | Grow | Truncate) and operation.node == node


def _overlap(old: Write | Truncate, new: Write | Truncate) -> bool:
    if old.node != new.node:
        return False
    if isinstance(old, Write) and isinstance(new, Write):
        return old.offset < new.offset + len(new.data) and new.offset < old.offset + len(old.data)
    return True
