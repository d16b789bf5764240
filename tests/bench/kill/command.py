"""The kill bench: ``kill -9`` of a writing process, again and again, on the same stores.

A writer appends to all lanes, acknowledges what the spool called durable, forwards, releases, and
has so little room that the spool seals and evicts all the time. The next writer opens what it left
and compares everything that can be read with everything that was ever said of that store. The page
cache survives a kill: what this proves is the order of the calls, not of the platters.
"""

import json
from typing import Annotated

import typer

from tests.bench.kill.rounds import kill_often

__all__ = ["main"]


def main(
    rounds: Annotated[int, typer.Option(help="how many writers to kill")] = 1000,
    seed: Annotated[int, typer.Option(help="of all that is drawn")] = 1,
    jobs: Annotated[int, typer.Option(help="how many stores at a time")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="figures as JSON")] = False,
) -> None:
    """Kill -9 of a writing process: what was acknowledged is there, no number is used twice."""
    tally = kill_often(rounds, seed, jobs=jobs, progress=not as_json)
    if as_json:
        print(json.dumps(tally.document(), indent=2))
    else:
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(tally.during.items()))
        print(f"{tally.rounds} kills in {tally.seconds:.0f} s, during: {phases}")
        print(f"acknowledged {tally.acknowledged}, lost {tally.lost}, reused {tally.reused}")
        for example in tally.examples:
            print(f"  {example}")
    if tally.lost or tally.reused or tally.untrue:
        raise typer.Exit(1)
