"""A verdict: whether all that a spool holds is sound, and if not, what the node will do about it.

Reads everything and changes nothing. What it judges, in this order:

- ``STORE``;
- the cursor's two slots;
- each journal: its head, each frame, the bytes between, its reservation;
- each lane: the numbers that are neither held, nor released, nor explained;
- each batch, those of earlier lives too: its name against its header, its digest, its records,
  their chain, and where one ends and the next begins, that they follow on each other.

*Damage* is what once was durable and is not given back. What a crash leaves in good order, such as
a torn tail, and what the node has already stated, is a *remark*. Beside a running node damage
counts only when it is still there at another look: a frame that is being written looks torn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk
from mesh.spool.view import journal_check, shelf_check
from mesh.spool.view.findings import Finding, Grade
from mesh.spool.view.sight import Sight, look
from schemas.errors import Damaged
from schemas.limits import RANGES_MAX

__all__ = ["Step", "Verdict", "examine"]

_LOOKS_MAX: Final = 5
_NEW_LIFE: Final = (
    "the node begins a new life at its next opening, and hands on what is here under the names it "
    "has, which the newest journal tells"
)
_NOTHING_TELLS: Final = (
    "no journal tells whose this is; keep the folder: journals and batches can still be inspected "
    "one by one"
)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a check has come."""

    done_bytes: int
    total_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Args:
        node: whose spool it is: site, node, epoch.
        journals: how many were read.
        frames: how many frames in them verify.
        batches: how many were opened and verify.
        bytes: how much was read.
        findings: what was found, at most ``RANGES_MAX``.
        further: how many more findings there were.
        sound: whether nothing is damaged.
    """

    node: str
    journals: int
    frames: int
    batches: int
    bytes: int
    findings: tuple[Finding, ...]
    further: int
    sound: bool


def examine(
    disk: Disk,
    pause: Callable[[], object],
    tell: Callable[[Step], object] = lambda _: None,
    *,
    running: bool = False,
) -> Verdict:
    """Judges a whole spool.

    Args:
        disk: its folder.
        pause: waits a moment for the node that writes to it.
        tell: is told how far it has come.
        running: whether a node writes to it.

    Raises:
        StoreUnusable: there is none, or it is of a format that is not known here.
        Overloaded: the node is too busy; later there may be a moment.
        DiskFailed: a folder cannot be read, or permission is missing.
    """
    try:
        sight, findings = _settled(disk, pause, running=running)
    except Damaged as rotten:
        finding = Finding(Grade.DAMAGE, "STORE", str(rotten), _NOTHING_TELLS)
        return Verdict("", 0, 0, 0, 0, (finding,), 0, sound=False)
    with sight:
        if sight.lost:
            findings.insert(0, Finding(Grade.DAMAGE, "STORE", sight.lost, _NEW_LIFE))
        frames = len(sight.frames())
        read = sum(len(content.data) for content in sight.survey.journals)
        total = read + shelf_check.total_bytes(sight)
        batches = 0
        damaged = any(finding.grade is Grade.DAMAGE for finding in findings)
        further = 0
        for checked in shelf_check.check(sight, lambda: look(disk, pause)):
            read += checked.bytes
            batches += checked.sound
            tell(Step(read, total, checked.file))
            damaged |= any(finding.grade is Grade.DAMAGE for finding in checked.findings)
            room = max(0, RANGES_MAX - len(findings))
            findings += checked.findings[:room]
            further += len(checked.findings[room:])
        identity = sight.identity
        return Verdict(
            f"{identity.site or '?'}/{identity.node or '?'}/{identity.epoch}",
            len(sight.survey.journals),
            frames,
            batches,
            read,
            tuple(findings),
            further,
            sound=not damaged,
        )


def _settled(
    disk: Disk, pause: Callable[[], object], *, running: bool
) -> tuple[Sight, list[Finding]]:
    """What the journals and the cursor tell, once it holds for another look."""
    looks = 0
    while True:
        sight = look(disk, pause)
        looks += 1
        try:
            findings = journal_check.check(sight, running=running)
        except BaseException:
            sight.close()
            raise
        damaged = any(finding.grade is Grade.DAMAGE for finding in findings)
        if not (running and damaged) or looks == _LOOKS_MAX:
            return sight, findings
        sight.close()
        pause()
