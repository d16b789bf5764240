"""The status of a spool: as a document for programs, as a table and lines for people. Pure."""

from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mesh.spool.lane import LaneSettings
from mesh.spool.view.outlook import LaneLife, LaneOutlook, Outlook
from nodes.commands.amounts import (
    lasting,
    moment_document,
    numbers_document,
    size,
    some,
    when,
)
from nodes.commands.owner import Owner
from nodes.commands.process import escaped
from nodes.commands.reported import Report
from nodes.health import lane_settings_document
from schemas.stored import StoreIdentity

__all__ = ["status_document", "status_lines", "status_table"]

_HOURS_IN_DAY: Final = 24
_HOUR_SECONDS: Final = 3600


def status_document(
    directory: str,
    identity: StoreIdentity,
    outlook: Outlook,
    owner: Owner,
    report: Report,
    free_bytes: int,
) -> dict[str, object]:
    """How a spool stands, in what JSON can say. Times in ms, ranges as ``"3-7, 9"``."""
    return {
        "directory": directory,
        "store": identity.store.hex(),
        "site": identity.site,
        "node": identity.node,
        "epoch": str(identity.epoch),
        "parent": None if identity.parent is None else str(identity.parent),
        "epochs": {str(epoch): {"pending_records": n} for epoch, n in outlook.epochs.items()},
        "owner": {"known": owner.known, "pid": owner.pid},
        "degraded": None if report.silent else report.degraded,
        "degraded_unknown_because": report.silent,
        "degraded_at": report.at_ms if not report.silent else None,
        "used_bytes": outlook.used_bytes,
        "retained_bytes": outlook.retained_bytes,
        "bytes_max": outlook.bytes_max,
        "free_bytes": free_bytes,
        "hours_left": outlook.hours_left,
        "newest": moment_document(outlook.newest),
        "goes_first": [
            {
                "lane": item.lane,
                "epoch": str(item.epoch),
                "numbers": str(item.numbers),
                "bytes": item.bytes,
            }
            for item in outlook.goes_first
        ],
        "first_to_go": list(outlook.first_to_go),
        "lanes": {str(lane): _lane_document(state, owner) for lane, state in outlook.lanes.items()},
    }


def _lane_document(state: LaneOutlook, owner: Owner) -> dict[str, object]:
    rate = state.rate
    return {
        **_life_document(state.present, owner),
        "pending_records": state.records,
        "pending_bytes": state.bytes,
        "oldest": moment_document(state.oldest),
        "rate": rate
        and {
            "records_per_second": rate.records_per_second,
            "bytes_per_second": rate.bytes_per_second,
            "rest_bytes_per_second": rate.rest_bytes_per_second,
            "span_seconds": rate.span_seconds,
        },
        "hours_left": state.hours_left,
        **lane_settings_document(state.settings),
        "refuses": state.refuses,
        "past": {str(epoch): _life_document(life, owner) for epoch, life in state.past.items()},
    }


def _life_document(life: LaneLife, owner: Owner) -> dict[str, object]:
    return {
        "end": life.end,
        "pending_records": life.records,
        "pending_bytes": life.bytes,
        "losses": {why: numbers_document(numbers) for why, numbers in life.stated.items()},
        # While a node runs, what it has reserved is in use and no loss.
        "losses_at_next_opening": {
            why: numbers_document(numbers)
            for why, numbers in life.unstated.items()
            if owner.known and owner.pid is None
        },
        "released": numbers_document(life.released),
        "retained": numbers_document(life.retained),
        "holders": dict(life.holders),
    }


def status_table(outlook: Outlook) -> Table:
    """One row for each lane, most urgent first."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("lane")
    for name in ("records", "bytes", "quota", "oldest", "records/s", "bytes/s", "hours left"):
        table.add_column(name, justify="right")
    aged = any(state.settings.age_seconds_max is not None for state in outlook.lanes.values())
    for name in ("durable", *(["kept for"] if aged else []), "when full", "losses"):
        table.add_column(name)
    for lane, state in outlook.lanes.items():
        rate, settings = state.rate, state.settings
        table.add_row(
            lane,
            f"{state.records:,}",
            size(state.bytes),
            "all" if settings.bytes_max is None else size(settings.bytes_max),
            when(state.oldest),
            "" if rate is None else f"{rate.records_per_second:,.1f}",
            "" if rate is None else size(rate.bytes_per_second),
            lasting(state.hours_left),
            _durability(settings),
            *([_age(settings)] if aged else []),
            str(settings.when_full) if settings.enabled else "off",
            ", ".join(f"{escaped(why)} {count:,}" for why, count in state.losses.items()) or "-",
        )
    return table


def status_lines(
    directory: str,
    identity: StoreIdentity,
    outlook: Outlook,
    owner: Owner,
    report: Report,
    free_bytes: int,
) -> Iterator[str]:
    """What is said beside the table."""
    yield (
        f"{escaped(directory)}: spool of {identity.site or '?'}/{identity.node or '?'}, epoch "
        f"{identity.epoch}, "
        f"{owner}"
    )
    yield f"degraded: {escaped(str(report))}"
    quota = "no quota known (give --config)"
    if outlook.bytes_max is not None:
        quota = f"of {size(outlook.bytes_max)}"
    yield f"{size(outlook.used_bytes)} used {quota}; {size(free_bytes)} free on the disk"
    if outlook.retained_bytes:
        yield (
            f"{size(outlook.retained_bytes)} of what was released stay while there is space: not "
            "counted as used, the first to go, and offered again where a holder loses them"
        )
    past = {str(epoch): n for epoch, n in outlook.epochs.items() if n and epoch != identity.epoch}
    if past:
        yield "pending of lives that are over: " + ", ".join(
            f"{count:,} records of epoch {epoch}" for epoch, count in past.items()
        )
    for lane, state in outlook.lanes.items():
        if state.refuses:
            yield f"{lane} takes nothing: {state.refuses}"
    spans = [state.rate.span_seconds for state in outlook.lanes.values() if state.rate]
    if spans:
        newest = when(outlook.newest)
        yield (
            f"rates over {_between(min(spans), max(spans))} s up to {newest}; "
            "hours left: until a lane gives up its oldest, or refuses, all less urgent ones first"
        )
    else:
        yield "rates: not known, too little was appended since the last start"
    if outlook.goes_first:
        yield "when full, first goes: " + "; then ".join(
            f"{item.lane} {some(item.numbers)} ({size(item.bytes)})"
            + ("" if item.epoch == identity.epoch else f" of epoch {item.epoch}")
            for item in outlook.goes_first
        )
    else:
        yield "when full, nothing that is sealed may be given up"
    if owner.known and owner.pid is None:
        for lane, state in outlook.lanes.items():
            for why, numbers in state.present.unstated.items():
                yield f"at the next opening {lane} states as {why}: {some(numbers)}"


def _between(low: float, high: float) -> str:
    texts = dict.fromkeys((f"{low:,.1f}", f"{high:,.1f}"))
    return " to ".join(texts)


def _durability(settings: LaneSettings) -> str:
    if not settings.linger_seconds:
        return "at once"
    return f"awaited, or in {settings.linger_seconds:g} s"


def _age(settings: LaneSettings) -> str:
    if settings.age_seconds_max is None:
        return "-"
    hours = settings.age_seconds_max / _HOUR_SECONDS
    return f"{hours:,.0f} h" if hours < _HOURS_IN_DAY else f"{hours / _HOURS_IN_DAY:,.0f} days"
