"""``holdfast headquarters``: takes batches over JetStream, archives them, answers with receipts.

Any number of workers share one archive folder and one JetStream, each under its own name:
``worker`` in the configuration, or ``--worker``. ``holdfast headquarters rebuild`` makes the
ledgers anew from the archive. A worker that runs holds a lock in the archive's folder ``workers``,
on a shared file system too, as far as that file system shares locks; by those locks ``rebuild``
knows that it is alone.
"""

import asyncio
import gc
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.ledger import JetStreamLedgerStore, LedgerStoreSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.registry import TinyRegistry
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemClock, SystemDisk, entropy
from mesh.ports import Intake, LedgerStore
from nodes import config
from nodes.commands.endpoints import password, tls_context
from nodes.commands.process import Ending, fail, log_to_stderr, run_role
from nodes.headquarters.archive import Archive
from nodes.headquarters.books import ArchiveMissing, Books, LedgerRebuilt, Shelves
from nodes.headquarters.credit import Room
from nodes.headquarters.ingest import (
    BatchSetAside,
    Committed,
    Ingest,
    IngestDelayed,
    NumbersDisputed,
)
from nodes.settings import HeadquartersSection
from schemas.documents import to_json
from schemas.errors import MeshError, Refused, StoreInUse
from schemas.limits import PARTITIONS
from schemas.messages import Epoch
from schemas.topics import check_identifier

__all__ = ["WorkerPorts", "headquarters", "serve"]

_ALLOCATIONS: Final = 50_000
_LOGGER: Final = logging.getLogger("holdfast.headquarters")
_WORKERS: Final = "workers"
_HOLDER_LOCK: Final = "holder.lock"
_HOLDER_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.05
_SURVEY_SECONDS: Final = 30.0
_CONNECT_SECONDS_MAX: Final = 30.0

headquarters = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False
)


@headquarters.callback()
def _work(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--config", "-c", help="configuration file (TOML)")
    ] = None,
    worker: Annotated[
        str | None, typer.Option(help="this worker's name, instead of the configured one")
    ] = None,
) -> None:
    """Takes custody of what the nodes send, archives it, and answers with receipts."""
    if context.invoked_subcommand is not None:
        return
    if file is None:
        raise typer.BadParameter("Missing option '--config' / '-c'.", ctx=context)
    path = file

    def section() -> HeadquartersSection:
        return _section(path, worker)

    try:
        log_to_stderr(config.load(path).log.level)
        run_role(lambda ending: serve(section(), ending), section)
    except MeshError as error:
        fail(error)


