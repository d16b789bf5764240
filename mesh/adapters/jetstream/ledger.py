"""Ledgers in a bucket of JetStream: port ``LedgerStore``.

One key for each partition, ``partition.<n>`` of the bucket ``ledger``; its revision, the number of
the message in the stream under the bucket, is the version. A write states which revision it
replaces, 0 for a key that is not there, and the server takes it only if that still is the last: the
replicated log is what decides between two workers. (NATS architecture decision record 8, key-value
store.) It is read from the stream's leader, not from any replica.
"""

import base64
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mesh.adapters.jetstream.connection import Connection
from mesh.adapters.jetstream.session import JetStreamError, Session, SessionSettings
from mesh.adapters.jetstream.streams import BUCKET, ensure_stream, shape_ledger
from mesh.ports import Clock, LinkState, Stored
from schemas.errors import Conflict, LinkDown
from schemas.limits import PARTITIONS

__all__ = ["JetStreamLedgerStore", "LedgerStoreSettings"]

_MESSAGE_NOT_FOUND: Final = 10037
_WRONG_LAST: Final = frozenset({10071, 10164})
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


@dataclass(frozen=True, slots=True)
class LedgerStoreSettings:
    """The settings of a ledger store.

    Args:
        session: where it connects.
        replicas: on how many servers a new bucket is kept.
    """

    session: SessionSettings
    replicas: int = 1


class JetStreamLedgerStore:
    """Keeps ledgers in JetStream: ``async with JetStreamLedgerStore(...) as store``.

    Entering does not wait for the network.

    Args:
        settings: where.
        clock: for the time of changes.
        rng: for the jitter of reconnections.
    """

    def __init__(self, settings: LedgerStoreSettings, clock: Clock, rng: random.Random) -> None:
        self._settings = settings
        self._connection = Connection(settings.session, clock, rng, self._prepare)

    def __repr__(self) -> str:
        return f"<JetStreamLedgerStore {self.state}>"

    @property
    def state(self) -> LinkState:
        """How its connection stands now."""
        return self._connection.state

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        return await self._connection.wait_changed(seen)

    async def load(self, partition: int) -> Stored:
        """The newest state.

        Raises:
            LinkDown: the store cannot be asked.
        """
        session = self._connection.session
        try:
            answer = await session.call(
                f"STREAM.MSG.GET.KV_{BUCKET}", {"last_by_subj": _key(partition)}
            )
        except JetStreamError as error:
            if error.code == _MESSAGE_NOT_FOUND:
                return Stored()
            raise
        try:
            found = answer["message"]
            return Stored(int(found["seq"]), base64.b64decode(found.get("data", "")))
        except (KeyError, TypeError, ValueError) as error:
            raise LinkDown(
                f"partition {partition}: the answer makes no sense: {error!r}"
            ) from error

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        """Replaces the state if its version is still ``version``; returns the new version.

        Raises:
            Conflict: another one came in between; nothing was changed.
            LinkDown: not known whether it was replaced: load, and look.
            Refused: ``too_large`` for the server; nothing was changed.
        """
        session = self._connection.session
        try:
            return await session.store(_key(partition), state, {_EXPECTED: str(version)})
        except JetStreamError as error:
            if error.code in _WRONG_LAST:
                raise Conflict(
                    f"partition {partition} is no longer at version {version}: {error.description}"
                ) from error
            raise

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    async def _prepare(self, session: Session) -> None:
        await ensure_stream(session, shape_ledger(self._settings.replicas))


def _key(partition: int) -> str:
    assert 0 <= partition < PARTITIONS, f"partition {partition} of {PARTITIONS}"
    return f"$KV.{BUCKET}.partition.{partition}"
