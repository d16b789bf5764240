"""What a spool writes and syncs stays below a budget, for each way in which a node lives."""

from dataclasses import asdict

import pytest

from mesh.spool.chores import Chores
from mesh.spool.releases import Releases
from simulator.disk import SimDisk
from tests.spool.counted_disk import BLOCK_BYTES, CountedDisk
from tests.spool.wear import PROFILES, Cost, Profile, cost

NAMES = [profile.name for profile in PROFILES]


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_wear_stays_below_its_budget_while_receipts_come(profile: Profile) -> None:
    """Row 47: write amplification and syncs an hour stay below budget while the link is up."""
    assert cost(profile, online=True).exceeds(profile.online) == []


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_wear_stays_below_its_budget_through_an_outage(profile: Profile) -> None:
    """Row 47: the same while nothing is released, and all of it is sealed."""
    assert cost(profile, online=False).exceeds(profile.offline) == []


def test_budgets_are_tight() -> None:
    """Row 47: a budget that is twice what is counted would let a spool wear twice as fast."""
    profile = PROFILES[0]
    half = Cost(*(value / 2 for value in asdict(profile.online).values()))
    assert len(cost(profile, online=True).exceeds(half)) == len(asdict(half))


@pytest.mark.parametrize("eager", [True, False])
def test_a_cursor_that_is_written_for_nothing_exceeds_the_budget(
    monkeypatch: pytest.MonkeyPatch, *, eager: bool
) -> None:
    """Row 47, planted: each round of chores writes the cursor, whether or not it has changed."""
    flush = Releases.flush

    async def hasty(self: Releases) -> None:
        self._stale = True
        await flush(self)

    monkeypatch.setattr(Chores, "_look_again_seconds", lambda _: 60.0)
    if eager:
        monkeypatch.setattr(Releases, "flush", hasty)
    profile = PROFILES[0]
    over = cost(profile, online=False).exceeds(profile.offline)
    assert ("cursor_kib_per_hour" in str(over)) == eager == bool(over)


def test_a_sync_gives_whole_blocks_to_the_medium() -> None:
    """What is counted are the blocks that are dirty at each sync, and at the end of a file."""
    disk = CountedDisk(SimDisk())
    file = disk.open("journal", "create")
    file.write(b"a" * 10, 0)
    file.write(b"b" * 10, 10)
    file.sync()
    assert disk.wear.block_bytes == BLOCK_BYTES
    file.write(b"c" * 10, BLOCK_BYTES - 5)
    file.sync()
    assert disk.wear.block_bytes == 3 * BLOCK_BYTES
    file.write(b"d", 0)
    file.sync()
    file.write(b"e", 0)
    file.close()
    wear = disk.take()
    assert (wear.block_bytes, wear.syncs, wear.names) == (5 * BLOCK_BYTES, 3, 1)
    assert wear.written_bytes == {"journal": 32}
