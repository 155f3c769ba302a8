"""When a subscription owes the broker credit."""

from __future__ import annotations

import pytest

from broker.limits import KIB, MIB, QUEUE_BYTES
from broker.protocol.bodies import Subscribe
from clients.reading.messages import Message, Publication
from clients.reading.subscription_state import SubscriptionState

PUBLICATION = Publication("a", "publisher")


def taken_until_due(state: SubscriptionState, size_bytes: int) -> int:
    """Bytes that are taken, message by message, until credit is due."""
    payload = bytes(size_bytes)
    for sequence in range(1, 10_000):
        state.append(Message(PUBLICATION, sequence, 0, 1, 1, b"", payload, None))
        assert state.take() is not None
        if state.credit_due:
            assert state.credit() is not None
            return sequence * size_bytes
    raise AssertionError("credit never became due")


@pytest.mark.parametrize("queue_bytes", [QUEUE_BYTES, MIB, 20 * MIB])
def test_on_a_line_credit_is_due_after_a_half_and_elsewhere_after_an_eighth(queue_bytes: int) -> None:
    state = SubscriptionState(1, Subscribe("a", queue_messages=1 << 20, queue_bytes=queue_bytes))
    size_bytes = 64 * KIB
    assert taken_until_due(state, size_bytes) == queue_bytes // 8
    state.lined(lined=True)
    assert taken_until_due(state, size_bytes) == queue_bytes // 2
    state.lined(lined=False)
    assert taken_until_due(state, size_bytes) == queue_bytes // 8
