"""A ``nats-server`` of our own, as a child process that never outlives us.

It serves two purposes: the MQTT broker of an edge that has none, and JetStream at a headquarters
or a gateway. Both keep their data in one folder.

*It dies with its parent, however that dies.* The child is started through a launcher of a few
lines, which asks the kernel for ``SIGKILL`` at its parent's death (``PR_SET_PDEATHSIG``, prctl(2)),
looks whether the parent it was told of is still its parent, since it could have died before the
request, and then becomes the server. The request survives ``execve`` and costs no process. Killing
it outright is safe: with ``sync_interval: always`` nothing that it acknowledged is unwritten. The
kernel means the parent *thread*: the one that runs the event loop, without which nobody
would watch the server anyway.

*Ports stay.* A free port is chosen once, and each restart takes the same ones, so that clients
find it again.

*It comes back.* When the child ends by itself it is started again, for ever, with growing and
jittered pauses.
"""

import asyncio
import contextlib
import errno
import json
import os
import random
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mesh.adapters.child import bound_to_parent
from mesh.adapters.server.binary import find_binary
from mesh.adapters.server.settings import ServerSettings, write_configuration
from schemas.errors import ServerUnusable

__all__ = ["EmbeddedServer", "ServerSettings", "ServerState"]

_PORT_TRIES: Final = 5
_POLL_SECONDS: Final = 0.02
_INFO_BYTES_MAX: Final = 64 * 1024
_TAIL_BYTES: Final = 2048
_TAIL_LINES: Final = 6


@dataclass(frozen=True, slots=True)
class ServerState:
    """How the embedded server stands.

    Args:
        running: whether it answered after its latest start and has not ended since.
        reason: why it does not run, for a person; empty when it does.
        restarts: how many times it came up again.
        pid: its process id; 0 when it does not run.
    """

    running: bool
    reason: str = ""
    restarts: int = 0
    pid: int = 0


