"""A real gateway as a process, killed in the middle, between real links and servers."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Link
from mesh.spool.batch import Batch
from mesh.transfer.parts import part_of
from schemas.errors import LinkDown
from schemas.messages import Receipt, Stage
from tests.brokers import free_port
from tests.integration.chain import until
from tests.processes import holdfast, run
from tests.transfer.custody.world import KEY, batch_of, receipt_for

pytestmark = pytest.mark.integration


def _session(name: str, url: str) -> SessionSettings:
    return SessionSettings(name, (url,), reconnect_seconds_max=0.5)


def _configuration(folder: Path, port: int, upstream: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(
        f'[gateway]\nsite = "hall"\nname = "gw"\nstate_directory = "{folder}/state"\n'
        f'embedded = true\nclient_port = {port}\njetstream_bytes_max = "64 MiB"\n'
        f'[[uplinks]]\nname = "hq"\nurl = "{upstream}"\nreconnect_seconds_max = 0.5\n'
    )
    return path


async def _send(link: Link, batches: Sequence[Batch]) -> None:
    for batch in batches:
        while True:
            try:
                size = len(batch.data)
                answer = await link.send(part_of(batch.header, batch.data, batch.digest, 0, size))
            except LinkDown:
                await asyncio.sleep(0.1)
                continue
            if isinstance(answer, Accepted):
                break
            await asyncio.sleep(0.1)


async def _until(link: Link, watermark: int, after: int = 0) -> Receipt:
    """A receipt of the gateway's own, given after another one."""
    async for receipt in link.receipts():
        is_held = receipt.stage is Stage.HELD and receipt.watermark >= watermark
        if is_held and receipt.number > after:
            return receipt
    raise AssertionError("receipts go on for ever")


@pytest.mark.timeout(90)
def test_a_gateway_that_is_killed_hands_on_all_that_it_receipted(tmp_path: Path) -> None:
    """Row 39: kill -9 after its receipt; the next process forwards, and passes receipts down."""

    async def main() -> None:
        clock, rng = SystemClock(), random.Random(1)
        port = free_port()
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                EmbeddedServer(ServerSettings("hq", tmp_path / "hq"), rng)
            )
            file = _configuration(tmp_path, port, server.client_url)
            url = f"nats://127.0.0.1:{port}"
            edge = await stack.enter_async_context(
                JetStreamLink(LinkSettings(_session("edge", url), "hall", "pump"), clock, rng)
            )
            async with asyncio.timeout(60):
                with holdfast(tmp_path / "first.log", "gateway", "--config", str(file)) as first:
                    await _send(edge, [batch_of(0, 50), batch_of(50, 80)])
                    held = await _until(edge, 80)
                    assert held.holder == "gw"
                    first.kill()
                    await asyncio.to_thread(first.wait)
                with holdfast(tmp_path / "second.log", "gateway", "--config", str(file)):
                    session = _session("shore", server.client_url)
                    shore = await stack.enter_async_context(
                        JetStreamIntake(IntakeSettings(session, up_bytes_max=1 << 24), clock, rng)
                    )
                    arrived: set[bytes] = set()
                    async for arrivals in shore.batches():
                        arrived |= {arrival.payload for arrival in arrivals}
                        await shore.publish([receipt_for(KEY, 80)])
                        await shore.accept(arrivals)
                        if len(arrived) == 2:
                            break
                    assert arrived == {batch_of(0, 50).data, batch_of(50, 80).data}
                    again = await _until(edge, 80, after=held.number)
                    assert again.life == held.life, "nothing was lost"

    asyncio.run(main())


def test_what_stands_in_the_way_of_a_start_is_told_with_its_exit_code(tmp_path: Path) -> None:
    """A folder that cannot be made, a store of another name: 78; one that is in use, later: 75."""
    port = free_port()
    file = _configuration(tmp_path, port, f"nats://127.0.0.1:{free_port()}")
    right = file.read_text("utf-8")
    log = tmp_path / "first.log"
    with holdfast(log, "gateway", "--config", str(file)) as first:
        until(lambda: "takes custody" in log.read_text("utf-8"), "it has started")
        second = run("gateway", "--config", str(file))
        assert second.returncode == 75, second.stderr
        assert str(first.pid) in second.stderr
        assert first.poll() is None
    ways_in = right.partition("[[uplinks]]")[0]
    back = f'[[uplinks]]\nname = "hq"\nurl = "nats://localhost:{port}"\n'
    wrongs = {
        "another.toml": (right.replace('"gw"', '"gw-2"'), "custody of 'gw'"),
        "nowhere.toml": (right.replace(f"{tmp_path}/state", "/proc/holdfast"), "/proc/holdfast"),
        "back.toml": (f"{ways_in}{back}", "its own next holder"),
    }
    for name, (text, told) in wrongs.items():
        wrong = tmp_path / name
        wrong.write_text(text, "utf-8")
        done = run("gateway", "--config", str(wrong))
        assert done.returncode == 78, done.stderr
        assert told in done.stderr
