"""``python -m simulator run``: a world of edges, gateways and headquarters, searched for a lie."""

from typing import Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from schemas.errors import ExitCode
from simulator.world.faults import Fault, Shape
from simulator.world.run import play
from simulator.world.scenarios import SCENARIOS
from simulator.world.survey import Played, Total, survey

__all__ = ["run"]

_GATEWAYS_MIN: Final = 5
_EDGES_A_GATEWAY: Final = 100


def run(
    seed: Annotated[int | None, typer.Option(help="play this one", min=0)] = None,
    seeds: Annotated[int, typer.Option(help="how many worlds", min=1)] = 1,
    first: Annotated[int, typer.Option(help="the first seed", min=0)] = 0,
    edges: Annotated[int, typer.Option(help="in each", min=1)] = 50,
    gateways: Annotated[
        int | None,
        typer.Option(help="in each; five, or one for a hundred edges where that is more", min=0),
    ] = None,
    days: Annotated[float, typer.Option(help="how long each runs", min=0.1)] = 30.0,
    without: Annotated[
        list[Fault] | None, typer.Option(help="a kind of fault that does not strike")
    ] = None,
    scenario: Annotated[
        str, typer.Option(help=f"one of {', '.join(SCENARIOS)}, instead of drawn faults")
    ] = "",
    jobs: Annotated[int, typer.Option(help="processes", min=1)] = 2,
    trace: Annotated[  # noqa: FBT002  # an option of the command line
        bool, typer.Option("--trace", help="print one line for each event")
    ] = False,
    json: Annotated[  # noqa: FBT002  # the same
        bool, typer.Option("--json", help="print one JSON object")
    ] = False,
) -> None:
    """Lets worlds live on virtual time, with seeded faults, and checks what came of every record.

    Ends with 0 when nothing was wrong, with 1 otherwise.
    """
    if gateways is None:
        gateways = max(_GATEWAYS_MIN, edges // _EDGES_A_GATEWAY)
    faults = [fault for fault in Fault if fault not in (without or ())]
    shape = Shape(edges, gateways, days, faults=tuple(faults))
    console = Console(stderr=json)
    total = Total()
    say = _say if trace else None
    if scenario:
        if scenario not in SCENARIOS:
            raise typer.BadParameter(f"{scenario!r} is none of {', '.join(SCENARIOS)}")
        total.add(Played(seed or 0, SCENARIOS[scenario](seed or 0, say)))
    elif seed is not None:
        total.add(Played(seed, play(seed, shape, say=say)))
    else:
        wanted = range(first, first + seeds)
        with Progress(console=console, transient=True) as progress:
            for played in progress.track(survey(wanted, shape, jobs), total=seeds):
                total.add(played)
    if json:
        typer.echo(orjson.dumps(_as_json(total), option=orjson.OPT_INDENT_2))
    else:
        _show(console, total)
    left_out = "".join(f" --without {fault}" for fault in without or ())
    for number, wrong in total.found:
        how = f"--scenario {scenario}" if scenario else f"--edges {edges} --gateways {gateways}"
        how += "" if scenario else f" --days {days:g}{left_out}"
        again = f"python -m simulator run --seed {number} {how}"
        console.print(
            f"violation in seed {number}: {wrong}\n  replay: {again}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if total.found:
        raise typer.Exit(ExitCode.FAILED)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _as_json(total: Total) -> dict[str, object]:
    return {
        "violations": len(total.found),
        "records": total.records,
        "rows": total.rows,
        "crashes": total.crashes,
        "cuts": total.cuts,
        "by_fault": {str(fault): total.by_fault[fault] for fault in Fault},
        "seeds": total.seeds,
        "forks_dropped": total.forks_dropped,
        "trace": total.trace,
        "found": [f"seed {seed}: {wrong}" for seed, wrong in total.found],
    }


def _show(console: Console, total: Total) -> None:
    table = Table("fault", "seeds")
    table.columns[1].justify = "right"
    for fault in Fault:
        table.add_row(str(fault), f"{total.by_fault[fault]:,}")
    console.print(table)
    console.print(
        f"{total.seeds:,} seeds, {total.records:,} records, {total.crashes:,} crashes, "
        f"{total.cuts:,} cuts, {len(total.found):,} violations, trace {total.trace}",
        highlight=False,
        soft_wrap=True,
    )
