"""Health: what a person needs to know of each lane stands in the document and in the metrics."""

import asyncio
import random
from dataclasses import replace

from mesh.ports import BrokerState
from mesh.spool.settings import SpoolSettings
from mesh.spool.spool import Spool
from nodes.health import EdgeVitals, edge_document, edge_points
from schemas.documents import to_json
from schemas.limits import BLOCK_BYTES, MIB
from schemas.messages import Epoch, Explained, Instant, Lane
from simulator.disk import SimDisk
from tests.spool.world import SMALL, opened, play, record

OTHER = b"o" * 16
LANES = {
    **SMALL.lanes,
    Lane.ALARMS: replace(SMALL.lanes[Lane.ALARMS], bytes_max=BLOCK_BYTES),
    Lane.READINGS: replace(SMALL.lanes[Lane.READINGS], enabled=False),
}
SETTINGS: SpoolSettings = replace(SMALL, lanes=LANES)


async def _fill(spool: Spool) -> None:
    for lane in (Lane.ALARMS, Lane.LOGS, Lane.EVENTS):
        assert await spool.append(lane, [record("text")]).settled
    await asyncio.sleep(5)


def _vitals(spool: Spool) -> EdgeVitals:
    now = Instant(0, 0)
    return EdgeVitals(
        now,
        now,
        "session",
        spool.status(),
        BrokerState(connected=True),
        [],
        {},
        sources=0,
        decisions=7,
        fallbacks={},
        unpublished=0,
        unrecorded=3,
        dropped={Lane.LOGS: 2},
    )


def _told() -> tuple[EdgeVitals, Epoch]:
    """A spool in its second life; a lane that is full, one that is off, one that lost something."""
    found: list[tuple[EdgeVitals, Epoch]] = []

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, SETTINGS) as spool:
            await _fill(spool)
            old = spool.epoch
        for path in [path for path in disk.contents() if path.startswith("lanes/logs/")]:
            disk.unlink(path)
        async with opened(disk, SETTINGS, seed=1, machine=OTHER) as spool:
            await _fill(spool)
            found.append((_vitals(spool), old))

    play(main)
    return found[0]


def test_each_lane_says_how_it_is_kept_and_what_it_refuses() -> None:
    """Quota, what when full, whether it takes records and why not, and what goes first."""
    vitals, old = _told()
    document = edge_document(vitals)
    assert to_json(document)
    spool = document["spool"]
    assert isinstance(spool, dict)
    alarms, logs, readings = (spool["lanes"][lane] for lane in ("alarms", "logs", "readings"))
    assert alarms["quota_bytes"] == BLOCK_BYTES
    assert (alarms["when_full"], logs["when_full"]) == ("refuse", "evict-oldest")
    assert alarms["refuses"].startswith("full, ")
    assert (logs["refuses"], logs["quota_bytes"]) == ("", 128 * MIB)
    assert (readings["enabled"], bool(readings["refuses"])) == (False, True)
    assert spool["first_to_go"][0] == "logs"
    assert "alarms" not in spool["first_to_go"]
    assert spool["epochs"] == [str(old), str(vitals.spool.epoch)]


def test_a_lane_names_its_losses_by_reason() -> None:
    """All reasons that there are, also those that cost nothing; of all lives together."""
    vitals, _ = _told()
    spool = edge_document(vitals)["spool"]
    assert isinstance(spool, dict)
    explained = spool["lanes"]["logs"]["explained"]
    assert set(explained) == {str(why) for why in Explained}
    assert explained["damaged"] == 1
    assert explained["shed"] == 2
    assert spool["lanes"]["decisions"]["explained"]["shed"] == 3
    assert sum(spool["lanes"]["events"]["explained"].values()) == 0


def test_the_metrics_say_the_same() -> None:
    """A point for each lane, and for each loss that there is."""
    vitals, _ = _told()
    points = {(name, *sorted(labels.items())): value for name, value, labels in edge_points(vitals)}
    assert points["holdfast_lane_refuses", ("lane", "alarms")] == 1
    assert points["holdfast_lane_refuses", ("lane", "logs")] == 0
    assert points["holdfast_lane_quota_bytes", ("lane", "logs")] == 128 * MIB
    assert points["holdfast_lane_lost_records", ("lane", "logs"), ("reason", "damaged")] == 1
    assert points["holdfast_spool_epochs",] == 2
    assert points["holdfast_spool_max_bytes",] == vitals.spool.bytes_max
    assert ("holdfast_lane_quota_bytes", ("lane", "decisions")) not in points
