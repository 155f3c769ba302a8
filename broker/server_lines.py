"""Lines as the broker makes them: shared memory that others write to as well."""

from __future__ import annotations

from broker.protocol.line import AVAILABLE
from broker.protocol.sharing import CommonMemory
from broker.state.lines import LineMemory
from broker.transport.shared_memory import SharedMemory


def _make(size_bytes: int) -> CommonMemory:
    return SharedMemory.create(size_bytes, common=True)


def line_memory(*, enabled: bool) -> LineMemory | None:
    """What makes memory for lines, where there can be lines."""
    return _make if enabled and AVAILABLE else None
