"""Epochs: when a spool begins a new life, and what becomes of the one before. Runs on opening.

A life of a spool is over, and another begins, when its numbers are no longer safe to go on with:

- the store is new, or nothing tells that it ever had a number;
- it lies on another machine than it was made on: somebody copied it, and the copy it was made from
  may be going on under the same numbers;
- a receipt spoke of more than was ever written here: it was restored from an older copy (``STORE``
  was marked ``OUTDATED`` then);
- ``STORE`` rotted or was removed.

The life that is over keeps its records: its fresh frames are sealed, ``STORE`` then says where each
of its lanes ended, and they are forwarded under the identities that they were given. The order:
sealed and durable; ``STORE`` replaced, which is the moment of change; the old journals unlinked. A
crash before the moment leaves the old life, one after it journals that name a past epoch, which are
unlinked on the next opening.

Lives are few, and bounded: what of more than ``PAST_EPOCHS_MAX`` of them is pending is given up as
``forgotten``, the oldest life first. A life that has nothing pending is dropped from ``STORE`` by
the end of a later one that has stated it and changed nothing of it; that its batches are gone is
made durable before, so that no crash brings it back. What was released of a life and retained goes
with its name: no holder gets it back then.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from mesh.ports import Disk
from mesh.spool import journal, sealing, shelf, store
from mesh.spool.batch import Labels
from mesh.spool.commit import Located
from mesh.spool.explained import all_of, bounded
from mesh.spool.recovery import LaneFound
from schemas.errors import Damaged, StoreUnusable
from schemas.limits import PAST_EPOCHS_MAX
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneMark, Numbers, PastEpoch, StoreIdentity

__all__ = [
    "NO_MACHINE",
    "OUTDATED",
    "Identified",
    "begin",
    "identify",
    "is_foreign",
    "reason_to_begin",
]

NO_MACHINE: Final = bytes(16)
"""The name of a machine that has none: it cannot be told from another."""
OUTDATED: Final = b"\xff" * 16
"""Stands for the machine of a store that was found to be an older copy."""
_CHAIN_UNKNOWN: Final = bytes(16)
_STATEMENT_UNKNOWN: Final = 2**32
"""Above the number of any statement that an adopted life has made."""


class Identified(NamedTuple):
    """Who a store is.

    Args:
        identity: what ``STORE`` says, or should.
        made: whether it was made now.
        lost: why it had to be made up from the journals; empty when it had not.
    """

    identity: StoreIdentity
    made: bool
    lost: str


def is_foreign(identity: StoreIdentity, machine: bytes) -> bool:
    """Whether a store was made on another machine, or must begin anew."""
    if identity.machine == OUTDATED:
        return True
    known = NO_MACHINE not in {identity.machine, machine}
    return known and identity.machine != machine


def reason_to_begin(
    disk: Disk, identity: StoreIdentity, found: store.Survey, machine: bytes
) -> str:
    """Why a new life must begin; empty when it need not."""
    if identity.machine == OUTDATED:
        return "the store was restored from an older copy, or lost its STORE"
    if is_foreign(identity, machine):
        return "the store was made on another machine"
    if found.blank:
        return "nothing tells which numbers were handed out"
    if set(shelf.epochs(disk)) - {identity.epoch, *(life.epoch for life in identity.past)}:
        return "there are batches of a life that STORE does not name"
    return ""


def identify(
    disk: Disk, labels: Labels, machine: bytes, entropy: Callable[[int], bytes]
) -> Identified:
    """Who the store is; makes it where there is none.

    Args:
        disk: the folder of the spool.
        labels: whose spool it should be.
        machine: this machine.
        entropy: random bytes.

    Raises:
        StoreUnusable: it is of another format or another node's, or cannot be written.
    """
    lost = ""
    try:
        identity = store.identity(disk)
    except Damaged as damage:
        identity, lost = None, str(damage)
    if identity is None:
        identity = _from_journals(disk, labels) or _from_shelves(disk, labels, entropy)
        lost = lost or ("STORE is gone" if identity is not None else "")
    made = identity is None
    if identity is None:
        first = Epoch(1, int.from_bytes(entropy(8), "little"))
        identity = StoreIdentity(entropy(16), labels.site, labels.node, first, None, machine)
        store.create(disk, identity)
    if (identity.site, identity.node) != (labels.site, labels.node):
        raise StoreUnusable(
            f"this spool belongs to {identity.site}/{identity.node}, not to "
            f"{labels.site}/{labels.node}: give each node a state directory of its own"
        )
    return Identified(identity, made, lost)


def _from_journals(disk: Disk, labels: Labels) -> StoreIdentity | None:
    """What the newest journal says of a store; its life is over."""
    for number in reversed(journal.numbers(disk)):
        header = journal.read_header(disk, number)
        if header is not None:
            where = (labels.site, labels.node)
            return StoreIdentity(header.store, *where, header.epoch, None, OUTDATED)
    return None


def _from_shelves(
    disk: Disk, labels: Labels, entropy: Callable[[int], bytes]
) -> StoreIdentity | None:
    """A store of which only batches are left: its newest life is over."""
    lives = shelf.epochs(disk)
    if not lives:
        return None
    last = max(lives, key=lambda epoch: epoch.counter)
    return StoreIdentity(entropy(16), labels.site, labels.node, last, None, OUTDATED)


def begin(
    disk: Disk,
    labels: Labels,
    machine: bytes,
    entropy: Callable[[int], bytes],
    identity: StoreIdentity,
    found: store.Survey,
) -> StoreIdentity:
    """Ends the present life and begins another. Durable on return.

    Args:
        disk: the folder of the spool.
        labels: what stands on the batches that the old life is sealed into.
        machine: this machine.
        entropy: random bytes.
        identity: the old one.
        found: what the files hold.

    Returns:
        The new identity.

    Raises:
        DiskFailed: the old life goes on.
    """
    lanes = {lane: _end(disk, labels, found, lane) for lane in Lane}
    told = {lane: numbers for lane, numbers in lanes.items() if numbers.mark.next_seq}
    told_to = found.lanes[Lane.ACCOUNT].mark.next_seq
    spoken = _has_spoken(found.lanes[Lane.ACCOUNT])
    counter = identity.epoch.counter
    pending: list[PastEpoch] = []
    over: list[PastEpoch] = []
    for life in identity.past:
        if _is_pending(found.past[life.epoch]):
            pending.append(_told_to(life, told_to, found))
        elif not spoken or life.changed == counter:
            over.append(_told_to(life, told_to, found))
    known = {identity.epoch, *(life.epoch for life in identity.past)}
    unnamed = [_adopted(disk, epoch) for epoch in shelf.epochs(disk) if epoch not in known]
    adopted = [life for life in unnamed if _has_pending(disk, life, found)]
    pending = [*adopted, *pending, *([PastEpoch(identity.epoch, told, counter)] if told else [])]
    kept = pending[-PAST_EPOCHS_MAX:]
    over += [_forgotten(life, found, counter) for life in pending[: len(pending) - len(kept)]]
    new = replace(
        identity,
        epoch=Epoch(identity.epoch.counter + 1, int.from_bytes(entropy(8), "little")),
        parent=identity.epoch,
        machine=machine,
        past=(*over[-PAST_EPOCHS_MAX:], *kept),
    )
    # What was unlinked stays so: no crash may bring back a life that STORE no longer names.
    kept_epochs = {life.epoch for life in new.past}
    for life in identity.past:
        if life.epoch not in kept_epochs:
            _clear(disk, life.epoch)
    store.write(disk, new)
    for life in (*over, *(life for life in unnamed if life not in adopted)):
        _clear(disk, life.epoch)
    for number in journal.numbers(disk):
        disk.unlink(journal.journal_path(number))
    return new


def _has_spoken(accounts: LaneFound) -> bool:
    """Whether a statement of the life that ends now is durable: at least the one of its opening."""
    return bool(accounts.fresh or accounts.sealed or accounts.released)


def _is_pending(lanes: Mapping[Lane, LaneFound]) -> bool:
    return any(found.sealed or found.spoiled for found in lanes.values())


def _has_pending(disk: Disk, life: PastEpoch, found: store.Survey) -> bool:
    """Whether a life that ``STORE`` does not name has a batch that was not released."""
    return any(
        not store.released_in(found.cursor, life.epoch, lane).covers(item.first, item.stop)
        for lane in life.lanes
        for item in shelf.sealed(disk, lane, life.epoch)
    )


def _clear(disk: Disk, epoch: Epoch) -> None:
    """Unlinks what is left of a life of which nothing is pending; durable on return."""
    for lane in Lane:
        shelf.clear(disk, lane, epoch, shelf.sealed(disk, lane, epoch))
    shelf.settle(disk, epoch)


def _forgotten(life: PastEpoch, found: store.Survey, counter: int) -> PastEpoch:
    """A life of which everything that is still pending is given up."""
    lanes = {}
    for lane, numbers in life.lanes.items():
        released = store.released_in(found.cursor, life.epoch, lane)
        gone = (released | all_of(numbers.explained)).gaps(0, numbers.mark.next_seq)
        stated = dict(numbers.explained)
        if gone:
            stated[Explained.FORGOTTEN] = gone
        lanes[lane] = replace(numbers, explained=bounded(stated, released))
    return PastEpoch(life.epoch, lanes, counter)


def _end(disk: Disk, labels: Labels, found: store.Survey, lane: Lane) -> Numbers:
    """Seals what is fresh of a lane, and says where it ended."""
    standing = found.lanes[lane]
    explained = dict(standing.explained)
    for number in sorted({item.journal for item in standing.fresh}):
        frames = [item for item in standing.fresh if item.journal == number]
        done = sealing.seal(disk, labels, {lane: frames})
        lost = Ranges.of([_span(item) for item in done.damaged[lane]])
        if lost:
            explained[Explained.DAMAGED] = explained.get(Explained.DAMAGED, Ranges()) | lost
    stated = bounded(explained, standing.released)
    told_to = found.lanes[Lane.ACCOUNT].mark.next_seq
    return Numbers(standing.mark, standing.mark.next_seq, stated, told_to)


def _told_to(life: PastEpoch, number: int, found: store.Survey) -> PastEpoch:
    """A past life as it was found, its statements numbered above those of the life that ends."""
    lanes = {
        lane: Numbers(
            standing.mark,
            standing.mark.next_seq,
            bounded(standing.explained, standing.released),
            standing.statement + number,
        )
        for lane, standing in found.past[life.epoch].items()
        if standing.mark.next_seq
    }
    return replace(life, lanes=lanes)


def _span(item: Located) -> tuple[int, int]:
    return item.frame.header.first, item.frame.header.stop


def _adopted(disk: Disk, epoch: Epoch) -> PastEpoch:
    """A life of which only batches are left: it ended where the last of them ends."""
    lanes: dict[Lane, Numbers] = {}
    for lane in Lane:
        stop = max((item.stop for item in shelf.sealed(disk, lane, epoch)), default=0)
        if stop:
            mark = LaneMark(stop, _CHAIN_UNKNOWN)
            lanes[lane] = Numbers(mark, stop, statement=_STATEMENT_UNKNOWN)
    return PastEpoch(epoch, lanes)
