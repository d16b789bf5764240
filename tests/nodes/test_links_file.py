"""The report of the links: written while a node runs, read by people and by its next start."""

import asyncio
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import orjson
import pytest

from mesh.ports import LinkState
from mesh.transfer.schedule import LinkRule, Queue, Schedule, Spent
from mesh.transfer.source import Life
from nodes.forwarder import ForwarderView
from nodes.links_file import LinksFile, LinksUnwritten, read_links, read_spent
from nodes.links_report import links_document, spent_in
from schemas.errors import DiskFailed
from schemas.messages import Epoch, Instant, Lane
from simulator.clock import SimClock, VirtualLoop, run
from simulator.disk import SimDisk

DAY_NS = 86_400 * 10**9
NOW = Instant(20_000 * DAY_NS, 60 * 10**9)
RULES = (
    LinkRule("cable", bytes_per_second=1000),
    LinkRule("mobile", bytes_per_day=5000, least=Lane.DECISIONS),
)
QUEUES = [
    Queue(Life("hall", "pump", Epoch(1, 1)), lane, live=False, bytes=1000)
    for lane in (Lane.DECISIONS, Lane.LOGS)
]


@dataclass
class Uplinks:
    """A cable that is down, and a mobile link that has sent a part."""

    schedule: Schedule = field(default_factory=lambda: Schedule(RULES, {}))

    def send(self, wall_ns: int = NOW.wall_ns) -> None:
        """One part, over the mobile link."""
        self.schedule.on_link("mobile", up=True, now=0.0)
        plan = self.schedule.plan(0.0, wall_ns, QUEUES, {"cable": 1, "mobile": 1})
        assert plan.choice is not None
        self.schedule.on_sent(plan.choice, 1000, 0.0, wall_ns)

    def view(self) -> ForwarderView:
        """As a forwarder tells it."""
        return ForwarderView(
            (
                LinkState("cable", up=False, reason="no route", since_mono_ns=10**9),
                LinkState("mobile", up=True, reason="", since_mono_ns=0, connections=1),
            ),
            {"cable": None, "mobile": 2000.04},
            {"mobile": tuple(f"batch {number}" for number in range(6))},
            self.schedule.plan(1.0, NOW.wall_ns, QUEUES, {"cable": 1, "mobile": 0}),
            self.schedule.view(1.0, NOW.wall_ns),
        )

    def spent(self) -> Mapping[str, Spent]:
        """What was spent."""
        return self.schedule.spent()


def _document() -> dict[str, object]:
    uplinks = Uplinks()
    uplinks.send()
    return links_document(uplinks.view(), uplinks.spent(), NOW, 60.0)


def test_the_document_tells_each_link() -> None:
    """State, budget left, what it sends, and why the rest waits: in what JSON can say."""
    document = orjson.loads(orjson.dumps(_document()))
    cable, mobile = document["links"]
    assert (document["at"], document["interval_seconds"]) == (NOW.wall_ns // 10**6, 60.0)
    assert (cable["up"], cable["reason"], cable["since_seconds"]) == (False, "no route", 59.0)
    assert (cable["bytes_per_second_max"], cable["bytes_per_second"]) == (1000, None)
    assert cable["waits"] == {"decisions": "it is down", "logs": "it is down"}
    assert (mobile["bytes_today"], mobile["bytes_left_today"]) == (1000, 4000)
    assert mobile["bytes_per_second"] == 2000.0
    assert mobile["waits"] == {
        "decisions": "the send window is full",
        "logs": "not urgent enough for its cost",
    }
    assert mobile["carries"] == ["account", "alarms", "decisions"]
    assert (len(mobile["sending"]), mobile["sending_batches"]) == (4, 6)


def test_budgets_come_back_from_the_document() -> None:
    """A restart goes on with what was spent."""
    document = orjson.loads(orjson.dumps(_document()))
    assert spent_in(document)["mobile"] == Spent(20_000, 1000)


@pytest.mark.parametrize(
    "spent", [None, 3, [], {"a": 3}, {"a": [1]}, {"a": [1, -1]}, {"a": [1.0, 2]}, {"a": [True, 2]}]
)
def test_budgets_that_make_no_sense_are_passed_over(spent: object) -> None:
    """Whatever stands in the file, a node starts."""
    assert spent_in({"spent": spent}) == {}


def _life(disk: SimDisk, seconds: float, uplinks: Uplinks, said: list[object]) -> None:
    class Heard:
        def observe(self, event: object) -> None:
            said.append(event)

    async def live(_: random.Random) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        with ThreadPoolExecutor(1) as executor:
            file = LinksFile(disk, executor, uplinks, SimClock(loop), Heard())
            try:
                async with asyncio.timeout(seconds):
                    await file.run()
            except TimeoutError:
                await file.end()

    run(live)


def test_the_file_is_there_while_a_node_runs() -> None:
    """It can be read at any time, and tells what was spent."""
    disk, uplinks = SimDisk(), Uplinks()
    assert read_links(disk) is None
    assert read_spent(disk) == {}
    uplinks.send()
    _life(disk, 25.0, uplinks, [])
    document = read_links(disk)
    assert document is not None
    assert [link["name"] for link in document["links"]] == ["cable", "mobile"]
    assert document["running"] is False, "it ended in order"
    assert read_spent(disk)["mobile"] == Spent(20_000, 1000)


def test_nothing_new_is_written_once_a_minute() -> None:
    """An idle node spares its flash: 60 writings in an hour, not 360."""
    disk = SimDisk()
    renamed = []
    rename = disk.rename

    def counted(source: str, target: str) -> None:
        renamed.append(target)
        rename(source, target)

    disk.rename = counted  # type: ignore[method-assign]
    _life(disk, 3600.0, Uplinks(), [])
    assert 60 <= len(renamed) <= 75


def test_a_crash_leaves_a_report() -> None:
    """Where there is a budget, the last report or the one before is whole after a power cut."""
    disk, uplinks = SimDisk(), Uplinks()
    uplinks.send()
    _life(disk, 15.0, uplinks, [])
    for image in disk.crash_images(random.Random(0)):
        assert read_spent(image)["mobile"].bytes == 1000


def test_a_disk_that_takes_nothing_is_told_once() -> None:
    """The report is missing, and the node goes on; at the next chance it is written."""

    class Broken(SimDisk):
        broken = True

        def rename(self, source: str, target: str) -> None:
            if self.broken:
                raise DiskFailed("the medium is gone")
            super().rename(source, target)

    disk, said = Broken(), list[object]()
    _life(disk, 55.0, Uplinks(), said)
    assert said == [LinksUnwritten("the medium is gone")]
    disk.broken = False
    _life(disk, 5.0, Uplinks(), said)
    assert read_links(disk) is not None


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"3", b"\xff", b" " * 300_000])
def test_a_file_that_cannot_be_read_is_as_none(data: bytes) -> None:
    """Nobody is stopped by it."""
    disk = SimDisk()
    file = disk.open("links.json", "create")
    file.write(data, 0)
    file.close()
    assert read_links(disk) is None
    assert read_spent(disk) == {}
