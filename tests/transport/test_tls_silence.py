"""The allowance of a peer that sends over TLS without saying anything, by a clock of the test's own."""

from __future__ import annotations

from broker.limits import TLS_SILENT_BYTES_MAX, TLS_SILENT_BYTES_PER_S
from broker.transport.tls.silence import RECORD_EXTRA_BYTES, Silence

KEY_CHANGE_BYTES = 5 + RECORD_EXTRA_BYTES
FRAME_BYTES = 52


def test_small_frames_without_end_are_no_silence() -> None:
    silence = Silence()
    for _ in range(10_000):
        silence.came(FRAME_BYTES + RECORD_EXTRA_BYTES)
        silence.said(FRAME_BYTES, 1)
        assert not silence.is_over(0.0)
    assert silence.bytes == 0


def test_what_is_said_between_changes_of_keys_does_not_pay_for_them() -> None:
    silence, changes = Silence(), 0
    while not silence.is_over(0.0):
        silence.came(KEY_CHANGE_BYTES + 1000 + RECORD_EXTRA_BYTES)
        silence.said(1000, 1)
        changes += 1
    assert changes == TLS_SILENT_BYTES_MAX // KEY_CHANGE_BYTES + 1


def test_so_much_a_second_is_let_pass_for_ever_and_more_is_not() -> None:
    silence = Silence()
    for second in range(1000):
        silence.came(TLS_SILENT_BYTES_PER_S)
        assert not silence.is_over(float(second))
    seconds = 1000.0
    while not silence.is_over(seconds):
        silence.came(2 * TLS_SILENT_BYTES_PER_S)
        seconds += 1.0
    assert seconds < 1010.0


def test_nobody_saves_up_by_saying_something() -> None:
    silence = Silence()
    silence.came(1 << 20)
    silence.said(1 << 20, 64)
    silence.came(TLS_SILENT_BYTES_MAX + 1)
    assert silence.is_over(0.0)


def test_what_nobody_has_looked_at_yet_is_no_silence() -> None:
    silence = Silence()
    silence.came(TLS_SILENT_BYTES_MAX + 100)
    assert not silence.is_over(0.0, unread_bytes=200)
    assert silence.is_over(0.0)
