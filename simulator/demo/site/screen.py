"""The screen of the site's demonstration: what happens now, and at the end the account.

Made of rich; tells, decides nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.messages import Lane
from simulator.demo.audit import LaneAccount
from simulator.demo.screen import account
from simulator.demo.site.configurations import EDGES
from simulator.demo.site.outcome import SiteOutcome
from simulator.demo.site.stage import SiteProgress

__all__ = ["live", "verdict"]

_HAPPENED_MAX: Final = 8


def live(now: SiteProgress, seconds: float) -> RenderableType:
    """One frame of the live screen.

    Args:
        now: what happens.
        seconds: how long the plant runs.
    """
    standing = now.standing
    link = Text(" WAN up ", "bold white on green") if now.up else Text(" CUT ", "bold white on red")
    head = Text.assemble(f"{now.elapsed:5.1f} s of {seconds:.0f} s  ", link, f"  {now.note}\n")
    flow = Text(
        f"\nat the gateway {standing.get('at_gateway', 0):,} records;"
        f" at headquarters {standing.get('archived', 0):,}\n"
    )
    happened = [Text(f"{each.at:5.1f} s  {each.what}") for each in now.happened[-_HAPPENED_MAX:]]
    body = Group(head, _parties(now.parties), _edges(standing), flow, *happened)
    return Panel(body, title="holdfast demo --topology site", expand=False)


def _parties(parties: Mapping[str, bool]) -> Text:
    """Who is there."""
    words = [
        (f" {name} ", "white on green" if there else "bold white on red")
        for name, there in parties.items()
    ]
    return Text(" ").join(Text(*word) for word in words).append("\n")


def _edges(standing: Mapping[str, Any]) -> Table:
    """What each edge says of itself, and what was heard of it."""
    table = Table(box=None, pad_edge=False)
    for heading in ("edge", "decisions", "backlog", "on disk", "uplink"):
        table.add_column(heading, justify="left" if heading == "edge" else "right")
    for name in EDGES:
        node = standing.get("nodes", {}).get(name)
        if not node or not node["health"]:
            table.add_row(name, "…", "…", "…", "…")
            continue
        lanes = node["health"]["spool"]["lanes"].values()
        backlog = sum(lane["pending_records"] + lane["waiting_records"] for lane in lanes)
        kept = sum(lane["pending_bytes"] for lane in lanes) / 1024
        is_up = all(link["up"] for link in node["health"]["links"])
        table.add_row(
            name,
            f"{node['decided']:,}",
            f"{backlog:,}",
            f"{kept:,.0f} KiB",
            "up" if is_up else "down",
        )
    return table


def verdict(console: Console, outcome: SiteOutcome, lanes: Mapping[Lane, LaneAccount]) -> None:
    """The end of a run: what was done, the account, each edge, and whether all is well."""
    for each in outcome.happened:
        console.print(f"{each.at:6.2f} s  {each.what}", highlight=False)
    console.print(account(lanes))
    console.print(
        "Duplicates crossed into headquarters again and were taken once;"
        f" {outcome.archived_twice:,} identities have more than one row."
    )
    for name, edge in outcome.edges.items():
        console.print(
            f"{name}: {edge.readings:,} readings, {edge.decided:,} decisions"
            f" ({edge.decided_during_outage:,} while the WAN was cut, in each second of it"
            f" {edge.outage_rate_min:.1%} at least); latency p50 {edge.decision_ms_p50:.2f} ms,"
            f" p99 {edge.decision_ms_p99:.2f} ms."
        )
    console.print(f"Drained in {outcome.drain_seconds:.1f} s.")
    for failure in outcome.failures:
        console.print(f"[bold red]not as it must be:[/] {failure}")
    if not outcome.failures:
        console.print("[bold green]Every identity is accounted for.[/]")
