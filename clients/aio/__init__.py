"""The asynchronous client: `await clients.aio.connect(...)` gives the names of `clients.Client` as coroutines."""

from clients.aio.client import Client, connect
from clients.aio.digests import Digests
from clients.aio.gradients import GradientBuckets
from clients.aio.groups import Group
from clients.aio.local_sgd import DiLoCo, LocalSGD
from clients.aio.replies import Replies
from clients.aio.subscriptions import Subscription
from clients.aio.work import Work

__all__ = [
    "Client",
    "DiLoCo",
    "Digests",
    "GradientBuckets",
    "Group",
    "LocalSGD",
    "Replies",
    "Subscription",
    "Work",
    "connect",
]
