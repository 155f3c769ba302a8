"""tensorbus clients: publish and subscribe, requests, and collectives, from training scripts.

import clients

bus = clients.connect("tcp://127.0.0.1:4870", name="trainer-0")
bus.publish("metrics/trainer-0/loss", {"step": 1, "loss": 0.31})
"""

from broker.errors import (
    BrokerError,
    CollectiveAbortedError,
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
    ResponderLost,
    TimeoutError,
)
from broker.protocol.pressure import Pressure, SubscriptionPressure
from clients.client import Client, connect
from clients.core import Reconnected
from clients.exchanges import Request
from clients.gradients import GradientBuckets
from clients.groups import Group
from clients.messages import DEFERRED, Message
from clients.monitor import GroupStatus, Monitor, Snapshot, TrainerStatus
from clients.optimizers import SGD, Adam, Optimizer
from clients.parameter_server import ParameterServer
from clients.replies import Replies
from clients.subscriptions import Subscription
from clients.trainer import Pulled, Trainer
from clients.work import Work

__all__ = [
    "DEFERRED",
    "SGD",
    "Adam",
    "BrokerError",
    "Client",
    "CollectiveAbortedError",
    "CollectiveError",
    "CollectiveMismatchError",
    "ConnectError",
    "ConnectionClosed",
    "GenerationChangedError",
    "GradientBuckets",
    "Group",
    "GroupStatus",
    "InvalidValue",
    "LimitExceeded",
    "Message",
    "Monitor",
    "NoResponders",
    "Optimizer",
    "ParameterServer",
    "PermissionDenied",
    "ProtocolError",
    "Pressure",
    "Pulled",
    "RankTimeoutError",
    "Reconnected",
    "Replies",
    "Request",
    "RequestFailed",
    "ResponderLost",
    "Snapshot",
    "Subscription",
    "SubscriptionPressure",
    "TimeoutError",
    "Trainer",
    "TrainerStatus",
    "Work",
    "connect",
]