class EmbeddedServer:
    """A child ``nats-server``: ``async with EmbeddedServer(...) as server``.

    Entering returns once it answers, leaving once it has ended.

    Args:
        settings: what it is told.
        rng: for the jitter of its restarts.

    Raises:
        ServerUnusable: on entering: no binary, too old, a fixed port is taken, no answer in time.
    """

    def __init__(self, settings: ServerSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._binary = Path()
        self._ports: tuple[int, int | None] = (settings.client_port, settings.mqtt_port)
        self._process: asyncio.subprocess.Process | None = None
        self._log_offset = 0
        self._state = ServerState(running=False, reason="not started")
        self._tasks = asyncio.TaskGroup()
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self._settings.name} {self.client_url} {self._state}>"

    @property
    def client_url(self) -> str:
        """Where NATS clients connect; settled once it was entered."""
        return f"nats://{self._settings.host}:{self._ports[0]}"

    @property
    def mqtt_port(self) -> int | None:
        """Where MQTT clients connect; ``None`` without MQTT; settled once it was entered."""
        return self._ports[1]

    @property
    def state(self) -> ServerState:
        """How it stands now."""
        return self._state

    @property
    def restarts(self) -> int:
        """How many times it came up again after ending by itself."""
        return self._state.restarts

    async def __aenter__(self) -> Self:
        self._binary = await find_binary(self._settings.binary)
        _check_ports_free(self._settings)
        for attempt in range(_PORT_TRIES):
            self._ports = _choose_ports(self._settings)
            try:
                await self._start()
                break
            except _PortTaken:
                # Somebody took a port between our choosing and the server's binding it.
                if attempt == _PORT_TRIES - 1:
                    raise
        await self._tasks.__aenter__()
        self._watching = self._tasks.create_task(self._watch(), name="embedded server")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._watching is not None, "entered before"
        self._watching.cancel()
        try:
            # The group is not told of the error: it would wrap it, and it is not the group's.
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stop()
            self._state = ServerState(
                running=False, reason="stopped", restarts=self._state.restarts
            )

    async def _start(self) -> None:
        """Starts the child and returns once it answers; else it is gone again.

        Raises:
            ServerUnusable: it does not answer; ``_PortTaken`` when that was why.
        """
        settings = self._settings
        try:
            write_configuration(settings, *self._ports)
            process = await self._launch()
        except OSError as error:
            raise ServerUnusable(f"{settings.name} cannot be started: {error}") from error
        self._process = process
        try:
            async with asyncio.timeout(settings.start_seconds):
                await self._answered(process)
        except TimeoutError as error:
            await self._stop()
            raise self._unusable(f"did not answer within {settings.start_seconds:g} s") from error
        except BaseException:
            await self._stop()
            raise
        self._state = ServerState(running=True, restarts=self._state.restarts, pid=process.pid)

    async def _launch(self) -> asyncio.subprocess.Process:
        settings = self._settings
        self._log_offset = _size(settings.log_file)
        with settings.error_file.open("wb") as errors:
            return await asyncio.create_subprocess_exec(
                *bound_to_parent((str(self._binary), "-c", str(settings.configuration_file))),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=settings.directory,
                # Ctrl-C goes to a whole process group: we stop the child, once we have drained.
                start_new_session=True,
            )

    async def _answered(self, process: asyncio.subprocess.Process) -> None:
        client_port, mqtt_port = self._ports
        while not await self._says_hello(client_port):
            self._check_alive(process)
            await asyncio.sleep(_POLL_SECONDS)
        while mqtt_port is not None and not await _accepts(self._settings.host, mqtt_port):
            self._check_alive(process)
            await asyncio.sleep(_POLL_SECONDS)
        self._check_alive(process)

    async def _says_hello(self, port: int) -> bool:
        """Whether a server of our name greets there: a foreign one on the port is not ours."""
        try:
            reader, writer = await asyncio.open_connection(
                self._settings.host, port, limit=_INFO_BYTES_MAX
            )
        except OSError:
            return False
        try:
            greeting = await reader.readline()
            word, _, text = greeting.partition(b" ")
            return word == b"INFO" and json.loads(text)["server_name"] == self._settings.name
        except (OSError, ValueError, KeyError, TypeError):
            return False
        finally:
            writer.transport.abort()

    def _check_alive(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            raise self._unusable(f"ended with code {process.returncode} while starting")

    def _unusable(self, what: str) -> ServerUnusable:
        lines = _last_lines(self._settings.error_file)
        lines += _last_lines(self._settings.log_file, self._log_offset)
        told = "\n".join(lines) or "(it said nothing)"
        kind = _PortTaken if "address already in use" in told else ServerUnusable
        return kind(
            f"{self._settings.name} ({self._binary}, port {self._ports[0]}, MQTT"
            f" {self._ports[1] or 'off'}) {what}; its last words in {self._settings.directory}:\n"
            f"{told}"
        )

    async def _watch(self) -> None:
        while True:
            assert self._process is not None, "started before it is watched"
            code = await self._process.wait()
            self._down(f"ended with code {code}")
            failures = 0
            while not self._state.running:
                await asyncio.sleep(self._pause(failures))
                failures += 1
                try:
                    await self._start()
                except ServerUnusable as error:
                    self._down(str(error))
            self._state = ServerState(
                running=True, restarts=self._state.restarts + 1, pid=self._state.pid
            )

    def _down(self, reason: str) -> None:
        self._state = ServerState(running=False, reason=reason, restarts=self._state.restarts)

    def _pause(self, failures: int) -> float:
        longest = self._settings.restart_seconds_max
        exponential = self._settings.restart_seconds_min * 2.0 ** min(failures, 16)
        return min(longest, exponential) * self._rng.uniform(0.5, 1.0)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            _signal(process, signal.SIGTERM)
            async with asyncio.timeout(self._settings.stop_seconds):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await process.wait()


class _PortTaken(ServerUnusable):
    """Another process listens on a port that was to be ours."""


def _check_ports_free(settings: ServerSettings) -> None:
    """Tells of a taken fixed port before anything is started.

    Raises:
        ServerUnusable: names the port.
    """
    for what, port in (("NATS", settings.client_port), ("MQTT", settings.mqtt_port)):
        if not port:
            continue
        try:
            _bound(settings.host, port).close()
        except OSError as error:
            who = (
                "another process listens there"
                if error.errno == errno.EADDRINUSE
                else os.strerror(error.errno or 0)
            )
            raise ServerUnusable(
                f"{settings.name}: {what} port {port} on {settings.host} cannot be taken: {who};"
                " configure another port, or 0 for a free one"
            ) from error


def _choose_ports(settings: ServerSettings) -> tuple[int, int | None]:
    """The fixed ports, and free ones in place of 0.

    Both are held at once, so that they differ.
    """
    with contextlib.ExitStack() as held:

        def chosen(port: int) -> int:
            if port:
                return port
            taken = held.enter_context(_bound(settings.host, 0))
            free: int = taken.getsockname()[1]
            return free

        mqtt_port = settings.mqtt_port
        return chosen(settings.client_port), None if mqtt_port is None else chosen(mqtt_port)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As the server does it: a connection that lingers after a restart is no obstacle.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if port:
            # Two sockets may both be bound with the option above; only one of them may listen.
            bound.listen(1)
    except OSError:
        bound.close()
        raise
    return bound


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.transport.abort()
    return True


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # It may have ended, unnoticed as yet.
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_lines(path: Path, offset: int = 0) -> list[str]:
    """The end of what was written beyond the offset; of all, when the file was rotated since."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(offset if offset <= size else 0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-_TAIL_LINES:]
