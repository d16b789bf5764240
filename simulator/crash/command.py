"""``python -m simulator crash``: the spool on every kind of disk that a crash leaves."""

import os
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from schemas.errors import ExitCode
from simulator.crash.explore import Explored, explore
from simulator.crash.survey import Survey, survey

__all__ = ["crash"]

_Seed = Annotated[int | None, typer.Option(help="replay this one, call by call", min=0)]
_Jobs = Annotated[int, typer.Option(help="processes; 0 for one a core", min=0)]


def crash(
    seeds: Annotated[int, typer.Option(help="how many histories", min=1)] = 200,
    seed: _Seed = None,
    first: Annotated[int, typer.Option(help="the first seed", min=0)] = 0,
    jobs: _Jobs = 0,
    json: Annotated[  # noqa: FBT002  # an option of the command line
        bool, typer.Option("--json", help="print one JSON object")
    ] = False,
) -> None:
    """Cuts the power in seeded histories of a spool, opens what is left, and looks for a lie.

    Ends with 0 when there was none, with 1 otherwise.
    """
    console = Console(stderr=json)
    total = Survey()
    if seed is not None:
        explored = explore(seed)
        if not json:
            _replay(console, explored)
        total.add(explored.outcome)
    else:
        wanted = range(first, first + seeds)
        with Progress(console=console, transient=True) as progress:
            for outcome in progress.track(
                survey(wanted, jobs or len(os.sched_getaffinity(0))),
                total=seeds,
                description="seeds",
            ):
                total.add(outcome)
    if json:
        typer.echo(orjson.dumps(_as_json(total), option=orjson.OPT_INDENT_2))
    else:
        _show(console, total)
    if total.found:
        raise typer.Exit(ExitCode.FAILED)


def _as_json(total: Survey) -> dict[str, object]:
    return {
        "states": total.states,
        "seeds": total.seeds,
        "violations": len(total.found),
        "by_operation": {str(name): count for name, count in total.by_operation.items()},
        "found": [str(found) for found in total.found],
    }


def _show(console: Console, total: Survey) -> None:
    table = Table("power cut in", "disks opened")
    table.columns[1].justify = "right"
    for operation, count in total.by_operation.items():
        table.add_row(operation, f"{count:,}")
    console.print(table)
    for found in total.found:
        console.print(f"violation: {found}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{total.states:,} disks, {total.seeds:,} seeds, {len(total.found):,} violations",
        highlight=False,
    )


def _replay(console: Console, explored: Explored) -> None:
    """What was drawn, each change of the disk, and where the power was cut."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    history = explored.history
    say(f"seed {history.seed}: {history.bounds}, blocks of {history.block_bytes} bytes")
    for number, life in enumerate(history.lives):
        say(f"life {number} on machine {life.machine}: {life.ending}, at most {life.changes_max}")
        say(f"  {life.store} STORE, {life.wake}")
        for step in (*life.before, *life.steps):
            say(f"  {step}")
    spoiled = {found.state: found.what for found in explored.outcome.found}
    for change in explored.changes:
        for state in explored.outcome.states:
            if state.cut == change.number:
                verdict = spoiled.get(state, "the truth")
                say(f"  -- cut in {state.operation}, image {state.image}: {verdict}")
        call = change.call
        end = "  failed" if change.failed else ""
        say(
            f"{change.number:5} {change.operation:12} {call.operation} {call.path} {call.size}{end}"
        )
