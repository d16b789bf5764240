"""The streams of the mesh at JetStream: names, shapes, and how they come to be.

``MESH_UP`` takes the batches that nodes send, whole or the last part of one, ``mesh.v1.*.*.up.*``:
a work queue on disk, which refuses when it is full, so that a sender keeps what does not fit.
``MESH_PARTS`` takes the other parts, ``mesh.v1.*.*.part.*.*``: each stays until its batch was
taken, and a day at most. ``MESH_DOWN`` takes what is said to nodes, ``mesh.v1.*.*.down.*``, and
keeps the newest message of each subject. ``KV_ledger`` holds one key for each partition of the
ledger.

The receiving end makes them, and brings those that are there to the shape that it needs. What an
operator has changed beyond that, the number of replicas say, it leaves alone.
"""

from collections.abc import Mapping
from typing import Any, Final

from mesh.adapters.jetstream.session import JetStreamError, Session

__all__ = [
    "BUCKET",
    "CONSUMER",
    "STREAM_DOWN",
    "STREAM_PARTS",
    "STREAM_UP",
    "ensure_stream",
    "shape_down",
    "shape_ledger",
    "shape_parts",
    "shape_up",
]

STREAM_UP: Final = "MESH_UP"
STREAM_PARTS: Final = "MESH_PARTS"
STREAM_DOWN: Final = "MESH_DOWN"
CONSUMER: Final = "ingest"
BUCKET: Final = "ledger"

_PARTS_SECONDS_MAX: Final = 86_400
_NANOSECONDS: Final = 1_000_000_000
_STREAM_NOT_FOUND: Final = 10059


def shape_up(bytes_max: int, replicas: int) -> dict[str, Any]:
    """The stream of parts.

    Args:
        bytes_max: how much waits in it before it refuses.
        replicas: on how many servers a new one is kept.
    """
    return {
        "name": STREAM_UP,
        "subjects": ["mesh.v1.*.*.up.*"],
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "max_bytes": bytes_max,
        "num_replicas": replicas,
    }


def shape_parts(bytes_max: int, replicas: int) -> dict[str, Any]:
    """The stream of parts that wait for the others of their batch.

    A part that comes again takes the place of the one before.

    Args:
        bytes_max: how much waits in it before it refuses.
        replicas: on how many servers a new one is kept.
    """
    return {
        "name": STREAM_PARTS,
        "subjects": ["mesh.v1.*.*.part.*.*"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_bytes": bytes_max,
        "max_age": _PARTS_SECONDS_MAX * _NANOSECONDS,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "num_replicas": replicas,
    }


def shape_down(replicas: int) -> dict[str, Any]:
    """The stream of what is said to nodes.

    Args:
        replicas: on how many servers a new one is kept.
    """
    return {
        "name": STREAM_DOWN,
        "subjects": ["mesh.v1.*.*.down.*"],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "num_replicas": replicas,
    }


def shape_ledger(replicas: int) -> dict[str, Any]:
    """The stream under the bucket of ledgers, as a NATS KV bucket has it.

    Args:
        replicas: on how many servers a new one is kept.
    """
    return {
        "name": f"KV_{BUCKET}",
        "subjects": [f"$KV.{BUCKET}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "num_replicas": replicas,
    }


async def ensure_stream(session: Session, shape: Mapping[str, Any]) -> None:
    """Makes a stream, or gives the one that is there this shape.

    Args:
        session: where.
        shape: what must hold; of a stream that is there all else stays, its replicas too.

    Raises:
        LinkDown: JetStream does not answer, or does not allow it.
    """
    name = shape["name"]
    try:
        present = (await session.call(f"STREAM.INFO.{name}", {}))["config"]
    except JetStreamError as error:
        if error.code != _STREAM_NOT_FOUND:
            raise
        await session.call(f"STREAM.CREATE.{name}", shape)
        return
    wanted = present | dict(shape) | {"num_replicas": present.get("num_replicas", 1)}
    if wanted != present:
        await session.call(f"STREAM.UPDATE.{name}", wanted)
