"""The settings of the broker's state, as plain values."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from broker import limits
from broker.protocol.bodies import Welcome
from broker.security.audit import Audit, unrecorded
from broker.security.permissions import Permissions
from broker.security.quotas import Quotas
from broker.state.boards import BoardMaker
from broker.state.lines import LineMemory
from broker.topics.policy import Declaration


@dataclass(frozen=True, slots=True)
class Settings:
    """What a BrokerState needs to know from the configuration.

    Attributes:
        name: what the broker calls itself.
        life: a number that no other broker has, nor this one when it starts again.
        wall_offset_ns: wall-clock time minus monotonic time at the start, for the stamps of the broker's own messages.
        shared_memory: whether clients on this host may send and receive messages in shared memory.
        device_memory_bytes: how much memory of devices each publisher may share with readers on this host; 0 is none.
        arena_descriptor_max: the highest number that the descriptor of an arena may have, so that others are left.
        declarations: policies of topics that the configuration fixes.
        permissions: who may do what.
        quotas: of tenants by name; `*` is of all others.
        audit: where it is recorded who connected, was refused, was denied and changed what.
        line_memory: makes memory of so many bytes for a line; raises InvalidValue or LimitExceeded where there is none.
            None when there are no lines.
        report_ms: how often clients tell of the times that messages take to reach them, in milliseconds; 0 is never.
        worker: which of the broker's workers this is, from 0.
        workers: how many there are, among which topics are spread; 0 where the broker is one.
        boards: what makes the boards of groups whose members are all on this host; None when there are none.
    """

    name: str = "tensorbus"
    life: int = field(default_factory=lambda: secrets.randbits(63))
    wall_offset_ns: int = 0
    sessions_max: int = limits.SESSIONS_MAX
    half_open_max: int = limits.HALF_OPEN_MAX
    connections_per_address_max: int = limits.CONNECTIONS_PER_ADDRESS_MAX
    subscriptions_per_session_max: int = limits.SUBSCRIPTIONS_PER_SESSION_MAX
    hello_timeout_s: float = limits.HELLO_TIMEOUT_S
    heartbeat_interval_s: float = limits.HEARTBEAT_INTERVAL_S
    heartbeat_timeout_s: float = limits.HEARTBEAT_TIMEOUT_S
    ring_messages: int = limits.RING_MESSAGES
    ring_bytes: int = limits.RING_BYTES
    publish_window_messages: int = limits.PUBLISH_WINDOW_MESSAGES
    publish_window_bytes: int = limits.PUBLISH_WINDOW_BYTES
    shared_memory: bool = True
    device_memory_bytes: int = 0
    arena_descriptor_max: int = (1 << 31) - 1
    declarations: tuple[Declaration, ...] = ()
    permissions: Permissions = field(default_factory=Permissions)
    quotas: Mapping[str, Quotas] = field(default_factory=lambda: MappingProxyType({}))
    audit: Audit = unrecorded
    report_ms: int = 0
    worker: int = 0
    workers: int = 0
    boards: BoardMaker | None = None
    line_memory: LineMemory | None = None

    def welcome(self, session: int, offers: list[str], *, shared: bool) -> Welcome:
        """What a client is told when it is let in.

        Args:
            session: its session's number.
            offers: where else it may find the broker.
            shared: whether memory is shared with it.
        """
        return Welcome(
            session=session,
            broker=self.name,
            chunk_bytes=limits.CHUNK_BYTES,
            publish_window_messages=self.publish_window_messages,
            publish_window_bytes=self.publish_window_bytes,
            heartbeat_interval_ms=int(self.heartbeat_interval_s * 1000),
            heartbeat_timeout_ms=int(self.heartbeat_timeout_s * 1000),
            life=self.life,
            shared=shared,
            report_ms=self.report_ms,
            offers=offers,
            workers=self.workers,
            device_bytes=self.device_memory_bytes if shared else 0,
            takes_back=True,
        )
