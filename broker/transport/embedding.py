"""How a broker starts for an inproc:// name at which nobody listens; apart from inproc.py, which imports much."""

from __future__ import annotations

from collections.abc import Callable

_factory: Callable[[str], None] | None = None


def set_broker_factory(factory: Callable[[str], None] | None) -> None:
    """Says how to start a broker for a name at which nobody listens.

    Args:
        factory: called with the name, from the thread that dials, one call at a time; when it returns, a broker listens
            at the name. It may raise a BrokerError. None: a name must be listened at before it is dialled.
    """
    global _factory
    _factory = factory


def broker_factory() -> Callable[[str], None] | None:
    """What was set last."""
    return _factory
