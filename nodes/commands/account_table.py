"""The account as a table and lines for people: of many lanes those first that need a look. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nodes.commands.account_lines import LaneAccount
from nodes.commands.amounts import some
from nodes.commands.process import escaped, told

__all__ = ["account_lines", "account_table"]

_ROWS_MAX: Final = 200
_LINES_MAX: Final = 50


def account_table(accounts: Sequence[LaneAccount]) -> Table:
    """One row for each lane of each life; of very many those first of which something is open."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("node", "epoch", "lane"):
        table.add_column(name, overflow="fold")
    for name in ("produced", "delivered", "pending", "explained", "unaccounted", "oldest"):
        table.add_column(name, justify="right")
    table.add_column("last seen")
    for account in _shown(accounts):
        ledger, line = account.ledger, account.line
        table.add_row(
            escaped(f"{ledger.site}/{ledger.node}"),
            f"{ledger.epoch.counter}" + ("" if account.present else " (over)"),
            str(ledger.lane),
            f"{line.produced:,}",
            f"{line.delivered:,}",
            f"{account.pending_records:,}",
            f"{sum(line.explained.values()):,}",
            f"{len(account.unaccounted):,}",
            "-" if account.oldest is None else f"{account.oldest:,}",
            told(ledger.seen_wall_ns) if ledger.seen_wall_ns else "-",
        )
    return table


def account_lines(accounts: Sequence[LaneAccount]) -> Iterator[str]:
    """What the table does not say: who has what is pending, and why the rest will not arrive."""
    lines = [line for account in _shown(accounts) for line in _lines(account)]
    yield from lines[:_LINES_MAX]
    if len(lines) > _LINES_MAX:
        yield f"and {len(lines) - _LINES_MAX} more of the kind: --json tells all of them"
    left = len(accounts) - min(len(accounts), _ROWS_MAX)
    if left:
        yield f"{left:,} lanes more: name a SITE/NODE, or see --json"
    nodes = {(account.ledger.site, account.ledger.node) for account in accounts}
    lives = {
        (account.ledger.site, account.ledger.node, account.ledger.epoch) for account in accounts
    }
    yield (
        f"{len(nodes):,} nodes in {len(lives):,} lives: "
        f"{sum(account.line.produced for account in accounts):,} produced, "
        f"{sum(account.line.delivered for account in accounts):,} delivered, "
        f"{sum(account.pending_records for account in accounts):,} pending, "
        f"{sum(sum(account.line.explained.values()) for account in accounts):,} explained, "
        f"{sum(len(account.unaccounted) for account in accounts):,} unaccounted; "
        f"{sum(account.line.duplicates for account in accounts):,} came again and were taken once"
    )


def _lines(account: LaneAccount) -> Iterator[str]:
    ledger = account.ledger
    where = f"{ledger.site}/{ledger.node} epoch {ledger.epoch.counter} {ledger.lane}"
    if account.unaccounted:
        yield f"{where}: UNACCOUNTED {some(account.unaccounted)}: taken here once, and not held"
    if ledger.disputed:
        yield f"{where}: ALARM: other records were offered under {some(ledger.disputed)}"
    for name, numbers in account.pending.items():
        origin = name == f"{ledger.site}/{ledger.node}"
        heard_ns = ledger.seen_wall_ns if origin else ledger.stated_wall_ns
        heard = told(heard_ns) if heard_ns else "never"
        whom = "the node itself" if origin else name
        yield f"{where}: {some(numbers)} pending with {whom}, last heard of {heard}"
    for why, count in account.line.explained.items():
        yield f"{where}: {count:,} will not arrive: {why}"


def _shown(accounts: Sequence[LaneAccount]) -> Sequence[LaneAccount]:
    if len(accounts) <= _ROWS_MAX:
        return accounts
    return sorted(accounts, key=_urgency)[:_ROWS_MAX]


def _urgency(account: LaneAccount) -> tuple[bool, bool, int]:
    """What is lost or disputed first, then what waits most."""
    return not account.unaccounted, not account.ledger.disputed, -account.pending_records
