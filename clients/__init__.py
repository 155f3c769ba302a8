"""tensorbus clients: publish and subscribe, requests, and collectives, from training scripts.

import clients

bus = clients.connect("tcp://127.0.0.1:4870", name="trainer-0")
bus.publish("metrics/trainer-0/loss", {"step": 1, "loss": 0.31})
"""

from types import ModuleType
from typing import TYPE_CHECKING

from broker.errors import (
    BrokerError,
    CollectiveAbortedError,
    CollectiveError,
    CollectiveMismatchError,
    ConnectError,
    ConnectionClosed,
    GenerationChangedError,
    GroupFinishedError,
    InvalidValue,
    LimitExceeded,
    NoResponders,
    PermissionDenied,
    ProtocolError,
    RankBehindError,
    RankTimeoutError,
    RequestFailed,
    ResponderLost,
    StateMismatchError,
    TimeoutError,
)
from broker.protocol.pressure import Pressure, SubscriptionPressure
from clients.asking.exchanges import Request
from clients.asking.replies import Replies
from clients.client import Client
from clients.collectives.partial import Partial
from clients.collectives.state_sync import Synced
from clients.connection.connecting import connect
from clients.connection.reconnected import Reconnected
from clients.digests import Digests
from clients.groups import Group
from clients.processing import processing
from clients.reading.messages import DEFERRED, Message
from clients.subscriptions import Subscription
from clients.training.elastic import Elastic, Step
from clients.training.gradients import GradientBuckets
from clients.training.local_sgd import DiLoCo, LocalSGD
from clients.training.monitor import GroupStatus, Monitor, Snapshot, TrainerStatus
from clients.training.optimizers import SGD, Adam, Optimizer
from clients.training.parameter_server import ParameterServer
from clients.training.trainer import Pulled, Trainer
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
    "DiLoCo",
    "Digests",
    "Elastic",
    "GenerationChangedError",
    "GroupFinishedError",
    "GradientBuckets",
    "Group",
    "GroupStatus",
    "InvalidValue",
    "LimitExceeded",
    "LocalSGD",
    "Message",
    "Monitor",
    "NoResponders",
    "Optimizer",
    "ParameterServer",
    "Partial",
    "PermissionDenied",
    "ProtocolError",
    "Pressure",
    "Pulled",
    "RankBehindError",
    "RankTimeoutError",
    "Reconnected",
    "Replies",
    "Request",
    "RequestFailed",
    "ResponderLost",
    "Snapshot",
    "StateMismatchError",
    "Step",
    "Subscription",
    "SubscriptionPressure",
    "Synced",
    "TimeoutError",
    "Trainer",
    "TrainerStatus",
    "Work",
    "connect",
    "processing",
]

if TYPE_CHECKING:
    from clients import aio as aio
else:

    def __getattr__(name: str) -> ModuleType:
        """`clients.aio`, without an import of its own: who needs it not does not wait until asyncio is loaded."""
        if name == "aio":
            import clients.aio

            return clients.aio
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
