"""The embedded server: found, started, watched, ended; and never left behind."""

import asyncio
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.adapters.child import bound_to_parent
from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.ledger import JetStreamLedgerStore, LedgerStoreSettings
from mesh.adapters.server import binary as server_binary
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Stored
from schemas.errors import ConfigurationInvalid, ServerUnusable
from tests.contract.link_worlds import session_settings

WITHIN_SECONDS = 10.0

PARENT = """
import asyncio, json, random, sys
from pathlib import Path
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings

async def main():
    settings = ServerSettings("orphan", Path(sys.argv[1]), mqtt_port=0)
    async with EmbeddedServer(settings, random.Random(1)) as running:
        print(json.dumps([running.state.pid, running.mqtt_port]), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.integration
def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """When the parent is killed outright, the server is gone at once."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pid, mqtt_port = json.loads(output.readline())
    assert _accepts(mqtt_port)
    parent.kill()
    parent.wait()

    async def gone() -> None:
        # Its first thread can have ended while another still holds the port.
        await _until(lambda: not _is_running(pid) and not _accepts(mqtt_port))

    asyncio.run(gone())


@pytest.mark.integration
def test_a_launcher_without_its_parent_starts_nothing(tmp_path: Path) -> None:
    """When the parent died before the kernel was asked, the launcher ends instead."""
    marker = tmp_path / "started"
    ended = subprocess.run(
        bound_to_parent(("/usr/bin/touch", str(marker)), parent=os.getpid() + 1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "parent" in ended.stderr
    assert not marker.exists()


@pytest.mark.integration
def test_it_restarts_on_the_same_ports_with_its_data(tmp_path: Path) -> None:
    """Killed, it comes back by itself: same ports, another process, nothing lost."""

    async def scenario() -> None:
        async with _running(tmp_path, mqtt_port=0) as running, _ledger(running) as store:
            version = await store.compare_and_set(1, 0, b"kept")
            before = running.state, running.client_url, running.mqtt_port
            assert before[0].running
            os.kill(before[0].pid, signal.SIGKILL)
            await _until(lambda: running.restarts == 1)
            assert running.state.running
            assert running.state.pid != before[0].pid
            assert (running.client_url, running.mqtt_port) == before[1:]
            await _until(lambda: store.state.up and store.state.connections == 2)
            assert await store.load(1) == Stored(version, b"kept")

    asyncio.run(scenario())


@pytest.mark.integration
def test_it_serves_until_it_is_left_and_no_longer(tmp_path: Path) -> None:
    """Inside, both ports accept; afterwards the process is gone and the ports are free."""

    async def scenario() -> None:
        async with _running(tmp_path, mqtt_port=0) as running:
            pid, port = running.state.pid, running.mqtt_port
            assert port is not None
            assert _accepts(port)
            assert _accepts(int(running.client_url.rpartition(":")[2]))
        assert not running.state.running
        assert not _is_running(pid)
        assert not _accepts(port)

    asyncio.run(scenario())


@pytest.mark.integration
def test_one_that_hangs_is_killed_when_it_is_left(tmp_path: Path) -> None:
    """A stopped server does not hold up the end for longer than ``stop_seconds``."""

    async def scenario() -> None:
        async with _running(tmp_path, stop_seconds=0.2) as running:
            pid = running.state.pid
            os.kill(pid, signal.SIGSTOP)
            leaving = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - leaving < 2
        assert not _is_running(pid)

    asyncio.run(scenario())


@pytest.mark.integration
def test_its_configuration_is_private_and_synchronous(tmp_path: Path) -> None:
    """The file is the owner's only, its folder too, and each write is synced."""

    async def scenario() -> None:
        async with _running(tmp_path, mqtt_port=0) as running:
            file = tmp_path / "server" / "server.conf"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            text = file.read_text()
            assert "\n  sync_interval: always\n" in text
            assert f"port: {running.mqtt_port}\n" in text
            settings = IntakeSettings(session_settings(running.client_url))
            async with JetStreamIntake(settings, SystemClock(), random.Random(1)) as intake:
                await _until(lambda: intake.state.up)
            assert (tmp_path / "server" / "jetstream").is_dir()

    asyncio.run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize("which", ["client_port", "mqtt_port"])
def test_a_taken_port_is_named(tmp_path: Path, which: str) -> None:
    """A fixed port on which another process listens is told by its number, and why."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        async def scenario() -> None:
            with pytest.raises(ServerUnusable, match=f"{port}.*another process listens there"):
                async with _running(tmp_path, **{which: port}):
                    pass

        asyncio.run(scenario())


@pytest.mark.integration
def test_what_keeps_it_from_starting_is_told_in_its_own_words(tmp_path: Path) -> None:
    """A server that ends while starting is quoted."""
    directory = tmp_path / "server"
    directory.mkdir()
    (directory / "jetstream").write_text("a file where its data should lie")

    async def scenario() -> None:
        with pytest.raises(ServerUnusable, match="JetStream"):
            async with _running(tmp_path):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo nats-server: v2.9.0", "version 2.9.0; nats-server 2.14.3 or newer"),
        ("echo mosquitto version 2.0.18-almost", "2.0.18.*2.14.3"),
        ("echo something else", "something else"),
        ("sleep 60", "did not answer within"),
    ],
)
def test_an_unfit_binary_is_refused(tmp_path: Path, script: str, told: str) -> None:
    """One that is too old, or something else, is told with what was found and what is right."""
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\nexec {script}\n")
    binary.chmod(0o755)

    async def scenario() -> None:
        with pytest.raises(ServerUnusable, match=told) as refused:
            await server_binary.find_binary(binary, seconds=0.3)
        assert str(binary) in str(refused.value)

    asyncio.run(scenario())


def test_a_missing_binary_is_told(tmp_path: Path) -> None:
    """A configured path that is not there is named; another binary is not taken instead."""

    async def scenario() -> None:
        settings = ServerSettings("edge", tmp_path, binary=tmp_path / "nowhere")
        with pytest.raises(ServerUnusable, match="nowhere"):
            async with EmbeddedServer(settings, random.Random(1)):
                pass

    asyncio.run(scenario())


@pytest.mark.integration
def test_one_on_path_goes_before_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binary on PATH is taken; without one, that of the package."""
    installed = tmp_path / "nats-server"
    installed.write_text("#!/bin/sh\necho nats-server: v2.14.3\n")
    installed.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(server_binary.find_binary()) == installed
    monkeypatch.setenv("PATH", "")
    packaged = asyncio.run(server_binary.find_binary())
    assert packaged == Path(sys.executable).parent / "nats-server"


def test_wrong_settings_are_told_all_at_once() -> None:
    """Each problem of the settings has a line of its own."""
    with pytest.raises(ConfigurationInvalid) as invalid:
        ServerSettings("No Name", Path("here"), mqtt_port=70_000, jetstream=False)
    assert len(invalid.value.problems) == 4


@asynccontextmanager
async def _running(tmp_path: Path, **settings: object) -> AsyncIterator[EmbeddedServer]:
    made = ServerSettings(
        "edge-1",
        tmp_path / "server",
        restart_seconds_min=0.05,
        **settings,  # type: ignore[arg-type]
    )
    async with asyncio.timeout(30), EmbeddedServer(made, random.Random(1)) as running:
        yield running


@asynccontextmanager
async def _ledger(running: EmbeddedServer) -> AsyncIterator[JetStreamLedgerStore]:
    settings = LedgerStoreSettings(session_settings(running.client_url))
    async with JetStreamLedgerStore(settings, SystemClock(), random.Random(2)) as store:
        await _until(lambda: store.state.up)
        yield store


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while not condition():  # noqa: ASYNC110  # of another process: there is nothing to await
            await asyncio.sleep(0.01)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_running(pid: int) -> bool:
    """Whether the process lives; one that ended but was not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in {"Z", "X"}
