"""The synchronous client with spans: what `clients.connect(..., tracing=True)` returns.

It is a class of its own, so that a client without spans does not even ask whether it should make some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker import conventions
from broker.conventions import PUBLISH, REQUEST, Attributes
from broker.limits import COLLECTIVE_TIMEOUT_S, QUEUE_BYTES, QUEUE_MESSAGES
from broker.telemetry import INTERNAL
from clients.client import Client
from clients.exchanges import Request
from clients.groups import Group
from clients.handlers import Handler
from clients.messages import Message
from clients.options import PUBLISH_TIMEOUT_S
from clients.partial import AUTO
from clients.processing import carried, processed, publishing, tracer
from clients.replies import Replies
from clients.subscriptions import Subscription


class TracedClient(Client):
    """As Client; publish, request and all_reduce make spans, and handlers and responders run in those of their
    messages."""

    def publish(
        self,
        topic: str,
        value: object,
        *,
        headers: Mapping[str, str] | None = None,
        lane: str | None = None,
        ack: str | None = None,
        urgent: bool = False,
        priority: int = 0,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> int | None:
        """As Client.publish, in a span; a message whose trace is recorded leaves at once, in no batch."""
        with publishing(PUBLISH, topic, self.name):
            return super().publish(
                topic,
                value,
                headers=carried(headers),
                lane=lane,
                ack=ack,
                urgent=urgent,
                priority=priority,
                timeout_s=timeout_s,
            )

    def subscribe(
        self,
        topic_filter: str,
        *,
        overflow: str | None = None,
        queue_messages: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
        queue_group: str | None = None,
        replay: str | int | None = None,
        max_lag: int | None = None,
        device: str | None = None,
        handler: Handler | None = None,
        timeout_s: float = 5.0,
    ) -> Subscription:
        """As Client.subscribe; a handler runs in a span. What `next` returns, `clients.processing` gives one."""
        return super().subscribe(
            topic_filter,
            overflow=overflow,
            queue_messages=queue_messages,
            queue_bytes=queue_bytes,
            queue_group=queue_group,
            replay=replay,
            max_lag=max_lag,
            device=device,
            handler=processed(handler) if callable(handler) else handler,
            timeout_s=timeout_s,
        )

    def respond(
        self,
        topic_filter: str,
        function: Callable[[Request], object],
        *,
        queue_group: str | None = None,
        device: str | None = None,
        timeout_s: float = 5.0,
    ) -> Subscription:
        """As Client.respond; the function runs in a span."""
        wrapped = processed(function) if callable(function) else function
        return super().respond(topic_filter, wrapped, queue_group=queue_group, device=device, timeout_s=timeout_s)

    def request(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float = 5.0,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
        device: str | None = None,
    ) -> Message:
        """As Client.request, in a span that lasts until the reply."""
        with publishing(REQUEST, topic, self.name):
            return super().request(
                topic, value, timeout_s=timeout_s, retries=retries, headers=carried(headers), lane=lane, device=device
            )

    def request_many(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float | None = 1.0,
        stall_s: float | None = None,
        max_replies: int | None = None,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
    ) -> Replies:
        """As Client.request_many; the request carries the context of the span in which this is called."""
        return super().request_many(
            topic,
            value,
            timeout_s=timeout_s,
            stall_s=stall_s,
            max_replies=max_replies,
            headers=carried(headers),
            lane=lane,
        )

    def group(
        self,
        name: str,
        *,
        world_size: int | None = None,
        rank: int | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        schedule: str = "auto",
        compression: str = "none",
    ) -> Group:
        """As Client.group; its all_reduce makes a span."""
        group = super().group(
            name, world_size=world_size, rank=rank, timeout_s=timeout_s, schedule=schedule, compression=compression
        )
        return TracedGroup(group._driver, group._place, group._compression)


class TracedGroup(Group):
    """As Group; all_reduce makes a span, of this rank. That of all ranks together is the broker's."""

    def all_reduce(  # type: ignore[override]
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
        quorum: float | None = None,
        deadline: float | str = AUTO,
        late: str = "carry",
        name: str = "",
        contribute: bool = True,
        compression: str | None = None,
        feedback: str | None = None,
    ) -> object:
        """As Group.all_reduce, in a span; of an asynchronous one, the span is that of its start."""
        attributes: Attributes = {
            conventions.GROUP: self.name,
            conventions.GENERATION: self.generation,
            conventions.RANK: self.rank,
        }
        with tracer().span(f"all_reduce {self.name}", INTERNAL, attributes):
            if quorum is not None:
                return super().all_reduce(
                    array, op, timeout_s=timeout_s, async_op=async_op, quorum=quorum, deadline=deadline, late=late,
                    name=name, contribute=contribute,
                )  # type: ignore[call-overload]  # fmt: skip
            return super().all_reduce(
                array, op, timeout_s=timeout_s, async_op=async_op, out=out, priority=priority,
                compression=compression, feedback=feedback,
            )  # type: ignore[call-overload]  # fmt: skip
