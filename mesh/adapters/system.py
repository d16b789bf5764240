"""The machine: its clock, its disk, its identity, its randomness. Linux, 64 bits.

Invariants of the disk:

1. ``DiskFile.sync`` returns only after ``fdatasync`` did. Once one failed, that file never asks
   again: Linux marks the pages of a failed write-back clean, so a second call would succeed without
   having written anything (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
   ATC 2020).
2. A short write goes on where it stopped; signals are passed over by the interpreter (PEP 475).
3. No path leaves the root: names are checked before the system sees them, and a file is never a
   symbolic link. A folder may be one, because operators mount and link folders on purpose.
4. Each error of the system becomes one of ``schemas.errors``, in one place, and names operation,
   path, and what the system said. Only what a port promises by name stays as it is:
   ``FileExistsError`` and ``FileNotFoundError``.
5. A lock belongs to an open file (``flock``), so that it ends with the process however it ends. A
   child that was forked would share it: start children with ``spawn`` or ``subprocess``.

This is the only module that asks the system for the time and for randomness.
"""

# The port is made of system calls on strings; a Path for each name would only add to their cost.
# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH208

import ctypes
import errno
import fcntl
import hashlib
import hmac
import os
import stat
import struct
import time
from pathlib import Path
from typing import Final

from mesh.ports import Clock, Disk, DiskFile, OpenMode
from schemas.errors import (
    DiskFailed,
    DiskFull,
    DiskReadOnly,
    Refused,
    RefusedBecause,
    StoreInUse,
)
from schemas.messages import Instant

__all__ = [
    "SystemClock",
    "SystemDisk",
    "boot_id",
    "check_path",
    "disk_failure",
    "entropy",
    "machine_id",
]

PLAUSIBLE_WALL_NS: Final = 1_735_689_600_000_000_000
"""2025-01-01 in UTC: this program was not built before."""

_TRUST_AGE_NS: Final = 1_000_000_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_OPEN_FLAGS: Final[dict[str, int]] = {
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "update": os.O_RDWR,
    "read": os.O_RDONLY,
}
# Never follow a link to a file, never wait for the other end of a named pipe.
_ALWAYS_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_ID_BYTES: Final = 16
_PID_DIGITS_MAX: Final = 20


class SystemClock(Clock):
    """The clocks of the kernel.

    The wall clock is trusted when it shows a time after this program was built, and the kernel does
    not object. The kernel objects when its clock was never disciplined (by NTP, PTP, GNSS) since it
    was last set by hand or since the boot. It knows: setting the clock raises its estimated error
    to 16 s, and only discipline lowers it (``ntp_clear`` in the kernel's ``ntp.c``). The flag
    ``STA_UNSYNC`` alone would be too strict, because it comes back nine hours after the network
    went away, while a crystal of 30 ppm is wrong by four minutes after ninety days. Where the
    kernel cannot be asked, a plausible time suffices. It is asked once a second at most.
    """

    def __init__(self) -> None:
        self._asked_mono_ns = -_TRUST_AGE_NS
        self._disciplined = False

    def __repr__(self) -> str:
        return f"SystemClock({self.now()})"

    def now(self) -> Instant:
        """UTC; ``CLOCK_MONOTONIC``, which is also the loop's; whether the former is trusted."""
        mono_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        if mono_ns - self._asked_mono_ns >= _TRUST_AGE_NS:
            self._asked_mono_ns = mono_ns
            self._disciplined = _is_disciplined()
        return Instant(wall_ns, mono_ns, self._disciplined and wall_ns >= PLAUSIBLE_WALL_NS)


