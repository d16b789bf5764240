"""The command at headquarters: workers of one archive as processes, and ledgers made anew."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Part
from mesh.spool.batch import Batch
from schemas.messages import Receipt
from tests.brokers import free_port
from tests.nodes.headquarters.world import Sender, identities
from tests.processes import holdfast, run

_READY_SECONDS_MAX = 30.0


def _config(root: Path, worker: str, port: int, *, embedded: bool) -> str:
    server = (
        f"embedded = true\nclient_port = {port}" if embedded else f'url = "nats://127.0.0.1:{port}"'
    )
    path = root / f"{worker}.toml"
    path.write_text(
        f'[headquarters]\nname = "hq"\nworker = "{worker}"\n{server}\n'
        f'archive_directory = "{root}/hq"\nlinger_seconds = 0.1\n'
    )
    return str(path)


async def _send(port: int, batches: Sequence[Batch]) -> list[Receipt]:
    """Sends them, and returns the receipts up to the one that covers the last of them."""
    session = SessionSettings("up", (f"nats://127.0.0.1:{port}",))
    link = JetStreamLink(LinkSettings(session, "hall", "pump"), SystemClock(), random.Random(1))
    received: list[Receipt] = []
    async with asyncio.timeout(_READY_SECONDS_MAX), link:
        state = link.state
        while not state.up:
            state = await link.wait_changed(state)
        for item in batches:
            part = Part(
                *(item.header.site, item.header.node, item.header.lane),
                *(item.digest, 0, len(item.data), item.data),
            )
            assert isinstance(await link.send(part), Accepted)
        async for receipt in link.receipts():
            received.append(receipt)
            if receipt.watermark > batches[-1].header.last:
                return received
    return received


def _await_line(log: Path, words: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS_MAX  # noqa: TID251 - real processes, real time
    while words not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, log.read_text()  # noqa: TID251 - as above
        time.sleep(0.1)


@pytest.mark.integration
def test_two_workers_share_an_archive_and_a_rebuild_wants_it_alone(tmp_path: Path) -> None:
    """Each number has one row; a name is one worker's; rebuilt ledgers hold what the files hold."""
    port = free_port()
    first = _config(tmp_path, "one", port, embedded=True)
    second = _config(tmp_path, "two", port, embedded=False)
    sender = Sender()
    batches = [sender.batch(5) for _ in range(40)]
    with holdfast(tmp_path / "one.log", "headquarters", "--config", first):
        _await_line(tmp_path / "one.log", "worker one: taking batches")
        with holdfast(tmp_path / "two.log", "headquarters", "--config", second):
            _await_line(tmp_path / "two.log", "worker two: taking batches")
            (*_, before) = asyncio.run(_send(port, batches))
            same = run("headquarters", "--worker", "one", "--config", second)
            assert same.returncode == 75, same.stderr
            refused = run("headquarters", "rebuild", "--config", second)
            assert refused.returncode == 75, refused.stderr
            assert "locked by process" in refused.stderr
    assert identities(tmp_path / "hq") == [("pump", "events", n) for n in range(200)]
    done = run("headquarters", "rebuild", "--json", "--config", first)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["partitions"], told["lanes"], told["records"]) == (1, 1, 200)
    assert told["life"].startswith("2-")
    with holdfast(tmp_path / "one.log", "headquarters", "--config", first):
        (*_, after) = asyncio.run(_send(port, [batches[0], sender.batch(1)]))
    assert after.life != before.life
    assert identities(tmp_path / "hq") == [("pump", "events", n) for n in range(201)]
