"""The auditor of a site: a process of its own, which knows nothing but a run's folder.

``python -m simulator.demo.site.auditor FOLDER`` prints the account by lane as a JSON object. It may
be asked again, of any folder that a run has kept, once all parties have ended.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from mesh.adapters.system import SystemDisk
from schemas.messages import Lane
from simulator.demo.audit import LaneAccount, audit
from simulator.demo.log import read
from simulator.demo.site.configurations import EDGES, GATEWAY

__all__ = ["account_of", "main"]


def account_of(said: Mapping[str, Mapping[str, Any]]) -> dict[Lane, LaneAccount]:
    """The account that an auditor printed."""
    return {Lane(lane): LaneAccount(**line) for lane, line in said.items()}


def main(
    folder: Annotated[Path, typer.Argument(help="of a run", exists=True, file_okay=False)],
) -> None:
    """Counts what a run has left: the archive's rows, and what is held by edges and gateway."""
    lanes = audit(
        read(folder / "witness.jsonl"),
        folder / "archive",
        [SystemDisk(folder / name / "spool") for name in EDGES],
        {GATEWAY: SystemDisk(folder / "gateway" / "custody")},
    )
    told = {str(lane): asdict(line) for lane, line in lanes.items()}
    sys.stdout.buffer.write(orjson.dumps(told) + b"\n")


if __name__ == "__main__":
    typer.run(main)
