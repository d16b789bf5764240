"""The parties of the demonstration: processes that can be killed and started again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from mesh.adapters.child import bound_to_parent
from schemas.errors import MeshError

__all__ = ["Configurations", "Party", "PartyFailed", "configurations", "running"]

_STOP_SECONDS: Final = 30.0
_LINE_BYTES_MAX: Final = 1 << 20
_KIB: Final = 1024


class PartyFailed(MeshError):
    """A process of the demonstration ended, or did not answer; its log says more."""


@dataclass(frozen=True, slots=True)
class Configurations:
    """The configuration files of a run."""

    edge: Path
    headquarters: Path


def configurations(
    root: Path, mqtt_port: int, uplink_port: int, server_port: int
) -> Configurations:
    """Writes the configurations of a run, which read as a user's would.

    Args:
        root: the run's folder.
        mqtt_port: of the local broker.
        uplink_port: where the edge finds headquarters: the near end of the WAN.
        server_port: where headquarters' server listens: its far end.
    """
    edge = root / "edge.toml"
    headquarters = root / "headquarters.toml"
    edge.write_text(_EDGE.format(mqtt_port=mqtt_port, uplink_port=uplink_port), encoding="utf-8")
    headquarters.write_text(_HEADQUARTERS.format(server_port=server_port), encoding="utf-8")
    return Configurations(edge, headquarters)


_EDGE: Final = """\
[node]
site = "harbour"
name = "edge-1"
state_directory = "edge"

[broker]
url = "mqtt://127.0.0.1:{mqtt_port}"

[health]
interval_seconds = 1

[[uplinks]]
name = "wan"
url = "nats://127.0.0.1:{uplink_port}"
reconnect_seconds_max = 2

[[decisions]]
name = "pump-health"
topics = ["plant/+/telemetry"]
qos = 0
model = "package:simulator/models/pump.onnx"
valid_for_ms = 2000
confidence_min = 0.6
"""

_HEADQUARTERS: Final = """\
[headquarters]
name = "headquarters"
archive_directory = "archive"
embedded = true
client_port = {server_port}
linger_seconds = 0.5
"""


class Party:
    """A process: started, spoken to, killed, started again; it dies with this one.

    Its words go to a log file.

    Args:
        name: for people.
        command: arguments after the interpreter.
        root: where it runs, and where its log is.
    """

    def __init__(self, name: str, command: Sequence[str], root: Path) -> None:
        self.name = name
        self._command = bound_to_parent((sys.executable, *command))
        self._root = root
        self._process: asyncio.subprocess.Process | None = None
        self.last: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Party {self.name} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    @property
    def started(self) -> bool:
        """Whether it was started at all."""
        return self._process is not None

    @property
    def log_file(self) -> Path:
        """What it said on standard error."""
        return self._root / f"{self.name}.log"

    async def start(self) -> None:
        """Starts it, for the first time or again."""
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._root,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_BYTES_MAX,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def kill(self) -> None:
        """Ends it at once, with no chance to say anything (SIGKILL)."""
        if self.pid is not None and self._process is not None:
            self._process.kill()

    async def ended(self) -> int:
        """Waits until it has ended by itself or was killed; returns its exit code."""
        assert self._process is not None, "started before"
        return await self._process.wait()

    async def stop(self) -> int:
        """Asks it to end (SIGTERM) and returns its exit code; kills it when it takes too long."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            if process.stdin is not None:
                process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def say(self, order: dict[str, Any]) -> None:
        """Writes an order as a JSON line on its standard input.

        Raises:
            PartyFailed: it has ended.
        """
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            raise self.failed("has ended")
        process.stdin.write(orjson.dumps(order) + b"\n")
        await process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """The next JSON line of its standard output.

        Raises:
            PartyFailed: it has ended.
        """
        assert self._process is not None, "started before"
        assert self._process.stdout is not None, "its output is a pipe"
        line = await self._process.stdout.readline()
        if not line:
            raise self.failed("has ended")
        self.last = orjson.loads(line)
        return self.last

    def failed(self, what: str) -> PartyFailed:
        """An error that says what its log says last."""
        try:
            tail = self.log_file.read_text("utf-8", "replace").strip().splitlines()[-5:]
        except OSError:
            tail = []
        return PartyFailed("\n  ".join([f"{self.name} {what}; {self.log_file} ends with:", *tail]))

    def check_alive(self) -> None:
        """Raises when it has ended.

        Raises:
            PartyFailed: it has.
        """
        if self.pid is None:
            raise self.failed("has ended by itself")

    def memory_mb(self) -> float:
        """The most memory that it ever held, MiB; 0 when it has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        except OSError:
            return 0.0
        peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "")
        return int(peak.split()[1]) / _KIB if peak else 0.0


@asynccontextmanager
async def running(*parties: Party) -> AsyncIterator[None]:
    """Starts parties in order, and ends them in the other order, whatever happens."""
    try:
        for party in parties:
            await party.start()
        yield
    finally:
        for party in reversed(parties):
            party.kill()
            await party.stop()
