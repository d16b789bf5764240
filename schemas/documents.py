"""What people and PLCs read, as JSON: decisions, state, and any record in the archive.

JSON says times in milliseconds UTC, digests in hex, identities by their words. ``schemas.wire`` is
canonical, this is not: nothing is digested or signed over JSON, and nothing is read back from it.
Keys never change their meaning; new ones may be added.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import lru_cache

import orjson

from schemas.messages import Decision, Epoch, Identity, Lane, NodeState, Origin, Record
from schemas.ranges import Ranges

__all__ = ["decision_json", "record_json", "state_json", "to_json"]

_MS = 1_000_000
# Dataclasses go through _plain, which knows our types; words of an enumeration may be keys.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS


def decision_json(site: str, identity: Identity, decision: Decision) -> bytes:
    """The payload of a decision on its topic.

    Args:
        site: of the node.
        identity: where the record stands.
        decision: the record.
    """
    wall_ms = decision.wall_ns // _MS
    before, after = _constant(site, identity.node, identity.epoch, identity.lane, decision.origin)
    varying = orjson.dumps(
        {
            "verdict": decision.verdict,
            "confidence": decision.confidence,
            "values": dict(zip(decision.origin.labels, decision.values, strict=False)),
            "reasons": decision.reasons,
            "inputs": decision.inputs,
            "input_digest": decision.input_digest.hex(),
            "read_at": decision.read_ns // _MS,
            "decided_at": wall_ms,
            "valid_until": wall_ms + decision.valid_for_ms,
            "valid_for_ms": decision.valid_for_ms,
            "replay": decision.replay,
            "trace_id": decision.trace.hex(),
        }
    )
    return b"%b%d%b%b" % (before, identity.seq, after, varying[1:])


@lru_cache(maxsize=4096)
def _constant(
    site: str, node: str, epoch: Epoch, lane: Lane, origin: Origin
) -> tuple[bytes, bytes]:
    """What all decisions of one source and epoch say alike: before their number, and after it."""
    identity = orjson.dumps({"node": node, "epoch": str(epoch), "lane": lane})
    shared = orjson.dumps(
        {
            "site": site,
            "name": origin.name,
            "topic": origin.topic,
            "model": {
                "name": origin.model_name,
                "version": origin.model_version,
                "digest": origin.model_digest.hex(),
            },
            "policy_digest": origin.policy_digest.hex(),
            "session": origin.session,
        }
    )
    return b'{"identity":%b,"seq":' % identity[:-1], b"},%b," % shared[1:-1]


def state_json(state: NodeState) -> bytes:
    """The payload of a node's retained state: its birth, and as its will with ``online`` false."""
    return to_json(
        {
            "site": state.site,
            "node": state.node,
            "session": state.session,
            "online": state.online,
            "since": state.since_wall_ns // _MS,
            "epoch": state.epoch,
            "details": state.details,
        }
    )


def record_json(record: Record) -> bytes:
    """Any record as JSON with its own field names, for archives and screens."""
    return to_json(record)


def to_json(value: object) -> bytes:
    """Any message, or what JSON can say, as JSON: bytes in hex, sets of numbers as ``"3-7, 9"``."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Ranges | Epoch):
        return str(value)
    if isinstance(value, IntEnum):
        return value.name.lower()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
