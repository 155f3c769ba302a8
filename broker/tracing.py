"""What the broker does to traced messages, and what groups do, as spans.

    publish (publisher)                      all_reduce (group)
      route (broker)                           rank 0: from its arrival to the end
        deliver (broker), for each subscriber  rank 1
      process (subscriber)

Messages are traced whose publisher says so by a flag; these never come in a batch, so no batch is opened for it, and
all others cost a look at a flag that is looked at anyway. Collectives become spans when they are over, from what their
group has recorded: so they cost their ranks nothing, and a group that does thousands in a second is sampled.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from broker import conventions
from broker.collectives.group import Group
from broker.collectives.recorder import Outcome, Recorded
from broker.conventions import DELIVER, ROUTE, of_message
from broker.errors import ProtocolError
from broker.protocol.bodies import MessageBody, decode_body
from broker.state import BrokerState
from broker.state.tenants import Tenant
from broker.state.topics import Router, TopicRecord
from broker.telemetry import Tracer
from broker.topics.messages import Message

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class _Followed:
    """A traced message on its way to subscribers."""

    __slots__ = ("_began_ns", "_span", "_topic", "_tracer")

    def __init__(self, tracer: Tracer, topic: str, span: Span, began_ns: int) -> None:
        self._tracer = tracer
        self._topic = topic
        self._span = span
        self._began_ns = began_ns

    def delivered(self, subscriber: str, queue_group: str) -> None:
        """It was handed to a subscriber's link."""
        attributes = of_message(DELIVER, self._topic) | {conventions.CLIENT: subscriber}
        if queue_group:
            attributes[conventions.CONSUMER_GROUP] = queue_group
        self._tracer.begin(f"{DELIVER} {self._topic}", attributes, self._began_ns, parent=self._span).end(
            time.time_ns()
        )


class Traces:
    """The spans of one broker; the thread of its state may call."""

    def __init__(self, state: BrokerState, tracer: Tracer) -> None:
        self._state = state
        self._tracer = tracer
        for tenant in state.tenants.values():
            self._follow(tenant)
        state.on_tenant = self._follow
        state.observing.told = self._collective

    def _follow(self, tenant: Tenant) -> None:
        tenant.publishing.traced = partial(self._route, tenant.router)

    def _route(self, router: Router, topic: TopicRecord, message: Message) -> None:
        try:
            headers = decode_body(message.body, MessageBody).headers
        except ProtocolError:
            # Its readers will see.
            headers = None
        if headers is None:
            router.route(topic, message)
            return
        began_ns = time.time_ns()
        attributes = of_message(ROUTE, topic.name) | {
            conventions.CLIENT: message.sender,
            conventions.BODY_BYTES: message.size_bytes - len(message.body),
        }
        span = self._tracer.begin(f"{ROUTE} {topic.name}", attributes, began_ns, carrier=headers)
        message.trace = _Followed(self._tracer, topic.name, span, began_ns)
        try:
            router.route(topic, message)
        finally:
            span.end(time.time_ns())

    def _collective(self, group: Group, operation: Recorded) -> None:
        arrived = operation.arrived_ns
        if not arrived:
            return
        offset_ns = time.time_ns() - time.monotonic_ns()
        first_ns, last_ns = min(arrived.values()), max(arrived.values())
        end_ns = max(operation.finished_ns, last_ns) + offset_ns
        claim = operation.claim
        kind = "collective" if claim is None else claim.kind.value
        attributes: conventions.Attributes = {
            conventions.GROUP: group.name,
            conventions.GENERATION: operation.generation,
            conventions.SEQUENCE: operation.sequence,
            conventions.SCHEDULE: operation.schedule,
            conventions.OUTCOME: operation.outcome.value,
            conventions.BYTES: 0 if claim is None else claim.nbytes,
        }
        whole = self._tracer.begin(f"{kind} {group.name}", attributes, first_ns + offset_ns)
        if operation.outcome is not Outcome.DONE:
            self._tracer.fail(whole, operation.failure or operation.outcome.value)
        for rank, came_ns in arrived.items():
            late: conventions.Attributes = {
                conventions.RANK: int(rank),
                conventions.LATENESS_S: (came_ns - first_ns) / 1e9,
            }
            self._tracer.begin(f"{kind} rank {rank}", late, came_ns + offset_ns, parent=whole).end(end_ns)
        whole.end(end_ns)

    def close(self) -> None:
        """Exports what waits."""
        self._tracer.close()
