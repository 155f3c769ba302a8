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
from clients.client import Client
from clients.connecting import connect
from clients.core import Reconnected
from clients.digests import Digests
from clients.elastic import Elastic, Step
from clients.exchanges import Request
from clients.gradients import GradientBuckets
from clients.groups import Group
from clients.local_sgd import DiLoCo, LocalSGD
from clients.messages import DEFERRED, Message
from clients.monitor import GroupStatus, Monitor, Snapshot, TrainerStatus
from clients.optimizers import SGD, Adam, Optimizer
from clients.parameter_server import ParameterServer
from clients.partial import Partial
from clients.processing import processing
from clients.replies import Replies
from clients.state_sync import Synced
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
