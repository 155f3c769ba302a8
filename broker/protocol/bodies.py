"""Frame bodies: typed MessagePack, validated on the way in (docs/wire.md section 3)."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from broker.errors import ProtocolError
from broker.protocol.links import Peer, Reach
from broker.protocol.tensors import TensorMeta


class Hello(msgspec.Struct, tag="hello", omit_defaults=True):
    """What a client says first."""

    name: str
    token: str = ""
    tenant: str = ""
    client: str = ""
    """The client library and its version, for people."""
    process: int = 0
    """The process id, for people who look for a hanging rank."""
    host: str = ""
    shared: bool = False
    """Whether messages may come in shared memory."""
    local: bool = False
    """Whether the client is on the broker's host and would rather be told of a nearer way to it."""
    lines: int = 0
    """The version of lines (section 20) that the client can write; 0 for none."""
    choose: bool = False
    """Whether the client would like to know where else the broker listens."""
    worker: int = -1
    """Which of the broker's workers is meant, from 0; -1 of a client that knows nothing of workers."""
    workers: int = 0
    """How many the client has been told there are; 0 when it has not been told."""

    def __repr__(self) -> str:
        return (
            f"<Hello {self.name!r} token={'***' if self.token else None} tenant={self.tenant!r} process={self.process}>"
        )


class Welcome(msgspec.Struct, tag="welcome"):
    """The broker's answer: the session is open, and these are its limits."""

    session: int
    broker: str
    chunk_bytes: int
    publish_window_messages: int
    publish_window_bytes: int
    heartbeat_interval_ms: int
    heartbeat_timeout_ms: int
    life: int = 0
    """A number that no other broker has, and not this one after a restart: what it has told of topics holds as long."""
    shared: bool = False
    """Whether messages may be sent in shared memory, and come in it."""
    report_ms: int = 0
    """How often the client may tell of the times that messages take to reach it; 0 is never."""
    offers: list[str] = []
    """Where the broker listens, for a client that has asked for it."""
    workers: int = 0
    """How many workers the broker has, among which topics are spread; 0 where it is one."""
    device_bytes: int = 0
    """How much memory of devices the client may share as a publisher; 0 is none, and none comes either."""
    takes_back: bool = False
    """Whether LEAVE may name a JOIN for whose answer nobody waits any more."""


class Refusal(msgspec.Struct, tag="refusal", omit_defaults=True):
    """The broker's other answer."""

    code: int
    reason: str
    path: str = ""
    """With code 18: of the Unix-domain socket at which the same broker is."""
    life: int = 0
    """With code 18: as in Welcome, so that no other broker is taken for it."""


class Topic(msgspec.Struct, omit_defaults=True):
    """TOPIC: gives a number to a topic and, from the broker, its publisher."""

    name: str
    sender: str = ""


class MessageBody(msgspec.Struct, omit_defaults=True):
    """PUBLISH and DELIVER: what the receiving client needs besides the payload. The broker passes it on unread."""

    headers: dict[str, str] | None = None
    tensor: TensorMeta | None = None
    reply_to: str = ""
    request: int = 0
    """A number that no other request has; the same in every retry and in the replies."""
    last: bool = False
    """Of a reply: this responder is done."""
    error: str = ""
    """Of a reply: the responder's function raised."""
    responder: int = 0
    """Of a reply: the responder's session, to which credit for more replies goes."""
    end: bool = False
    """Of a last reply: it has no value, and says only that this responder is done."""


class Subscribe(msgspec.Struct, omit_defaults=True):
    """SUBSCRIBE: the wishes of a subscription."""

    filter: str
    overflow: str | None = None
    """None leaves it to what is declared for the filter, and without that it is `block`."""
    queue_messages: int = 1024
    queue_bytes: int = 64 << 20
    queue_group: str = ""
    replay: int | str | None = None
    responder: bool = False
    resume: int | None = None
    """Of a subscription that was cut off: the moment that DONE gave when it began, 0 when that was another broker's."""
    max_lag: int | None = None
    """How many sequences a message may be behind its topic's newest before it is dropped; only with `drop_oldest`."""
    devices: list[str] = []
    """UUIDs of devices in whose memory messages may lie."""


class Resume(msgspec.Struct):
    """RESUME: what a subscription that is about to come back has received."""

    seen: dict[str, tuple[int, int, int]]
    """By topic, the last sequence in each lane; 0 when none."""


class Settle(msgspec.Struct, omit_defaults=True):
    """SETTLE: what has become of jobs."""

    deliveries: list[int]
    """The numbers under which they were delivered."""
    refused: bool = False
    """They are not done, and are to be delivered again."""
    delay_ns: int = 0
    """Of refused ones: not before so long."""


