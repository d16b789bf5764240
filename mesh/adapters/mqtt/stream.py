"""A non-blocking socket with a buffer on each side, shared by paho and the hot path.

paho takes a packet with three ``recv`` calls and sends each with its own ``send``; at tens of
thousands of messages a second that is most of the work. So paho is given this object in place of
its socket, as paho itself does for WebSockets: what it sends is appended to the same buffer as the
messages of the hot path, so packets never interleave, and what it receives is only what
``hand_over`` put aside for it.

Invariants. Whatever is written during one turn of the loop leaves in one ``send`` at its end. What
the kernel does not take stays in the buffer, in order, until the socket is writable. The buffer is
not bounded here: the caller asks ``unsent_bytes`` before it writes, and waits for ``on_room``.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

__all__ = ["BufferedSocket", "open_socket"]

# Large enough to empty what the kernel gathered while a group was worked on; beyond it a group
# waits longer for its first message than it gains.
_READ_BYTES: Final = 128 * 1024
# One send is worth its system call from here on, even in the middle of a turn of the loop: the
# kernel carries it while the rest is still being encoded.
_FLUSH_BYTES: Final = 64 * 1024

_NOT_NOW: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket:
    """What paho takes for its socket, and what the hot path reads and writes.

    Args:
        sock: connected, non-blocking, TLS already agreed.
        on_readable: called whenever bytes can be read.
        on_room: called when everything unsent has left.
        on_lost: called once with the error when writing fails.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_readable: Callable[[], None],
        on_room: Callable[[], None],
        on_lost: Callable[[OSError], None],
    ) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._loop = asyncio.get_running_loop()
        self._on_readable = on_readable
        self._on_room = on_room
        self._on_lost = on_lost
        self._for_paho = bytearray()
        self._unsent = bytearray()
        self._flush: asyncio.Handle | None = None
        self._waits_writable = False
        self._reading = False
        self._closed = False
        self.taken_bytes = 0
        """What the kernel has taken so far."""

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken yet."""
        return len(self._unsent)

    @property
    def reading(self) -> bool:
        """Whether ``on_readable`` is called."""
        return self._reading

    def pause(self) -> None:
        """Stops reading; the kernel's buffer fills and TCP slows the sender down."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Reads on."""
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._sock, self._on_readable)
            if self._tls:
                # What TLS has already decrypted makes no socket readable.
                self._loop.call_soon(self._on_readable)

    def read(self) -> bytes | None:
        """What has arrived: ``None`` for nothing now, ``b""`` for the end.

        Raises:
            OSError: the connection is broken.
        """
        if self._closed:
            return None
        try:
            return self._read_records() if self._tls else self._sock.recv(_READ_BYTES)
        except _NOT_NOW:
            return None

    def write(self, data: bytes) -> None:
        """Appends to what leaves at the end of this turn of the loop."""
        unsent = self._unsent
        unsent += data
        if self._flush is None and not self._waits_writable and not self._closed:
            self._flush = self._loop.call_soon(self.flush)
        if len(unsent) >= _FLUSH_BYTES and not self._waits_writable:
            self.flush()

    def flush(self) -> None:
        """Sends what the kernel takes now; the rest follows when the socket is writable."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._closed or not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except _NOT_NOW:
            sent = 0
        except OSError as error:
            self._unsent.clear()
            self._on_lost(error)
            return
        self.taken_bytes += sent
        del self._unsent[:sent]
        if not self._unsent:
            if self._waits_writable:
                self._waits_writable = False
                self._loop.remove_writer(self._sock)
            self._on_room()
        elif not self._waits_writable:
            self._waits_writable = True
            self._loop.add_writer(self._sock, self.flush)

    def hand_over(self, packets: bytes | bytearray) -> None:
        """Puts whole packets aside for paho's ``recv``."""
        self._for_paho += packets

    # From here on: what paho expects of a socket.

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes of what was handed over.

        Raises:
            BlockingIOError: nothing is left.
        """
        if not self._for_paho:
            raise BlockingIOError
        taken = bytes(self._for_paho[:size])
        del self._for_paho[:size]
        return taken

    def send(self, data: bytes | bytearray) -> int:
        """Takes everything.

        Raises:
            ConnectionError: it is closed.
        """
        if self._closed:
            raise ConnectionResetError("the connection is closed")
        self.write(bytes(data))
        return len(data)

    def pending(self) -> int:
        """How many bytes paho can take without waiting."""
        return len(self._for_paho)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001, the signature of a socket
        """Nothing to do: it never blocks."""

    def close(self) -> None:
        """Sends once more what is left, so that a DISCONNECT leaves; may be called twice."""
        if self._closed:
            return
        self.flush()
        self.pause()
        self._closed = True
        if self._waits_writable:
            self._waits_writable = False
            self._loop.remove_writer(self._sock)
        self._sock.close()

    def _read_records(self) -> bytes:
        """TLS hands out one record of at most 16 KiB a call: all that are there, up to a bound."""
        parts = [self._sock.recv(_READ_BYTES)]
        size = len(parts[0])
        try:
            while parts[-1] and size < _READ_BYTES:
                parts.append(self._sock.recv(_READ_BYTES))
                size += len(parts[-1])
        except _NOT_NOW:
            pass
        else:
            self._loop.call_soon(self._on_readable)
        return b"".join(parts)


async def open_socket(
    host: str, port: int, tls: ssl.SSLContext | None, queue_bytes_max: int | None = None
) -> socket.socket:
    """A connected, non-blocking socket with TCP_NODELAY, TLS agreed on where asked for.

    The caller sets the deadline. Addresses of the host are tried in the resolver's order.

    Args:
        host: name or address.
        port: of the broker.
        tls: the context; ``None`` for plain TCP.
        queue_bytes_max: how much the kernel takes beyond what it can send now; ``None`` for its
            own choice.

    Raises:
        OSError: that of the last address; ``ssl.SSLError`` is one.
    """
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(0)
            await loop.sock_connect(sock, address)
            # Nagle's algorithm holds a small decision back until the one before is acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if queue_bytes_max is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, queue_bytes_max)
            return await _agree_on_tls(sock, host, tls) if tls else sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _agree_on_tls(sock: socket.socket, host: str, tls: ssl.SSLContext) -> ssl.SSLSocket:
    secured = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(secured, writing=False)
            except ssl.SSLWantWriteError:
                await _ready(secured, writing=True)
            else:
                return secured
    except BaseException:
        secured.close()
        raise


async def _ready(sock: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock, set_ready)
    try:
        await ready
    finally:
        remove(sock)
