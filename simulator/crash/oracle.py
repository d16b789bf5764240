"""The oracle: compares what a spool holds with what was said to it and by it.

After a crash, for each epoch and lane:

- an acknowledged record can be read, or a receipt released it, or it was evicted and that is
  stated;
- nothing can be read that was never appended, and what can be read is in order, its chain whole;
- ``next number = released + pending + waiting + explained``, as sets, nothing twice;
- no number that was handed out is to be handed out again;
- nothing counts as released without a receipt.

What is explained is taken from the accounts in the spool's own lane, as headquarters would take it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mesh.spool import batch as batches
from mesh.spool.batch import Batch
from mesh.spool.spool import Spool
from schemas import wire
from schemas.messages import Account, Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.crash.annals import Annals, Said, Violation, ranges

__all__ = [
    "View",
    "audit",
    "judge",
    "judge_records",
    "pending",
    "records_of",
    "statements",
    "view",
]

_NONE = Ranges()


class View(NamedTuple):
    """What can be seen of one lane in one epoch.

    Args:
        held: the pending records by number.
        explained: numbers that will never arrive, by reason.
        released: what the spool takes for released.
        next_seq: the number that the next record will take.
        durable: numbers at or above this one still wait.
    """

    held: Mapping[int, bytes]
    explained: Mapping[str, Ranges]
    released: Ranges
    next_seq: int
    durable: int


async def audit(spool: Spool, annals: Annals) -> Mapping[Lane, Mapping[str, Ranges]]:
    """Compares a spool that was just opened, or has just stated its accounts, with what was said.

    Returns:
        What it explains of the present epoch, by lane and reason.

    Raises:
        Violation: it lies.
    """
    stated = await statements(spool)
    for epoch, said in annals.epochs.items():
        if epoch != spool.epoch:
            for lane in Lane:
                held = records_of(await pending(spool, lane, epoch))
                account = stated.get((epoch, lane))
                explained = account.explained if account is not None else {}
                judge_records(lane, held, explained, said)
    return {lane: await _audit_present(spool, lane, stated, annals) for lane in Lane}


async def _audit_present(
    spool: Spool, lane: Lane, stated: Mapping[tuple[Epoch, Lane], Account], annals: Annals
) -> Mapping[str, Ranges]:
    """Audits a lane of the present epoch, in which numbers are handed out; returns as ``audit``."""
    account = stated.get((spool.epoch, lane))
    next_seq = spool.next_seq(lane)
    told = account.next_seq if account is not None else 0
    _demand(told == next_seq, f"{lane}: the account says that {told} is next, it is {next_seq}")
    explained = account.explained if account is not None else {}
    judge(lane, await view(spool, lane, explained), annals.present(spool))
    return explained


async def view(spool: Spool, lane: Lane, explained: Mapping[str, Ranges]) -> View:
    """What can be seen of a lane in the present epoch."""
    held = records_of(await pending(spool, lane))
    return View(held, explained, spool.released(lane), spool.next_seq(lane), spool.durable(lane))


async def statements(spool: Spool) -> dict[tuple[Epoch, Lane], Account]:
    """The newest account of each epoch and lane among the pending records."""
    newest: dict[tuple[Epoch, Lane], Account] = {}
    for epoch in spool.epochs:
        for data in records_of(await pending(spool, Lane.ACCOUNT, epoch)).values():
            account = wire.decode_as(Account, data)
            known = newest.get((account.epoch, account.lane))
            if known is None or account.number > known.number:
                newest[account.epoch, account.lane] = account
    return newest


async def pending(spool: Spool, lane: Lane, epoch: Epoch | None = None) -> list[Batch]:
    """All pending batches of a lane, in the order in which a forwarder would get them.

    Args:
        spool: whose.
        lane: which lane.
        epoch: of which epoch; ``None`` for the present one.
    """
    found: list[Batch] = []
    start = 0
    while (batch := await spool.next_batch(lane, start, epoch)) is not None:
        _demand(batch.header.last >= start, f"{lane}: asked from {start}, got {batch.header}")
        found.append(batch)
        start = batch.header.last + 1
    return found


def records_of(found: Iterable[Batch]) -> dict[int, bytes]:
    """Records by number; their order and chains are checked.

    Raises:
        Violation: a number comes twice, late, or the chain does not go on.
    """
    held: dict[int, bytes] = {}
    last: Batch | None = None
    for batch in found:
        header = batch.header
        for number, data in zip(header.present, batches.open_records(batch), strict=True):
            _demand(number not in held, f"{header}: {number} comes twice")
            held[number] = data
        if last is not None and last.header.last + 1 == header.first:
            _demand(
                last.header.chain_after == header.chain_before,
                f"{header}: the chain does not go on from {last.header}",
            )
        last = batch
    _demand(list(held) == sorted(held), f"out of order: {list(held)}")
    return held


def judge(lane: Lane, seen: View, said: Said, *, damaged: bool = False) -> None:
    """Compares what can be seen of one lane in one epoch with what was said of it.

    Args:
        lane: which lane.
        seen: what can be seen.
        said: what was said.
        damaged: whether something was damaged on purpose, so that losses may be called so.

    Raises:
        Violation: the two do not agree.
    """
    held = ranges(seen.held)
    known = _union(seen.explained.values())
    judge_records(lane, seen.held, seen.explained, said, damaged=damaged)
    gone = ranges(said.released.get(lane, ()))
    _demand(not seen.released - gone, f"{lane}: released without a receipt {seen.released - gone}")
    everything = Ranges.of([(0, seen.next_seq)])
    waiting = Ranges.of([(seen.durable, seen.next_seq)])
    accounted = seen.released | waiting | held | known
    missing, beyond = everything - accounted, accounted - everything
    _demand(not missing, f"{lane}: unaccounted {missing}")
    _demand(not beyond, f"{lane}: beyond the next number {beyond}")
    _demand(not known & held, f"{lane}: pending and explained {known & held}")
    handed_out = said.handed_out.get(lane, 0)
    _demand(
        seen.next_seq >= handed_out,
        f"{lane}: {handed_out - 1} was handed out already, and {seen.next_seq} is next",
    )


def judge_records(
    lane: Lane,
    held: Mapping[int, bytes],
    explained: Mapping[str, Ranges],
    said: Said,
    *,
    damaged: bool = False,
) -> None:
    """The part of ``judge`` that holds for past epochs too: what is held, and what is lost.

    Raises:
        Violation: as ``judge``.
    """
    produced = said.produced.get(lane, {})
    if lane is not Lane.ACCOUNT:
        for number, data in held.items():
            _demand(produced.get(number) == data, f"{lane}/{number} was never appended")
    acknowledged = ranges(said.acknowledged.get(lane, ()))
    lost = acknowledged - ranges(held) - ranges(said.released.get(lane, ()))
    if damaged:
        lost -= _union(explained.values())
        _demand(not lost, f"acknowledged, lost and unexplained: {lane} {lost}")
        return
    for why in (Explained.EVICTED, Explained.EXPIRED, Explained.FORGOTTEN):
        lost -= explained.get(why, _NONE)
    _demand(not lost, f"acknowledged and lost: {lane} {lost}, explained {_told(explained)}")
    # A torn frame with a whole header is called damaged: nobody can know that it was not promised.
    spoiled = explained.get(Explained.DAMAGED, _NONE) & acknowledged
    _demand(not spoiled, f"{lane}: nothing was damaged, and {spoiled} is called so")


def _union(sets: Iterable[Ranges]) -> Ranges:
    return Ranges.of([span for numbers in sets for span in numbers.spans])


def _told(explained: Mapping[str, Ranges]) -> str:
    return "; ".join(f"{why} {numbers}" for why, numbers in explained.items()) or "nothing"


def _demand(held: object, otherwise: str) -> None:
    if not held:
        raise Violation(otherwise)
