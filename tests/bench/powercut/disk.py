"""A disk that can lose its power: a file system in an image file, shut down without a flush.

The cut is the ``ioctl`` of ext4 and xfs that stops a file system at once and throws away what was
not written: dirty pages, and the part of the journal that no ``fsync`` has asked for
(``EXT4_IOC_SHUTDOWN``, ``XFS_IOC_GOINGDOWN``, flag 2: no flush of the log). From then on each call
on it fails. What the file system has handed to its device is in the image and stays, so the bench
judges whoever acknowledges before asking for durability; it does not judge drives that lie.

Without a journal ext4 leaves dirty metadata with the block device, which would write it when it is
unmounted, as no power cut does. There the image is copied at the moment of the cut, and the copy
goes on; ``e2fsck`` repairs it first, which such a file system needs after any crash.

Nothing stays behind: image, mount and loop device go with the ``with`` block, however it ends.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = [
    "FILE_SYSTEMS",
    "VARIANTS",
    "FileSystem",
    "LoopDisk",
    "NotHere",
    "obstacle",
    "own_folder",
]

_GOING_DOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2
_MIB: Final = 1 << 20
_BUSY_SECONDS_MAX: Final = 10.0
_FSCK_REPAIRED_MAX: Final = 2
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


class NotHere(Exception):
    """This machine cannot do it; says why."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How to make and mount one.

    Args:
        name: what the table calls it.
        make: the command that makes it, without the image.
        options: of the mount, beside ``loop``.
        image_bytes: length of the sparse image.
        journal: whether it keeps one.
    """

    name: str
    make: tuple[str, ...]
    options: str = ""
    image_bytes: int = 256 * _MIB
    journal: bool = True

    @property
    def kind(self) -> str:
        """What ``mount -t`` calls it."""
        return self.make[0].rpartition(".")[2]


# Nothing is left to be initialised in the background, which would disturb the first round.
_EXT4: Final = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")
FILE_SYSTEMS: Final = {
    system.name: system
    for system in (
        FileSystem("ext4", _EXT4),
        FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), image_bytes=320 * _MIB),
    )
}
VARIANTS: Final = {
    system.name: system
    for system in (
        FileSystem("ext4 data=writeback", _EXT4, "data=writeback"),
        FileSystem("ext4 nodelalloc", _EXT4, "nodelalloc"),
        FileSystem("ext4 without journal", (*_EXT4, "-O", "^has_journal"), journal=False),
    )
}


def obstacle(folder: Path) -> str:
    """Why no loop disk can be made in this folder; empty when one can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root: sudo make powercut"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices: /dev/loop-control is missing"
    kind = _output(("stat", "--file-system", "--format=%T", str(folder))).strip()
    if kind in _IN_MEMORY:
        return f"{folder} is on {kind}, which is no disk: name a folder on one with --directory"
    return ""


@contextmanager
def own_folder(directory: Path) -> Iterator[Path]:
    """A folder for images, and for what is beside them; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-powercut-", dir=directory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class LoopDisk:
    """A mounted image: ``with LoopDisk(...) as disk``.

    Args:
        system: which file system.
        folder: for the image and the mount point, on a real disk; its own.

    Raises:
        NotHere: on entering: the tools are missing, or the kernel cannot mount it.
    """

    def __init__(self, system: FileSystem, folder: Path) -> None:
        self.root = folder / "mount"
        self._system = system
        self._image = folder / "disk.img"
        self._copy = folder / "copy.img"

    def __enter__(self) -> Self:
        if shutil.which(self._system.make[0]) is None:
            raise NotHere(f"{self._system.make[0]} is not installed")
        self.root.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(self._system.image_bytes)
        try:
            _run((*self._system.make, str(self._image)))
            self._mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def settle(self) -> None:
        """Makes all that was written so far durable, whoever wrote it."""
        _run(("sync", "--file-system", str(self.root)))

    def cut(self) -> None:
        """Cuts the power; each call on the file system fails from now on."""
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(root, _GOING_DOWN, struct.pack("=I", _NO_LOG_FLUSH))
        finally:
            os.close(root)
        if not self._system.journal:
            _run(("cp", "--sparse=always", str(self._image), str(self._copy)))

    def restart(self) -> None:
        """Mounts what the cut has left; all who used it must have ended."""
        self._unmount()
        if not self._system.journal:
            self._copy.replace(self._image)
            _run(("e2fsck", "-f", "-y", str(self._image)), _FSCK_REPAIRED_MAX)
        self._mount()

    def close(self) -> None:
        """Unmounts and removes it; fine when there is nothing."""
        self._unmount()
        for image in (self._image, self._copy):
            image.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.root.rmdir()

    def _mount(self) -> None:
        options = ",".join(filter(None, ("loop", self._system.options)))
        image, root = str(self._image), str(self.root)
        try:
            _run(("mount", "-t", self._system.kind, "-o", options, image, root))
        except subprocess.CalledProcessError as error:
            raise NotHere(
                f"{self._system.name} cannot be mounted on this machine: {error.stderr.strip()}"
            ) from error

    def _is_mounted(self) -> bool:
        # The kernel's list: a root that was shut down no longer answers when it is asked.
        return f" {self.root} " in Path("/proc/self/mountinfo").read_text("utf-8")

    def _unmount(self) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS_MAX
        while self._is_mounted():
            late = time.monotonic() > deadline
            # Whoever was killed a moment ago may still hold it; a lazy end is better than none.
            command = ("umount", "--lazy") if late else ("umount",)
            done = subprocess.run((*command, str(self.root)), capture_output=True, check=late)
            if done.returncode:
                time.sleep(0.02)


def _run(command: Sequence[str], code_max: int = 0) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not 0 <= done.returncode <= code_max:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
