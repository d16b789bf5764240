"""The verifier: compares what a spool holds with what was said of it.

It sees what headquarters would see: the pending batches, the newest accounts, and what was
released. It checks the first, second, third and fifth invariant of the list of faults, and that no
number names two records; that the spool opens at all is for the caller to see.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.ports import Disk, Observer
from mesh.spool import batch as batches
from mesh.spool.batch import Labels
from mesh.spool.spool import Resources, Spool, SpoolSettings
from schemas import wire
from schemas.messages import Account, Explained, Lane
from schemas.ranges import Ranges
from tests.spool.telling import Said, Told, digest

__all__ = ["LABELS", "Findings", "Silent", "opened", "verify"]

LABELS = Labels("hall", "pump")
_NOTHING = Ranges()


class Silent:
    """Port ``Observer``: says nothing."""

    def observe(self, event: object) -> None:
        """Takes one event."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with a spool, and what it holds.

    Args:
        lost: acknowledged, and neither pending nor released nor stated as given up.
        reused: numbers that name, or would soon name, two records.
        untrue: anything else: what was never appended, out of order, or not accounted for.
        pending: the numbers that can be read, by lane.
        explained: the numbers that the newest account explains, by lane and reason.
        own: the records that the spool itself wrote, by number.
    """

    lost: tuple[str, ...]
    reused: tuple[str, ...]
    untrue: tuple[str, ...]
    pending: Mapping[Lane, Ranges]
    explained: Mapping[Lane, Mapping[str, Ranges]]
    own: Mapping[int, str]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.reused or self.untrue)

    def explains(self, lane: Lane, why: Explained) -> Ranges:
        """The numbers of a lane that are explained by one reason."""
        return self.explained.get(lane, {}).get(why, _NOTHING)


async def verify(
    spool: Spool, said: Said, given_up: Collection[Explained] = (Explained.EVICTED,)
) -> Findings:
    """Reads all that is pending, has everything stated, and compares.

    Nothing else may append meanwhile.

    Args:
        spool: open, and not degraded.
        said: what was said of it.
        given_up: the reasons for which an acknowledged record may be gone.
    """
    untrue: list[str] = []
    held = {lane: await _read(spool, lane, untrue) for lane in Lane if lane is not Lane.ACCOUNT}
    # Reading may have found damage: what is stated now tells of it.
    await spool.state_accounts()
    held[Lane.ACCOUNT] = await _read(spool, Lane.ACCOUNT, untrue)
    accounts = _newest(spool, held[Lane.ACCOUNT].values())
    epoch = str(spool.epoch)
    lost: list[str] = []
    reused = list(said.reused)
    for (life, lane), told in said.lanes.items():
        if life != epoch:
            lost += [f"{life}/{lane}/{number}" for number in told.acknowledged - told.released]
    for lane in Lane:
        told = said.lane(epoch, lane)
        account = accounts.get(lane)
        released = spool.released(lane)
        findings = _compare(lane, told, held[lane], account, released, given_up)
        lost += findings[0]
        reused += findings[1]
        untrue += findings[2]
    return Findings(
        tuple(lost),
        tuple(reused),
        tuple(untrue),
        {lane: _numbers(records) for lane, records in held.items()},
        {lane: account.explained for lane, account in accounts.items()},
        {number: digest(record) for number, record in held[Lane.ACCOUNT].items()},
    )


def _compare(
    lane: Lane,
    told: Told,
    held: Mapping[int, bytes],
    account: Account | None,
    released: Ranges,
    given_up: Collection[Explained],
) -> tuple[list[str], list[str], list[str]]:
    """What is lost, reused and untrue of one lane."""
    lost: list[str] = []
    reused: list[str] = []
    untrue: list[str] = []
    for number, record in held.items():
        known = told.records.get(number)
        if known is None and lane is not Lane.ACCOUNT:
            untrue.append(f"{lane}/{number} is pending and was never appended")
        elif known is not None and known != digest(record):
            reused.append(f"{lane}/{number} holds another record")
    produced = account.next_seq if account is not None else 0
    if produced < told.next_seq:
        reused.append(f"{lane}: {produced} comes next, {told.next_seq - 1} was handed out")
    explained = account.explained if account is not None else {}
    all_explained = Ranges.of([span for numbers in explained.values() for span in numbers.spans])
    excused = Ranges.of([span for why in given_up for span in explained.get(why, _NOTHING).spans])
    gone = told.acknowledged - held.keys() - told.released
    lost += [f"{lane}/{number}" for number in sorted(gone) if number not in excused]
    beyond = [number for number in released if number not in told.released]
    if beyond:
        untrue.append(f"{lane}: {beyond[:3]} are released, and nobody released them")
    pending = _numbers(held)
    everything = Ranges.of([(0, produced)])
    accounted = pending | released | all_explained
    if accounted != everything:
        untrue.append(
            f"{lane}: of {everything}: missing {everything - accounted}, beyond "
            f"{accounted - everything}"
        )
    both = Ranges.of([(n, n + 1) for n in held if n in all_explained])
    if both:
        untrue.append(f"{lane}: {both} are pending, and explained as well")
    return lost, reused, untrue


async def _read(spool: Spool, lane: Lane, untrue: list[str]) -> dict[int, bytes]:
    """All pending records of a lane by number, as a forwarder would get them."""
    held: dict[int, bytes] = {}
    start = 0
    while (batch := await spool.next_batch(lane, start)) is not None:
        numbers = list(batch.header.present)
        if batch.header.last < start:
            untrue.append(f"{lane}: {batch.header} comes after {start}")
            return held
        for number, record in zip(numbers, batches.open_records(batch), strict=True):
            if held.setdefault(number, record) != record:
                untrue.append(f"{lane}/{number} is pending twice, and differs")
        start = batch.header.last + 1
    if list(held) != sorted(held):
        untrue.append(f"{lane}: out of order")
    return held


def _newest(spool: Spool, records: Collection[bytes]) -> dict[Lane, Account]:
    newest: dict[Lane, Account] = {}
    for record in records:
        account = wire.decode_as(Account, record)
        known = newest.get(account.lane)
        if account.epoch == spool.epoch and (known is None or known.number < account.number):
            newest[account.lane] = account
    return newest


def _numbers(held: Mapping[int, bytes]) -> Ranges:
    return Ranges.of([(number, number + 1) for number in held])


@asynccontextmanager
async def opened(
    folder: Path,
    settings: SpoolSettings,
    *,
    disk: Disk | None = None,
    observer: Observer | None = None,
    threads: int = 2,
    maintain: bool = True,
) -> AsyncIterator[Spool]:
    """A spool in a folder of this machine, built as the edge builds it; closed in order at the end.

    Args:
        folder: where it lives.
        settings: how it is kept.
        disk: instead of that of the folder.
        observer: is told what happens.
        threads: with one, all system calls of the spool come from one thread, in one order.
        maintain: whether its chores run from the start.
    """
    with ThreadPoolExecutor(1, "writer") as writer, ThreadPoolExecutor(1, "worker") as worker:
        resources = Resources(
            SystemDisk(folder) if disk is None else disk,
            SystemClock(),
            writer,
            worker if threads > 1 else writer,
            entropy,
            boot_id(),
            machine_id() or bytes(16),
            observer or Silent(),
        )
        spool = await Spool.open(resources, settings)
        async with asyncio.TaskGroup() as tasks:
            chores = tasks.create_task(spool.maintain() if maintain else asyncio.sleep(0))
            try:
                yield spool
            finally:
                chores.cancel()
        await spool.close()
