"""The power-cut bench: who still has what they acknowledged, once the power was cut.

Each round a system works on a file system of its own, at a random moment the power is cut
(``powercut_disk``), the file system is mounted again, the system opens its store, and what is there
is compared with what was acknowledged before the cut (``powercut_work``). Holdfast lives with one
store through all rounds; the others begin each with a new one, whose making was synced, so that
they lose messages and never their set-up. All have the same eight producers, each with one record
of 200 bytes outstanding, and are cut at the same moments.

How many records were acknowledged says little of speed: peers begin cold, and all share a machine
with this bench. Needs root and loop devices; what cannot be tried here is named, with the reason.
"""

import random
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, NoReturn, Protocol

import orjson
import typer
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.bench.powercut_disk import (
    FILE_SYSTEMS,
    VARIANTS,
    FileSystem,
    LoopDisk,
    NotHere,
    obstacle,
    own_folder,
)
from tests.bench.powercut_holdfast import Holdfast
from tests.bench.powercut_jetstream import JetStream
from tests.bench.powercut_mosquitto import Mosquitto
from tests.bench.powercut_sqlite import Sqlite
from tests.bench.powercut_work import Told, Verdict
from tests.bench.powercut_writer import Writer

__all__ = ["Row", "System", "cut_rounds", "main"]

_SECONDS_MIN: Final = 0.3
_SECONDS_MAX: Final = 2.5
_WIDTH_CHARS: Final = 120


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


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    rounds: Annotated[int, typer.Option(help="cuts of each system on each file system")] = 20,
    seed: Annotated[int, typer.Option(help="of the moments and the records")] = 1,
    variants: Annotated[
        bool, typer.Option("--variants", help="Holdfast on further kinds of ext4 instead")
    ] = False,
    only: Annotated[str, typer.Option(help="systems whose name holds this text")] = "",
    file_system: Annotated[str, typer.Option(help="only this one")] = "",
    directory: Annotated[Path, typer.Option(help="for the images, on a disk")] = Path("/var/tmp"),
) -> None:
    """Cuts the power under Holdfast and others, and counts what they lost. Needs root."""
    problem = obstacle(directory)
    if problem:
        print(problem, file=sys.stderr)
        raise typer.Exit(77)
    signal.signal(signal.SIGTERM, _end)
    kinds = VARIANTS if variants else FILE_SYSTEMS
    rows: list[Row] = []
    skipped: list[str] = []
    console = Console(stderr=True)
    for kind in kinds.values():
        if file_system not in {"", kind.name}:
            continue
        for system in _systems(seed, variants=variants):
            if only.lower() not in system.name.lower():
                continue
            try:
                rows.append(_measure(system, kind, rounds, seed, directory, console))
            except NotHere as reason:
                skipped.append(f"{system.name} on {kind.name}: {reason}")
                console.print(f"skipped: {skipped[-1]}", markup=False, soft_wrap=True)
    if json:
        outcome = {
            "seed": seed,
            "rounds": rounds,
            "rows": [asdict(row) for row in rows],
            "skipped": skipped,
        }
        print(orjson.dumps(outcome, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(rows, skipped)
    ours = [row for row in rows if row.system == Holdfast.name]
    if not all(row.faultless for row in ours):
        raise typer.Exit(1)


def _systems(seed: int, *, variants: bool) -> list[System]:
    """All that are compared, made anew: what a system remembers is of one file system."""
    if variants:
        return [Holdfast(seed)]
    return [
        Holdfast(seed),
        Sqlite(seed, "FULL"),
        Sqlite(seed, "NORMAL"),
        JetStream(seed, always=False),
        JetStream(seed, always=True),
        Mosquitto(seed),
        Mosquitto(seed, autosave_seconds=1),
    ]


def _measure(
    system: System, kind: FileSystem, rounds: int, seed: int, directory: Path, console: Console
) -> Row:
    if reason := system.obstacle():
        raise NotHere(reason)
    verdicts: list[Verdict] = []
    what = f"{system.name} on {kind.name}"
    with (
        own_folder(directory) as folder,
        console.status(what) as status,
        closing(cut_rounds(system, kind, rounds, seed, folder)) as cuts,
    ):
        for verdict in cuts:
            verdicts.append(verdict)
            status.update(f"{what}: {len(verdicts)} of {rounds} cuts")
    row = Row.of(kind.name, system.name, verdicts)
    outcome = f"{what}: {row.lost} of {row.acknowledged} lost, opened {row.opened} of {rounds}"
    for line in (outcome, *(f"  {note}" for note in row.notes)):
        console.print(line, markup=False, soft_wrap=True)
    return row


def _end(_signal: int, _frame: object) -> NoReturn:
    """Ends as Ctrl-C does: each block that was entered is left."""
    raise KeyboardInterrupt


def _show(rows: Sequence[Row], skipped: Sequence[str]) -> None:
    """Prints the table: for a person on a terminal, as Markdown anywhere else."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _WIDTH_CHARS)
    table = Table(box=SIMPLE_HEAD if terminal else MARKDOWN)
    table.add_column("file system")
    table.add_column("system")
    for heading in ("acknowledged", "lost", "opened", "wrong"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.file_system,
            row.system,
            f"{row.acknowledged:,}",
            f"{row.lost:,}",
            f"{row.opened} of {row.rounds}",
            str(row.wrong),
            style="" if row.faultless or not terminal else "red",
        )
    console.print(table)
    for row in rows:
        if row.released or row.evicted:
            console.print(
                f"{row.system} on {row.file_system}: of what was acknowledged, {row.released:,} "
                f"had been released by the next holder and {row.evicted:,} given up for space, as "
                "its accounts state",
                soft_wrap=True,
            )
    for reason in skipped:
        console.print(f"skipped: {reason}", markup=False, soft_wrap=True)
