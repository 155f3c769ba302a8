"""What waits to be sent on one session, in three lanes.

Frames are pulled when the link can take them, not pushed ahead of time: so a control message overtakes whatever has not
left yet, and a queue may still drop a message up to the moment at which it leaves. A lane holds ready frames and
sources; sources of a lane take turns, one frame each.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from broker.buffers import Buffer
from broker.protocol.frames import HEADER_BYTES, LANES, Frame, Lane, encode, payload_bytes

_CONTROL = int(Lane.CONTROL)
_HEADER_BYTES = HEADER_BYTES
BUFFERS_MAX: Final = 512
"""Buffers of one gathered write; the kernel takes 1,024."""
_BUFFERS_MAX = BUFFERS_MAX
_EMPTY: Final[deque[Frame | Source]] = deque(maxlen=0)
"""Stands for every lane in which nothing has waited yet: a deque of its own takes 760 bytes."""


class Source(Protocol):
    """Something that has frames when it is asked."""

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends the next frame's buffers and returns their bytes; 0 takes the source out of the outbox."""
        ...


class Outbox:
    """The frames of one session that have not been handed to the link."""

    __slots__ = ("_lanes", "control_bytes", "queued_bytes", "waiting")

    def __init__(self) -> None:
        self._lanes = [_EMPTY] * LANES
        self.waiting = 0
        """Frames and sources in all lanes."""
        self.queued_bytes = 0
        """Of ready frames; sources count for themselves."""
        self.control_bytes = 0
        """Of these, the ones in the control lane."""

    def put(self, frame: Frame) -> None:
        """Queues a ready frame in its lane."""
        self.attach(frame, frame.lane)
        size = _HEADER_BYTES + len(frame.body) + payload_bytes(frame.payload)
        self.queued_bytes += size
        if frame.lane == _CONTROL:
            self.control_bytes += size

    def attach(self, item: Frame | Source, lane: int) -> None:
        """Adds a source, which stays until it returns 0. The caller sees to it that a source is in a lane once."""
        waiting = self._lanes[lane]
        if waiting is _EMPTY:
            waiting = self._lanes[lane] = deque()
        waiting.append(item)
        self.waiting += 1

    def take(self, budget_bytes: int, buffers: list[Buffer]) -> int:
        """Appends frames of about `budget_bytes` for one gathered write; returns their bytes, 0 when nothing waits."""
        size = 0
        if not self.waiting:
            return 0
        for lane in self._lanes:
            while lane:
                item = lane.popleft()
                self.waiting -= 1
                if isinstance(item, Frame):
                    frame = item
                    encoded = encode(frame, buffers)
                    self.queued_bytes -= encoded
                    if frame.lane == _CONTROL:
                        self.control_bytes -= encoded
                    size += encoded
                else:
                    pulled = item.pull(buffers)
                    if not pulled:
                        continue
                    lane.append(item)
                    self.waiting += 1
                    size += pulled
                if size >= budget_bytes or len(buffers) >= _BUFFERS_MAX:
                    return size
        return size

    def clear(self) -> None:
        """Forgets everything."""
        for lane in self._lanes:
            lane.clear()
        self.waiting = self.queued_bytes = self.control_bytes = 0

    def __bool__(self) -> bool:
        return self.waiting > 0

    def __repr__(self) -> str:
        return f"<Outbox control={len(self._lanes[0])} default={len(self._lanes[1])} bulk={len(self._lanes[2])}>"
