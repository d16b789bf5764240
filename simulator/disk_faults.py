"""What goes wrong with a simulated disk, and the record of what was asked of it.

A fault is planted for an operation of the port, by name (``fail("sync", after=2)``), strikes when
its turn comes, and is spent. ``cut_power`` ends the world after so many changes: from then on each
call raises ``PowerCut``, which no ``except Exception`` swallows.
"""

import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from mesh.adapters.system import disk_failure
from schemas.errors import DiskFailed

__all__ = ["Call", "DiskFaults", "OperationName", "PowerCut", "failure"]

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

_SYNCS: Final = frozenset({"sync", "sync_directory"})
_EDITS: Final = frozenset({"create", "make_directory", "rename", "truncate", "unlink", "write"})
_CHANGES: Final = _EDITS | _SYNCS


class PowerCut(BaseException):
    """The power went. Not an error of the disk: nobody may handle it but the test."""


class Call(NamedTuple):
    """One operation that was asked of the disk; ``size`` in bytes where it has one."""

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


class DiskFaults:
    """Faults that are planted, and calls that were made.

    Args:
        spend: is told for how many seconds a call stalls; ``VirtualLoop.spend``.
    """

    def __init__(self, spend: Callable[[float], None]) -> None:
        self.spend = spend
        self.read_only = False
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT_MAX)
        self.counts: Counter[OperationName] = Counter()
        self.written_bytes = 0
        self._planted: list[_Fault] = []
        self._changes_left: int | None = None

    def __repr__(self) -> str:
        return f"DiskFaults({self.counts.total()} calls, planted={self._planted})"

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
        self._planted.append(_Fault(operation, after, times, path, error=error))

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
        self._planted.append(_Fault(operation, after, times, path, stall_seconds=seconds))

    def cut_power(self, after: int) -> None:
        """Lets so many more changes happen, syncs included; each later call raises ``PowerCut``."""
        self._changes_left = after

    def heal(self) -> None:
        """Forgets all that was planted: from now on every call does what it should."""
        self._planted.clear()
        self._changes_left = None
        self.read_only = False

    def begin(self, operation: OperationName, path: str, size: int = 0) -> None:
        """Records a call, and raises what is planted for it.

        Raises:
            DiskFailed: or a child of it, as planted.
            PowerCut: the power went before it.
        """
        if self._changes_left is not None:
            self._changes_left -= operation in _CHANGES
            if self._changes_left < 0:
                raise PowerCut(f"before {operation} {path}")
        self.calls.append(Call(self.counts.total(), operation, path, size))
        self.counts[operation] += 1
        for fault in [*self._planted]:
            self._strike(fault, operation, path)
        if self.read_only and operation in _EDITS:
            raise failure(errno.EROFS, operation, path)

    def _strike(self, fault: _Fault, operation: OperationName, path: str) -> None:
        if fault.operation != operation or fault.path not in {None, path}:
            return
        if fault.after:
            fault.after -= 1
            return
        fault.times -= 1
        if fault.times <= 0:
            self._planted.remove(fault)
        self.spend(fault.stall_seconds)
        if fault.error:
            raise failure(fault.error, operation, path)


def failure(error: int, operation: str, path: str) -> DiskFailed:
    """What the adapter of a real disk would raise for this ``errno``."""
    return disk_failure(OSError(error, os.strerror(error)), operation, path)
