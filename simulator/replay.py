"""``holdfast replay FILE.csv``: any table as sensors.

Each row becomes one JSON reading: the mapped columns as numbers, ``t`` (UTC milliseconds, from the
time column where there is one), ``n`` (the row, from 0) and ``replay``, true unless ``--as-live``.
Cells that are empty are left out, cells that are no number are sent as text: it is the edge that
refuses them, as it would refuse a sensor's.
"""

import asyncio
import csv
import math
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer

from schemas.errors import LinkDown, MeshError, Refused
from schemas.topics import check_topic

if TYPE_CHECKING:
    from mesh.adapters.mqtt.broker import MqttBroker

__all__ = ["Row", "Table", "replay"]

_DELIMITERS: Final = ",;\t|"
_TIME_NAMES: Final = frozenset({"time", "datetime", "timestamp", "date"})
_GROUP_ROWS: Final = 256
_CONNECT_SECONDS: Final = 15.0
_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Args:
        number: from 0.
        at_ms: UTC milliseconds, where the table tells.
        fields: cells by field name.
    """

    number: int
    at_ms: int | None
    fields: dict[str, float | str]


class Table:
    """A CSV file as readings.

    Args:
        path: the file; its first line names the columns.
        delimiter: between cells; empty for the most frequent of comma, semicolon, tab and bar.
        time: name of the time column (ISO 8601, UTC where it says no zone); empty for one that is
            called time, datetime, timestamp or date, where there is one.
        ignore: columns that are no sensors.
        rename: field names by column names.

    Raises:
        ValueError: a column that is named here is not in the file.
        OSError: the file cannot be read.
    """

    def __init__(
        self, path: Path, delimiter: str, time: str, ignore: set[str], rename: dict[str, str]
    ) -> None:
        self._path = path
        self._rename = rename
        if len(delimiter) > 1:
            raise ValueError(f"the delimiter {delimiter!r} must be one character")
        if not path.is_file():
            raise ValueError("is no file that can be read twice")
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
        self._delimiter = delimiter or max(_DELIMITERS, key=head.count)
        names = next(csv.reader([head], delimiter=self._delimiter), [])
        times = [name for name in names if name.lower() in _TIME_NAMES]
        self._time = time or next(iter(times), "")
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            what = (
                f"columns of the same name: {', '.join(twice)}" if twice else "an empty first line"
            )
            raise ValueError(f"{what}; the first line must name the columns")
        missing = sorted(({time} - {""} | ignore | set(rename)) - set(names))
        if missing:
            raise ValueError(
                f"it has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}"
                " (is the delimiter right?)"
            )
        self._columns = [name for name in names if name not in ignore | {self._time}]

    def rows(self) -> Iterator[Row]:
        """The rows in their order."""
        with self._path.open(newline="", encoding="utf-8-sig") as file:
            for number, cells in enumerate(csv.DictReader(file, delimiter=self._delimiter)):
                fields = {
                    self._rename.get(name, name): _cell(cells[name])
                    for name in self._columns
                    if cells[name]
                }
                at_ms = _milliseconds(cells[self._time], number) if self._time else None
                yield Row(number, at_ms, fields)

    def payload(self, row: Row, now_ms: int, *, as_live: bool) -> bytes:
        """The reading that a row becomes."""
        return orjson.dumps(
            {
                **row.fields,
                "t": now_ms if as_live or row.at_ms is None else row.at_ms,
                "n": row.number,
                **({} if as_live else {"replay": True}),
            }
        )


def _cell(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text  # JSON has no other number


def _milliseconds(text: str, number: int) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise ValueError(f"row {number}: {text!r} is no time in ISO 8601") from wrong
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * _MS)


async def _paced(
    rows: Iterator[Row], rate: float | None, *, fast: bool
) -> AsyncIterator[list[Row]]:
    """Rows in groups, each when it is due.

    At once, at a rate, or as far apart as their times are.
    """
    loop = asyncio.get_running_loop()
    if fast:
        group: list[Row] = []
        for row in rows:
            group.append(row)
            if len(group) == _GROUP_ROWS:
                yield group
                group = []
        if group:
            yield group
        return
    started = loop.time()
    first_ms: int | None = None
    for row in rows:
        if rate is not None or row.at_ms is None:
            due = row.number / (rate or 1.0)
        else:
            first_ms = row.at_ms if first_ms is None else first_ms
            due = (row.at_ms - first_ms) / _MS
        await asyncio.sleep(max(0.0, started + due - loop.time()))
        yield [row]


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    wrong = [column for column, equals, field in pairs if not (column and equals and field)]
    if wrong:
        raise typer.BadParameter("--map is COLUMN=FIELD")
    return {column: field for column, _, field in pairs}


def replay(
    file: Annotated[Path, typer.Argument(help="a CSV file whose first line names the columns")],
    topic: Annotated[str, typer.Option(help="where to publish")] = "plant/replay/telemetry",
    broker: Annotated[str, typer.Option(help="host:port of the local broker")] = "127.0.0.1:1883",
    delimiter: Annotated[str, typer.Option(help="between cells; found out by default")] = "",
    time: Annotated[str, typer.Option(help="the column with the time; found by its name")] = "",
    ignore: Annotated[str, typer.Option(help="columns that are no sensors, comma-separated")] = "",
    rename: Annotated[
        list[str] | None, typer.Option("--map", help="COLUMN=FIELD; may be given many times")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="rows a second", min=0.001)] = None,
    fast: Annotated[
        bool, typer.Option("--fast/--realtime", help="as fast as the broker takes them, or paced")
    ] = False,
    as_live: Annotated[
        bool, typer.Option("--as-live", help="with the present time, not marked as replayed")
    ] = False,
) -> None:
    """Publishes the rows of a table as a sensor would, at QoS 1.

    Paced by --rate, else by the time column, else one row a second; or as fast as the broker takes
    them.
    """
    from nodes.commands.process import fail  # noqa: PLC0415 - only when it runs

    try:
        check_topic(topic)
        columns = {name for name in ignore.split(",") if name}
        table = Table(file, delimiter, time, columns, _pairs(rename or []))
        count = asyncio.run(_publish(table, topic, broker, rate, fast=fast, as_live=as_live))
    except (ValueError, OSError, Refused, csv.Error) as wrong:
        raise typer.BadParameter(f"{file}: {wrong}") from wrong
    except MeshError as error:
        fail(error)
    typer.echo(f"{count} rows of {file} published on {topic}")


async def _publish(
    table: Table, topic: str, broker: str, rate: float | None, *, fast: bool, as_live: bool
) -> int:
    from mesh.adapters.mqtt.broker import MqttBroker  # noqa: PLC0415 - only when it runs
    from mesh.adapters.mqtt.settings import MqttSettings  # noqa: PLC0415
    from mesh.adapters.system import SystemClock, entropy  # noqa: PLC0415
    from mesh.ports import Publication  # noqa: PLC0415

    clock = SystemClock()
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    host, _, port = broker.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"--broker {broker!r} is not host:port")
    client_id = f"holdfast-replay-{entropy(4).hex()}"
    settings = MqttSettings(host, int(port), client_id, session_seconds=0)
    count = 0
    async with MqttBroker(settings, clock, rng) as client:
        await _connected(client)
        async for group in _paced(table.rows(), rate, fast=fast):
            now_ms = clock.now().wall_ns // 1_000_000
            await client.publish(
                [
                    Publication(topic, table.payload(row, now_ms, as_live=as_live), qos=1)
                    for row in group
                ]
            )
            count += len(group)
    return count


async def _connected(client: "MqttBroker") -> None:
    """Waits for the broker.

    Raises:
        LinkDown: it cannot be reached in time.
    """
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            state = client.state
            while not state.connected:
                state = await client.wait_changed(state)
    except TimeoutError:
        raise LinkDown(f"no broker: {client.state.reason}") from None
