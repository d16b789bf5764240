"""The demonstration's screen: what happens now, and at the end the account.

Made of rich; tells, decides nothing.
"""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.messages import Lane
from simulator.demo.audit import LaneAccount, total
from simulator.demo.outcome import Outcome
from simulator.demo.run import Progress

__all__ = ["account", "live", "verdict"]


def live(now: Progress, seconds: float) -> RenderableType:
    """One frame of the live screen.

    Args:
        now: what happens.
        seconds: how long the plant runs.
    """
    standing = now.standing
    link = (
        Text(" link up ", "bold white on green") if now.up else Text(" CUT ", "bold white on red")
    )
    head = Text.assemble(f"{now.elapsed:5.1f} s of {seconds:.0f} s  ", link, f"  {now.note}")
    p50, p99 = standing.get("p50"), standing.get("p99")
    latency = "…" if p50 is None else f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    figures = Text(
        f"{standing.get('readings', 0):,} readings, {standing.get('decided', 0):,} decisions,"
        f" {standing.get('per_second', 0):,.0f} a second, latency {latency}\n"
        f"last verdict {standing.get('verdict') or '…'};"
        f" the actuator complained {standing.get('complaints', 0):,} times\n"
    )
    return Panel(Group(head, figures, _backlog(standing)), title="holdfast demo", expand=False)


def _backlog(standing: Mapping[str, Any]) -> RenderableType:
    """What the edge says of its lanes, beside what receipts and crossings say from outside.

    A number is unaccounted for here while the edge says that it is neither pending nor explained,
    and no receipt was seen.
    """
    table = Table(box=None, pad_edge=False)
    headings = ("lane", "produced", "backlog", "on disk", "delivered", "duplicates", "unaccounted")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "lane" else "right")
    spool = standing.get("health", {}).get("spool", {})
    for lane, status in spool.get("lanes", {}).items():
        if not status["next_seq"]:
            continue
        key = f"{spool['epoch']}/{lane}"
        delivered = standing["delivered"].get(key, 0)
        explained = sum(status["explained"].values())
        backlog = status["pending_records"] + status["waiting_records"]
        table.add_row(
            lane,
            f"{status['next_seq']:,}",
            f"{backlog:,}",
            f"{status['pending_bytes'] / 1024:,.0f} KiB",
            f"{delivered:,}",
            f"{standing['duplicates'].get(key, 0):,}",
            f"{max(0, status['next_seq'] - backlog - explained - delivered):,}",
        )
    hours = spool.get("hours_left")
    told = "…" if hours is None else f"{hours:,.0f} hours at this rate"
    return Group(table, Text(f"the spool lasts {told}", "dim"))


def account(lanes: Mapping[Lane, LaneAccount]) -> Table:
    """The account by lane, with its sum; 80 columns wide at most."""
    table = Table(
        title="The account, computed from outside",
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("lane", no_wrap=True)
    for heading in ("produced", "delivered", "pending", "explained", "duplicates", "unaccounted"):
        table.add_column(heading, justify="right", no_wrap=heading != "explained")
    rows = [(str(lane), line) for lane, line in lanes.items() if line != LaneAccount()]
    for index, (name, line) in enumerate([*rows, ("all", total([line for _, line in rows]))]):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in line.explained.items())
        table.add_row(
            name,
            f"{line.produced:,}",
            f"{line.delivered:,}",
            f"{line.pending:,}",
            reasons or "0",
            f"{line.duplicates:,}",
            f"{line.unaccounted:,}",
            end_section=index == len(rows) - 1,
        )
    return table


def verdict(console: Console, outcome: Outcome, lanes: Mapping[Lane, LaneAccount]) -> None:
    """The end of a run: the account, then the figures, then whether all is well."""
    console.print(account(lanes))
    console.print(
        f"Duplicates crossed again and were taken once; {outcome.archived_twice:,} identities have"
        " more than one row."
    )
    console.print(
        f"{outcome.readings:,} readings: {outcome.decided:,} decisions"
        f" ({outcome.decided_during_outage:,} while the network was cut),"
        f" {outcome.refused:,} refused, {outcome.waiting:,} waiting in a window,"
        f" {outcome.not_received:,} not received."
    )
    console.print(
        f"Latency p50 {outcome.decision_ms_p50:.2f} ms, p99 {outcome.decision_ms_p99:.2f} ms;"
        f" in each second of the outage {outcome.outage_rate_min:.1%} to"
        f" {outcome.outage_rate_max:.1%} of the readings were decided;"
        f" drained in {outcome.drain_seconds:.1f} s;"
        f" the edge held {outcome.edge_rss_mb:.0f} MiB at most."
    )
    unseen = sum(line.unseen for line in lanes.values())
    if unseen:
        console.print(
            f"A crash voided reserved numbers: {unseen:,} of them were never heard of, and count as"
            " nothing."
        )
    for failure in outcome.failures:
        console.print(f"[bold red]not as it must be:[/] {failure}")
    if not outcome.failures:
        console.print("[bold green]Every identity is accounted for.[/]")
