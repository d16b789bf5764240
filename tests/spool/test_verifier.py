"""The verifier must find what it is there to find: each lie is planted once."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.spool.spool import DEFAULT_LANES, SpoolSettings
from schemas.messages import Lane
from schemas.ranges import Ranges
from tests.spool.child import record
from tests.spool.telling import Said, Teller
from tests.spool.verifier import LABELS, Findings, opened, verify

SETTINGS = SpoolSettings(
    LABELS, lanes={lane: replace(DEFAULT_LANES[lane], reserved=64) for lane in Lane}
)


def found_in(folder: Path, lie: Callable[[Said, str], None]) -> Findings:
    """What is found in a spool of twenty events, of which five were released, after a lie."""

    async def main() -> Findings:
        tell = Teller(folder / "told")
        async with opened(folder / "spool", SETTINGS) as spool:
            for number in range(4):
                records = [record(f"{number}-{index}", 100) for index in range(5)]
                appended = spool.append(Lane.EVENTS, records)
                tell.handed(Lane.EVENTS, appended, records)
                assert await appended.settled
                tell.acknowledged(Lane.EVENTS, appended)
            tell.releasing(spool.epoch, Lane.EVENTS, Ranges.of([(0, 5)]))
            spool.release(Lane.EVENTS, Ranges.of([(0, 5)]), "hq")
        async with opened(folder / "spool", SETTINGS) as spool:
            said = Said.read(folder / "told")
            lie(said, str(spool.epoch))
            return await verify(spool, said)

    return asyncio.run(main())


def nothing(said: Said, epoch: str) -> None:
    """No lie."""


def more_acknowledged(said: Said, epoch: str) -> None:
    """A record was promised that is not there."""
    said.lane(epoch, Lane.EVENTS).acknowledged.add(33)


def another_life(said: Said, epoch: str) -> None:
    """A record was promised in a life that is gone."""
    said.lane(f"{epoch}0", Lane.EVENTS).acknowledged.add(3)


def other_bytes(said: Said, epoch: str) -> None:
    """A number was handed out for something else."""
    said.lane(epoch, Lane.EVENTS).records[7] = "0" * 16


def handed_twice(said: Said, epoch: str) -> None:
    """A number was handed out a second time."""
    said.take(f"handed {epoch} events 19 {'0' * 16} .")


def handed_beyond(said: Said, epoch: str) -> None:
    """A number was handed out that the spool is about to hand out again."""
    said.take(f"next {epoch} events 21 .")


def never_appended(said: Said, epoch: str) -> None:
    """Something is pending that nobody appended."""
    del said.lane(epoch, Lane.EVENTS).records[7]


def never_released(said: Said, epoch: str) -> None:
    """Something is gone that nobody released."""
    said.lane(epoch, Lane.EVENTS).released.remove(2)


@pytest.mark.parametrize(
    ("lie", "where"),
    [
        (nothing, ""),
        (more_acknowledged, "lost"),
        (another_life, "lost"),
        (other_bytes, "reused"),
        (handed_twice, "reused"),
        (handed_beyond, "reused"),
        (never_appended, "untrue"),
        (never_released, "untrue lost"),
    ],
)
def test_a_lie_is_found(tmp_path: Path, lie: Callable[[Said, str], None], where: str) -> None:
    """What does not match what was said is found, and called what it is."""
    findings = found_in(tmp_path, lie)
    found = {name for name in ("lost", "reused", "untrue") if getattr(findings, name)}
    assert found == set(where.split())
    assert findings.clean == (not where)


def test_a_line_cut_short_says_nothing(tmp_path: Path) -> None:
    """A kill within a line leaves a line that does not count, nor spoils the next one."""
    path = tmp_path / "told"
    path.write_text("acknowledged 1-a events 0 5 .\nacknowledged 1-a events 5 1")
    Teller(path).say("acknowledged", "1-a", "events", 5, 3)
    assert Said.read(path).lane("1-a", Lane.EVENTS).acknowledged == set(range(8))
