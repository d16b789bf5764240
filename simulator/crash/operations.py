"""The operation under way: what the spool is doing, told from what it asks of its disk.

A change of the disk belongs to an operation by what it touches:

=============  ====================================================================================
``append``     a journal that was begun is written and synced
``rotate``     a journal is made, its head written and synced, its folder synced, whether in a new
               file or in the spare that an old one left; and the spare is made
``evict``      the same, where the head states what was just given up, or ``STORE`` does, of a past
               epoch; and the unlinks after it
``seal``       a batch is written beside, synced, renamed, its folder synced; then the journal is
               unlinked, or becomes the spare
``release``    the cursor is written and synced; a batch that was not given up is unlinked where
               room is wanted
``reclaim``    the same, after the next holder has lost something, until that is durable; and the
               head of a journal, or ``STORE``, that states what is forgotten
``epoch``      ``STORE`` of a store that was there is written anew, beside, and renamed
``open``       folders are made, leavings tidied away, broken bytes kept, and ``STORE`` made
``rest``       nothing is under way, though not all that was done may be durable
=============  ====================================================================================

An operation is under way after each of its edits, and after a sync only when more of it follows. A
journal that was begun in the spare is still known to its writer by that name; what is opened there
begins a journal, what is made there is the spare, and all else goes on with the journal.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from mesh.spool import cursor, journal, shelf
from mesh.spool.events import Evicted
from schemas.errors import DiskFailed
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.disk_faults import Call, DiskFaults, OperationName, PowerCut

__all__ = ["Change", "Operation", "Watched", "numbers_of"]

_SYNCS: Final = frozenset({"sync", "sync_directory"})
_CHANGES: Final = _SYNCS | {"create", "make_directory", "rename", "truncate", "unlink", "write"}
_STORE: Final = "STORE"


class _Spare(StrEnum):
    """What is written under the name of the spare."""

    MADE = "the spare, of zeros"
    BEGUN = "the head of a journal"
    GOES_ON = "frames"


class Operation(StrEnum):
    """What a spool does with its disk."""

    APPEND = "append"
    ROTATE = "rotate"
    SEAL = "seal"
    RELEASE = "release"
    RECLAIM = "reclaim"
    EVICT = "evict"
    EPOCH_CHANGE = "epoch_change"
    OPEN = "open"
    REST = "rest"


class Change(NamedTuple):
    """A change of the disk that was asked for, and the operation that it belongs to."""

    number: int
    operation: Operation
    call: Call
    failed: bool


class Watched(DiskFaults):
    """The faults of a disk through all its lives; knows which operation is under way.

    Args:
        photograph: called before each change with its number and what is under way; the disk then
            stands as a power cut there would find it.
    """

    def __init__(self, photograph: Callable[[int, Operation], None]) -> None:
        super().__init__(lambda _: None)
        self.dead = False
        self.changes: list[Change] = []
        self._photograph = photograph
        self._there = False
        self._opening = True
        self._making = Operation.ROTATE
        self._spares: dict[str, _Spare] = {}
        self._given_up: dict[Lane, Ranges] = {}
        self._unstated = False
        self._reclaimed = False

    def begin_life(self, *, there: bool) -> None:
        """A process opens the disk, on which a store is ``there``, or is not."""
        self._changes_left = None
        self._planted.clear()
        self.dead = False
        self._there = there
        self._opening = True
        self._unstated = False
        self._reclaimed = False
        self._spares.clear()

    def clear(self) -> None:
        """What was planted and has not struck does not strike any more."""
        self._planted.clear()

    def note(self, event: Evicted) -> None:
        """The spool has decided to give something up, and will state it before it does."""
        numbers = numbers_of(event.numbers)
        self._given_up[event.lane] = self._given_up.get(event.lane, Ranges()) | numbers
        self._unstated = True

    def note_reclaim(self) -> None:
        """The next holder has lost something, and the spool has not made that durable yet."""
        self._reclaimed = True

    def note_settled(self) -> None:
        """It has."""
        self._reclaimed = False

    def begin(self, operation: OperationName, path: str, size: int = 0) -> None:
        """Tells a call from a change, lets the photographer do his work, and goes on."""
        if operation == "open" and path.startswith(journal.SPARE):
            self._spares[path] = _Spare.BEGUN
        if self.dead or operation not in _CHANGES:
            super().begin(operation, path, size)
            return
        belongs, begins = self._tell(operation, path)
        number = len(self.changes)
        self._photograph(number, self._under_way(belongs, begins=begins))
        call = Call(self.counts.total(), operation, path, size)
        try:
            super().begin(operation, path, size)
        except PowerCut:
            self.dead = True
            raise
        except DiskFailed:
            self.changes.append(Change(number, belongs, call, failed=True))
            raise
        self.changes.append(Change(number, belongs, call, failed=False))

    def _under_way(self, following: Operation, *, begins: bool) -> Operation:
        if not self.changes:
            return Operation.REST
        last = self.changes[-1]
        goes_on = following is last.operation and not begins
        settled = last.call.operation in _SYNCS and not last.failed
        return Operation.REST if settled and not goes_on else last.operation

    def _tell(self, operation: OperationName, path: str) -> tuple[Operation, bool]:
        """The operation that a change belongs to, and whether it is the first of it."""
        folder = path.partition("/")[0]
        if folder in {_STORE, f"{_STORE}.new", ""}:
            return self._tell_store(operation, path)
        if folder == journal.FOLDER:
            return self._tell_journal(operation, path)
        if folder == shelf.FOLDER:
            return self._tell_shelf(operation, path)
        if path == cursor.PATH and not self._opening:
            told = Operation.RECLAIM if self._reclaimed else Operation.RELEASE
            return told, operation == "write"
        return Operation.OPEN, False

    def _tell_store(self, operation: OperationName, path: str) -> tuple[Operation, bool]:
        last = self.changes[-1].operation if self.changes else Operation.REST
        if not self._there or operation == "unlink":
            return Operation.OPEN, False
        if not self._opening and (self._unstated or last is Operation.EVICT):
            return Operation.EVICT, operation == "create"
        if not self._opening and (self._reclaimed or last is Operation.RECLAIM):
            return Operation.RECLAIM, operation == "create"
        if path or last is Operation.EPOCH_CHANGE:
            return Operation.EPOCH_CHANGE, operation == "create"
        return Operation.OPEN, False

    def _tell_journal(self, operation: OperationName, path: str) -> tuple[Operation, bool]:
        last = self.changes[-1] if self.changes else None
        if path == journal.FOLDER:
            if operation != "sync_directory":
                return Operation.OPEN, False
            retired = last is not None and last.call.operation == "rename"
            retired = retired and last is not None and not last.call.path.startswith(journal.SPARE)
            return (Operation.SEAL if retired else self._making), False
        if path.startswith(journal.SPARE):
            return self._tell_spare(operation, path)
        if operation == "unlink":
            # One that could not be begun is unlinked by whoever made it.
            return (self._making if last is not None and last.failed else Operation.SEAL), False
        if operation == "create":
            return self._make(), True
        if operation == "rename":
            return Operation.SEAL, False
        if self._makes(path):
            return self._making, False
        return Operation.APPEND, operation == "write"

    def _tell_spare(self, operation: OperationName, path: str) -> tuple[Operation, bool]:
        before = self._spares.get(path, _Spare.GOES_ON)
        if operation == "create":
            self._spares[path] = _Spare.MADE
            return Operation.ROTATE, True
        if operation in {"rename", "unlink"} or (before is _Spare.MADE and operation == "sync"):
            self._spares[path] = _Spare.GOES_ON
        if before is _Spare.BEGUN:
            begins = operation == "write"
            return (self._make() if begins else self._making), begins
        if before is _Spare.MADE or operation == "unlink":
            return Operation.ROTATE, False
        return Operation.APPEND, operation == "write"

    def _make(self) -> Operation:
        self._opening = False
        self._making = Operation.ROTATE
        if self._unstated:
            self._making = Operation.EVICT
        elif self._reclaimed:
            self._making = Operation.RECLAIM
        return self._making

    def _makes(self, path: str) -> bool:
        """Whether this journal is still being made: its folder was not synced since."""
        for change in reversed(self.changes):
            if change.call.operation == "sync_directory" and change.call.path == journal.FOLDER:
                return False
            if change.call.operation == "create" and change.call.path == path:
                return True
        return False

    def _tell_shelf(self, operation: OperationName, path: str) -> tuple[Operation, bool]:
        if operation == "unlink" and path.endswith(".batch"):
            _, lane, _, name = path.split("/")
            first, _, last = name.removesuffix(".batch").partition("-")
            given_up = self._given_up.get(Lane(lane), Ranges())
            if given_up.covers(int(first), int(last) + 1):
                self._unstated = False
                return Operation.EVICT, False
            return Operation.RELEASE, False
        return (Operation.OPEN if self._opening else Operation.SEAL), False


def numbers_of(told: str) -> Ranges:
    """The numbers that the text of ``Ranges`` tells."""
    spans = [part.partition("-") for part in told.split(", ") if part != "none"]
    return Ranges.of([(int(first), int(last or first) + 1) for first, _, last in spans])
