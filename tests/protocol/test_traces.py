"""`traceparent` in headers, as W3C Trace Context says."""

from __future__ import annotations

import pytest

from broker.protocol.traces import is_recorded

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("traceparent", "recorded"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}-1", False),
        (f"00-{TRACE}-{SPAN}", False),
        ("", False),
        ("rubbish", False),
    ],
)
def test_a_trace_is_recorded_when_its_context_is_valid_and_says_so(traceparent: str, recorded: bool) -> None:
    assert is_recorded({"traceparent": traceparent}) is recorded


def test_headers_without_a_context_have_no_trace() -> None:
    assert not is_recorded({"a": "b"})
