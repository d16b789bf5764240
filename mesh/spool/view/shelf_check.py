"""The shelves of a spool, judged batch by batch, and the chains that lead through them.

See ``mesh.spool.view.verdict``. One batch is in memory at a time.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.spool import batch as batches
from mesh.spool import shelf
from mesh.spool.journal import journal_path
from mesh.spool.shelf import Sealed
from mesh.spool.view.findings import Finding, Grade
from mesh.spool.view.sight import Sight
from schemas.errors import DiskFailed, Refused
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Checked", "check", "total_bytes"]

_BATCH: Final = re.compile(r"\d{20}-\d{20}\.batch")
_SENDING: Final = (
    "the node states them as damaged when it comes to send them, and moves the file to quarantine"
)
_OPENING: Final = "the node states them as damaged at its next opening, and goes on"
_ALARM: Final = "whoever receives it refuses it and raises an alarm: these are not the same records"


@dataclass(frozen=True, slots=True)
class Checked:
    """One file that was judged.

    Args:
        file: its path.
        bytes: how much of it was read.
        sound: whether it is a batch that verifies.
        findings: what was found.
    """

    file: str
    bytes: int = 0
    sound: bool = False
    findings: Sequence[Finding] = ()


@dataclass(frozen=True, slots=True)
class _Link:
    """A batch or a frame in the chain of its lane."""

    file: str
    first: int
    stop: int
    before: bytes
    after: bytes


def total_bytes(sight: Sight) -> int:
    """How much there is to read."""
    return sum(item.size for lane, epoch in sight.shelves() for item in _items(sight, lane, epoch))


def check(sight: Sight, look: Callable[[], Sight]) -> Iterator[Checked]:
    """Judges each batch, and each lane once its batches were read.

    Args:
        sight: what was seen.
        look: looks anew, where a file has gone since.
    """
    yield from _names(sight)
    yield from _unknown(sight)
    for lane, epoch in sight.shelves():
        present = epoch == sight.identity.epoch
        links: list[_Link] = []
        for item in _items(sight, lane, epoch):
            checked, link = _batch(sight, lane, epoch, item, look)
            yield checked
            if link is not None:
                links.append(link)
        if present:
            links += _frames(sight, lane)
        yield Checked(f"{shelf.FOLDER}/{lane}/{epoch}", findings=list(_chain(lane, links)))
    shelved = {lane for lane, epoch in sight.shelves() if epoch == sight.identity.epoch}
    for lane in sight.survey.lanes:
        if lane not in shelved:
            found = list(_chain(lane, list(_frames(sight, lane))))
            yield Checked(f"{shelf.FOLDER}/{lane}", findings=found)


def _items(sight: Sight, lane: Lane, epoch: Epoch) -> list[Sealed]:
    return shelf.sealed(sight.picture, lane, epoch)


def _epoch(name: str) -> Epoch | None:
    try:
        return Epoch.parse(name)
    except Refused:
        return None


def _names(sight: Sight) -> Iterator[Checked]:
    """Names on the shelves that are no batches."""
    for lane in sight.picture.list(shelf.FOLDER):
        above = f"{shelf.FOLDER}/{lane}"
        if lane not in set(Lane):
            yield Checked(above, findings=[_passed_over(above, "no lane that is known here")])
            continue
        for name in sight.picture.list(above):
            if _epoch(name) is None:
                path = f"{above}/{name}"
                yield Checked(path, findings=[_passed_over(path, "no life of a spool")])
                continue
            for file in sight.picture.list(f"{above}/{name}"):
                path = f"{above}/{name}/{file}"
                if file.endswith(".new"):
                    what = "a batch that was being written"
                    then = "the node removes it at its next opening"
                    finding = Finding(Grade.REMARK, path, what, then)
                    yield Checked(path, findings=[finding])
                elif _BATCH.fullmatch(file) is None:
                    yield Checked(path, findings=[_passed_over(path, "not the name of a batch")])


def _unknown(sight: Sight) -> Iterator[Checked]:
    """Lives of which batches are there, and of which ``STORE`` says nothing."""
    for epoch in sight.unknown:
        pending = {
            lane: numbers
            for lane, shelved in sight.shelves()
            if shelved == epoch and (numbers := _pending(sight, lane, epoch))
        }
        if pending:
            lanes = ", ".join(f"{lane} {numbers}" for lane, numbers in pending.items())
            what = f"a life that STORE does not name has {lanes}"
            then = "the node hands them on from its next life on"
            finding = Finding(Grade.REMARK, shelf.FOLDER, what, then)
            yield Checked(shelf.FOLDER, findings=[finding])


def _pending(sight: Sight, lane: Lane, epoch: Epoch) -> Ranges:
    spans = [(item.first, item.stop) for item in _items(sight, lane, epoch)]
    return Ranges.of(spans) - sight.released(lane, epoch)


def _passed_over(path: str, what: str) -> Finding:
    return Finding(Grade.REMARK, path, what, "the node passes it over")


def _frames(sight: Sight, lane: Lane) -> Iterator[_Link]:
    for item in sight.survey.lanes[lane].fresh:
        header = item.frame.header
        yield _Link(
            journal_path(item.journal),
            header.first,
            header.stop,
            header.chain_before,
            header.chain_after,
        )


def _chain(lane: Lane, links: Sequence[_Link]) -> Iterator[Finding]:
    """Where one ends and the next begins, they must follow on each other."""
    before: _Link | None = None
    for link in sorted(links, key=lambda link: (link.first, link.stop)):
        if before is not None and link.first == before.stop and link.before != before.after:
            what = (
                f"{lane} {link.first}-{link.stop - 1} does not go on from the chain of "
                f"{before.file}"
            )
            yield Finding(Grade.DAMAGE, link.file, what, _ALARM)
        elif before is not None and link.first < before.stop:
            twice = Ranges.of([(link.first, min(link.stop, before.stop))])
            what = f"{lane} {twice} stand in {before.file} as well"
            yield Finding(Grade.REMARK, link.file, what, "the receiver takes each number once")
        before = link


# --- one batch -------------------------------------------------------------------------------


def _batch(
    sight: Sight, lane: Lane, epoch: Epoch, item: Sealed, look: Callable[[], Sight]
) -> tuple[Checked, _Link | None]:
    path = shelf.batch_path(lane, epoch, item.first, item.stop)
    try:
        batch = sight.batch(lane, epoch, item)
        batches.open_records(batch)
    except FileNotFoundError:
        return Checked(path, item.size, findings=_gone(lane, epoch, item, path, look)), None
    except (DiskFailed, Refused) as damage:
        return _not_sound(sight, lane, epoch, item, path, str(damage)), None
    header = batch.header
    link = _Link(path, item.first, item.stop, header.chain_before, header.chain_after)
    return Checked(path, item.size, sound=True), link


def _not_sound(
    sight: Sight, lane: Lane, epoch: Epoch, item: Sealed, path: str, wrong: str
) -> Checked:
    numbers = Ranges.of([(item.first, item.stop)])
    numbers -= sight.released(lane, epoch) | sight.explained(lane, epoch)
    if numbers:
        finding = Finding(Grade.DAMAGE, path, wrong, _SENDING, {lane: numbers})
    else:
        then = (
            "its numbers are released or stated already: it costs none while no holder loses them"
        )
        finding = Finding(Grade.REMARK, path, wrong, then)
    return Checked(path, item.size, findings=[finding])


def _gone(
    lane: Lane, epoch: Epoch, item: Sealed, path: str, look: Callable[[], Sight]
) -> list[Finding]:
    """What became of a batch that was there a moment ago: released or given up, or lost."""
    with look() as now:
        if epoch not in now.lives:
            return []
        known = now.released(lane, epoch) | now.explained(lane, epoch) | now.held(lane, epoch)
    numbers = Ranges.of([(item.first, item.stop)]) - known
    if not numbers:
        return []
    what = "it vanished, and nothing says why"
    return [Finding(Grade.DAMAGE, path, what, _OPENING, {lane: numbers})]
