"""The spool of an edge: opened as its configuration says, columns packed by a child that ends."""

import asyncio
import os
import random
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.adapters.system import SystemClock
from mesh.spool.batch import COLUMN_RECORDS_MIN, parse
from mesh.spool.events import PackerLost
from mesh.spool.lane import WhenFull
from nodes import config
from nodes.commands.edge import _open_spool
from nodes.edge.recorder import Recorder
from schemas import wire
from schemas.errors import Overloaded
from schemas.limits import MIB
from schemas.messages import Codec, Lane, MetricPoint, Severity
from tests.processes import ROOT
from tests.spool.world import record

CONFIGURATION = """
[node]
site = "hall"
name = "pump"
state_directory = "{folder}/state"
[broker]
embedded = true
[[decisions]]
name = "pump"
topics = ["plant/+/telemetry"]
model = "pump.onnx"
[spool]
bytes_max = "64 MiB"
headroom = "1 MiB"
[spool.lanes.events]
when_full = "refuse"
quota = "2 MiB"
[spool.lanes.logs]
enabled = false
"""
SECOND_NS = 1_000_000_000
WALL_NS = 1_767_225_600 * SECOND_NS
RNG = random.Random(7)
POINTS = [
    wire.encode(
        MetricPoint(WALL_NS + n * SECOND_NS, n * SECOND_NS, "x", RNG.randrange(2000) / 64, {})
    )
    for n in range(16 * COLUMN_RECORDS_MIN)
]


async def _packed(folder: Path, stack: AsyncExitStack) -> tuple[Codec, int]:
    """Seals metrics as an edge would; the codec, and the child that packed them."""
    (folder / "edge.toml").write_text(CONFIGURATION.format(folder=folder))
    settings = config.load(folder / "edge.toml", {}).for_edge()
    spool = await _open_spool(settings, Recorder(SystemClock()), stack)
    stack.push_async_callback(spool.close)
    assert await spool.append(Lane.METRICS, POINTS).settled
    spool._pump.rotate()
    assert await spool.commit()
    await spool._chores.do()
    (path,) = (folder / "state" / "spool" / "lanes" / "metrics").rglob("*.batch")
    packer = spool._resources.packer
    assert packer is not None
    child: int | None = packer.child_pid  # type: ignore[attr-defined]
    assert child is not None
    return parse(path.read_bytes()).header.codec, child


def _is_there(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_metrics_are_sealed_as_columns_by_a_child_that_ends_with_the_spool(tmp_path: Path) -> None:
    """When a journal is sealed the child is started, and when the edge ends it is gone."""

    async def main() -> int:
        async with AsyncExitStack() as stack:
            codec, child = await _packed(tmp_path, stack)
            assert codec is Codec.COLUMNS
            assert _is_there(child)
            assert child != os.getpid()
            return child

    assert not _is_there(asyncio.run(main()))


@pytest.mark.integration
def test_the_child_ends_with_an_edge_that_is_killed(tmp_path: Path) -> None:
    """Row 1: nothing of a node is left behind that would hold memory or a lock."""
    code = (
        "import asyncio, sys\nfrom contextlib import AsyncExitStack\nfrom pathlib import Path\n"
        "from tests.nodes.commands.test_edge_spool import _packed\n"
        "async def main():\n"
        "    async with AsyncExitStack() as stack:\n"
        "        print((await _packed(Path(sys.argv[1]), stack))[1], flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as edge:
        assert edge.stdout is not None
        child = int(edge.stdout.readline())
        assert _is_there(child)
        edge.kill()
    deadline = time.monotonic() + 30  # noqa: TID251 - a real process
    while _is_there(child):
        assert time.monotonic() < deadline, "the child outlived its parent"  # noqa: TID251
        time.sleep(0.02)


def test_an_edge_keeps_its_lanes_as_its_configuration_says(tmp_path: Path) -> None:
    """Quotas, what when full, what is off, and what is left free reach the spool."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await _packed(tmp_path, stack)
            settings = config.load(tmp_path / "edge.toml", {}).for_edge()
        async with AsyncExitStack() as stack:
            spool = await _open_spool(settings, Recorder(SystemClock()), stack)
            stack.push_async_callback(spool.close)
            lanes = spool.status().lanes
            events = lanes[Lane.EVENTS].settings
            assert (events.bytes_max, events.when_full) == (2 * MIB, WhenFull.REFUSE)
            assert lanes[Lane.ALARMS].settings.bytes_max == 4 * MIB
            assert spool.status().bytes_max == 64 * MIB
            assert spool._settings.headroom_bytes == MIB
            with pytest.raises(Overloaded, match="switched off"):
                spool.append(Lane.LOGS, [record("a line")])

    asyncio.run(main())


def test_a_packer_that_is_lost_is_told() -> None:
    """A past noun that says why; a warning, since nothing is lost but space."""
    told: list[tuple[Severity, str]] = []
    recorder = Recorder(SystemClock(), tell=lambda *what: told.append(what))
    recorder.observe(PackerLost("no child packs any more"))
    assert told == [(Severity.WARNING, "packer_lost: reason: no child packs any more")]
