"""What a topic keeps: its newest messages, bounded in number and bytes, each with its sequence."""

from __future__ import annotations

from collections import deque

from broker.topics.messages import Message


class Ring:
    """The retained messages of one topic; the last one is the topic's last value.

    A message that is longer than the whole ring passes through the topic and is not kept; what was kept before it goes,
    so that the last value is never an older one than the topic's. The newest batch is kept whole, however many messages
    it has.
    """

    __slots__ = ("_messages", "bytes_max", "held_bytes", "held_messages", "messages_max", "next_sequence")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        """Args:
        messages_max: messages that are kept; 0 keeps none.
        bytes_max: bytes that are kept.
        """
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.next_sequence = 1
        self.held_messages = 0
        self.held_bytes = 0
        self._messages: deque[Message] = deque()

    def append(self, message: Message) -> int:
        """Keeps a message, whose sequence is `next_sequence`, and lets go of the oldest ones.

        Returns:
            By how many bytes more is held now; below 0 when less is.
        """
        before = self.held_bytes
        self.next_sequence += message.count
        messages = self._messages
        messages.append(message)
        message.holders += 1
        self.held_messages += message.count
        self.held_bytes += message.size_bytes
        if self.held_bytes > self.bytes_max or self.held_messages > self.messages_max:
            self._let_go()
        return self.held_bytes - before

    def _let_go(self) -> None:
        messages = self._messages
        least = 1 if self.messages_max else 0
        while messages and (
            self.held_bytes > self.bytes_max or (self.held_messages > self.messages_max and len(messages) > least)
        ):
            oldest = messages.popleft()
            self.held_messages -= oldest.count
            self.held_bytes -= oldest.size_bytes
            oldest.release()

    def discard(self, message: Message) -> int:
        """Forgets one message, whose publisher did not finish it; returns the bytes that were held of it."""
        if message not in self._messages:
            return 0
        self._messages.remove(message)
        self.held_messages -= message.count
        self.held_bytes -= message.size_bytes
        message.release()
        return message.size_bytes

    def clear(self) -> int:
        """Lets go of everything; returns the bytes that were held."""
        for message in self._messages:
            message.release()
        self._messages.clear()
        held_bytes, self.held_bytes, self.held_messages = self.held_bytes, 0, 0
        return held_bytes

    def last(self) -> list[Message]:
        """The last value, or nothing."""
        return [self._messages[-1]] if self._messages else []

    def since(self, sequence: int) -> list[Message]:
        """The retained messages from a sequence on, oldest first; a batch counts if any of it does."""
        return [message for message in self._messages if message.sequence + message.count > sequence]

    @property
    def oldest_sequence(self) -> int:
        """The oldest sequence that is kept; `next_sequence` when none is."""
        return self._messages[0].sequence if self._messages else self.next_sequence

    def __repr__(self) -> str:
        return f"<Ring {self.held_messages} messages {self.held_bytes} bytes next={self.next_sequence}>"