class Line(msgspec.Struct):
    """LINE: where the readers of a line are, and by which eventfds they are woken."""

    places: list[int]
    bells: list[int]
    arenas: list[int] = []
    """In which messages may lie, by the numbers by which readers know them: all of them have mapped these."""
    shared_bytes_max: int = 0
    """And how long such a message may be."""
    keeps_messages: int = -1
    """How many messages the topic keeps, its newest aside: of older ones that no reader has any more, the publisher
    takes the memory back by itself. -1 from a broker that does not let it."""
    keeps_bytes: int = -1
    """And how many bytes."""


class Attach(msgspec.Struct):
    """ATTACH: a line to be read."""

    ring: int
    """The identity of its memory."""
    place: int
    """The identity of the reader's place."""
    subscriptions: list[int]
    """For which it is read."""


class Subscribed(msgspec.Struct, omit_defaults=True):
    """DONE, of a SUBSCRIBE that named no overflow: what the broker has decided."""

    overflow: str = "block"


class Declare(msgspec.Struct, omit_defaults=True):
    """DECLARE: settings for the topics that a filter matches; None is not set.

    `broker/topics/policy.py` says what each means and may be.
    """

    filter: str
    ring_messages: int | None = None
    ring_bytes: int | None = None
    retain: bool | None = None
    overflow: str | None = None
    batch_bytes: int | None = None
    batch_window_us: int | None = None
    lane: str | None = None
    max_message_bytes: int | None = None
    acknowledge: bool | None = None
    lease_s: float | None = None
    max_deliveries: int | None = None
    dead_letter: str | None = None

    def settings(self) -> dict[str, object]:
        """The settings by name, without the filter."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "filter"}


class PublishPolicy(msgspec.Struct, omit_defaults=True):
    """POLICY: what the publishers of a topic have to know; None is the protocol's default."""

    batch_bytes: int | None = None
    batch_window_us: int | None = None
    lane: str | None = None
    max_message_bytes: int | None = None


class Failure(msgspec.Struct, omit_defaults=True):
    """ERROR, STREAM_ABORT and CLOSE: a code of section 7 and words for people."""

    code: int
    reason: str
    limit: str = ""
    value: int = 0
    maximum: int = 0


class Join(msgspec.Struct, omit_defaults=True):
    """JOIN: a wish to be a member of a group."""

    group: str
    world_size: int
    rank: int | None = None
    timeout_ns: int = 0
    board: int = 0
    """The version of boards that this member can use; 0 is none."""
    links: Reach | None = None
    """How the others reach this member, if it can be linked with them."""


class Membership(msgspec.Struct, omit_defaults=True):
    """JOINED and CHANGED: a generation of a group."""

    generation: int
    ranks: list[int]
    rank: int = -1
    lost_ranks: list[int] = []
    board: int = 0
    """Of the generation's board, its identity; 0 when it has none."""
    board_bytes: int = 0
    peers: list[Peer] = []
    """All members, by ascending rank, if they are to be linked; LINKS then says whether they are."""
    secret: bytes = b""
    """Of the generation, by which its members know one another."""
    unlinked: str = ""
    """Why members that could be linked are not."""


class CollectiveFailure(msgspec.Struct, omit_defaults=True):
    """FAILED: why an operation or a join failed: one of the fields is set, `timeout_s` beside `missing_ranks`."""

    claims: dict[int, str] | None = None
    missing_ranks: list[int] | None = None
    timeout_s: float = 0.0
    text: str = ""
    gave_up: int | None = None
    missed: int | None = None
    """On a late rank only: its operation is forgotten, and so many have closed after it."""
    finished: bool = False
    """For a join: the members have finished."""


class TookPart(msgspec.Struct, omit_defaults=True):
    """TOOK_PART: who is in the result of an operation with a quorum."""

    ranks: list[int]
    carried: list[int] = []
    """The rank of each contribution to an earlier operation that is in it."""


_ENCODER: Final = msgspec.msgpack.Encoder()
encode_body = _ENCODER.encode
"""Any of the bodies above to bytes."""

Body = TypeVar("Body", bound=msgspec.Struct)
_DECODERS: Final[dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]]] = {}


def decode_body(data: bytes, kind: type[Body]) -> Body:
    """Bytes to one of the bodies above.

    Raises:
        ProtocolError: the bytes are not MessagePack, or not of this shape.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed {kind.__name__} body of {len(data)} bytes: {error}") from error
