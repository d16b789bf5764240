"""The rounds: a system at work, the cut, the store opened again, and the verdict, again and again.

Each round a system works on a file system of its own, at a random moment the power is cut
(``tests.bench.powercut.disk``), the file system is mounted again, the system opens its store, and
what is there is compared with what was acknowledged before the cut (``tests.bench.powercut.work``).
"""

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.bench.powercut.disk import FileSystem, LoopDisk
from tests.bench.powercut.work import Told, Verdict
from tests.bench.powercut.writer import Writer

__all__ = ["Row", "System", "cut_rounds"]

_SECONDS_MIN: Final = 0.3
_SECONDS_MAX: Final = 2.5


class System(Protocol):
    """Something that keeps records and acknowledges them.

    ``lasting`` says whether one store lives through all rounds.
    """

    name: str
    lasting: bool

    def obstacle(self) -> str:
        """Why it cannot be tried on this machine; empty when it can."""
        ...

    def running(
        self, root: Path, scratch: Path, cut_round: int, settle: Callable[[], None]
    ) -> AbstractContextManager[Writer]:
        """Prepares a store below ``root``, calls ``settle``, and works on it.

        All of its processes have ended when the block has. What need not survive, such as logs,
        goes to ``scratch``.
        """
        ...

    def judge(self, root: Path, scratch: Path, told: Told) -> Verdict:
        """Opens the store after the cut, and compares."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: one system on one file system, all rounds together.

    The counts are sums of those of ``Verdict``.
    """

    file_system: str
    system: str
    rounds: int
    acknowledged: int
    lost: int
    opened: int
    wrong: int
    released: int
    evicted: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, file_system: str, system: str, verdicts: Sequence[Verdict]) -> "Row":
        """The sum of its rounds."""
        return cls(
            file_system,
            system,
            len(verdicts),
            sum(verdict.acknowledged for verdict in verdicts),
            sum(verdict.lost for verdict in verdicts),
            sum(verdict.opened for verdict in verdicts),
            sum(verdict.wrong for verdict in verdicts),
            sum(verdict.released for verdict in verdicts),
            sum(verdict.evicted for verdict in verdicts),
            tuple(f"round {at}: {item.note}" for at, item in enumerate(verdicts) if item.note),
        )

    @property
    def faultless(self) -> bool:
        """Whether it lost nothing, and opened each time."""
        return not self.lost and not self.wrong and self.opened == self.rounds


def cut_rounds(
    system: System,
    file_system: FileSystem,
    rounds: int,
    seed: int,
    folder: Path,
    seconds: tuple[float, float] = (_SECONDS_MIN, _SECONDS_MAX),
) -> Generator[Verdict]:
    """Cuts the power under a system so many times; a verdict for each.

    Args:
        system: a new one.
        file_system: what it works on.
        rounds: how many cuts.
        seed: of the moments.
        folder: for the images, on a disk; its own.
        seconds: from the first acknowledgement to the cut, at least and at most.

    Raises:
        NotHere: the file system cannot be had on this machine.
    """
    # Not of the system: all are cut at the same moments.
    rng = random.Random(f"{seed} {file_system.name}")
    done = 0
    while done < rounds:
        with LoopDisk(file_system, folder / "disk") as disk:
            for cut_round in range(done, rounds if system.lasting else done + 1):
                with system.running(disk.root, folder, cut_round, disk.settle) as writer:
                    before = writer.listen(rng.uniform(*seconds))
                    disk.cut()
                    after = writer.end()
                disk.restart()
                yield system.judge(disk.root, folder, Told.parse(cut_round, before, after))
                done += 1
