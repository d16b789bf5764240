"""The owner of a spool: which process holds its lock, as the kernel says.

The lock itself is not tried: a node that started at that very moment would find it taken, and end.
``/proc/locks`` tells without touching it. A process of another PID namespace is not listed there,
so from inside a container "nobody" means: nobody that can be seen from here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.spool.store import LOCK

__all__ = ["Owner", "owner_in", "owner_of"]

_LOCKS: Final = Path("/proc/locks")
_LINE: Final = re.compile(
    r"\d+: FLOCK +ADVISORY +WRITE +(?P<pid>-?\d+) (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+):"
    r"(?P<inode>\d+) "
)
_NOTE_BYTES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes to a spool.

    Args:
        known: whether that could be found out.
        pid: the process; ``None`` for none.
    """

    known: bool
    pid: int | None = None

    def __str__(self) -> str:
        if not self.known:
            return "not known whether a process owns it"
        return "no process owns it" if self.pid is None else f"owned by process {self.pid}"


def owner_of(directory: Path) -> Owner:
    """Who writes to the spool in this folder."""
    try:
        status = (directory / LOCK).stat()
        locks = _LOCKS.read_text("ascii", "replace")
    except FileNotFoundError:
        return Owner(known=_LOCKS.exists())
    except OSError:
        return Owner(known=False)
    device = os.major(status.st_dev), os.minor(status.st_dev)
    return Owner(known=True, pid=owner_in(locks, device, status.st_ino, _noted(directory)))


def owner_in(locks: str, device: tuple[int, int], inode: int, noted: int | None) -> int | None:
    """The process that holds a file's exclusive ``flock``; ``None`` where there is none.

    Args:
        locks: what ``/proc/locks`` says, proc_locks(5).
        device: of the file: major and minor number.
        inode: of the file.
        noted: the process that the file names. Some file systems, overlays among them, tell another
            device to ``stat`` than to the kernel's list: then inode and process must agree.
    """
    for found in _LINE.finditer(locks):
        if int(found["inode"]) == inode:
            same = (int(found["major"], 16), int(found["minor"], 16)) == device
            if same or int(found["pid"]) == noted:
                return int(found["pid"])
    return None


def _noted(directory: Path) -> int | None:
    try:
        with (directory / LOCK).open("rb") as file:
            return int(file.read(_NOTE_BYTES_MAX))
    except (OSError, ValueError):
        return None
