"""The context of a trace in a message's headers: `traceparent` of W3C Trace Context, level 1 (2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

TRACEPARENT: Final = "traceparent"
_FORM: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_SAMPLED: Final = 1


def is_recorded(headers: Mapping[str, str]) -> bool:
    """Whether headers have a valid context, of a trace that its publisher records (its flag `sampled` is set)."""
    traceparent = headers.get(TRACEPARENT)
    found = _FORM.fullmatch(traceparent) if traceparent is not None else None
    return found is not None and bool(int(found[1], 16) & _SAMPLED)
