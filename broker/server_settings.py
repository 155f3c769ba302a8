"""What the state has to know of the configuration, and what only the process can tell it."""

from __future__ import annotations

import resource
import time

from broker.config import Config
from broker.limits import REPORT_INTERVAL_MS
from broker.protocol import line
from broker.protocol.sharing import CommonMemory
from broker.security.audit import Audit
from broker.server_boards import board_maker
from broker.server_seat import Seat
from broker.state.settings import Settings
from broker.transport.shared_memory import SharedMemory


def settings_of(config: Config, audit: Audit, seat: Seat | None) -> Settings:
    """The settings of the state of one server.

    Args:
        config: the settings of the daemon.
        audit: where it is recorded who came and did what.
        seat: of one of several workers; None where the broker is one.
    """
    return Settings(
        name=config.name,
        wall_offset_ns=time.time_ns() - time.monotonic_ns(),
        sessions_max=config.sessions_max,
        half_open_max=config.half_open_max,
        connections_per_address_max=config.connections_per_address_max,
        subscriptions_per_session_max=config.subscriptions_per_session_max,
        hello_timeout_s=config.hello_timeout_s,
        heartbeat_interval_s=config.heartbeat_interval_s,
        heartbeat_timeout_s=config.heartbeat_timeout_s,
        ring_messages=config.ring_messages,
        ring_bytes=config.ring_bytes,
        publish_window_messages=config.publish_window_messages,
        publish_window_bytes=config.publish_window_bytes,
        shared_memory=config.shared_memory,
        device_memory_bytes=config.device_memory_bytes,
        arena_descriptor_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4 * 3,
        declarations=config.topics,
        audit=audit,
        permissions=config.permissions,
        quotas=config.tenants,
        report_ms=REPORT_INTERVAL_MS if config.latency_metrics else 0,
        worker=0 if seat is None else seat.number,
        workers=0 if seat is None else seat.count,
        boards=board_maker(enabled=config.shared_memory),
        line_memory=_line_memory if config.shared_memory and line.AVAILABLE else None,
    )


def _line_memory(size_bytes: int) -> CommonMemory:
    return SharedMemory.create(size_bytes, common=True)
