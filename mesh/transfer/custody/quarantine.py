"""The quarantine: bytes that were refused or are damaged, kept for a person, within a bound."""

from typing import Final

from mesh.ports import Disk
from schemas.errors import DiskFailed
from schemas.limits import QUARANTINE_FILES_MAX

__all__ = ["QUARANTINE", "keep"]

QUARANTINE: Final = "quarantine"


def keep(disk: Disk, name: str, data: bytes) -> str:
    """Keeps some bytes; evidence never stands in the way of anything.

    Args:
        disk: the folder of the store.
        name: says where they were, or what was wrong with them.
        data: the bytes.

    Returns:
        Their path; empty where they were not kept, for want of space or because there is too much.
    """
    path = f"{QUARANTINE}/{name}"
    try:
        there = disk.list(QUARANTINE)
        if name in there or len(there) >= QUARANTINE_FILES_MAX:
            return path if name in there else ""
        file = disk.open(path, "create")
        try:
            file.write(data, 0)
            file.sync()
        finally:
            file.close()
        disk.sync_directory(QUARANTINE)
    except (DiskFailed, FileExistsError):
        return ""
    return path
