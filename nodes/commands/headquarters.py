"""``holdfast headquarters``: takes batches over JetStream, archives them, answers with receipts."""

import asyncio
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
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
from nodes import config
from nodes.commands.endpoints import password, tls_context
from nodes.commands.process import Ending, fail, log_to_stderr, run_role
from nodes.headquarters.archive import Archive
from nodes.headquarters.ingest import (
    ArchiveMissing,
    BatchSetAside,
    Committed,
    Ingest,
    IngestDelayed,
    LedgerRebuilt,
)
from nodes.settings import HeadquartersSection
from schemas.errors import MeshError
from schemas.messages import Epoch

__all__ = ["headquarters"]

_LOGGER: Final = logging.getLogger("holdfast.headquarters")


def headquarters(
    file: Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")],
) -> None:
    """Takes custody of what the nodes send, archives it, and answers with receipts."""
    try:
        log_to_stderr(config.load(file).log.level)

        def section() -> HeadquartersSection:
            return config.load(file).for_headquarters()

        run_role(lambda ending: _serve(section(), ending), section)
    except MeshError as error:
        fail(error)


async def _serve(section: HeadquartersSection, ending: Ending) -> None:
    clock = SystemClock()
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    observer = _Log()
    async with AsyncExitStack() as stack:
        url = section.url or await _start_server(section, rng, stack)
        session = SessionSettings(
            section.name,
            (url,),
            section.username or "",
            password(section),
            tls_context(section),
        )
        executor = stack.enter_context(ThreadPoolExecutor(1, "archive"))
        loop = asyncio.get_running_loop()
        archive = await loop.run_in_executor(executor, Archive, section.archive_directory)
        stack.callback(archive.close)
        disk = SystemDisk(section.archive_directory)
        life = _life(TinyRegistry(disk, "holder.json", observer))
        intake = await stack.enter_async_context(
            JetStreamIntake(IntakeSettings(session), clock, rng)
        )
        store = await stack.enter_async_context(
            JetStreamLedgerStore(LedgerStoreSettings(session), clock, rng)
        )
        ingest = Ingest(
            section.name,
            life,
            intake,
            store,
            archive,
            executor,
            clock,
            entropy,
            observer,
            section.linger_seconds,
        )
        _LOGGER.info("taking batches at %s, archiving to %s", url, section.archive_directory)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(ingest.run(), name="ingest")
            await ending.wanted.wait()
            running.cancel()


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


def _life(registry: TinyRegistry) -> Epoch:
    """The holder's life: as old as its archive folder."""
    known = registry.get("life")
    if known is None:
        life = Epoch(1, int.from_bytes(entropy(8), "little"))
        registry.put("life", {"epoch": str(life)})
        return life
    return Epoch.parse(str(known["epoch"]))


class _Log:
    """Tells the log what the ingest observes."""

    def observe(self, event: object) -> None:
        match event:
            case Committed(batches, records, duplicates):
                _LOGGER.debug("%d batches, %d new, %d again", batches, records, duplicates)
            case BatchSetAside():
                _LOGGER.error("%s: a batch was refused: %s", event.origin, event.reason)
            case LedgerRebuilt(partition, records):
                _LOGGER.warning(
                    "the store had no ledger of partition %d: its %d archived records are held",
                    *(partition, records),
                )
            case ArchiveMissing(partition, name, held):
                _LOGGER.error(
                    "the ledger of partition %d counts %d records as held, but their newest file %s"
                    " is not in the archive: was it moved, or lost?",
                    *(partition, held, name),
                )
            case IngestDelayed(reason):
                _LOGGER.warning("waiting: %s", reason)
            case _:
                _LOGGER.warning("%s", event)
