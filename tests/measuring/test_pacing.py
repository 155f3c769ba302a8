"""When a paced message counts as begun."""

from __future__ import annotations

import time

from broker.measuring.pacing import send_paced


def test_messages_go_in_the_order_of_the_cycle_and_not_before_they_are_due() -> None:
    sent: list[bytes] = []
    began_ns = time.monotonic_ns()
    times_ns = send_paced(sent.append, [b"a", b"b"], 3, 1000.0, 0.001)
    assert sent == [b"a", b"b", b"a"]
    assert all(at >= began_ns + (1 + index) * 1_000_000 for index, at in enumerate(times_ns))


def test_a_message_that_a_slow_call_has_delayed_counts_from_when_it_was_due() -> None:
    def stall(payload: bytes) -> None:
        deadline = time.monotonic() + 0.02
        while time.monotonic() < deadline:
            pass

    # The first one counts from the wake-up, some time after it was due.
    _, second, third = send_paced(stall, [b""], 3, 1000.0, 0.0)
    assert third - second == 1_000_000
