"""The words of spans: OpenTelemetry's semantic conventions for messaging, pinned here and nowhere else.

They are still in development, and names change from version to version: whoever takes a newer one changes this module.
What has no name there begins with `tensorbus.`.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "1.30.0"
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{VERSION}"

SYSTEM: Final = "messaging.system"
SYSTEM_VALUE: Final = "tensorbus"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
CLIENT: Final = "messaging.client.id"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
BODY_BYTES: Final = "messaging.message.body.size"

PUBLISH: Final = "publish"
REQUEST: Final = "request"
ROUTE: Final = "route"
DELIVER: Final = "deliver"
PROCESS: Final = "process"
OPERATION_TYPES: Final = {PUBLISH: "send", REQUEST: "send", PROCESS: "process"}
"""Of the operations that have one; what a broker does between its clients has none."""

GROUP: Final = "tensorbus.group.name"
GENERATION: Final = "tensorbus.group.generation"
SEQUENCE: Final = "tensorbus.collective.sequence"
SCHEDULE: Final = "tensorbus.collective.schedule"
OUTCOME: Final = "tensorbus.collective.outcome"
RANK: Final = "tensorbus.rank"
LATENESS_S: Final = "tensorbus.rank.lateness_s"
BYTES: Final = "tensorbus.collective.bytes"

Attributes = dict[str, str | int | float]


def of_message(operation: str, topic: str) -> Attributes:
    """The attributes that every span of a message has."""
    found: Attributes = {SYSTEM: SYSTEM_VALUE, OPERATION_NAME: operation, DESTINATION: topic}
    if operation in OPERATION_TYPES:
        found[OPERATION_TYPE] = OPERATION_TYPES[operation]
    return found
