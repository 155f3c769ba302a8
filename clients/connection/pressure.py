"""How a topic fares, as the broker sees it: asked for by `bus.pressure`, of both kinds of client."""

from __future__ import annotations

from broker.protocol.bodies import decode_body, encode_body
from broker.protocol.frames import Kind
from broker.protocol.pressure import Pressure, Query
from broker.topics.names import check_topic
from clients.connection.operations import Deadline, Driver, answer, online


async def pressure(driver: Driver, topic: str, timeout_s: float | None) -> Pressure:
    """Asks the broker how a topic fares.

    Raises:
        InvalidValue: it is no topic.
        PermissionDenied: it is another client's inbox.
    """
    check_topic(topic, reserved=True)
    deadline = Deadline(timeout_s)
    await online(driver, deadline)
    pending = driver.core.ask(Kind.QUERY, f"the pressure on topic {topic!r}", body=encode_body(Query(topic)))
    await answer(driver, pending, deadline)
    return decode_body(pending.body, Pressure)
