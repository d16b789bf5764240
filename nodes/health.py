"""What a node says of its health: assembled from what its parts say. Pure.

One document for people and programs, retained on ``mesh/v1/<site>/<node>/health/node``, and the
same numbers as metric points, named as Prometheus names them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mesh.ports import BrokerState, LinkState
from mesh.spool.lane import LaneSettings
from mesh.spool.spool import SpoolStatus
from mesh.spool.view.forecast import refusal
from schemas.messages import Explained, Instant, Lane

__all__ = [
    "EdgeVitals",
    "Point",
    "edge_document",
    "edge_points",
    "lane_settings_document",
    "percentile_ns",
]

Point = tuple[str, float, Mapping[str, str]]
"""Name, value, labels of a metric."""

_NS: float = 1e-9
_NO_LABELS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class EdgeVitals:
    """What the parts of an edge say at one moment.

    Args:
        now: that moment.
        since: when the node started.
        session: this run of the node.
        spool: how its spool stands.
        broker: how its broker stands.
        links: how each link stands.
        readings: the account of readings, as plain values.
        sources: how many topics are read.
        decisions: made since the start.
        fallbacks: of these, by reason.
        unpublished: decisions that the broker did not take.
        unrecorded: decisions that the spool did not take.
        readings_unrecorded: readings likewise.
        dropped: events, log lines and metric points that were not recorded, by lane.
        latencies_ns: sorted; received to published, of decisions since the last document.
        resident_bytes: memory of the process; ``None`` where nobody knows.
        draining: whether the node is about to end.
    """

    now: Instant
    since: Instant
    session: str
    spool: SpoolStatus
    broker: BrokerState
    links: Sequence[LinkState]
    readings: Mapping[str, object]
    sources: int
    decisions: int
    fallbacks: Mapping[str, int]
    unpublished: int
    unrecorded: int
    readings_unrecorded: int = 0
    dropped: Mapping[Lane, int] = field(default_factory=dict)
    latencies_ns: Sequence[int] = ()
    resident_bytes: int | None = None
    draining: bool = False


def percentile_ns(latencies_ns: Sequence[int], share: float) -> int | None:
    """The value below which a share of sorted latencies lies; ``None`` when there are none."""
    if not latencies_ns:
        return None
    return latencies_ns[min(len(latencies_ns) - 1, int(share * len(latencies_ns)))]


def edge_document(vitals: EdgeVitals) -> dict[str, object]:
    """The document, in what JSON can say. Times in ms, lengths of time in seconds."""
    spool = vitals.spool
    return {
        "session": vitals.session,
        "at": vitals.now.wall_ns // 1_000_000,
        "clock_trusted": vitals.now.trusted,
        "up_seconds": round((vitals.now.mono_ns - vitals.since.mono_ns) * _NS, 3),
        "status": _status(vitals),
        "draining": vitals.draining,
        "broker": {
            "connected": vitals.broker.connected,
            "reason": vitals.broker.reason,
            "protocol": vitals.broker.protocol,
            "connections": vitals.broker.connections,
            "shed": vitals.broker.shed,
            "refused": vitals.broker.refused,
            "refused_filters": sorted(vitals.broker.refused_filters),
        },
        "readings": {**vitals.readings, "sources": vitals.sources},
        "decisions": {
            "total": vitals.decisions,
            "fallbacks": dict(vitals.fallbacks),
            "unpublished": vitals.unpublished,
            "unrecorded": vitals.unrecorded,
            "latency_p50_seconds": _seconds(percentile_ns(vitals.latencies_ns, 0.5)),
            "latency_p99_seconds": _seconds(percentile_ns(vitals.latencies_ns, 0.99)),
        },
        "spool": {
            "epoch": str(spool.epoch),
            "degraded": spool.degraded,
            "used_bytes": spool.used_bytes,
            "bytes_max": spool.bytes_max,
            "hours_left": None if spool.hours_left is None else round(spool.hours_left, 2),
            "first_to_go": list(spool.first_to_go),
            "epochs": list(map(str, spool.epochs)),
            "dropped": {str(lane): count for lane, count in vitals.dropped.items()},
            "lanes": {str(lane): _lane_document(vitals, lane) for lane in spool.lanes},
        },
        "links": [
            {
                "name": link.name,
                "up": link.up,
                "reason": link.reason,
                "since_seconds": round((vitals.now.mono_ns - link.since_mono_ns) * _NS, 1),
                "sent_bytes": link.sent_bytes,
                "connections": link.connections,
            }
            for link in vitals.links
        ],
        "resident_bytes": vitals.resident_bytes,
    }


def _lane_document(vitals: EdgeVitals, lane: Lane) -> dict[str, object]:
    status = vitals.spool.lanes[lane]
    return {
        "next_seq": status.next_seq,
        "pending_records": status.pending_records,
        "pending_bytes": status.pending_bytes,
        "waiting_records": status.waiting_records,
        "explained": _losses(vitals, lane),
        "bytes_per_second": round(status.bytes_per_second, 1),
        **lane_settings_document(status.settings),
        "refuses": _refuses(vitals.spool, lane),
    }


def lane_settings_document(settings: LaneSettings) -> dict[str, object]:
    """How a lane is kept. Lengths of time in seconds, sizes in bytes."""
    return {
        "linger_seconds": settings.linger_seconds,
        "quota_bytes": settings.bytes_max,
        "age_seconds_max": settings.age_seconds_max,
        "when_full": str(settings.when_full),
        "enabled": settings.enabled,
    }


def _losses(vitals: EdgeVitals, lane: Lane) -> dict[str, int]:
    """How many records of a lane will never arrive, by each reason that there is.

    ``shed`` are those that the spool did not take since the start of the session.
    """
    explained = vitals.spool.lanes[lane].explained
    shed = {Lane.DECISIONS: vitals.unrecorded, Lane.READINGS: vitals.readings_unrecorded}
    told = {str(why): explained.get(why, 0) for why in Explained}
    told |= {str(why): count for why, count in explained.items()}
    told[str(Explained.SHED)] += shed.get(lane, vitals.dropped.get(lane, 0))
    return told


def _refuses(spool: SpoolStatus, lane: Lane) -> str:
    """Why a lane takes nothing now; empty when it does."""
    status = spool.lanes[lane]
    held, used = status.pending_bytes, spool.used_bytes
    return spool.degraded or refusal(lane, status.settings, held, used, spool.bytes_max)


def edge_points(vitals: EdgeVitals) -> list[Point]:
    """The same as metric points: totals count from the start of the session."""
    points: list[Point] = [
        ("holdfast_decisions_total", vitals.decisions, _NO_LABELS),
        ("holdfast_decisions_unpublished_total", vitals.unpublished, _NO_LABELS),
        ("holdfast_decisions_unrecorded_total", vitals.unrecorded, _NO_LABELS),
        ("holdfast_broker_connected", vitals.broker.connected, _NO_LABELS),
        ("holdfast_broker_shed_total", vitals.broker.shed, _NO_LABELS),
        ("holdfast_broker_refused_total", vitals.broker.refused, _NO_LABELS),
        ("holdfast_spool_used_bytes", vitals.spool.used_bytes, _NO_LABELS),
        ("holdfast_spool_max_bytes", vitals.spool.bytes_max, _NO_LABELS),
        ("holdfast_spool_epochs", len(vitals.spool.epochs), _NO_LABELS),
        ("holdfast_spool_degraded", bool(vitals.spool.degraded), _NO_LABELS),
    ]
    points += [
        ("holdfast_decisions_fallback_total", count, {"reason": reason})
        for reason, count in vitals.fallbacks.items()
    ]
    for fate, count in vitals.readings.items():
        if isinstance(count, Mapping):
            points += [
                (f"holdfast_readings_{fate}_total", number, {"reason": str(reason)})
                for reason, number in count.items()
            ]
        elif isinstance(count, int):
            name = f"holdfast_readings_{fate}" + ("" if fate == "waiting" else "_total")
            points.append((name, count, _NO_LABELS))
    for lane in vitals.spool.lanes:
        points += _lane_points(vitals, lane)
    points += [("holdfast_link_up", link.up, {"link": link.name}) for link in vitals.links]
    for share, name in ((0.5, "0.5"), (0.99, "0.99")):
        latency_ns = percentile_ns(vitals.latencies_ns, share)
        if latency_ns is not None:
            points.append(
                ("holdfast_decision_latency_seconds", latency_ns * _NS, {"quantile": name})
            )
    if vitals.resident_bytes is not None:
        points.append(("process_resident_memory_bytes", vitals.resident_bytes, _NO_LABELS))
    return points


def _lane_points(vitals: EdgeVitals, lane: Lane) -> list[Point]:
    """A lane's points; of losses and quotas only those that there are."""
    status, labels = vitals.spool.lanes[lane], {"lane": str(lane)}
    quota = status.settings.bytes_max
    points: list[Point] = [
        ("holdfast_lane_pending_records", status.pending_records, labels),
        ("holdfast_lane_pending_bytes", status.pending_bytes, labels),
        ("holdfast_lane_refuses", bool(_refuses(vitals.spool, lane)), labels),
    ]
    if quota is not None:
        points.append(("holdfast_lane_quota_bytes", quota, labels))
    points += [
        ("holdfast_lane_lost_records", count, {**labels, "reason": why})
        for why, count in _losses(vitals, lane).items()
        if count
    ]
    return points


def _status(vitals: EdgeVitals) -> str:
    """One word: ``fine``; ``degraded`` where something is not as it should be."""
    broker = vitals.broker
    impaired = vitals.spool.degraded or not broker.connected or broker.refused_filters
    return "degraded" if impaired else "fine"


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else round(ns * _NS, 6)
