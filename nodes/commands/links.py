"""``holdfast links``: how each uplink stands, what is left of its budget, why the rest waits.

Reads what the running node writes into its state directory, so it works without the network, the
local broker, and the right to write.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mesh.adapters.system import SystemClock, SystemDisk
from mesh.spool.view.onlooker import ReadOnlyDisk
from nodes import config
from nodes.commands.amounts import size
from nodes.commands.process import escaped, fail
from nodes.links_file import read_links
from nodes.settings import Settings
from schemas.errors import ConfigurationInvalid, MeshError, RetryLater

__all__ = ["links", "links_lines", "links_table", "silence"]

_MS: Final = 1_000_000
_SILENT_INTERVALS: Final = 2
_MINUTE: Final = 60
_HOUR: Final = 3600
_SHOWN_SECONDS: Final = 120
_SHOWN_MINUTES: Final = 120
_PIPED_WIDTH: Final = 160


def links(
    file: Annotated[Path, typer.Option("--config", "-c", help="configuration file (TOML)")],
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Shows each uplink: its state, budget left, what it is sending and why the rest waits."""
    try:
        folder = _state_directory(config.load(file))
        report = read_links(ReadOnlyDisk(SystemDisk(folder)))
        problem = silence(report, SystemClock().now().wall_ns // _MS, str(folder))
        if report is not None:
            _show(report, as_json=json)
        if problem:
            raise RetryLater(problem)
    except MeshError as error:
        fail(error)


def _state_directory(settings: Settings) -> Path:
    party = settings.node or settings.gateway
    if party is None:
        problem = "[node] is missing, and [gateway] too: it says whose links are meant"
        raise ConfigurationInvalid((problem,))
    return party.state_directory


def silence(report: Mapping[str, Any] | None, now_ms: int, folder: str) -> str:
    """Why a report is not the newest word of a running node; empty where it is.

    Args:
        report: the document; ``None`` where there is none.
        now_ms: the time, UTC.
        folder: where it was looked for.
    """
    if report is None:
        return f"{folder}: no report of links: no node with uplinks has run here"
    at_ms, interval = report.get("at"), report.get("interval_seconds")
    if not isinstance(at_ms, int) or not isinstance(interval, int | float):
        return f"{folder}: the report of the links is not readable"
    silent_seconds = (now_ms - at_ms) / 1000
    if report.get("running") is False:
        return f"the node has ended, {_span(silent_seconds)} ago"
    if silent_seconds <= _SILENT_INTERVALS * interval:
        return ""
    return f"the node has said nothing for {_span(silent_seconds)}: is it running?"


def _show(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    try:
        console.print(links_table(report))
        for line in links_lines(report):
            console.print(escaped(line), highlight=False, markup=False)
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise RetryLater(f"the report of the links is not readable: {wrong!r}") from wrong


def links_table(report: Mapping[str, Any]) -> Table:
    """One row for each link, the preferred one first."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("link")
    table.add_column("state")
    for name in ("sent", "bytes/s", "at most", "today", "left today"):
        table.add_column(name, justify="right")
    table.add_column("carries")
    for link in report["links"]:
        table.add_row(
            escaped(link["name"]),
            escaped(_state(link)),
            size(link["sent_bytes"]),
            _size(link["bytes_per_second"], "?"),
            _size(link["bytes_per_second_max"], "-"),
            size(link["bytes_today"]),
            _size(link["bytes_left_today"], "-"),
            escaped(", ".join(link["carries"]) or "-"),
        )
    return table


def links_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What each link is sending, and why the rest waits there."""
    for link in report["links"]:
        name, more = link["name"], link["sending_batches"] - len(link["sending"])
        if link["sending"]:
            batches = "; ".join(link["sending"]) + (f"; and {more} more" if more else "")
            yield f"{name} sends {batches}"
        reasons: dict[str, list[str]] = {}
        for lane, why in link["waits"].items():
            reasons.setdefault(why, []).append(lane)
        for why, lanes in reasons.items():
            yield f"{name}: {', '.join(lanes)} waiting: {why}"
        if not link["sending"] and not reasons:
            yield f"{name}: nothing waits"


def _state(link: Mapping[str, Any]) -> str:
    since = f"for {_span(link['since_seconds'])}"
    if not link["up"]:
        return f"down {since}: {link['reason']}"
    opens = link["opens_in_seconds"]
    if opens is None:
        return f"up {since}, never in its windows"
    if opens:
        return f"up {since}, opens in {_span(opens)}"
    if link["held_seconds"]:
        return f"up {since}, on trial for {_span(link['held_seconds'])}"
    return f"up {since}"


def _size(count: float | None, unknown: str) -> str:
    return unknown if count is None else size(count)


def _span(seconds: float) -> str:
    """A length of time, in a unit that suits it."""
    if seconds < _SHOWN_SECONDS:
        return f"{seconds:.0f} s"
    if seconds < _SHOWN_MINUTES * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.0f} h"
