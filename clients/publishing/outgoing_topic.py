"""A topic to which a client publishes: its number, its credit, what the broker has said about its messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from broker.errors import BrokerError, LimitExceeded, PermissionDenied, ProtocolError
from broker.limits import BATCH_BURST_MESSAGES, BATCH_BYTES, BATCH_BYTES_MAX, BATCH_WINDOW_NS, BATCH_WINDOW_US_MAX
from broker.protocol.batches import Batch
from broker.protocol.bodies import PublishPolicy
from broker.protocol.frames import Lane
from clients.connection.signals import Signal

if TYPE_CHECKING:
    from clients.publishing.alike import Alike
    from clients.publishing.line_out import LineOut
    from clients.publishing.streaming import StreamSource

LANES: Final[Mapping[str, int]] = {lane.name.lower(): int(lane) for lane in Lane}
NEVER: Final = 1 << 60
"""So many messages in close succession never come: no batch is opened."""
_DEFAULT: Final = int(Lane.DEFAULT)


class OutgoingTopic:
    """A topic to which this client publishes.

    Attributes:
        credit: ready while there is credit for another message.
        stream_over: ready while no large message is under way.
        special: whether a message has to be looked at before it is sent: the topic's policy names a lane or a longest
            message, or the broker has refused one.
        burst_messages: messages in close succession that open a batch.
        batch_bytes: a batch leaves when it holds so much.
        batch_window_ns: a batch leaves after this time.
        line: on which messages go to their readers, if there is one.
        lane: of messages that name none.
        max_message_bytes: the longest payload; None is any.
        alike: what is said of the arrays that it carries of late, if they are alike.
        refused: why the broker has refused a message, until somebody was told.
        denied: why it refuses all that is published, until it says otherwise.
    """

    __slots__ = (
        "alike", "batch", "batch_bytes", "batch_window_ns", "burst_messages", "credit", "credit_bytes",
        "credit_messages", "denied", "lane", "last_ns", "line", "max_message_bytes", "name", "number",
        "rapid", "refused", "special", "stream", "stream_over",
    )  # fmt: skip

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.credit_messages = 0
        self.credit_bytes = 0
        self.credit = Signal()
        self.stream: StreamSource | None = None
        self.stream_over = Signal(ready=True)
        self.batch: Batch | None = None
        self.line: LineOut | None = None
        self.alike: Alike | None = None
        self.last_ns = 0
        self.rapid = 0
        self.refused: BrokerError | None = None
        self.denied: PermissionDenied | None = None
        self.follow(PublishPolicy())

    def follow(self, policy: PublishPolicy) -> None:
        """Takes over what the broker says about the topic's messages.

        Raises:
            ProtocolError: it says something that cannot be.
        """
        if policy.lane is not None and policy.lane not in LANES:
            raise ProtocolError(f"POLICY of topic {self.name!r}: lane {policy.lane!r} is none of {', '.join(LANES)}")
        batch_bytes = BATCH_BYTES if policy.batch_bytes is None else policy.batch_bytes
        window_us = BATCH_WINDOW_NS // 1000 if policy.batch_window_us is None else policy.batch_window_us
        if not (0 <= batch_bytes <= BATCH_BYTES_MAX and 0 <= window_us <= BATCH_WINDOW_US_MAX):
            raise ProtocolError(f"POLICY of topic {self.name!r}: batches of {batch_bytes} bytes in {window_us} us")
        if policy.max_message_bytes is not None and policy.max_message_bytes < 1:
            raise ProtocolError(f"POLICY of topic {self.name!r}: messages of at most {policy.max_message_bytes} bytes")
        self.burst_messages = BATCH_BURST_MESSAGES if batch_bytes and window_us else NEVER
        self.batch_bytes, self.batch_window_ns = batch_bytes, window_us * 1000
        self.lane = LANES[policy.lane or "default"]
        self.max_message_bytes = policy.max_message_bytes
        # With each policy, permissions are asked anew.
        self.denied = None
        self._look()

    def refuse(self, error: BrokerError) -> None:
        """The broker has refused a message; the next one to publish, or to flush, is told."""
        self.refused = error
        if isinstance(error, PermissionDenied):
            self.denied = error
        self._look()

    def _look(self) -> None:
        refused = self.refused is not None or self.denied is not None
        self.special = refused or self.lane != _DEFAULT or self.max_message_bytes is not None

    def take_refusal(self) -> None:
        """Raises, once, what the broker has said about an earlier message."""
        error, self.refused = self.refused, None
        self._look()
        if error is not None:
            raise error

    def check(self, size_bytes: int, *, requests: bool) -> None:
        """Raises if a message must not be sent, or an earlier one was refused.

        Args:
            size_bytes: of its payload.
            requests: whether it is a request, which may be allowed where publishing is not.

        Raises:
            LimitExceeded: it is longer than the topic's policy allows, or the earlier one was.
            PermissionDenied: this client may not publish to the topic.
        """
        if self.denied is None:
            self.take_refusal()
        elif not requests:
            self.refused = None
            raise self.denied.again()
        if self.max_message_bytes is not None and size_bytes > self.max_message_bytes:
            advice = f"the policy of topic {self.name!r}: publish shorter messages, or declare another limit"
            raise LimitExceeded("max_message_bytes", size_bytes, self.max_message_bytes, advice)
