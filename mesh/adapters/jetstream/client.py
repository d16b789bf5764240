"""nats-py's client, made to let go of a connection whose peer hangs."""

import asyncio

from nats.aio.client import Client
from nats.aio.transport import TcpTransport

__all__ = ["DroppableClient"]


class DroppableClient(Client):
    """A client of which ``abort`` and ``close`` never wait for the peer.

    The library offers no public way to drop a transport, and its own ``close`` first waits until
    the peer has read all that is pending, which a stopped process never does.
    """

    @property
    def is_reading(self) -> bool:
        """Whether the task that reads the socket lives; it can end without telling anybody."""
        return (
            not self.is_closed and self._reading_task is not None and not self._reading_task.done()
        )

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        transport = self._stream
        return 0 if transport is None else transport.get_write_buffer_size()

    def abort(self) -> None:
        """Drops the transport and all that was to be written to it, at once."""
        self._pending.clear()
        self._pending_data_size = 0
        transport = self._stream
        if transport is not None:
            transport.abort()

    @property
    def _stream(self) -> asyncio.WriteTransport | None:
        if isinstance(self._transport, TcpTransport) and self._transport:
            return self._transport._io_writer.transport  # type: ignore[union-attr]  # noqa: SLF001  # no public way: see above
        return None

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002  # the library's signature
        self.abort()
        if self._flush_queue is not None:
            await super()._close(status, do_cbs)
