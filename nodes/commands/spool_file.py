"""A file of a spool that somebody may be writing to, read whole and bounded."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import typer

from mesh.adapters.system import SystemDisk
from mesh.spool.view.inspection import INSPECTED_BYTES_MAX, FileKind, inspect
from schemas.errors import Refused, RefusedBecause

__all__ = ["settled"]

_READINGS_MAX: Final = 5


def settled(path: Path, pause: Callable[[], object]) -> bytes:
    """The bytes of a file; read again while its last frame is on its way.

    Args:
        path: the file.
        pause: waits a moment for whoever writes to it.

    Raises:
        Refused: ``too_large``, and as ``mesh.spool.inspection.inspect``.
        DiskFailed: it cannot be read, or permission is missing.
    """
    data = _read(path)
    for _ in range(_READINGS_MAX):
        if not _ends_short(data):
            break
        pause()
        before, data = data, _read(path)
        if data == before:
            break
    return data


def _ends_short(data: bytes) -> bool:
    inspection = inspect(data)
    if inspection.kind is FileKind.BATCH:
        return False
    return any(stretch.wrong for stretch in deque(inspection.stretches, maxlen=1))


def _read(path: Path) -> bytes:
    try:
        file = SystemDisk(path.parent).open(path.name, "read")
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist") from None
    try:
        if file.size() > INSPECTED_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"{path} has {file.size()} bytes; no journal or batch has more than "
                f"{INSPECTED_BYTES_MAX}",
            )
        return file.read(0, INSPECTED_BYTES_MAX)
    finally:
        file.close()