@headquarters.command()
def rebuild(
    file: Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")],
    force: Annotated[
        bool, typer.Option("--force", help="although workers run, or seem to")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Makes the ledgers anew from the archive; the nodes offer again what it lacks."""
    try:
        log_to_stderr("warning")
        outcome = asyncio.run(_rebuild(_section(file, None), force=force))
    except MeshError as error:
        fail(error)
    if json:
        typer.echo(to_json(asdict(outcome)).decode())
        return
    typer.echo(
        f"{outcome.records} records of {outcome.lanes} lanes in {outcome.partitions} partitions are"
        f" held, in life {outcome.life}; {outcome.discarded} unfinished commits were discarded"
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a rebuild made."""

    life: str
    partitions: int
    lanes: int
    records: int
    discarded: int


def _section(file: Path, worker: str | None) -> HeadquartersSection:
    section = config.load(file).for_headquarters()
    if worker is None:
        return section
    try:
        check_identifier("--worker", worker)
    except Refused as wrong:
        raise typer.BadParameter(str(wrong)) from wrong
    return section.model_copy(update={"worker": worker})


@dataclass(frozen=True, slots=True)
class WorkerPorts:
    """What a worker asks of the world."""

    intake: Intake
    store: LedgerStore
    archive: Shelves


async def serve(
    section: HeadquartersSection,
    ending: Ending,
    dress: Callable[[WorkerPorts], WorkerPorts] = lambda ports: ports,
) -> None:
    """Runs one worker until it is told to end.

    Args:
        section: what it needs.
        ending: tells it to end.
        dress: puts something between the worker and its ports.

    Raises:
        MeshError: what it could not go on from.
    """
    clock = SystemClock()
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    observer = _Log()
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(1, "archive"))
        archive = await _archive(section, executor, stack)
        disk = SystemDisk(section.archive_directory)
        _lock_worker(disk, section.worker, stack)
        life = await _life(disk, observer)
        url, session = await _session(section, rng, stack)
        intake = await stack.enter_async_context(
            JetStreamIntake(
                IntakeSettings(
                    session,
                    up_bytes_max=section.stream_bytes_max,
                    replicas=section.replicas,
                    ack_seconds=section.ack_seconds,
                    ack_pending_max=section.ack_pending_max,
                ),
                clock,
                rng,
            )
        )
        store = await stack.enter_async_context(
            JetStreamLedgerStore(LedgerStoreSettings(session, section.replicas), clock, rng)
        )
        ports = dress(WorkerPorts(intake, store, archive))
        ingest = Ingest(
            section.name,
            life,
            ports.intake,
            ports.store,
            ports.archive,
            executor,
            clock,
            entropy,
            observer,
            section.linger_seconds,
            verifier=stack.enter_context(ThreadPoolExecutor(1, "verify")),
            worker=section.worker,
            room=lambda: Room(*intake.filled),
            survey_seconds=_SURVEY_SECONDS,
        )
        # Records become many short-lived lists, none of them in a circle: looked at less often.
        gc.set_threshold(_ALLOCATIONS, 20, 100)
        _LOGGER.info(
            "worker %s: taking batches at %s, archiving to %s",
            *(section.worker, url, section.archive_directory),
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(ingest.run(), name="ingest")
            await ending.wanted.wait()
            running.cancel()


async def _rebuild(section: HeadquartersSection, *, force: bool) -> _Outcome:
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    observer = _Log()
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(1, "archive"))
        archive = await _archive(section, executor, stack)
        disk = SystemDisk(section.archive_directory)
        if not force:
            for name in sorted({*disk.list(_WORKERS), section.worker}):
                _lock_worker(disk, name, stack)
        life = await _life(disk, observer, renewed=True)
        _, session = await _session(section, rng, stack)
        store = await stack.enter_async_context(
            JetStreamLedgerStore(LedgerStoreSettings(session, section.replicas), SystemClock(), rng)
        )
        async with asyncio.timeout(_CONNECT_SECONDS_MAX):
            state = store.state
            while not state.up:
                state = await store.wait_changed(state)
        books = Books(section.name, life, store, archive, executor, entropy, observer)
        made = [await books.rebuild(number) for number in range(PARTITIONS)]
        discarded = [] if force else await books.blocking(archive.staged)
        for name in discarded:
            await books.blocking(archive.discard, name)
        lanes = [lane for partition in made for lane in partition.lanes]
        return _Outcome(
            str(life),
            sum(bool(partition.lanes) for partition in made),
            len(lanes),
            sum(len(lane.held) for lane in lanes),
            len(discarded),
        )


async def _archive(
    section: HeadquartersSection, executor: ThreadPoolExecutor, stack: AsyncExitStack
) -> Archive:
    loop = asyncio.get_running_loop()
    archive = await loop.run_in_executor(executor, Archive, section.archive_directory)
    # Behind what may still be under way there: a call that was given up is not interrupted.
    stack.push_async_callback(loop.run_in_executor, executor, archive.close)
    return archive


def _lock_worker(disk: SystemDisk, worker: str, stack: AsyncExitStack) -> None:
    """No two that run have one name; and while ``rebuild`` runs, none has any.

    Raises:
        StoreInUse: it is held.
    """
    disk.make_directory(_WORKERS)
    path = f"{_WORKERS}/{worker}"
    disk.lock(path)
    stack.callback(disk.unlock, path)


async def _session(
    section: HeadquartersSection, rng: random.Random, stack: AsyncExitStack
) -> tuple[str, SessionSettings]:
    urls = section.urls or (await _start_server(section, rng, stack),)
    return ", ".join(urls), SessionSettings(
        section.name, urls, section.username or "", password(section), tls_context(section)
    )


async def _start_server(
    section: HeadquartersSection, rng: random.Random, stack: AsyncExitStack
) -> str:
    """The URL of a server of our own: JetStream, each write synced before it is acknowledged."""
    directory = section.data_directory or section.archive_directory / "server"
    settings = ServerSettings(
        section.name,
        directory,
        binary=section.server_binary,
        host=section.listen,
        client_port=section.client_port,
        jetstream_bytes_max=section.jetstream_bytes_max,
    )
    server = await stack.enter_async_context(EmbeddedServer(settings, rng))
    return server.client_url


async def _life(disk: SystemDisk, observer: "_Log", *, renewed: bool = False) -> Epoch:
    """The holder's life: as old as its archive folder, or as its last rebuild.

    Raises:
        StoreInUse: another worker has been at it for too long.
    """
    deadline = asyncio.get_running_loop().time() + _HOLDER_SECONDS_MAX
    while True:
        try:
            disk.lock(_HOLDER_LOCK)
        except StoreInUse:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)
        else:
            break
    try:
        registry = TinyRegistry(disk, "holder.json", observer)
        known = registry.get("life")
        life = None if known is None else Epoch.parse(str(known["epoch"]))
        if life is None or renewed:
            counter = 1 if life is None else life.counter + 1
            life = Epoch(counter, int.from_bytes(entropy(8), "little"))
            registry.put("life", {"epoch": str(life)})
        return life
    finally:
        disk.unlock(_HOLDER_LOCK)


class _Log:
    """Tells the log what the ingest observes."""

    def observe(self, event: object) -> None:
        match event:
            case Committed(batches, records, duplicates):
                _LOGGER.debug("%d batches, %d new, %d again", batches, records, duplicates)
            case BatchSetAside():
                _LOGGER.error("%s: a batch was refused: %s", event.origin, event.reason)
            case NumbersDisputed(origin, reason, kept_as):
                _LOGGER.critical(
                    "%s: two nodes have one name and one past: %s; the second is kept as %s",
                    *(origin, reason, kept_as or "nothing: the quarantine is full"),
                )
            case LedgerRebuilt(partition, records):
                _LOGGER.warning(
                    "the ledger of partition %d was made from the archive: %d records are held",
                    *(partition, records),
                )
            case ArchiveMissing(partition, name, held):
                _LOGGER.error(
                    "the ledger of partition %d counts %d records as held, but their newest file %s"
                    " is not in the archive: what is not there will be asked for again",
                    *(partition, held, name),
                )
            case IngestDelayed(reason):
                _LOGGER.warning("waiting: %s", reason)
            case _:
                _LOGGER.warning("%s", event)
