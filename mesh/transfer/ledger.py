"""The ledger: what a receiver knows of a (node, epoch, lane): new, duplicate, missing, explained.

Pure.

For each lane of each epoch, with ``next_seq`` the number that the origin's newest account states
(or one more than the highest that came)::

    produced = held + explained + missing            as sets of the numbers 0 <= n < next_seq

Rules. A number is taken once, however often it comes. *Delivered beats explained*: what arrives
late in an explained range is still taken. An account replaces the older ones of its lane and epoch,
by its statement number; what a later life of the spool states of an earlier one stands beside what
that one stated itself. The *watermark* is the least number that is neither held nor explained by
its own life. The chain is compared where a batch begins at, ends at, or passes over, the number up
to which the ledger knows it: the same numbers with another chain are other records, and are refused
as ``bad_chain``.

The state is a few integers and ranges, so it costs the same after an hour and after a year. It is
bounded: what would tear a ledger into more than ``LEDGER_SPANS_MAX`` spans, or a partition into
more than ``LEDGER_LANES_MAX`` ledgers, is refused as ``full`` and may be offered again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from schemas.errors import Refused, RefusedBecause
from schemas.limits import LEDGER_LANES_MAX, LEDGER_SPANS_MAX, PARTITIONS, SEQ_JUMP_MAX
from schemas.messages import Account, BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger

_RECEIPT_RANGES: Final = 512
_LATER: Final = "_says_a_later_life"
_DISPUTED_SPANS_MAX: Final = 64

__all__ = [
    "Line",
    "Taken",
    "account_line",
    "check_room",
    "dispute",
    "explain",
    "find",
    "partition_of",
    "receipt",
    "store",
    "take",
]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch brings.

    Args:
        ledger: the ledger with it.
        new: the numbers that were not held before.
        duplicates: how many were.
    """

    ledger: LaneLedger
    new: Ranges
    duplicates: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the account: sets become counts, missing numbers stay named.

    Args:
        produced: how many numbers were handed out.
        delivered: how many of them are held.
        explained: how many will never arrive, by reason, less those that arrived all the same.
        missing: which are neither.
        duplicates: how many came again and were taken once.
    """

    produced: int
    delivered: int
    explained: Mapping[str, int]
    missing: Ranges
    duplicates: int


def partition_of(site: str, node: str) -> int:
    """The partition whose ledger knows a node: the same everywhere and for ever."""
    return int.from_bytes(sha256(f"{site}/{node}".encode()).digest()[:4]) % PARTITIONS


def find(partition: PartitionLedger, site: str, node: str, epoch: Epoch, lane: Lane) -> LaneLedger:
    """The ledger of a lane; an empty one when nothing has come yet."""
    for known in partition.lanes:
        if (known.site, known.node, known.epoch, known.lane) == (site, node, epoch, lane):
            return known
    return LaneLedger(site, node, epoch, lane)


def store(partition: PartitionLedger, changed: Iterable[LaneLedger]) -> PartitionLedger:
    """The partition with some ledgers replaced or added.

    Raises:
        Refused: ``full``: there would be more than ``LEDGER_LANES_MAX``.
    """
    lanes = {_key(known): known for known in partition.lanes}
    lanes |= {_key(known): known for known in changed}
    check_room(len(lanes))
    return replace(partition, lanes=tuple(lanes[key] for key in sorted(lanes)))


def check_room(lanes: int) -> None:
    """Whether a partition may have so many ledgers.

    Raises:
        Refused: ``full``.
    """
    if lanes > LEDGER_LANES_MAX:
        raise Refused(RefusedBecause.FULL, f"{lanes} ledgers, at most {LEDGER_LANES_MAX}")


def take(
    ledger: LaneLedger,
    header: BatchHeader,
    now_wall_ns: int,
    inside: Callable[[int], bytes | None] | None = None,
) -> Taken:
    """Takes the numbers of a batch whose body has been verified against its header.

    Args:
        ledger: what was known before.
        header: of the batch.
        now_wall_ns: when it is taken, UTC.
        inside: the chain before a number inside the batch, ``None`` where no frame begins with it.
            Who cannot open the batch hands over nothing: only its ends are compared.

    Raises:
        Refused: ``bad_chain``, when it names other records by numbers that are already held;
        ``out_of_range``, when it jumps further ahead than a lane ever could; ``full``, when what is
        held would have too many holes.
    """
    _check_chain(ledger, header, inside)
    _check_jump(ledger, header)
    new = header.present - ledger.held
    duplicates = header.count - len(new)
    held = ledger.held | new
    if len(held.spans) > max(LEDGER_SPANS_MAX, len(ledger.held.spans)):
        raise Refused(
            RefusedBecause.FULL,
            f"{header}: {len(held.spans)} spans would be held, at most {LEDGER_SPANS_MAX}",
        )
    chain, chain_at = ledger.chain, ledger.chain_at
    reached = (held | _explained(ledger, own=True)).watermark()
    if header.last + 1 > chain_at and reached > header.last:
        chain, chain_at = header.chain_after, header.last + 1
    taken = replace(
        ledger,
        held=held,
        next_seq=max(ledger.next_seq, held.end),
        chain=chain,
        chain_at=chain_at,
        duplicates=ledger.duplicates + duplicates,
        seen_wall_ns=now_wall_ns,
    )
    return Taken(taken, new, duplicates)


def _check_jump(ledger: LaneLedger, header: BatchHeader) -> None:
    if header.last - ledger.next_seq > SEQ_JUMP_MAX:
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"{header}: the lane stood at {ledger.next_seq}; no lane jumps so far",
        )


def _check_chain(
    ledger: LaneLedger, header: BatchHeader, inside: Callable[[int], bytes | None] | None
) -> None:
    at = ledger.chain_at
    is_whole = header.count == header.last + 1 - header.first
    if at == header.first:
        theirs: bytes | None = header.chain_before
    elif at == header.last + 1:
        theirs = header.chain_after
    elif inside is not None and is_whole and header.first < at <= header.last:
        theirs = inside(at)
    else:
        return
    if theirs != ledger.chain:
        said = theirs.hex() if theirs is not None else "unknown, no frame begins there"
        raise Refused(
            RefusedBecause.BAD_CHAIN,
            f"{header}: its chain at {at} is {said}, but the records that are held lead to "
            f"{ledger.chain.hex()}: the same numbers name other records",
        )


def explain(ledger: LaneLedger, account: Account, *, own: bool = True) -> LaneLedger:
    """Takes what the origin states of a lane; an older statement changes nothing.

    What a later life states of an earlier one explains, and releases nothing: the earlier one may
    be going on where the later one was copied from, and knows better.

    Args:
        ledger: of the lane.
        account: what is stated.
        own: whether the life that it is about states it.
    """
    if account.number <= (ledger.statement if own else ledger.succession):
        return ledger
    kept = {why: ns for why, ns in ledger.explained.items() if _is_own(why) is not own}
    suffix = "" if own else _LATER
    said = {f"{why}{suffix}": numbers for why, numbers in account.explained.items()}
    if not own:
        next_seq = max(account.next_seq, ledger.next_seq, ledger.held.end)
        return replace(ledger, explained=kept | said, next_seq=next_seq, succession=account.number)
    return replace(
        ledger,
        explained=said | kept,
        next_seq=max(account.next_seq, ledger.held.end),
        statement=account.number,
        released=dict(account.released),
        stated_wall_ns=account.wall_ns,
    )


def dispute(ledger: LaneLedger, header: BatchHeader) -> LaneLedger:
    """Notes that a batch was refused as ``bad_chain``; offered again it changes nothing.

    Of very many the first ones are noted: they are an alarm, and no account.
    """
    # Where nothing of it is held, it goes on from other records than those that are.
    clash = header.present & ledger.held
    disputed = ledger.disputed | (clash or header.present)
    if len(disputed.spans) > _DISPUTED_SPANS_MAX:
        return ledger
    return replace(ledger, disputed=disputed)


def receipt(partition: PartitionLedger, ledger: LaneLedger, number: int, stage: Stage) -> Receipt:
    """The receipt for a lane: what the holder durably holds of it."""
    watermark = (ledger.held | _explained(ledger, own=True)).watermark()
    above = ledger.held - Ranges.of([(0, watermark)])
    return Receipt(
        holder=partition.holder,
        life=partition.life,
        number=number,
        stage=stage,
        site=ledger.site,
        node=ledger.node,
        epoch=ledger.epoch,
        lane=ledger.lane,
        watermark=watermark,
        chain=ledger.chain if ledger.chain_at else b"",
        chain_at=ledger.chain_at,
        held=Ranges(above.spans[:_RECEIPT_RANGES]),
    )


def account_line(ledger: LaneLedger) -> Line:
    """The lane's line of the account."""
    produced = Ranges.of([(0, ledger.next_seq)])
    # A number with two reasons counts under the first: the sums must be those of the sets.
    explained, counted = {}, ledger.held
    for reason, numbers in ledger.explained.items():
        own = (numbers & produced) - counted
        explained[reason] = len(own)
        counted |= own
    missing = produced - ledger.held - _explained(ledger)
    return Line(
        len(produced),
        len(ledger.held),
        {reason: count for reason, count in explained.items() if count},
        missing,
        ledger.duplicates,
    )


def _explained(ledger: LaneLedger, *, own: bool = False) -> Ranges:
    """What is explained; by the life itself where ``own`` asks for that."""
    explained = Ranges()
    for reason, numbers in ledger.explained.items():
        if _is_own(reason) or not own:
            explained |= numbers
    return explained


def _is_own(reason: str) -> bool:
    return not reason.endswith(_LATER)


def _key(ledger: LaneLedger) -> tuple[str, str, int, int, int]:
    epoch = ledger.epoch
    return (ledger.site, ledger.node, epoch.counter, epoch.random, ledger.lane.priority)
