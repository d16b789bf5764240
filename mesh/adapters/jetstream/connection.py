"""One NATS connection to JetStream, kept up for ever.

It is made of *sessions*, one life of a connection each. nats-py never reconnects by itself here:
this module decides when the next session is made, with growing and jittered pauses, without end.
A connection counts as up once ``prepare`` has done its round trips on it, so *up* means that
JetStream answers, not only that a socket is open. Whoever holds a session after it was lost gets
``LinkDown`` from each call.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from mesh.adapters.jetstream.session import Session, SessionSettings
from mesh.ports import Clock, LinkState
from schemas.errors import LinkDown, MeshError

__all__ = ["Connection"]

_BACKOFF_DOUBLINGS_MAX: Final = 16


class Connection:
    """Keeps one session up, or the next one coming: ``async with Connection(...)``.

    Entering does not wait for the network.

    Args:
        settings: where to connect.
        clock: for the time of changes.
        rng: for the jitter of reconnections.
        prepare: round trips after which a session counts as up; what it raises takes it down.
        serve: runs as long as the session lives; what it raises takes it down.
    """

    def __init__(
        self,
        settings: SessionSettings,
        clock: Clock,
        rng: random.Random,
        prepare: Callable[[Session], Awaitable[None]],
        serve: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._prepare = prepare
        self._serve = serve
        self._tasks = asyncio.TaskGroup()
        self._running: asyncio.Task[None] | None = None
        self._stopping = False
        self._session: Session | None = None
        self._changed = asyncio.Event()
        self._state = LinkState(
            name=settings.name, up=False, reason="not started", since_mono_ns=clock.now().mono_ns
        )

    def __repr__(self) -> str:
        return f"<Connection {self._state}>"

    @property
    def state(self) -> LinkState:
        """How it stands now; ``sent_bytes`` is left to its user."""
        return self._state

    @property
    def session(self) -> Session:
        """The session that is up.

        Raises:
            LinkDown: none is, with the reason.
        """
        if self._session is None:
            raise LinkDown(f"{self._settings.name} is down: {self._state.reason}")
        return self._session

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        while (self._state.up, self._state.connections) == (seen.up, seen.connections):
            await self._changed.wait()
        return self._state

    async def wait_up(self) -> Session:
        """The session that is up, as soon as one is."""
        while self._session is None:
            await self._changed.wait()
        return self._session

    def reset(self, reason: str) -> None:
        """Loses the session that is up, so that the next one is made; fine when there is none."""
        if self._session is not None:
            self._session.lose(reason)

    async def __aenter__(self) -> Self:
        self._move(up=False, reason="connecting")
        await self._tasks.__aenter__()
        self._running = self._tasks.create_task(self._run(), name=self._settings.name)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._running is not None, "entered before"
        # The library may swallow a cancellation: the flag is looked at wherever it could have.
        self._stopping = True
        self._running.cancel()
        # The group is not told of the error: it would wrap it, and it is not the group's.
        await self._tasks.__aexit__(None, None, None)
        self._move(up=False, reason="stopped")

    async def _run(self) -> None:
        failures = 0
        while True:
            failures = 0 if await self._live() else failures + 1
            if self._stopping:
                return
            await asyncio.sleep(self._pause(failures))

    async def _live(self) -> bool:
        """One session, from connecting to its loss; whether it came up."""
        session = Session(self._settings)
        try:
            try:
                await session.open()
                await self._prepare(session)
            except MeshError as error:
                self._move(up=False, reason=str(error))
                return False
            if not (self._stopping or session.lost.is_set()):
                await self._keep(session)
            return True
        finally:
            session.lose("closed")
            await session.close()

    async def _keep(self, session: Session) -> None:
        def down() -> None:
            self._session = None
            self._move(up=False, reason=session.reason)

        session.on_lost = down
        self._session = session
        self._move(up=True, reason="")
        async with asyncio.TaskGroup() as tasks:
            duties = [tasks.create_task(session.watch())]
            if self._serve is not None:
                duties.append(tasks.create_task(_until_lost(self._serve, session)))
            try:
                await session.lost.wait()
            finally:
                # Lost first, cancelled then: the library may swallow a cancellation, and what
                # goes on after one ends at the sight of a lost session.
                session.lose("stopped")
                for duty in duties:
                    duty.cancel()

    def _move(self, *, up: bool, reason: str) -> None:
        before = self._state
        since = before.since_mono_ns if up == before.up else self._clock.now().mono_ns
        connections = before.connections + (up and not before.up)
        self._state = LinkState(self._settings.name, up, reason, since, 0, connections)
        if up != before.up:
            self._changed.set()
            self._changed = asyncio.Event()

    def _pause(self, failures: int) -> float:
        doubled = 2.0 ** min(failures, _BACKOFF_DOUBLINGS_MAX)
        longest = self._settings.reconnect_seconds_max
        return min(longest, self._settings.reconnect_seconds_min * doubled) * self._rng.uniform(
            0.5, 1.0
        )


async def _until_lost(serve: Callable[[Session], Awaitable[None]], session: Session) -> None:
    try:
        await serve(session)
    except MeshError as error:
        session.lose(str(error))
