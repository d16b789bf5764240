"""What the witness writes down, a JSON line each.

Readings that were published, decisions that were heard, batches that crossed.

::

    {"reading": n, "ns": t, "topic": "…", "digest": "…", "flaw": ""}      published; flaw names what
                                                                          was made wrong
    {"decision": seq, "ns": t, "epoch": "…", "lane": "…", "digest": "…",
     "verdict": "…", "ms": latency or null}                               heard
    {"batch": [first, last], "ns": t, "epoch": "…", "lane": "…"}          on its way in
    {"receipt": watermark, "ns": t, "epoch": "…", "lane": "…"}            on its way back
    {"handed over": …}, {"held": …}                                       the same at a gateway
    {"mark": "…", "ns": t}                                                what was done

``ns`` is the witness's own monotonic clock, so all times can be compared with each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from schemas.ranges import Ranges

__all__ = ["Lane", "Seen", "read"]

LaneKey = tuple[str, str]


@dataclass(slots=True)
class Lane:
    """What was seen of one (epoch, lane).

    Numbers on the broker, numbers on the wire, and how many of these came again.
    """

    heard: Ranges = field(default_factory=Ranges)
    crossed: Ranges = field(default_factory=Ranges)
    crossed_again: int = 0


@dataclass(slots=True)
class Seen:
    """What the witness saw, summed up.

    Args:
        readings: published readings, by number: when, and what was wrong with it.
        topics: where each of them was published, by number.
        decided: readings by number for which a decision was heard.
        answered: when the decision on a reading was heard, ns, by the reading's number.
        decisions: each decision that was heard: when (ns), epoch and lane, number.
        latencies_ms: from a reading's publication to its decision, where both were seen.
        heard_twice: decisions whose identity was heard before.
        lanes: by epoch and lane.
        receipts: when which watermark was seen, by epoch and lane.
        marks: when what was done, ns.
    """

    readings: dict[int, tuple[int, str]] = field(default_factory=dict)
    topics: dict[int, str] = field(default_factory=dict)
    decided: set[int] = field(default_factory=set)
    answered: dict[int, int] = field(default_factory=dict)
    decisions: list[tuple[int, LaneKey, int]] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    heard_twice: int = 0
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    receipts: dict[LaneKey, list[tuple[int, int]]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)

    def lane(self, epoch: str, lane: str) -> Lane:
        """What was seen of a lane."""
        return self.lanes.setdefault((epoch, lane), Lane())


def read(path: Path) -> Seen:
    """Reads a witness's log."""
    seen = Seen()
    numbers: dict[LaneKey, list[int]] = {}
    inputs: dict[str, int] = {}
    for line in _lines(path):
        if "reading" in line:
            seen.readings[line["reading"]] = (line["ns"], line["flaw"])
            seen.topics[line["reading"]] = line.get("topic", "")
            if line["digest"]:
                inputs[line["digest"]] = line["reading"]
        elif "decision" in line:
            key = (line["epoch"], line["lane"])
            seen.decisions.append((line["ns"], key, line["decision"]))
            numbers.setdefault(key, []).append(line["decision"])
            if line["digest"] in inputs:
                seen.decided.add(inputs[line["digest"]])
                seen.answered.setdefault(inputs[line["digest"]], line["ns"])
            if line["ms"] is not None:
                seen.latencies_ms.append(line["ms"])
        elif "batch" in line:
            first, last = line["batch"]
            lane = seen.lane(line["epoch"], line["lane"])
            crossing = Ranges(((first, last + 1),))
            lane.crossed_again += len(crossing & lane.crossed)
            lane.crossed |= crossing
        elif "receipt" in line:
            where = seen.receipts.setdefault((line["epoch"], line["lane"]), [])
            where.append((line["ns"], line["receipt"]))
        elif "mark" in line:
            seen.marks[line["mark"]] = line["ns"]
    for key, heard in numbers.items():
        distinct = set(heard)
        seen.heard_twice += len(heard) - len(distinct)
        seen.lane(*key).heard = Ranges.of((number, number + 1) for number in distinct)
    return seen


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield orjson.loads(line)
