"""Edge, gateway and headquarters as a person configures them, and what has come of it.

Nothing is asked of a running party: rows are read from the archive by DuckDB, what waits is read
from the spool, and the account comes from the command that a person would use.
"""

import json
import random
import signal
import subprocess  # noqa: TC003 - one import, not two
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from tests.brokers import free_port
from tests.processes import ROOT, holdfast, run

__all__ = [
    "Party",
    "Rows",
    "archived",
    "carry",
    "edge_configuration",
    "files_of",
    "gateway_configuration",
    "headquarters_configuration",
    "held_bytes",
    "in_json",
    "is_settled",
    "lanes_of",
    "pending_of",
    "publish_readings",
    "until",
    "wait_for",
]

_MODEL: Final = ROOT / "simulator" / "models" / "pump-single.onnx"
_READING: Final = {
    "accelerometer_1_rms": 0.0271,
    "accelerometer_2_rms": 0.0401,
    "current": 1.3,
    "pressure": 2.41,
    "temperature": 71.99,
    "thermocouple": 25.49,
    "voltage": 231.01,
    "flow_rate": 32.05,
}
_POLL_SECONDS: Final = 0.05
_WAIT_SECONDS: Final = 90.0

Rows = tuple[int, int]
"""How many rows there are, and how many identities."""


@dataclass
class Party:
    """A command that is started, killed, and started again with the same configuration."""

    name: str
    config: Path
    ready: str
    stack: ExitStack
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0

    @property
    def log(self) -> Path:
        """What the present process says."""
        return self.config.parent / f"{self.name}-{self.starts}.log"

    def start(self) -> None:
        """Starts it, and returns once it says that it is ready."""
        self.starts += 1
        running = holdfast(self.log, self.name, "--config", str(self.config))
        self.process = self.stack.enter_context(running)
        wait_for(self.log, self.ready, self.process)

    def renew(self) -> None:
        """Lets it read its configuration again, and returns once it has begun anew."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)
        wait_for(self.log, self.ready, self.process, 2)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, and waits until it is gone."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


def edge_configuration(folder: Path, broker_port: int, *uplinks: str, extra: str = "") -> Path:
    """An edge that decides on each reading by itself.

    Args:
        folder: for its configuration and its state.
        broker_port: of its local broker.
        uplinks: their URLs; none for an edge without any link.
        extra: further lines for each uplink.
    """
    path = folder / "edge.toml"
    tables = "".join(
        f'[[uplinks]]\nname = "up-{number}"\nurl = "{url}"\nreconnect_seconds_max = 0.5\n{extra}\n'
        for number, url in enumerate(uplinks)
    )
    path.write_text(
        f'[node]\nsite = "test"\nname = "edge-1"\nstate_directory = "{folder}/state"\n'
        f'[broker]\nurl = "mqtt://127.0.0.1:{broker_port}"\n'
        f'[[decisions]]\nname = "pump"\ntopics = ["plant/+/telemetry"]\nqos = 1\n'
        f'model = "{_MODEL}"\n{tables}'
    )
    return path


def gateway_configuration(folder: Path, uplink: str, ways_in: str, name: str = "gw") -> Path:
    """A gateway.

    Args:
        folder: for its configuration and its state.
        uplink: the URL of the next holder.
        ways_in: further lines of ``[gateway]``: how edges come.
        name: what its receipts are signed with.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "gateway.toml"
    path.write_text(
        f'[gateway]\nsite = "test"\nname = "{name}"\nstate_directory = "{folder}/state"\n'
        f"{ways_in}\n"
        f'[[uplinks]]\nname = "hq"\nurl = "{uplink}"\nreconnect_seconds_max = 0.5\n'
    )
    return path


def headquarters_configuration(folder: Path, port: int = 0) -> Path:
    """A headquarters with a server of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / "headquarters.toml"
    path.write_text(
        f'[headquarters]\nname = "hq"\narchive_directory = "{folder}/archive"\nembedded = true\n'
        f"client_port = {port or free_port()}\nlinger_seconds = 0.2\n"
    )
    return path


def publish_readings(folder: Path, broker_port: int, count: int) -> None:
    """Publishes so many readings as a sensor would."""
    table = folder / "readings.csv"
    noise = random.Random(count)
    rows = (
        ",".join(f"{value * noise.uniform(0.999, 1.001):.6g}" for value in _READING.values())
        for _ in range(count)
    )
    table.write_text("\n".join((",".join(_READING), *rows)))
    done = run(
        *("replay", str(table), "--fast", "--as-live"),
        *("--topic", "plant/pump-1/telemetry", "--broker", f"127.0.0.1:{broker_port}"),
    )
    assert done.returncode == 0, done.stderr


def carry(way: str, stick: Path, config: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """``holdfast carry`` as a person runs it; fails unless it ends with ``code``."""
    return in_json("carry", way, str(stick), "--config", str(config), *options, code=code)


def in_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    """What a command says with ``--json``; fails unless it ends with ``code``."""
    done = run(*arguments, "--json", seconds=90)
    assert done.returncode == code, f"{done.returncode}: {done.stderr}\n{done.stdout}"
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def archived(config: Path, lane: str = "") -> Rows:
    """What the archive has of a lane, or of all, as somebody else reads it."""
    files = [str(path) for path in (config.parent / "archive" / "archive").rglob("*.parquet")]
    if not files:
        return 0, 0
    with duckdb.connect() as connection:
        counted = connection.execute(
            "SELECT count(*), count(DISTINCT (site, node, epoch, lane, seq)) FROM read_parquet("
            "$files, union_by_name = true, hive_partitioning = true)"
            " WHERE $lane IN ('', lane)",
            {"files": files, "lane": lane},
        ).fetchone()
    assert counted is not None
    return counted[0], counted[1]


def is_settled(config: Path) -> bool:
    """Whether all that was produced has arrived; each number has to be accounted for anyhow."""
    said = in_json("account", "--config", str(config))
    assert said["unaccounted"] == said["disputed"] == 0, said
    return bool(said["produced"]) and said["produced"] == said["delivered"] + said["explained"]


def lanes_of(config: Path) -> dict[str, dict[str, Any]]:
    """How each lane of an edge's spool stands."""
    lanes: dict[str, dict[str, Any]] = in_json("spool", "status", "--config", str(config))["lanes"]
    return lanes


def pending_of(config: Path) -> dict[str, int]:
    """By lane, how many records of an edge wait for a receipt."""
    return {lane: standing["pending_records"] for lane, standing in lanes_of(config).items()}


def held_bytes(gateway: Path) -> int:
    """What the journals of a gateway's custody occupy."""
    journals = gateway.parent / "state" / "custody" / "journal"
    return sum(path.stat().st_size for path in journals.glob("[0-9]*"))


def files_of(folder: Path) -> dict[str, int]:
    """The files below a folder, and when each was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def until(true: Callable[[], bool], what: str, seconds: float = _WAIT_SECONDS) -> None:
    """Returns once something is so; fails where it never becomes so."""
    deadline = time.monotonic() + seconds  # noqa: TID251 - real processes
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"  # noqa: TID251 - real processes
        time.sleep(_POLL_SECONDS)


def wait_for(log: Path, text: str, process: "subprocess.Popen[bytes]", times: int = 1) -> None:
    """Until the log of a running process says it, so many times."""

    def said() -> bool:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        return log.read_text("utf-8", "replace").count(text) >= times

    until(said, f"{text!r} in {log}")
