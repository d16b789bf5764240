"""The oracle: compares what a spool holds with what was said to it and by it.

After a crash, for each epoch and lane:

- an acknowledged record can be read, or a receipt released it, or it was given up, by a lane that
  may, and that is stated;
- nothing is given up for its age before it is so old, whatever clocks say;
- nothing can be read that was never appended, and what can be read is in order, its chain whole;
- ``next number = released + pending + waiting + explained``, as sets, nothing twice;
- no number that was handed out is to be handed out again;
- nothing counts as released without a receipt; what the next holder has lost counts so only until
  the spool has said that the loss is durable;
- of a present life nothing is forgotten but what the next holder has lost;
- of all statements of a lane, those the next holder has taken included, the one with the highest
  number is the truth, and no two have one number.

What is explained is taken from the accounts in the spool's own lane, as headquarters would take it.
Of an epoch that was there when ``STORE`` was lost only this is asked: what was acknowledged can be
read, or was released, or is explained by some statement.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from mesh.spool import batch as batches
from mesh.spool.batch import Batch
from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.spool import Spool
from schemas import wire
from schemas.messages import Account, Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.crash.annals import Annals, Said, Violation, ranges

__all__ = [
    "Terms",
    "View",
    "audit",
    "judge",
    "judge_given_up",
    "judge_records",
    "pending",
    "records_of",
    "statements",
    "view",
]

_NONE = Ranges()
_ROUNDED_NS: Final = 1_000_000


class Terms(NamedTuple):
    """On which terms a spool may give up records.

    Args:
        lanes: how each lane is kept.
        now_ns: the true time.
    """

    lanes: Mapping[Lane, LaneSettings]
    now_ns: int


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


Statements = Mapping[tuple[Epoch, Lane], list[Account]]
"""All statements of each epoch and lane that can be known, the newest last."""


async def audit(
    spool: Spool, annals: Annals, terms: Terms | None = None
) -> Mapping[Lane, Mapping[str, Ranges]]:
    """Compares a spool that was just opened, or has just stated its accounts, with what was said.

    Args:
        spool: whose chores rest.
        annals: what was said to it.
        terms: on which it may give up records; not looked at where none are given.

    Returns:
        What it explains of the present epoch, by lane and reason.

    Raises:
        Violation: it lies.
    """
    stated = await statements(spool, annals)
    for epoch, said in annals.epochs.items():
        if epoch != spool.epoch:
            for lane in Lane:
                await _audit_past(
                    spool, (epoch, lane), stated, said, sure=epoch not in annals.unsure
                )
                if terms is not None:
                    _audit_given_up((epoch, lane), stated, said, terms)
    told = {lane: await _audit_present(spool, lane, stated, annals) for lane in Lane}
    if terms is not None:
        for lane in Lane:
            _audit_given_up((spool.epoch, lane), stated, annals.present(spool), terms)
    return told


async def _audit_present(
    spool: Spool, lane: Lane, stated: Statements, annals: Annals
) -> Mapping[str, Ranges]:
    """Audits a lane of the present epoch, in which numbers are handed out; returns as ``audit``."""
    accounts = stated.get((spool.epoch, lane), ())
    next_seq = spool.next_seq(lane)
    told = accounts[-1].next_seq if accounts else 0
    _demand(told == next_seq, f"{lane}: the account says that {told} is next, it is {next_seq}")
    explained = accounts[-1].explained if accounts else {}
    said = annals.present(spool)
    forgotten = explained.get(Explained.FORGOTTEN, _NONE)
    forgotten -= ranges(said.forgettable.get(lane, ()))
    _demand(not forgotten, f"{lane}: forgotten, and nobody had lost it: {forgotten}")
    judge(lane, await view(spool, lane, explained), said)
    return explained


async def _audit_past(
    spool: Spool, place: tuple[Epoch, Lane], stated: Statements, said: Said, *, sure: bool
) -> None:
    """Audits a lane of a past epoch; the spool may have handed all of it on, and forgotten it."""
    epoch, lane = place
    held = records_of(await pending(spool, lane, epoch))
    accounts = stated.get(place, ())
    if not sure:
        explained: dict[str, Ranges] = {}
        for account in accounts:
            for why, numbers in account.explained.items():
                explained[why] = explained.get(why, _NONE) | numbers
        judge_records(lane, held, explained, said, damaged=True)
        return
    newest = accounts[-1] if accounts else None
    next_seq = newest.next_seq if newest is not None else 0
    explained = dict(newest.explained) if newest is not None else {}
    known = spool.durable(lane, epoch)
    released = spool.released(lane, epoch)
    if known:
        _demand(
            known == next_seq, f"{place}: the account says that {next_seq} is next, it is {known}"
        )
    else:
        released = ranges(n for n in said.released.get(lane, ()) if n < next_seq)
    judge(lane, View(held, explained, released, next_seq, next_seq), said)


def _audit_given_up(
    place: tuple[Epoch, Lane], stated: Statements, said: Said, terms: Terms
) -> None:
    for account in stated.get(place, ()):
        judge_given_up(place[1], account.explained, said, terms)


def judge_given_up(lane: Lane, explained: Mapping[str, Ranges], said: Said, terms: Terms) -> None:
    """Compares what a lane has given up with the terms on which it may.

    Raises:
        Violation: it is too young for that, or a lane that refuses has given it up for space.
    """
    settings = terms.lanes[lane]
    appended = ranges(said.acknowledged.get(lane, ()))
    evicted = explained.get(Explained.EVICTED, _NONE) & appended
    refuses = settings.when_full is WhenFull.REFUSE
    _demand(not (refuses and evicted), f"{lane} refuses when it is full, and gave up {evicted}")
    age = settings.age_seconds_max
    born = said.born_ns.get(lane, {})
    since_ns = terms.now_ns - (0 if age is None else age * 1e9) + _ROUNDED_NS
    expired = explained.get(Explained.EXPIRED, _NONE) & appended
    young = [number for number in expired if age is None or born.get(number, 0) > since_ns]
    _demand(not young, f"{lane}: too young to be given up for their age: {ranges(young)}")


async def view(spool: Spool, lane: Lane, explained: Mapping[str, Ranges]) -> View:
    """What can be seen of a lane in the present epoch."""
    held = records_of(await pending(spool, lane))
    return View(held, explained, spool.released(lane), spool.next_seq(lane), spool.durable(lane))


async def statements(spool: Spool, annals: Annals) -> Statements:
    """The accounts among the pending records and those that the next holder has taken.

    Raises:
        Violation: two of them have one number.
    """
    found = {place: list(accounts) for place, accounts in annals.heard.items()}
    for epoch in spool.epochs:
        for data in records_of(await pending(spool, Lane.ACCOUNT, epoch)).values():
            account = wire.decode_as(Account, data)
            known = found.setdefault((account.epoch, account.lane), [])
            if account not in known:
                known.append(account)
    for place, accounts in found.items():
        accounts.sort(key=lambda account: account.number)
        for one, other in pairwise(accounts):
            _demand(one.number < other.number, f"{place}: two statements are {one.number}")
    return found


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
    lost = ranges(said.lost.get(lane, ())) & ranges(said.acknowledged.get(lane, ()))
    lost -= held | seen.released | known
    _demand(not lost, f"{lane}: lost by the next holder, and nowhere: {lost}")
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
