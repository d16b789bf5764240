"""The journals and the cursor of a spool, judged. Pure over what was seen.

See ``mesh.spool.view.verdict``.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from mesh.ports import DiskFile
from mesh.spool import cursor
from mesh.spool.journal import FOLDER, JournalContent, journal_path
from mesh.spool.shelf import FOLDER as SHELVES
from mesh.spool.view.findings import Finding, Grade
from mesh.spool.view.inspection import Inspection, inspect
from mesh.spool.view.sight import Sight
from mesh.spool.view.stretch import Stretch
from schemas.errors import DiskFailed, Refused
from schemas.limits import CURSOR_BYTES_MAX
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import JournalHeader

__all__ = ["check"]

_OPENING: Final = "the node states them as damaged at its next opening, and goes on"
_SEALING: Final = "the node states them as damaged when it seals this journal, and goes on"
_HOLE: Final = "neither held, nor released, nor explained"
_STATED: Final = "the node has stated it, or has another copy"


def check(sight: Sight, *, running: bool) -> list[Finding]:
    """What is found in cursor, journals and numbers.

    Args:
        sight: what was seen.
        running: whether a node writes to it.
    """
    findings = list(_cursor(sight))
    contents = sight.survey.journals
    attributed: dict[Lane, Ranges] = {}
    for content in contents:
        newest = content is contents[-1]
        for finding in _journal(sight, content, newest=newest, running=running):
            findings.append(finding)
            for lane, numbers in finding.lost.items():
                attributed[lane] = attributed.get(lane, Ranges()) | numbers
    if not any(content.header is not None for content in contents):
        findings += _no_head(sight)
    for lane in sight.survey.lanes:
        findings += _numbers(sight, lane, attributed.get(lane, Ranges()), running=running)
    for epoch in sight.survey.past:
        findings += _past(sight, epoch)
    return findings


def _no_head(sight: Sight) -> Iterator[Finding]:
    """Without the head of a single journal nobody knows what was reserved."""
    used = [str(lane) for lane in sight.survey.lanes if sight.end(lane)]
    if used:
        yield Finding(
            Grade.DAMAGE,
            FOLDER,
            f"no journal with a whole head is there, and there are numbers of {', '.join(used)}",
            "the node numbers each lane 2**32 higher, beyond all that can have been handed out",
        )


# --- the cursor ------------------------------------------------------------------------------


def _cursor(sight: Sight) -> Iterator[Finding]:
    try:
        file = sight.picture.open(cursor.PATH, "read")
    except FileNotFoundError:
        yield Finding(
            Grade.REMARK,
            cursor.PATH,
            "there is none",
            "what is there is offered again, and the receiver takes it once",
        )
        return
    states = [_slot(file, at) for at in (0, CURSOR_BYTES_MAX)]
    torn = [index for index, state in enumerate(states) if state == "torn"]
    if torn and "whole" in states:
        yield Finding(
            Grade.REMARK,
            cursor.PATH,
            f"slot {torn[0]} does not verify",
            "the other one holds; a write that a crash cut short leaves this",
        )
    elif torn:
        yield Finding(
            Grade.DAMAGE,
            cursor.PATH,
            "no slot verifies: what was released is not known",
            "what is still there is offered again, and the receiver takes it once",
        )


def _slot(file: DiskFile, at: int) -> str:
    """``whole``, ``torn``, or ``unused``."""
    try:
        slot = file.read(at, CURSOR_BYTES_MAX)
    except DiskFailed:
        return "torn"
    if not slot.strip(b"\0"):
        return "unused"
    return "whole" if cursor.parse(slot).generation else "torn"


# --- journals --------------------------------------------------------------------------------


def _journal(
    sight: Sight, content: JournalContent, *, newest: bool, running: bool
) -> Iterator[Finding]:
    path = journal_path(content.number)
    if not content.data.strip(b"\0"):
        yield Finding(Grade.REMARK, path, "it was never begun", "the node unlinks it when it seals")
        return
    try:
        inspection = inspect(content.data, content.number)
    except Refused as refused:
        yield Finding(Grade.DAMAGE, path, str(refused), "the node keeps the bytes in quarantine")
        return
    yield from _head(sight, content, path, inspection, newest=newest)
    then = _SEALING if running else _OPENING
    yield from _stretches(sight, content, path, inspection, then)


def _head(
    sight: Sight, content: JournalContent, path: str, inspection: Inspection, *, newest: bool
) -> Iterator[Finding]:
    head, identity = inspection.head, sight.identity
    if content.header is not None:
        return
    if isinstance(head, JournalHeader) and head.store != identity.store:
        yield Finding(
            Grade.DAMAGE,
            path,
            f"it belongs to another store, {head.store.hex()[:8]}",
            "the node takes nothing from it",
        )
    elif isinstance(head, JournalHeader) and head.epoch != identity.epoch:
        yield Finding(
            Grade.REMARK,
            path,
            f"it is of another life, {head.epoch}",
            "the node takes nothing from it in the present one",
        )
    elif isinstance(head, JournalHeader):
        yield Finding(
            Grade.DAMAGE,
            path,
            f"its head says number {head.number}: it was renamed",
            "the node goes by its frames",
        )
    elif content.frames or content.reserved or content.closed:
        then = "the node goes by its frames"
        if newest:
            then += ", and numbers each lane 2**32 higher, since no reservation is known"
        yield Finding(Grade.DAMAGE, path, inspection.wrong or "its head is gone", then)
    else:
        yield Finding(
            Grade.REMARK,
            path,
            inspection.wrong or "its head is not whole, and nothing follows",
            "the node unlinks it: a crash left it before its first frame",
        )


def _stretches(
    sight: Sight, content: JournalContent, path: str, inspection: Inspection, then: str
) -> Iterator[Finding]:
    foreign = inspection.owner is None or (
        (inspection.owner.store, inspection.owner.epoch)
        != (sight.identity.store, sight.identity.epoch)
    )
    if foreign:
        return
    bare: Stretch | None = None
    between: dict[Lane, Ranges] = {}
    for stretch in inspection.stretches:
        if stretch.lane is not None and bare is not None and stretch.lane not in between:
            between[stretch.lane] = stretch.missing - _known(sight, stretch.lane)
        if stretch.wrong:
            if bare is not None:
                yield _gap(path, bare, between, then)
            bare, between = None, {}
            if stretch.lane is None and not stretch.boot:
                bare = stretch
            else:
                yield _broken(sight, path, stretch, then)
        elif stretch.unlinked and stretch.lane is not None:
            yield from _unlinked(sight, path, stretch)
    if bare is not None and bare.end == len(content.data):
        yield Finding(
            Grade.REMARK,
            path,
            f"bytes {bare.offset} to {bare.end} are a torn tail: {bare.wrong}",
            "nothing in it was acknowledged; it is set aside, or is being written now",
        )
    elif bare is not None:
        yield _gap(path, bare, between, then)


def _known(sight: Sight, lane: Lane) -> Ranges:
    return sight.held(lane) | sight.survey.lanes[lane].released | sight.explained(lane)


def _gap(path: str, bare: Stretch, between: Mapping[Lane, Ranges], then: str) -> Finding:
    lost = {lane: numbers for lane, numbers in between.items() if numbers}
    if not lost:
        then = "kept in quarantine; no number is missing for it"
    what = f"bytes {bare.offset} to {bare.end} are damaged: {bare.wrong}"
    return Finding(Grade.DAMAGE, path, what, then, lost)


def _broken(sight: Sight, path: str, stretch: Stretch, then: str) -> Finding:
    where = f"byte {stretch.offset}"
    if stretch.lane is None:
        return Finding(
            Grade.DAMAGE,
            path,
            f"{where}: a control frame is damaged: {stretch.wrong}",
            "the node skips as many numbers as it may have reserved, and states them",
        )
    lost = stretch.lost - _known(sight, stretch.lane)
    if not lost:
        return Finding(Grade.REMARK, path, f"{where}: a frame is damaged: {stretch.wrong}", _STATED)
    return Finding(
        Grade.DAMAGE,
        path,
        f"{where}: a frame is damaged, {stretch.wrong}",
        then,
        {stretch.lane: lost},
    )


def _unlinked(sight: Sight, path: str, stretch: Stretch) -> Iterator[Finding]:
    assert stretch.lane is not None, "control frames have no chain"
    given_up = sight.explained(stretch.lane)
    before = Ranges.of([(max(0, stretch.first - 1), stretch.first + stretch.count)])
    if not before & given_up:
        yield Finding(
            Grade.DAMAGE,
            path,
            f"byte {stretch.offset}: {stretch.lane} {stretch.first} does not go on from the chain "
            "of the frame before it",
            "whoever receives it refuses it and raises an alarm: these are not the same records",
        )


# --- numbers ---------------------------------------------------------------------------------


def _numbers(sight: Sight, lane: Lane, attributed: Ranges, *, running: bool) -> Iterator[Finding]:
    found = sight.survey.lanes[lane]
    path = f"{SHELVES}/{lane}"
    end = sight.end(lane)
    below = Ranges.of([(0, end)])
    holes = (found.newly.get(Explained.DAMAGED, Ranges()) & below) - attributed
    if holes:
        yield Finding(Grade.DAMAGE, path, _HOLE, _OPENING, {lane: holes})
    reserved = _reserved(sight, lane)
    if reserved is not None and end > reserved:
        yield Finding(
            Grade.DAMAGE,
            path,
            f"known up to {end - 1}, but the newest journal reserved only below {reserved}",
            "the node numbers each lane 2**32 higher: what was reserved last is not known",
        )
    ahead = Ranges.of([s for numbers in found.newly.values() for s in numbers.spans]) - below
    if ahead and not running:
        yield Finding(
            Grade.REMARK,
            path,
            f"{ahead} may have been handed out and are not there",
            "after an end that was not in order the node states them, and numbers on above them",
        )


def _past(sight: Sight, epoch: Epoch) -> Iterator[Finding]:
    """Holes in a life that is over: ``STORE`` says where each of its lanes ended."""
    for lane, found in sight.survey.past[epoch].items():
        holes = found.newly.get(Explained.DAMAGED, Ranges())
        if holes:
            path = f"{SHELVES}/{lane}/{epoch}"
            yield Finding(Grade.DAMAGE, path, _HOLE, _OPENING, {lane: holes})


def _reserved(sight: Sight, lane: Lane) -> int | None:
    begun = [content for content in sight.survey.journals if content.header is not None]
    if not begun or begun[-1].header is None:
        return None
    newest = begun[-1]
    header = newest.header
    assert header is not None, "it was begun"
    numbers = header.lanes.get(lane)
    later = [item.lanes.get(lane, 0) for item in newest.reserved]
    closed = newest.closed.lanes.get(lane, 0) if newest.closed else 0
    return max(numbers.reserved if numbers else 0, closed, *later, 0)
