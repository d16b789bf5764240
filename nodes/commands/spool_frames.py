"""The frames of a file of a spool: as documents for programs, as lines for people. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from mesh.spool.view.inspection import Inspection
from mesh.spool.view.rates import Moment
from mesh.spool.view.stretch import Stretch
from nodes.commands.amounts import when
from nodes.commands.process import escaped, told
from schemas import wire
from schemas.errors import Refused
from schemas.messages import BatchHeader

__all__ = [
    "inspection_document",
    "inspection_line",
    "record_documents",
    "stretch_document",
    "stretch_line",
]

_MS: Final = 1_000_000
_CHAIN_CHARS: Final = 8


def inspection_document(path: str, inspection: Inspection) -> dict[str, object]:
    """What a file is, before its frames."""
    return {
        "file": path,
        "kind": inspection.kind,
        "bytes": inspection.size,
        "wrong": inspection.wrong,
        "lost": str(inspection.lost) if inspection.lost else "",
        "head": inspection.head,
    }


def inspection_line(path: str, inspection: Inspection) -> str:
    """The same for a person."""
    head, said = inspection.head, ""
    if isinstance(head, BatchHeader):
        said = (
            f", {head}, {head.count} records in {len(head.frames)} frames, {head.codec}, "
            f"{head.raw_bytes} bytes opened, {_span(head)}, chain {_chain(head.chain_before)} to "
            f"{_chain(head.chain_after)}"
        )
    elif head is not None:
        marks = ", ".join(f"{lane} {n.mark.next_seq}" for lane, n in head.lanes.items())
        said = (
            f", number {head.number}, epoch {head.epoch}, store {head.store.hex()[:_CHAIN_CHARS]}, "
            f"begun {told(head.wall_ns)}, next numbers: {marks or 'none'}"
        )
    elif inspection.owner is not None:
        said = f", epoch {inspection.owner.epoch}, by its first frame"
    wrong = f"; WRONG: {inspection.wrong}" if inspection.wrong else ""
    lost = f"; lost: {inspection.lost}" if inspection.lost else ""
    return escaped(f"{path}: {inspection.kind} of {inspection.size:,} bytes{said}{wrong}{lost}")


def _span(head: BatchHeader) -> str:
    trusted = "" if head.clock_trusted else " (clock not trusted)"
    return f"{told(head.first_wall_ns)} to {told(head.last_wall_ns)}{trusted}"


def stretch_document(stretch: Stretch, *, records: bool) -> dict[str, object]:
    """One frame, or bytes that are none."""
    document: dict[str, object] = {
        "offset": stretch.offset,
        "bytes": stretch.end - stretch.offset,
        "kind": _kind(stretch),
        "lane": stretch.lane,
        "first": stretch.first if stretch.count else None,
        "last": stretch.first + stretch.count - 1 if stretch.count else None,
        "count": stretch.count,
        "at": stretch.at and stretch.at.wall_ns // _MS,
        "mono_ns": stretch.at and stretch.at.mono_ns,
        "clock_trusted": stretch.at and stretch.at.trusted,
        "boot": stretch.boot and stretch.boot.hex(),
        "chain_before": stretch.chain_before.hex(),
        "chain_after": stretch.chain_after.hex(),
        "wrong": stretch.wrong,
        "lost": str(stretch.lost) if stretch.lost else "",
        "missing_before": str(stretch.missing) if stretch.missing else "",
        "follows": not stretch.unlinked,
    }
    if stretch.control is not None:
        document["control"] = {
            "kind": type(stretch.control).__name__.lower(),
            "lanes": {str(lane): stop for lane, stop in stretch.control.lanes.items()},
        }
    if records:
        document["records"] = list(record_documents(stretch))
    return document


def stretch_line(stretch: Stretch) -> str:
    """The same for a person."""
    size = stretch.end - stretch.offset
    if stretch.unused:
        return f"{stretch.offset:>10}  {size:>8} bytes  unused"
    if _kind(stretch) == "bytes":
        return f"{stretch.offset:>10}  {size:>8} bytes  WRONG: {escaped(stretch.wrong)}"
    if stretch.lane is None:
        lanes = stretch.control.lanes if stretch.control else {}
        what = type(stretch.control).__name__.lower() if stretch.control else "control"
        said = f"{what:<10} " + ", ".join(f"{lane} {stop}" for lane, stop in lanes.items())
    else:
        said = (
            f"{stretch.lane:<10} {stretch.first}-{stretch.first + stretch.count - 1} "
            f"({stretch.count})  chain {_chain(stretch.chain_before)} to "
            f"{_chain(stretch.chain_after)}"
        )
    at = boot = ""
    if stretch.at is not None:
        at = "  " + when(Moment(stretch.at.wall_ns, stretch.at.trusted))
    if stretch.boot is not None:
        boot = f"  boot {_chain(stretch.boot)}"
    notes = ""
    if stretch.missing:
        notes += f"  (before it {stretch.missing} are missing here)"
    if stretch.unlinked:
        notes += "  (does not go on from the chain of the frame before it)"
    if stretch.wrong:
        notes += f"  WRONG: {escaped(stretch.wrong)}"
        notes += f"; lost: {stretch.lost}" if stretch.lost else ""
    return f"{stretch.offset:>10}  {size:>8} bytes  {said}{at}{boot}{notes or '  verifies'}"


def record_documents(stretch: Stretch) -> Iterator[Mapping[str, object]]:
    """The records of a frame, decoded; what cannot be, with what is wrong with it."""
    try:
        records = stretch.records()
    except Refused as refused:
        yield {"seq": stretch.first, "wrong": str(refused)}
        return
    for number, data in enumerate(records, stretch.first):
        yield _record(number, data)


def _kind(stretch: Stretch) -> str:
    if stretch.unused:
        return "unused"
    if stretch.lane is not None:
        return "frame"
    return "control" if stretch.boot is not None else "bytes"


def _record(number: int, data: bytes) -> Mapping[str, object]:
    try:
        message = wire.decode(data)
    except Refused as refused:
        return {"seq": number, "wrong": str(refused)}
    return {"seq": number, "kind": type(message).__name__.lower(), "record": message}


def _chain(digest: bytes) -> str:
    return digest.hex()[:_CHAIN_CHARS]
