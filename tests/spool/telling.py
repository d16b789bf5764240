"""The told: what a process said of its spool as it went, in a file that outlives the process.

One line for each thing, written with one ``write`` at the moment at which it becomes true, so that
the kernel has it however the process ends. The line of numbers handed out is written before
anything else can happen to them; the line of an acknowledgement after it; the line of a release
before it. A line ends in a full stop of its own: what a kill cut short does not count.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from mesh.spool.spool import Appended
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Said", "Teller", "Told", "digest"]

_STOP = "."


def digest(record: bytes) -> str:
    """What a record is called here."""
    return sha256(record).hexdigest()[:16]


class Teller:
    """Says what happens, to a file that many processes write one after another."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._descriptor, b"\n")

    def say(self, *words: object) -> None:
        """A line of words."""
        line = " ".join(map(str, (*words, _STOP)))
        os.write(self._descriptor, f"{line}\n".encode())

    def handed(self, lane: Lane, appended: Appended, records: Sequence[bytes]) -> None:
        """Numbers were handed out for these records: say it right after ``append`` returned."""
        self.say("handed", appended.epoch, lane, appended.first, *map(digest, records))

    def acknowledged(self, lane: Lane, appended: Appended) -> None:
        """The records were said to be durable."""
        self.say("acknowledged", appended.epoch, lane, appended.first, appended.records)

    def releasing(self, epoch: Epoch, lane: Lane, numbers: Ranges) -> None:
        """The next holder has these numbers: say it before ``release``."""
        spans = (f"{start}-{stop}" for start, stop in numbers.spans)
        self.say("releasing", epoch, lane, *spans)

    def saw(self, epoch: Epoch, lane: Lane, held: Iterable[tuple[int, str]]) -> None:
        """Records that the spool itself wrote, by number: none may ever hold anything else."""
        self.say("saw", epoch, lane, *(f"{number}={name}" for number, name in held))

    def next(self, epoch: Epoch, lane: Lane, number: int) -> None:
        """All numbers of a lane below this one may have been handed out."""
        self.say("next", epoch, lane, number)


@dataclass(slots=True)
class Told:
    """What was said of one lane in one epoch."""

    records: dict[int, str] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    next_seq: int = 0


@dataclass(slots=True)
class Said:
    """All that was said, by epoch and lane, and the numbers that were handed out twice."""

    lanes: dict[tuple[str, Lane], Told] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    other: list[list[str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Said":
        """What the file says by now."""
        said = cls()
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                said.take(line)
        return said

    def take(self, line: str) -> None:
        """One line; one that was cut short says nothing."""
        words = line.split(" ")
        if words[-1] != _STOP:
            return
        match words[:-1]:
            case ["handed", epoch, lane, first, *names]:
                self._handed(epoch, Lane(lane), enumerate(names, int(first)), once=True)
            case ["saw", epoch, lane, *held]:
                pairs = (item.split("=") for item in held)
                numbered = ((int(number), name) for number, name in pairs)
                self._handed(epoch, Lane(lane), numbered, once=False)
            case ["acknowledged", epoch, lane, first, count]:
                numbers = range(int(first), int(first) + int(count))
                self.lane(epoch, Lane(lane)).acknowledged.update(numbers)
            case ["releasing", epoch, lane, *spans]:
                for start, stop in (span.split("-") for span in spans):
                    self.lane(epoch, Lane(lane)).released.update(range(int(start), int(stop)))
            case ["next", epoch, lane, number]:
                told = self.lane(epoch, Lane(lane))
                told.next_seq = max(told.next_seq, int(number))
            case other:
                self.other.append(other)

    def lane(self, epoch: str, lane: Lane) -> Told:
        """What was said of a lane."""
        return self.lanes.setdefault((epoch, lane), Told())

    @property
    def acknowledged(self) -> int:
        """How many records were said to be durable."""
        return sum(len(told.acknowledged) for told in self.lanes.values())

    def _handed(
        self, epoch: str, lane: Lane, numbered: Iterable[tuple[int, str]], *, once: bool
    ) -> None:
        told = self.lane(epoch, lane)
        for number, name in numbered:
            known = told.records.setdefault(number, name)
            if known != name or (once and number < told.next_seq):
                self.reused.append(f"{epoch}/{lane}/{number}")
            told.next_seq = max(told.next_seq, number + 1)
