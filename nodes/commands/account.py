"""``holdfast account``: what became of every record of a node, from headquarters' ledgers.

Only reads. Ends with 0 where every number is accounted for, with 1 where one is not or names two
records.
"""

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console

from mesh.adapters.jetstream.ledger import JetStreamLedgerStore, LedgerStoreSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.system import SystemClock, entropy
from mesh.ports import LedgerStore
from mesh.transfer.ledger import partition_of
from nodes import config
from nodes.commands.account_lines import LaneAccount, accounts_of, document, is_settled
from nodes.commands.account_table import account_lines, account_table
from nodes.commands.endpoints import password, receiving_urls, tls_context
from nodes.commands.process import escaped, fail
from nodes.settings import HeadquartersSection
from schemas import wire
from schemas.errors import ExitCode, LinkDown, MeshError, Refused
from schemas.limits import PARTITIONS
from schemas.stored import PartitionLedger
from schemas.topics import check_identifier

__all__ = ["account", "read_ledgers"]

_CONNECT_SECONDS: Final = 15.0
_LOADS_MAX: Final = 16
_PIPED_WIDTH: Final = 160


def account(
    file: Annotated[
        Path, typer.Option("--config", "-c", help="headquarters' configuration (TOML)")
    ],
    of: Annotated[
        str, typer.Argument(metavar="[SITE/NODE]", help="a SITE, or a SITE/NODE; without it all")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Tells what became of every record: delivered, pending with whom, explained, unaccounted."""
    try:
        site, node = _place(of)
        section = config.load(file).for_headquarters()
        accounts = accounts_of(asyncio.run(_read(section, site, node)), site, node)
    except MeshError as error:
        fail(error)
    _show(accounts, of, as_json=json)
    sys.exit(ExitCode.FINE if is_settled(accounts) else ExitCode.FAILED)


def _place(of: str) -> tuple[str, str]:
    site, slash, node = of.partition("/")
    try:
        for name in ([site] if of else []) + ([node] if slash else []):
            check_identifier("SITE and NODE", name)
    except Refused as refused:
        raise typer.BadParameter(str(refused)) from refused
    return site, node


def _show(accounts: Sequence[LaneAccount], of: str, *, as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(document(accounts)).decode())  # noqa: T201 - for a program
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    if not accounts:
        console.print(f"nothing has come{' of ' + of if of else ''} yet", markup=False)
        return
    console.print(account_table(accounts))
    for line in account_lines(accounts):
        console.print(escaped(line), highlight=False, markup=False)


async def _read(section: HeadquartersSection, site: str, node: str) -> list[PartitionLedger]:
    settings = SessionSettings(
        f"{section.name}-account",
        receiving_urls(section),
        section.username or "",
        password(section),
        tls_context(section),
    )
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    store = JetStreamLedgerStore(LedgerStoreSettings(settings), SystemClock(), rng)
    async with store:
        await _reached(store)
        return await read_ledgers(store, [partition_of(site, node)] if node else range(PARTITIONS))


async def read_ledgers(store: LedgerStore, partitions: Sequence[int]) -> list[PartitionLedger]:
    """The ledgers of some partitions, those that there are.

    Raises:
        LinkDown: the store cannot be asked.
        Refused: a ledger is not readable.
    """
    turns = asyncio.Semaphore(_LOADS_MAX)

    async def load(partition: int) -> PartitionLedger | None:
        async with turns:
            stored = await store.load(partition)
        return wire.decode_as(PartitionLedger, stored.state) if stored.version else None

    try:
        async with asyncio.TaskGroup() as tasks:
            loading = [tasks.create_task(load(partition)) for partition in partitions]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    found = [task.result() for task in loading]
    return [ledger for ledger in found if ledger is not None]


async def _reached(store: JetStreamLedgerStore) -> None:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            state = store.state
            while not state.up:
                state = await store.wait_changed(state)
    except TimeoutError:
        raise LinkDown(f"no ledgers: {store.state.reason}; is the server running?") from None
