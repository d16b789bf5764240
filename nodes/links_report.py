"""The report of the links: what a forwarder says of them, as a document for people and programs.

A running node writes it into its state directory, as ``nodes.links_file`` says; ``holdfast links``
reads it there, and so does the node itself at its next start, since the day's budgets go on. Times
are in ms since 1970, lengths of time in seconds::

    {"at": …, "interval_seconds": …, "running": …,
     "links": [{"name": …, "up": …, "reason": …, …}],
     "spent": {"<link>": [<day since 1970>, <bytes>]}}
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from mesh.ports import LinkState
from mesh.transfer.schedule import LinkView, Spent, Why
from nodes.forwarder import ForwarderView
from schemas.limits import SEQ_MAX
from schemas.messages import Instant, Lane

__all__ = ["links_document", "spent_in"]

_NS: Final = 1e-9
_MS: Final = 1_000_000
_SENDING_MAX: Final = 4
_LINKS_MAX: Final = 64


def links_document(
    view: ForwarderView,
    spent: Mapping[str, Spent],
    now: Instant,
    interval_seconds: float,
    *,
    running: bool = True,
) -> dict[str, object]:
    """The document.

    Args:
        view: how the forwarder stands.
        spent: what each link sent on its newest day.
        now: this moment.
        interval_seconds: how long it may take until the next one at most.
        running: whether there will be a next one.
    """
    states = {state.name: state for state in view.links}
    return {
        "at": now.wall_ns // _MS,
        "interval_seconds": interval_seconds,
        "running": running,
        "links": [
            _link_document(view, states[link.rule.name], link, now) for link in view.schedule
        ],
        "spent": {name: [day, count] for name, (day, count) in spent.items()},
    }


def _link_document(
    view: ForwarderView, state: LinkState, link: LinkView, now: Instant
) -> dict[str, object]:
    rule, name = link.rule, state.name
    sending = view.sending.get(name, ())
    return {
        "name": name,
        "up": state.up,
        "reason": state.reason,
        "since_seconds": round((now.mono_ns - state.since_mono_ns) * _NS, 1),
        "connections": state.connections,
        "sent_bytes": state.sent_bytes,
        "bytes_per_second": _rounded(view.rates.get(name)),
        "bytes_per_second_max": rule.bytes_per_second,
        "bucket_bytes": _rounded(link.bucket_bytes),
        "bytes_per_day": rule.bytes_per_day,
        "bytes_today": link.spent_bytes,
        "bytes_left_today": link.left_bytes,
        "opens_in_seconds": _rounded(link.opens_seconds),
        "held_seconds": _rounded(link.held_seconds),
        "least_lane": rule.least,
        "carries": list(link.carries),
        "sending": list(sending[:_SENDING_MAX]),
        "sending_batches": len(sending),
        "waits": {
            str(lane): str(why)
            for lane in Lane
            if (why := view.plan.waits.get((name, lane), Why.NOTHING)) is not Why.NOTHING
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 1)


def spent_in(document: Mapping[str, Any]) -> Mapping[str, Spent]:
    """What a document says of the budgets; what makes no sense in it is passed over."""
    given = document.get("spent")
    if not isinstance(given, dict) or len(given) > _LINKS_MAX:
        return {}
    return {
        name: Spent(*pair)
        for name, pair in given.items()
        if isinstance(pair, list)
        and [type(part) for part in pair] == [int, int]
        and all(0 <= part <= SEQ_MAX for part in pair)
    }
