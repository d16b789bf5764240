"""The exploration of one seed: its history is played, each photograph opened, used, opened again.

What holds after a crash must go on holding: the spool on each disk is audited as it opens, most
often on the machine that crashed, takes records, does its chores, is audited again, closes in
order, opens a second time and is audited a third time; then it may call nothing void that it did
not before.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from mesh.spool.spool import Spool
from schemas.errors import Overloaded
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import VirtualLoop, run
from simulator.crash.annals import Annals, Violation, record
from simulator.crash.history import History, draw, wake
from simulator.crash.operations import Change, Operation
from simulator.crash.oracle import Terms, audit
from simulator.crash.photograph import Photograph
from simulator.crash.player import Player, machine_id, settings_of
from simulator.crash.stage import resources, working
from simulator.disk import SimDisk

__all__ = ["Explored", "Found", "Outcome", "State", "check", "explore"]

_SECONDS_MAX: Final = 100_000.0
_USED: Final = (Lane.DECISIONS, Lane.EVENTS)
_MOVED: Final = 0.15
"""So often a disk is opened on another machine."""

Voids = Mapping[Lane, Ranges | None]


@dataclass(frozen=True, slots=True)
class State:
    """A disk that was opened.

    Args:
        cut: before which change the power went.
        image: which of the disks that this could leave.
        operation: what was under way.
        digest: SHA-256 of all that the disk holds, in hex.
    """

    cut: int
    image: int
    operation: Operation
    digest: str


@dataclass(frozen=True, slots=True)
class Found:
    """A violation: where, and what.

    ``state`` is ``None`` where the spool lied before any crash.
    """

    seed: int
    state: State | None
    what: str

    def __str__(self) -> str:
        where = "in mid-life"
        if self.state is not None:
            where = (
                f"power cut before change {self.state.cut} in {self.state.operation}, "
                f"image {self.state.image}"
            )
        return f"seed {self.seed}, {where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to: the disks that were opened, and the violations."""

    seed: int
    states: tuple[State, ...]
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Explored:
    """How one seed came to its outcome: what was played, and what was asked of the disk."""

    outcome: Outcome
    history: History
    changes: tuple[Change, ...]


def explore(seed: int, make: type[SimDisk] = SimDisk) -> Explored:
    """Plays the history of a seed and opens what its crashes leave.

    Args:
        seed: which.
        make: makes the disk that the history begins on.
    """
    history = draw(seed)
    player = Player(history, make)
    found: list[Found] = []
    try:
        player.play()
    except Exception as wrong:  # noqa: BLE001  # whatever stops a spool is what is looked for
        found.append(Found(seed, None, _told(wrong)))
    states: dict[str, State] = {}
    for photograph in player.photographs:
        for number, image in enumerate(photograph.images):
            state = State(photograph.cut, number, photograph.operation, image.image_hash())
            if state.digest in states:
                continue
            states[state.digest] = state
            try:
                check(image, photograph, history)
            except Exception as wrong:  # noqa: BLE001  # as above: no damage may prevent opening
                found.append(Found(seed, state, _told(wrong)))
    outcome = Outcome(seed, tuple(states.values()), tuple(found))
    return Explored(outcome, history, tuple(player.faults.changes))


def check(image: SimDisk, photograph: Photograph, history: History) -> None:
    """Opens a disk that a crash left, audits, uses it, closes, opens and audits again.

    Raises:
        Violation: it lies.
    """
    annals, times = photograph.annals.copy(), photograph.times.copy()
    settings = settings_of(history.bounds)
    generator = random.Random(f"check {history.seed} {photograph.cut}")  # noqa: S311  # replayed
    moved = generator.random() < _MOVED
    machine = machine_id(photograph.machine + moved)
    woken = replace(wake(generator), boot=True)

    async def life(*, again: bool) -> tuple[Epoch, Voids]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a disk is opened on virtual time"
        clock = times.begin(loop, replace(woken, boot=False) if again else woken)
        held = resources(image, generator, _Unwatched(), machine, clock, times.boot)
        spool = await Spool.open(held, settings)
        voids = _voids(await audit(spool, annals, Terms(settings.lanes, times.now_ns)))
        if not again:
            async with working(spool):
                await _use(spool, annals)
            await spool.state_accounts()
            voids = _voids(await audit(spool, annals, Terms(settings.lanes, times.now_ns)))
        await spool.close()
        times.end()
        return spool.epoch, voids

    before = run(lambda _: life(again=False), seconds_max=_SECONDS_MAX)
    after = run(lambda _: life(again=True), seconds_max=_SECONDS_MAX)
    if before != after:
        raise Violation(f"closed in order, yet void before and after: {before}, {after}")


async def _use(spool: Spool, annals: Annals) -> None:
    present = annals.present(spool)
    for lane in _USED:
        try:
            settled = present.hand_over(spool, lane, [record("after the crash")] * 2)
        except Overloaded:
            # Its numbers are reserved with the next commit, which this has asked for.
            await spool.commit()
            settled = present.hand_over(spool, lane, [record("after the crash")] * 2)
        if not await settled:
            raise Violation(f"{lane}: a sound disk does not take records: {spool.degraded}")
    await asyncio.sleep(1.0)


class _Unwatched:
    """Port ``Observer``: nobody looks."""

    def observe(self, event: object) -> None:
        """Takes one event."""


def _voids(explained: Mapping[Lane, Mapping[str, Ranges]]) -> Voids:
    return {lane: reasons.get(Explained.VOID) for lane, reasons in explained.items()}


def _told(wrong: Exception) -> str:
    return str(wrong) if isinstance(wrong, Violation) else f"{type(wrong).__name__}: {wrong}"
