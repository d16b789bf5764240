"""A worker of headquarters that is killed after a given step of a commit that brings rows.

``python -m simulator.demo.site.worker --config FILE --die-after STEP`` is ``holdfast headquarters
--config FILE`` with something between the worker and its ports: after the step it sends itself
SIGKILL, so nothing is told, flushed or given back.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.ports import Arrival
from mesh.transfer.ledger import partition_of
from nodes import config
from nodes.commands.headquarters import WorkerPorts, serve
from nodes.commands.process import fail, log_to_stderr, run_role
from nodes.headquarters.rows import Rows
from nodes.settings import HeadquartersSection
from schemas.errors import MeshError, Refused
from schemas.messages import Receipt
from simulator.demo.site.script import CommitStep

__all__ = ["Doom", "doomed", "main"]


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Doom:
    """Follows the commits of one worker, and ends it after a step of one.

    Args:
        last: the step.
        end: ends the worker.
    """

    def __init__(self, last: CommitStep, end: Callable[[], None] = _kill) -> None:
        self._last = last
        self._end_worker = end
        self._expected: set[int] = set()
        self._name = ""
        self._done: CommitStep | None = None

    def took(self, arrivals: Sequence[Arrival]) -> None:
        """The worker was given these."""
        self._name, self._done = "", None
        self._expected = set()
        for arrival in arrivals:
            try:
                self._expected.add(partition_of(arrival.site, arrival.node))
            except Refused:
                continue

    def loads(self, partition: int) -> None:
        """It is about to ask for a ledger: what it took is verified."""
        if partition in self._expected:
            self._end(CommitStep.VERIFY)

    def stages(self, name: str) -> None:
        """It is about to stage: it knows what is new."""
        self._name = name
        self._end(CommitStep.SUBTRACT)

    def staged(self) -> None:
        """The rows are staged."""
        self._end(CommitStep.STAGE)

    def wrote(self, partition: int) -> None:
        """A ledger was replaced. Other partitions may be written by its survey."""
        if self._name and self._done is CommitStep.STAGE and int(self._name[:3]) == partition:
            self._end(CommitStep.COMMIT)

    def published(self, name: str) -> None:
        """Files were put into their places."""
        if name == self._name:
            self._end(CommitStep.PUBLISH)

    def stated(self) -> None:
        """Receipts were handed over."""
        if self._done is CommitStep.PUBLISH:
            self._end(CommitStep.RECEIPT)

    def accepted(self) -> None:
        """The transport may forget."""
        if self._done is CommitStep.RECEIPT:
            self._end(CommitStep.ACCEPT)

    def _end(self, step: CommitStep) -> None:
        self._done = step
        if step is self._last:
            self._end_worker()


def doomed(ports: WorkerPorts, doom: Doom) -> WorkerPorts:
    """The ports of a worker that is followed."""
    followed: Any = (
        _Intake(ports.intake, doom),
        _Store(ports.store, doom),
        _Archive(ports.archive, doom),
    )
    return WorkerPorts(*followed)


class _Followed:
    """A port, as it is but for what is said of it below."""

    def __init__(self, port: Any, doom: Doom) -> None:  # noqa: ANN401 - whichever port it is
        self._port = port
        self._doom = doom

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the port has
        return getattr(self._port, name)


class _Intake(_Followed):
    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        async for arrivals in self._port.batches():
            self._doom.took(arrivals)
            yield arrivals

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        await self._port.publish(receipts)
        self._doom.stated()

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        await self._port.accept(arrivals)
        self._doom.accepted()


class _Store(_Followed):
    async def load(self, partition: int) -> object:
        self._doom.loads(partition)
        return await self._port.load(partition)

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        found: int = await self._port.compare_and_set(partition, version, state)
        self._doom.wrote(partition)
        return found


class _Archive(_Followed):
    def stage(self, name: str, rows: Sequence[Rows]) -> None:
        self._doom.stages(name)
        self._port.stage(name, rows)
        self._doom.staged()

    def publish(self, name: str) -> None:
        self._port.publish(name)
        self._doom.published(name)


def main(
    file: Annotated[Path, typer.Option("--config", help="configuration file (TOML)")],
    die_after: Annotated[CommitStep, typer.Option(help="the step of a commit")],
) -> None:
    """Runs a worker of headquarters until it has done a step of a commit."""

    def section() -> HeadquartersSection:
        return config.load(file).for_headquarters()

    try:
        log_to_stderr(config.load(file).log.level)
        doom = Doom(die_after)
        run_role(lambda ending: serve(section(), ending, lambda it: doomed(it, doom)), section)
    except MeshError as error:
        fail(error)


if __name__ == "__main__":
    typer.run(main)
