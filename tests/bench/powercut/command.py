"""The power-cut bench: who still has what they acknowledged, once the power was cut.

Holdfast lives with one store through all rounds; the others begin each with a new one, whose making
was synced, so that they lose messages and never their set-up. All have the same eight producers,
each with one record of 200 bytes outstanding, and are cut at the same moments.

How many records were acknowledged says little of speed: peers begin cold, and all share a machine
with this bench. Needs root and loop devices; what cannot be tried here is named, with the reason.
"""

import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, NoReturn

import orjson
import typer
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.bench.powercut.disk import (
    FILE_SYSTEMS,
    VARIANTS,
    FileSystem,
    NotHere,
    obstacle,
    own_folder,
)
from tests.bench.powercut.holdfast import Holdfast
from tests.bench.powercut.jetstream import JetStream
from tests.bench.powercut.mosquitto import Mosquitto
from tests.bench.powercut.rounds import Row, System, cut_rounds
from tests.bench.powercut.sqlite import Sqlite

__all__ = ["main"]

_WIDTH_CHARS: Final = 120


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
    verdicts = []
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