class SystemDisk(Disk):
    """A folder of the local file system.

    The root is not made here, because it may be the mount point of a medium that is not there;
    ``make_directory("")`` makes it.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = str(root)
        self._locks: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"SystemDisk({self._root!r}, locks={sorted(self._locks)})"

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a regular file, for its owner and group only."""
        full = self._full(path)
        try:
            descriptor = os.open(full, _OPEN_FLAGS[mode] | _ALWAYS_FLAGS, _FILE_MODE)
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if mode == "create":
                raise disk_failure(error, "create", full) from error
            raise
        except OSError as error:
            raise disk_failure(error, mode, full) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DiskFailed(f"{mode} {full}: not a regular file")
        return _SystemFile(descriptor, full)

    def make_directory(self, path: str) -> None:
        """Makes a folder and those above it."""
        full = self._full(path, root=True)
        try:
            os.makedirs(full, _FOLDER_MODE, exist_ok=True)
        except OSError as error:
            raise disk_failure(error, "make directory", full) from error

    def sync_directory(self, path: str) -> None:
        """``fsync`` on the folder."""
        full = self._full(path, root=True)
        try:
            descriptor = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise disk_failure(error, "sync directory", full) from error

    def rename(self, source: str, target: str) -> None:
        """``rename(2)``; a missing folder of ``target`` looks like a missing ``source``."""
        full_source, full_target = self._full(source), self._full(target)
        try:
            os.rename(full_source, full_target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_failure(error, "rename", f"{full_source} to {full_target}") from error

    def unlink(self, path: str) -> None:
        """``unlink(2)``."""
        full = self._full(path)
        try:
            os.unlink(full)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_failure(error, "unlink", full) from error

    def list(self, path: str) -> list[str]:
        """Files and folders alike."""
        full = self._full(path, root=True)
        try:
            return sorted(os.listdir(full))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_failure(error, "list", full) from error

    def size(self, path: str) -> int:
        """Length of a regular file in bytes."""
        full = self._full(path)
        try:
            status = os.stat(full, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_failure(error, "size", full) from error
        if not stat.S_ISREG(status.st_mode):
            raise DiskFailed(f"size {full}: not a regular file")
        return status.st_size

    def free_bytes(self) -> int:
        """Without the blocks that the file system keeps for root."""
        try:
            status = os.statvfs(self._root)
        except OSError as error:
            raise disk_failure(error, "free bytes", self._root) from error
        return status.f_bavail * status.f_frsize

    def lock(self, path: str) -> None:
        """``flock`` on a file that names the holder's process; it stays when the lock ends.

        Raises:
            StoreInUse: names the process that holds it.
        """
        full = self._full(path)
        try:
            descriptor = os.open(full, os.O_RDWR | os.O_CREAT | _ALWAYS_FLAGS, _FILE_MODE)
        except OSError as error:
            raise disk_failure(error, "lock", full) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, _PID_DIGITS_MAX, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StoreInUse(
                f"{full} is locked by process {holder or '(unknown)'}; stop it first"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise disk_failure(error, "lock", full) from error
        self._locks[path] = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:
            # The lock holds without its note, and a store on a full disk must open.
            return

    def unlock(self, path: str) -> None:
        """Closing the file ends its lock."""
        descriptor = self._locks.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def _full(self, path: str, *, root: bool = False) -> str:
        if root and not path:
            return self._root
        return f"{self._root}/{check_path(path)}"


class _SystemFile(DiskFile):
    """One descriptor; -1 once closed."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._sync_failed = False

    def __repr__(self) -> str:
        return f"_SystemFile({self._path!r}, {self._descriptor}, sync_failed={self._sync_failed})"

    def write(self, data: bytes | bytearray, offset: int) -> None:
        try:
            written = os.pwrite(self._descriptor, data, offset)
            rest = memoryview(data)[written:]
            while rest:
                offset += written
                written = os.pwrite(self._descriptor, rest, offset)
                if not written:
                    # POSIX does not foresee it; without this the loop would have no bound.
                    raise DiskFailed(f"write {self._path}: nothing taken at {offset}")
                rest = rest[written:]
        except OSError as error:
            raise disk_failure(error, "write", self._path) from error

    def sync(self) -> None:
        if self._sync_failed:
            raise DiskFailed(
                f"sync {self._path}: an earlier sync failed, so this one proves nothing"
            )
        if self._descriptor < 0:  # the one call that takes -1 for a mistake in the program
            raise DiskFailed(f"sync {self._path}: the file is closed")
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._sync_failed = True
            raise disk_failure(error, "sync", self._path) from error

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
            while 0 < len(data) < size:
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise disk_failure(error, "read", self._path) from error
        return data

    def size(self) -> int:
        try:
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise disk_failure(error, "size", self._path) from error

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise disk_failure(error, "truncate", self._path) from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                raise disk_failure(error, "close", self._path) from error


def disk_failure(error: OSError, operation: str, path: str) -> DiskFailed:
    """What an error of the system means to a caller: full, read-only, or failed.

    Args:
        error: what the system said.
        operation: what was asked of it, for example ``write``.
        path: of what.
    """
    said = (
        f"{operation} {path}: {error.strerror or error} ({errno.errorcode.get(error.errno or 0)})"
    )
    if error.errno in _FULL:
        return DiskFull(said)
    if error.errno in _READ_ONLY:
        return DiskReadOnly(said)
    return DiskFailed(said)


def check_path(path: str) -> str:
    """The path itself, when it stays below the root: names that are not dots, with ``/`` between.

    Raises:
        Refused: ``bad_name``.
    """
    names = path.split("/")
    if "" in names or "." in names or ".." in names or "\0" in path:
        raise Refused(
            RefusedBecause.BAD_NAME,
            f"path {path[:80]!r} must be names below the root with / between, none of them . or ..",
        )
    return path


def boot_id() -> bytes:
    """16 random bytes that the kernel drew at this boot.

    Raises:
        DiskFailed: the kernel does not tell.
    """
    path = "/proc/sys/kernel/random/boot_id"
    try:
        return bytes.fromhex(Path(path).read_text("ascii").strip().replace("-", ""))
    except OSError as error:
        raise disk_failure(error, "read", path) from error


def machine_id() -> bytes:
    """16 bytes that differ from machine to machine, or nothing when the machine has no identity.

    A keyed hash, because machine-id(5) asks not to expose the id itself. The serial number that a
    board tells in its device tree goes in too: a cloned card copies the file, not the board.
    """
    key = _first_bytes("/etc/machine-id", "/var/lib/dbus/machine-id")
    serial = _first_bytes("/sys/firmware/devicetree/base/serial-number")
    if not key and not serial:
        return b""
    return hmac.digest(key, b"holdfast store\0" + serial, hashlib.sha256)[:_ID_BYTES]


def entropy(size: int) -> bytes:
    """``size`` unpredictable bytes."""
    return os.urandom(size)


def _first_bytes(*paths: str) -> bytes:
    """What the first file says that says anything; an image not yet started says a placeholder."""
    for path in paths:
        try:
            content = Path(path).read_bytes().strip(b"\0 \n")
        except OSError:
            continue
        if content and content != b"uninitialized":
            return content
    return b""


_STA_UNSYNC: Final = 0x40
_ERROR_LIMIT_US: Final = 16_000_000
# The head of struct timex, adjtimex(2): modes, offset, freq, maxerror, esterror, status.
_TIMEX: Final = struct.Struct("@I4li")
_TIMEX_BYTES: Final = 512
_adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)


def _is_disciplined() -> bool:
    """Whether the clock was disciplined since it was last set; true where nobody can tell."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    if _adjtimex is None or _adjtimex(timex) < 0:
        return True
    _, _, _, _, error_us, status = _TIMEX.unpack_from(timex)
    return not status & _STA_UNSYNC or error_us < _ERROR_LIMIT_US
