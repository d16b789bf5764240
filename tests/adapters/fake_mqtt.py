"""An MQTT 5 broker of a few lines that answers each publication as it is told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["AnsweringBroker"]


class AnsweringBroker:
    """Speaks just enough MQTT 5 to answer publications.

    Args:
        answer: the reason code for a payload; ``None`` for no answer.
        properties: those of the CONNACK, encoded.
        suback_code: what it grants each filter.
        on_subscribe: what it sends in the same segment as the SUBACK.
        bytes_per_second: how fast it reads what is published; ``None`` for at once.
    """

    def __init__(
        self,
        answer: Callable[[bytes], int | None] = lambda _payload: 0,
        *,
        properties: bytes = b"",
        suback_code: int = 1,
        on_subscribe: bytes = b"",
        bytes_per_second: int | None = None,
    ) -> None:
        self.answer = answer
        self.suback_code = suback_code
        self.published: list[tuple[str, bytes]] = []
        """Topic and payload of what was published, so far."""
        self.acknowledged: list[int] = []
        """Packet ids that the client acknowledged, so far."""
        self.most_under_way = 0
        self.port = 0
        self._properties = properties
        self._on_subscribe = on_subscribe
        self._bytes_per_second = bytes_per_second
        self._under_way = 0

    @asynccontextmanager
    async def serving(self) -> "AsyncIterator[AnsweringBroker]":
        """Listens on ``port`` of 127.0.0.1; every connection is ended at the end."""
        writers: list[asyncio.StreamWriter] = []

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            self._under_way = 0
            try:
                while True:
                    await self._take(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        listener = socket.socket()
        if self._bytes_per_second is not None:
            # What waits in buffers has left the sender, and is not read yet.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(one, sock=listener, limit=4096)
        self.port = listener.getsockname()[1]
        try:
            yield self
        finally:
            for writer in writers:
                writer.close()
            server.close()
            await server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readexactly(1))[0]
        length, shift, more = 0, 0, True
        while more:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift, more = shift + 7, byte >= 0x80
        body = await self._read(reader, length)
        match head & 0xF0:
            case 0x10:
                properties = bytes([len(self._properties)]) + self._properties
                writer.write(bytes([0x20, 2 + len(properties), 0, 0]) + properties)
            case 0x30:
                await self._published(body, writer)
            case 0x40:
                self.acknowledged.append(int.from_bytes(body[:2]))
            case 0x80:
                suback = b"\x90\x04" + body[:2] + b"\0" + bytes([self.suback_code])
                writer.write(suback + self._on_subscribe)
            case 0xC0:
                writer.write(b"\xd0\x00")

    async def _read(self, reader: asyncio.StreamReader, length: int) -> bytes:
        if self._bytes_per_second is None:
            return await reader.readexactly(length)
        body = b""
        while len(body) < length:
            piece = await reader.readexactly(min(2048, length - len(body)))
            await asyncio.sleep(len(piece) / self._bytes_per_second)
            body += piece
        return body

    async def _published(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        name = int.from_bytes(body[:2])
        packet_id, payload = body[2 + name : 4 + name], body[5 + name :]
        self.published.append((body[2 : 2 + name].decode(), payload))
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        code = self.answer(payload)
        # Others that are under way can come before the answer.
        await asyncio.sleep(0)
        if code is not None:
            self._under_way -= 1
            writer.write(b"\x40\x03" + packet_id + bytes([code]))
