"""The work on which the power is cut: what producers write, what they tell, what becomes of it.

Each of eight producers has one record of 200 bytes outstanding and hands over the next one as soon
as that is acknowledged. A record follows from seed, round, producer and number, so whoever finds
one can make it again and compare each byte. Pure.

A writer tells in lines. ``A producer number [epoch lane seq]`` says that a record was acknowledged,
and under which identity where it has one; it counts where the bench has read it before the cut.
``R epoch lane first stop`` says that these numbers are about to be released; it counts even where
it is read after the cut, since the release may have come first.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

from schemas import wire
from schemas.messages import Event, Severity

__all__ = ["PRODUCERS", "Name", "Number", "Told", "Verdict", "compare", "recognise", "record"]

PRODUCERS: Final = 8
_FILLER_CHARS: Final = 140
_BEGIN_NS: Final = 1_800_000_000_000_000_000
_UP_NS: Final = 1_000_000_000_000
_MARK: Final = re.compile(rb"cut (\d{6})\.(\d{2})\.(\d{10})")


class Name(NamedTuple):
    """Which record: of which round, of which producer, its how-manieth, from 0."""

    round: int
    producer: int
    number: int


class Number(NamedTuple):
    """A number that a spool handed out."""

    epoch: str
    lane: str
    seq: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one round.

    Args:
        acknowledged: records that the bench knew to be acknowledged before the cut.
        lost: those of them, of this round or an earlier one, that are neither there nor excused.
        opened: whether the store opened again, with no help.
        wrong: what is there and was never produced so, is there twice, out of order, or under a
            number that had another record; and numbers that nothing accounts for.
        released: of what is missing, what was released by the next holder.
        evicted: of what is missing, what the store states to have given up for space.
        note: what a person should know.
    """

    acknowledged: int
    lost: int
    opened: bool
    wrong: int = 0
    released: int = 0
    evicted: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a writer told in one round.

    Args:
        acknowledged: the records that it called acknowledged before the cut, with their numbers
            where they have one.
        released: spans ``(first, stop)`` by epoch and lane that it was about to release.
    """

    acknowledged: tuple[tuple[Name, Number | None], ...]
    released: tuple[tuple[str, str, int, int], ...] = ()

    @classmethod
    def parse(cls, cut_round: int, before: bytes, after: bytes) -> "Told":
        """Reads the lines of a writer; a line that the cut has left unfinished says nothing.

        Args:
            cut_round: which round it was.
            before: what was read before the cut.
            after: what was read later; of it only releases count.
        """
        acknowledged: list[tuple[Name, Number | None]] = []
        whole = before[: before.rfind(b"\n") + 1]
        for line in whole.splitlines():
            kind, *words = line.decode("ascii").split(" ")
            if kind == "A":
                name = Name(cut_round, int(words[0]), int(words[1]))
                number = Number(words[2], words[3], int(words[4])) if words[2:] else None
                acknowledged.append((name, number))
        released = []
        everything = before + after
        for line in everything[: everything.rfind(b"\n") + 1].splitlines():
            kind, *words = line.decode("ascii").split(" ")
            if kind == "R":
                released.append((words[0], words[1], int(words[2]), int(words[3])))
        return cls(tuple(acknowledged), tuple(released))


def record(seed: int, name: Name) -> bytes:
    """The canonical bytes of a record: 200 of them, half of which no compression can save."""
    mark = f"cut {name.round:06d}.{name.producer:02d}.{name.number:010d}"
    digest = blake2b(f"{seed} {mark}".encode()).hexdigest()
    filler = (digest + digest)[:_FILLER_CHARS]
    at = name.number
    return wire.encode(
        Event(_BEGIN_NS + at, _UP_NS + at, "powercut", Severity.NOTICE, mark, {"": filler})
    )


def recognise(seed: int, data: bytes) -> Name | None:
    """Which record this is; ``None`` when no producer ever made these bytes."""
    found = _MARK.search(data)
    if found is None:
        return None
    name = Name(*map(int, found.groups()))
    return name if record(seed, name) == data else None


def compare(seed: int, told: Told, found: Iterable[bytes]) -> Verdict:
    """The verdict on a store that began empty and hands out what it holds, in any order.

    What comes twice is not held against it: its clients were promised at least once.
    """
    there: set[Name] = set()
    wrong = 0
    for data in found:
        name = recognise(seed, data)
        if name is None:
            wrong += 1
        else:
            there.add(name)
    acknowledged = {name for name, _ in told.acknowledged}
    return Verdict(len(acknowledged), len(acknowledged - there), opened=True, wrong=wrong)
