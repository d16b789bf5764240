"""Folders and files of a simulated disk, and the operations that change them.

Operations are values: the same one changes what a program sees at once, and what is durable when
it is synced, or in some of the disks that a crash leaves. They name nodes, not paths, so that they
mean the same whatever other operations were dropped. Files are kept in pages that copies share: a
copy of a tree costs a pointer a page.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = [
    "PAGE_BYTES",
    "ROOT",
    "Content",
    "Grow",
    "Link",
    "Operation",
    "Rename",
    "Tree",
    "Truncate",
    "Unlink",
    "Write",
]

ROOT: Final = 0
"""The node of the root folder."""

PAGE_BYTES: Final = 4096
_ZEROS: Final = bytes(PAGE_BYTES)


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
        first = offset // PAGE_BYTES
        joined = b"".join(self.pages[first : -(-end // PAGE_BYTES)])
        return joined[offset - first * PAGE_BYTES : end - first * PAGE_BYTES]

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes, and makes the file longer where needed."""
        self.resize(max(self.length, offset + len(data)))
        done = 0
        while done < len(data):
            page, start = divmod(offset + done, PAGE_BYTES)
            piece = data[done : done + PAGE_BYTES - start]
            done += len(piece)
            if len(piece) < PAGE_BYTES:
                old = self.pages[page]
                piece = old[:start] + piece + old[start + len(piece) :]
            # Files are allocated as zeros: all of those share one page.
            self.pages[page] = _ZEROS if piece == _ZEROS else piece

    def resize(self, length: int) -> None:
        """Cuts, or adds zeros."""
        self.pages.extend([_ZEROS] * (-(-length // PAGE_BYTES) - len(self.pages)))
        del self.pages[-(-length // PAGE_BYTES) :]
        if length < self.length and length % PAGE_BYTES:
            kept = self.pages[-1][: length % PAGE_BYTES]
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
