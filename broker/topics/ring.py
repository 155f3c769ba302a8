"""What a topic keeps: its newest messages, bounded in number and bytes, each with its sequence."""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.limits import RETAINED_BYTES_MAX
from broker.topics.messages import Message
from broker.topics.policy import TopicPolicy

_FEW: Final = 8
"""Messages up to which a tuple is as fast as a deque, which takes 760 bytes even when it holds nothing."""
_RETAINED_BYTES_MAX = RETAINED_BYTES_MAX


class Ring:
    """The retained messages of one topic; the last one is the topic's last value.

    A message that is longer than the whole ring passes through the topic and is not kept; what was kept before it goes,
    so that the last value is never an older one than the topic's. The newest batch is kept whole, however many messages
    it has. A ring that keeps its last message keeps it beyond both bounds.

    A large message that is still arriving is held beside the complete ones, within the same bounds, and pushes none of
    them out before it is complete: if its publisher dies, the last value is what it was.

    Attributes:
        held_messages: complete ones.
        held_bytes: of the complete ones.
    """

    __slots__ = (
        "_arriving",
        "_arriving_bytes",
        "_messages",
        "bytes_max",
        "held_bytes",
        "held_messages",
        "keeps_last",
        "messages_max",
        "next_sequence",
    )

    def __init__(self, messages_max: int, bytes_max: int, *, keeps_last: bool = False) -> None:
        """Args:
        messages_max: messages that are kept; 0 keeps none.
        bytes_max: bytes that are kept.
        keeps_last: whether the newest message is kept even if it is longer, or if no messages are kept.
        """
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.keeps_last = keeps_last
        self.next_sequence = 1
        self.held_messages = 0
        self.held_bytes = 0
        self._messages: deque[Message] | tuple[Message, ...] = ()
        self._arriving: tuple[Message, ...] = ()
        self._arriving_bytes = 0

    @classmethod
    def of(cls, policy: TopicPolicy) -> Ring:
        """An empty ring with a policy's bounds."""
        ring = cls(0, 0)
        ring.follow(policy)
        return ring

    def follow(self, policy: TopicPolicy) -> int:
        """Takes over the bounds of a policy, and lets go of what is over them.

        Returns:
            By how many bytes more is held now: 0, or below when less is.
        """
        before = self.held_bytes + self._arriving_bytes
        kept = policy.retain is not False
        self.messages_max = policy.ring_messages if kept else 0
        self.bytes_max = policy.ring_bytes if kept else 0
        self.keeps_last = policy.retain is True
        self._let_go()
        self._let_go_arriving()
        return self.held_bytes + self._arriving_bytes - before

    def append(self, message: Message) -> int:
        """Keeps a message, whose sequence is `next_sequence`, and lets go of the oldest ones.

        Returns:
            By how many bytes more is held now; below 0 when less is.
        """
        before = self.held_bytes
        self.next_sequence += message.count
        if message.stream is not None and not message.stream.complete:
            return self._append_arriving(message)
        messages = self._messages
        if isinstance(messages, tuple) and len(messages) < _FEW:
            self._messages = (*messages, message)
        else:
            self._many().append(message)
        message.holders += 1
        self.held_messages += message.count
        self.held_bytes += message.size_bytes
        if self.held_bytes > self.bytes_max or self.held_messages > self.messages_max:
            self._let_go()
        return self.held_bytes - before

    def _many(self) -> deque[Message]:
        """The complete messages, in what takes many of them."""
        messages = self._messages
        if isinstance(messages, tuple):
            messages = self._messages = deque(messages)
        return messages

    def _let_go(self) -> None:
        least = 1 if self.messages_max or self.keeps_last else 0
        while count := len(self._messages):
            if self.held_bytes <= self.bytes_max and (self.held_messages <= self.messages_max or count <= least):
                break
            if self.keeps_last and count == 1 and self.held_bytes <= _RETAINED_BYTES_MAX:
                break
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        messages = self._messages
        oldest = messages[0]
        if isinstance(messages, tuple):
            self._messages = messages[1:]
        else:
            messages.popleft()
        self.held_messages -= oldest.count
        self.held_bytes -= oldest.size_bytes
        oldest.release()

    def _append_arriving(self, message: Message) -> int:
        if message.size_bytes > (RETAINED_BYTES_MAX if self.keeps_last else self.bytes_max):
            return 0
        before = self._arriving_bytes
        self._arriving += (message,)
        self._arriving_bytes += message.size_bytes
        message.holders += 1
        self._let_go_arriving()
        return self._arriving_bytes - before

    def _let_go_arriving(self) -> None:
        least = 1 if self.keeps_last else 0
        while len(self._arriving) > least and (
            self._arriving_bytes > self.bytes_max or len(self._arriving) > self.messages_max
        ):
            self.discard(self._arriving[0])

    def finish(self, message: Message) -> int:
        """A large message is complete. It takes its place, or, when it was not held, ends that of the older ones.

        Returns:
            As `append`.
        """
        before, arriving = self.held_bytes, 0
        if message in self._arriving:
            message.holders += 1
            arriving = self.discard(message)
            messages = self._many()
            if not messages or messages[-1].sequence < message.sequence:
                messages.append(message)
            else:
                newer = []
                while messages and messages[-1].sequence > message.sequence:
                    newer.append(messages.pop())
                messages.append(message)
                messages.extend(reversed(newer))
            self.held_messages += message.count
            self.held_bytes += message.size_bytes
            self._let_go()
        else:
            while self._messages and self._messages[0].sequence < message.sequence:
                self._drop_oldest()
        return self.held_bytes - before - arriving

    def discard(self, message: Message) -> int:
        """Forgets a message that is arriving; returns the bytes that were held for it."""
        if message not in self._arriving:
            return 0
        if len(self._arriving) == 1:
            self._arriving = ()
        else:
            self._arriving = tuple([other for other in self._arriving if other is not message])
        self._arriving_bytes -= message.size_bytes
        message.release()
        return message.size_bytes

    def clear(self) -> int:
        """Lets go of everything; returns the bytes that were held."""
        held_bytes = self.held_bytes + self._arriving_bytes
        while self._messages:
            self._drop_oldest()
        self._messages = ()
        while self._arriving:
            self.discard(self._arriving[0])
        return held_bytes

    def last(self) -> list[Message]:
        """The last value, or nothing; behind it newer ones that are still arriving."""
        if not self._arriving:
            return [self._messages[-1]] if self._messages else []
        return self.since(self._messages[-1].sequence if self._messages else 0)

    def since(self, sequence: int) -> list[Message]:
        """The retained messages from a sequence on, oldest first; a batch counts if any of it does."""
        kept = [message for message in self._messages if message.sequence + message.count > sequence]
        if self._arriving:
            kept += [message for message in self._arriving if message.sequence >= sequence]
            kept.sort(key=lambda message: message.sequence)
        return kept

    @property
    def oldest_sequence(self) -> int:
        """The oldest sequence that is kept complete; `next_sequence` when none is."""
        return self._messages[0].sequence if self._messages else self.next_sequence

    def __repr__(self) -> str:
        return f"<Ring {self.held_messages} messages {self.held_bytes} bytes next={self.next_sequence}>"
