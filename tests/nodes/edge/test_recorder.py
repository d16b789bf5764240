"""The recorder: takes what it is told from any thread, never raises, counts what it drops."""

import asyncio
import logging
import threading
from dataclasses import dataclass

import pytest

from mesh.spool.events import Evicted, SpoolDegraded
from nodes.edge.recorder import Recorder
from schemas import wire
from schemas.messages import Event, Lane, LogLine, MetricPoint, Severity
from tests.nodes.edge.fakes import FakeSpool, HandClock


@dataclass(frozen=True, slots=True)
class OddThing:
    """An event with text that would steer a terminal, and more than a record holds."""

    text: str
    surrogate: str = "\ud800"


async def turn() -> None:
    """Lets the loop's turn end."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_events_go_to_their_lanes_with_their_severity() -> None:
    """Errors and worse are alarms, which are awaited; the rest are events."""

    async def story() -> None:
        spool = FakeSpool()
        recorder = Recorder(HandClock(), spool)
        recorder.observe(SpoolDegraded("disk gone"))
        recorder.observe(Evicted(Lane.LOGS, "3-7"))
        assert spool.appends == [], "written at the end of the turn"
        await turn()
        alarm = wire.decode_as(Event, spool.records[Lane.ALARMS][0])
        assert (alarm.name, alarm.severity) == ("spool_degraded", Severity.CRITICAL)
        assert alarm.attributes == {"reason": "disk gone"}
        event = wire.decode_as(Event, spool.records[Lane.EVENTS][0])
        assert (event.name, event.text) == (
            "evicted",
            "evicted: lane: logs, numbers: 3-7, why: evicted",
        )
        assert spool.appends == [(Lane.ALARMS, 1, True), (Lane.EVENTS, 1, False)]

    asyncio.run(story())


def test_strangers_text_is_bounded_and_harmless() -> None:
    """Control characters are escaped, surrogates replaced, length bounded; it still decodes."""

    async def story() -> None:
        spool = FakeSpool()
        recorder = Recorder(HandClock(), spool)
        recorder.observe(OddThing("\x1b[2J\x00" + "x" * 100_000))
        recorder.observe("not even a dataclass")
        await turn()
        odd, plain = (wire.decode_as(Event, data) for data in spool.records[Lane.EVENTS])
        assert odd.attributes["text"].startswith("\\x1b[2J\\x00xxx")
        assert len(odd.attributes["text"]) == 500
        assert odd.attributes["surrogate"] == "?"
        assert plain.name == "str"

    asyncio.run(story())


def test_log_lines_from_any_thread() -> None:
    """A line that another thread logs is recorded by the loop; exceptions are named."""

    async def story() -> None:
        spool = FakeSpool()
        recorder = Recorder(HandClock(), spool)
        logger = logging.Logger("holdfast.test")  # noqa: LOG001 - one that no other test can see
        logger.addHandler(recorder.log_handler(logging.INFO))

        def talk() -> None:
            logger.info("from %s", "afar")
            logger.debug("not recorded")
            logger.warning("wrong %d", "format")
            try:
                int("why")
            except ValueError:
                logger.exception("failed")

        thread = threading.Thread(target=talk)
        thread.start()
        async with asyncio.timeout(5):
            while len(spool.records[Lane.LOGS]) < 3:  # noqa: ASYNC110 - another thread writes
                await asyncio.sleep(0.001)
        thread.join()
        lines = [wire.decode_as(LogLine, data) for data in spool.records[Lane.LOGS]]
        assert [(line.severity, line.text) for line in lines] == [
            (Severity.INFORMATIONAL, "from afar"),
            (Severity.WARNING, "wrong %d"),
            (Severity.ERROR, "failed: ValueError: invalid literal for int() with base 10: 'why'"),
        ]

    asyncio.run(story())


def test_metrics_are_points() -> None:
    """Points of one moment go to their lane."""

    async def story() -> None:
        spool = FakeSpool()
        recorder = Recorder(HandClock(), spool)
        recorder.metrics([("a_total", 3, {"lane": "logs"}), ("up", True, {})])
        await turn()
        points = [wire.decode_as(MetricPoint, data) for data in spool.records[Lane.METRICS]]
        assert [(point.name, point.value) for point in points] == [("a_total", 3.0), ("up", 1.0)]
        assert points[0].labels == {"lane": "logs"}

    asyncio.run(story())


def test_what_happens_before_the_spool_is_open_is_kept() -> None:
    """It waits, up to a bound, and is written once there is a spool."""

    async def story() -> None:
        recorder = Recorder(HandClock())
        for number in range(3000):
            recorder.observe(Evicted(Lane.LOGS, str(number)))
        spool = FakeSpool()
        recorder.attach(spool)
        await turn()
        assert len(spool.records[Lane.EVENTS]) == 2048
        assert recorder.dropped == {Lane.EVENTS: 952}

    asyncio.run(story())


def test_a_degraded_spool_is_counted_and_never_raises() -> None:
    """What the spool does not take is counted by lane; later things are recorded again."""

    async def story() -> None:
        spool = FakeSpool()
        recorder = Recorder(HandClock(), spool)
        spool.degraded = "disk gone"
        recorder.observe(SpoolDegraded("disk gone"))
        recorder.metrics([("up", 1, {})])
        await turn()
        assert recorder.dropped == {Lane.ALARMS: 1, Lane.METRICS: 1}
        spool.degraded = ""
        recorder.metrics([("up", 1, {})])
        await turn()
        assert len(spool.records[Lane.METRICS]) == 1

    asyncio.run(story())


@pytest.mark.parametrize("detached", [True, False])
def test_after_the_loop_has_ended_nothing_raises(*, detached: bool) -> None:
    """A line that is logged while the process ends is lost, and nobody is hurt."""
    recorder = Recorder(HandClock())

    async def story() -> None:
        recorder.attach(FakeSpool())
        if detached:
            recorder.detach()

    asyncio.run(story())
    recorder.observe(Evicted(Lane.LOGS, "1"))
