"""The broker's state: events in, instructions out. Pure: no input or output, no clock."""

from broker.state.broker_state import BrokerState
from broker.state.settings import Settings

__all__ = ["BrokerState", "Settings"]
