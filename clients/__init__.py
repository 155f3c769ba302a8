"""tensorbus clients: publish and subscribe, requests, and collectives, from training scripts.

import clients

bus = clients.connect("tcp://127.0.0.1:4870", name="trainer-0")
bus.publish("metrics/trainer-0/loss", {"step": 1, "loss": 0.31})
"""

from broker.errors import (
    BrokerError,
    CollectiveError,
    CollectiveMismatchError,
    ConnectError,
    ConnectionClosed,
    GenerationChangedError,
    InvalidValue,
    LimitExceeded,
    NoResponders,
    PermissionDenied,
    ProtocolError,
    RankTimeoutError,
    RequestFailed,
    TimeoutError,
)
from clients.client import Client, connect
from clients.core import Reconnected
from clients.groups import Group
from clients.messages import Message
from clients.subscriptions import Subscription
from clients.work import Work

__all__ = [
    "BrokerError",
    "Client",
    "CollectiveError",
    "CollectiveMismatchError",
    "ConnectError",
    "ConnectionClosed",
    "GenerationChangedError",
    "Group",
    "InvalidValue",
    "LimitExceeded",
    "Message",
    "NoResponders",
    "PermissionDenied",
    "ProtocolError",
    "RankTimeoutError",
    "Reconnected",
    "RequestFailed",
    "Subscription",
    "TimeoutError",
    "Work",
    "connect",
]
