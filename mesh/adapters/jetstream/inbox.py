"""What a subscription brought: messages, and the queue in which they wait to be taken."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Self

from nats.aio.msg import Msg

from schemas.errors import LinkDown

__all__ = ["Inbox", "Message"]

_STATUS: Final = "Status"
_NO_RESPONDERS: Final = "503"


class Inbox:
    """A bounded queue of what one subscription brought."""

    def __init__(self, prefix: str, size: int, lose: Callable[[str], None]) -> None:
        self.prefix = prefix
        self._lose = lose
        self._reason = ""
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue(size)

    async def put(self, msg: Msg) -> None:
        """Takes one message; a server that sends more than was asked for loses the session."""
        try:
            self._queue.put_nowait(Message.of(msg))
        except asyncio.QueueFull:
            self._lose("the server sent more than was asked for")

    def end(self, reason: str) -> None:
        """Lets the reader know that nothing more will come."""
        self._reason = reason
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def take(self, reply: str, deadline: float) -> "tuple[list[Message], str]":
        """What has come, at least one; and the status that ends the request, if that came too.

        Args:
            reply: the reply subject of the request.
            deadline: until when, on the loop's clock, something must come.

        Raises:
            LinkDown: nothing came, the session is lost, or the consumer is gone.
        """
        group: list[Message] = []
        message: Message | None
        if self._queue.empty():
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self._queue.get()
            except TimeoutError:
                self._lose("JetStream does not answer a request for messages")
                raise LinkDown(self._reason) from None
        else:
            message = self._queue.get_nowait()
        while True:
            if message is None:
                raise LinkDown(self._reason)
            if not message.subject.startswith(self.prefix):
                group.append(message)
            elif message.subject == reply:
                return group, _checked(message)
            # Else it ends an earlier request, which we have left already.
            if self._queue.empty():
                return group, ""
            message = self._queue.get_nowait()

    async def take_answer(self, deadline: float) -> "Message":
        """The next message, whatever it is.

        Args:
            deadline: until when, on the loop's clock, it must come.

        Raises:
            LinkDown: nothing came, or the session is lost.
        """
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._queue.get()
        except TimeoutError:
            self._lose("JetStream does not answer a request for stored messages")
            raise LinkDown(self._reason) from None
        if message is None:
            raise LinkDown(self._reason)
        return message


class Message(NamedTuple):
    """What the server sent."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    data: bytes

    @classmethod
    def of(cls, msg: Msg) -> Self:
        """The library's message, as ours."""
        return cls(msg.subject, msg.reply, msg.headers or {}, msg.data)

    @property
    def is_no_responders(self) -> bool:
        """Whether the server says that nobody listens where we published."""
        return not self.data and self.headers.get(_STATUS) == _NO_RESPONDERS


def _checked(status: Message) -> str:
    """The code that ended a request for messages, unless there will never be any.

    Raises:
        LinkDown: the consumer is gone.
    """
    code = status.headers.get(_STATUS, "")
    words = status.headers.get("Description", "")
    if status.is_no_responders or "Consumer Deleted" in words:
        raise LinkDown(f"the consumer is gone: {words or code}")
    return code or "?"
