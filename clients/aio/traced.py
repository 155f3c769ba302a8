"""The asynchronous client with spans: what `clients.aio.connect(..., tracing=True)` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.conventions import PUBLISH, REQUEST
from broker.limits import QUEUE_BYTES, QUEUE_MESSAGES
from clients.aio.client import Client, Handler
from clients.aio.replies import Replies
from clients.aio.subscriptions import Subscription
from clients.exchanges import Request
from clients.messages import Message
from clients.options import PUBLISH_TIMEOUT_S
from clients.processing import carried, processed, publishing


class TracedClient(Client):
    """As Client; `clients.traced.TracedClient` says what has a span."""

    async def publish(
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
        """As Client.publish, in a span."""
        with publishing(PUBLISH, topic, self.name):
            return await super().publish(
                topic,
                value,
                headers=carried(headers),
                lane=lane,
                ack=ack,
                urgent=urgent,
                priority=priority,
                timeout_s=timeout_s,
            )

    async def subscribe(
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
        """As Client.subscribe; a handler runs in a span."""
        return await super().subscribe(
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

    async def respond(
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
        return await super().respond(topic_filter, wrapped, queue_group=queue_group, device=device, timeout_s=timeout_s)

    async def request(
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
            return await super().request(
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
